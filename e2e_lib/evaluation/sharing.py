"""Scores of photo sharing: was a photo shared when it should be, and does it show what it should."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from e2e_lib.data.minichat.scenes import ATTRIBUTES

CORE_ATTRIBUTES = ("thing", "colour", "place")


def intent_scores(predicted: Sequence[bool], gold: Sequence[bool]) -> dict[str, float]:
    """Precision, recall and F1 (each 0 to 1) of sharing a photo in a response, against whether the gold response does.

    Where a score has nothing to count it is 0, as scikit-learn does by default: the precision when no photo was
    shared, the recall when no gold response shares one, and the F1 when both hold.
    Raises ValueError when the lists are empty or differ in length.
    """
    if len(predicted) != len(gold) or len(gold) == 0:
        raise ValueError(f"expected as many predictions as gold responses, at least one of each; got {len(predicted)} predictions "
                         f"and {len(gold)} gold responses")
    hits = sum(bool(p and g) for p, g in zip(predicted, gold, strict=True))
    shared, wanted = sum(map(bool, predicted)), sum(map(bool, gold))
    return {
        "intent_precision": hits / shared if shared else 0.0,
        "intent_recall": hits / wanted if wanted else 0.0,
        "intent_f1": 2 * hits / (shared + wanted) if shared + wanted else 0.0,
    }


def scene_accuracy(drawn: Sequence[Mapping[str, Any] | None], gold: Sequence[Mapping[str, Any]],
                   attributes: Iterable[str] = tuple(ATTRIBUTES)) -> dict[str, float | int]:
    """The share of a gold photo's attributes that the drawn photo has too, over all N gold photos.

    ``drawn[i]`` is what the scene reader saw in the photo drawn for gold photo i, or None when none was drawn: that is
    **wrong in every attribute**, so that a model cannot gain by drawing only what it is sure of. (Photos drawn where the
    gold response has none are not looked at here; they lower the intent precision.) ``gold[i]`` holds the true values.
    ``attributes`` must include thing, colour and place.

    Returns ``scene_<attribute>`` (0 to 1) for each of ``attributes``; ``scene_accuracy``, the mean of those of thing, colour
    and place; ``scene_n``, the number of gold photos; and ``scene_missing``, how many of them got no drawn photo.
    Note that groups of two or three are always small, so ``scene_size`` is easier than it looks.
    Raises ValueError when the lists are empty or differ in length, or a photo lacks an attribute.
    """
    names = tuple(attributes)
    if lacking := [name for name in CORE_ATTRIBUTES if name not in names]:
        raise ValueError(f"attributes: {', '.join(lacking)} missing from {', '.join(names) or 'an empty list'}; "
                         f"scene accuracy needs {', '.join(CORE_ATTRIBUTES)}")
    if len(drawn) != len(gold) or len(gold) == 0:
        raise ValueError(f"expected one entry (a photo's attributes or None) for each gold photo, at least one; got {len(drawn)} drawn "
                         f"and {len(gold)} gold")
    for side, photos in (("drawn", drawn), ("gold", gold)):
        for row, photo in enumerate(photos):
            if photo is None and side == "drawn":
                continue
            if photo is None or any(name not in photo for name in names):
                raise ValueError(f"{side}[{row}]: expected a value for each of {', '.join(names)}; got {photo!r}")
    scores: dict[str, float | int] = {
        f"scene_{name}": sum(d is not None and d[name] == g[name] for d, g in zip(drawn, gold, strict=True)) / len(gold) for name in names
    }
    return {
        "scene_accuracy": sum(scores[f"scene_{name}"] for name in CORE_ATTRIBUTES) / len(CORE_ATTRIBUTES),
        **scores,
        "scene_n": len(gold),
        "scene_missing": sum(d is None for d in drawn),
    }
