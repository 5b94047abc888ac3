"""Scores of photo sharing: was a photo shared when it should be (section 3.1.3)?"""

from collections.abc import Sequence


def sharing_counts(shares: bool, due: bool) -> list[int]:
    """Of a response: does it rightly share a photo, does it share one, should it?"""
    return [int(shares and due), int(shares), int(due)]


def intent_scores(counts: Sequence[float]) -> dict[str, float]:
    """Precision, recall and F1 (0 to 1) of sharing a photo, from the sum of responses' ``sharing_counts``.
    A score with nothing to count is 0, as scikit-learn has it by default."""
    right, shared, due = counts
    return {"intent_precision": right / shared if shared else 0.0,
            "intent_recall": right / due if due else 0.0,
            "intent_f1": 2 * right / (shared + due) if shared + due else 0.0}
