"""Every score of section 3.1.3, once: of a run's answers as they are, or of sets made of them.

Answers are reduced to counts, values and features per example. A score is a function of these and of how
often each example counts: weights of ones give the test set's score, others (``intervals.left_out``)
those of the test set without some dialogues. Axes: E examples, K sets, N photos.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from e2e_lib.data.examples import Example, Response
from e2e_lib.data.photos import PhotoSource
from e2e_lib.evaluation import image, text
from e2e_lib.evaluation.image import FeatureExtractor, PhotoFeatures, features_of
from e2e_lib.evaluation.intervals import Array
from e2e_lib.evaluation.sharing import intent_scores, sharing_counts


class Metric(NamedTuple):
    """How a score is shown: its name, which way is ``better`` ("higher" or "lower"), and what it is."""

    label: str
    better: str
    meaning: str


# The scores that are shown, in order. A star: by the features of the corpus's own extractor, not Inception's.
METRICS: dict[str, Metric] = {
    "bleu1": Metric("BLEU-1", "higher", "share of the reply's words that the gold reply has too, times a "
                    "penalty for short replies (0-100)"),
    "bleu2": Metric("BLEU-2", "higher", "the same for pairs of neighbouring words, of order 2 alone (0-100)"),
    "bleu2_cumulative": Metric("BLEU-2, cumulative", "higher", "Papineni's: mean of orders 1 and 2 (0-100)"),
    "rougeL": Metric("ROUGE-L", "higher", "F1 of the longest common subsequence of words, lower-cased and "
                     "without punctuation (0-100)"),
    "rougeL_whitespace": Metric("ROUGE-L, white space", "higher", "the same of words as they stand between "
                                "blanks, as the paper's authors compute it (0-100)"),
    "caption_bleu": Metric("caption BLEU-2, cumulative", "higher", "the same of captions (0-100)"),
    "intent_f1": Metric("intent F1", "higher", "does it share a photo where the gold reply does (0-1)"),
    "is": Metric("IS*", "higher", "clear and varied photos, as classified (1 to the number of classes)"),
    "fid": Metric("FID*", "lower", "distance of drawn from gold photos; biased upwards by small numbers"),
    "kid": Metric("KID*", "lower", "a distance like FID without the bias; may fall slightly below 0"),
}
# Those of the same photos by Inception, where its weights were given (``image.inception_scores``).
INCEPTION_METRICS: dict[str, Metric] = {
    "inception_is": Metric("IS", "higher", "clear and varied photos, as Inception classifies them (1-1008)"),
    "inception_fid": Metric("FID", "lower", "distance by Inception's features, as is usual"),
    "inception_kid": Metric("KID", "lower", "the same without the bias; may fall slightly below 0"),
}


class CorpusScores(Protocol):
    """What only one corpus can score: means of values of single answers. A method ``counts(rows)`` may give
    further numbers to save beside the scores; those under "n" describe the test set."""

    metrics: Mapping[str, Metric]

    def questions(self, examples: Sequence[Example]) -> list[tuple[Example, dict[str, Any]]]:
        """Contexts to answer besides the test examples, each with what ``values`` needs to judge a reply."""

    def annotate(self, examples: Sequence[Example], responses: Sequence[Response]) -> list[dict[str, Any]]:
        """What is to be saved with each answer, as JSON values, so that ``values`` can score it later."""

    def values(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The values (0 to 1) of a saved answer or reply to a question, by score; nan or none if not due."""


@dataclass(frozen=True)
class Answers:
    """A run's answers to E examples, replies to the corpus's questions among them. Where an example has no
    such score, counts are 0 and values nan."""

    dialogue_ids: list[str]
    texts: Array  # (E, 6) text.ngram_counts
    rouge: Array  # (E,) 0 to 1
    rouge_whitespace: Array  # (E,) 0 to 1
    captions: Array  # (E, 6)
    sharing: Array  # (E, 3) sharing.sharing_counts
    values: dict[str, Array]  # of each of the corpus's own scores (E,)
    drawn: PhotoFeatures
    drawn_rows: NDArray[np.int64]  # (N,) the examples that the photos belong to
    gold: PhotoFeatures
    gold_rows: NDArray[np.int64]
    counts: dict[str, Any]  # to save beside the scores


def answer_row(example: Example, response: Response) -> dict[str, Any]:
    """An answer as it is saved: a row of ``answers.jsonl``, to which a corpus may add."""
    gold = example.response.photos
    return {"dialogue_id": example.dialogue_id, "index": example.index, "text": response.text,
            "captions": response.captions, "gold_text": example.response.text,
            "gold_captions": [photo.caption for photo in gold],
            "gold_photo_ids": [photo.photo_id for photo in gold]}


def reduce(rows: Sequence[Mapping[str, Any]], drawn: PhotoFeatures, gold: PhotoFeatures,
           corpus: CorpusScores | None = None) -> Answers:
    """Reduces saved answers (``answer_row``, with "images", the photos that were drawn) and replies to
    questions; ``drawn`` and ``gold`` are photos' features in the order of rows. Of several photos in one
    answer the captions are scored together. Raises ValueError where the number of photos is another."""
    texts = [(row["text"], row["gold_text"]) if row.get("gold_text") else None for row in rows]
    captions = [(" ".join(row["captions"]), " ".join(row["gold_captions"])) if row.get("gold_photo_ids")
                else None for row in rows]
    numbers = {"drawn": [len(row.get("images") or ()) for row in rows],
               "gold": [len(row.get("gold_photo_ids") or ()) for row in rows]}
    at = {name: np.arange(len(rows)).repeat(of_rows) for name, of_rows in numbers.items()}
    for name, photos in (("drawn", drawn), ("gold", gold)):
        if len(at[name]) != len(photos):
            raise ValueError(f"{len(at[name])} {name} photos in the answers, but features of {len(photos)}")

    def rouge(function: Callable[[str, str], float]) -> Array:
        return np.array([function(*pair) if pair else np.nan for pair in texts])

    def ngrams(pairs: list[tuple[str, str] | None]) -> Array:
        counts = [text.ngram_counts(*pair) if pair else [0] * text.COUNTS for pair in pairs]
        return np.array(counts, dtype=np.float64).reshape(-1, text.COUNTS)

    sharing = np.array([sharing_counts(bool(row.get("captions")), bool(row.get("gold_photo_ids")))
                        for row in rows], dtype=np.float64)
    values = [corpus.values(row) if corpus else {} for row in rows]
    names = dict.fromkeys([*(corpus.metrics if corpus else ()), *(name for row in values for name in row)])
    counts = dict(corpus.counts(rows)) if corpus and hasattr(corpus, "counts") else {}
    n = {"examples": sum("gold_text" in row for row in rows), "texts": len(rows) - texts.count(None),
         "gold_photos": len(gold), **counts.pop("n", {})}
    return Answers(
        [row["dialogue_id"] for row in rows], ngrams(texts),
        rouge(text.rouge_l), rouge(text.rouge_l_whitespace), ngrams(captions),
        sharing.reshape(-1, 3), {name: np.array([row.get(name, np.nan) for row in values]) for name in names},
        drawn, at["drawn"], gold, at["gold"], {"drawn_photos": len(drawn), **counts, "n": n})


Score = Callable[[Answers, Array], Array]


def _bleu(field: str, name: str) -> Score:
    return lambda answers, weights: np.array([text.bleu(counts)[name] if counts[-1] else np.nan
                                              for counts in weights @ getattr(answers, field)])


def _intent(name: str) -> Score:
    return lambda answers, weights: np.array([intent_scores(row)[name] for row in weights @ answers.sharing])


def _photos(function: Callable[[PhotoFeatures, PhotoFeatures], float]) -> Score:
    """Of each set's photos, drawn and gold, repeated as often as they count; nan below two of a side."""
    def score(answers: Answers, weights: Array) -> Array:
        sides, scores = ((answers.drawn, answers.drawn_rows), (answers.gold, answers.gold_rows)), []
        for row in weights.astype(np.int64):
            photos = [side.take(torch.arange(len(side)).repeat_interleave(torch.from_numpy(row[at])))
                      for side, at in sides]
            scores.append(function(*photos) if min(map(len, photos)) > 1 else np.nan)
        return np.array(scores)
    return score


def _mean(values: Array, weights: Array) -> Array:
    due = ~np.isnan(values)
    counted = weights[:, due].sum(1)
    return np.where(counted > 0, weights[:, due] @ values[due] / np.maximum(counted, 1), np.nan)


# Each takes answers and weights (K, E) and gives (K,), nan where a set has nothing to score.
SCORES: dict[str, Score] = {
    **{name: _bleu("texts", name) for name in ("bleu1", "bleu2", "bleu1_cumulative", "bleu2_cumulative")},
    "rougeL": lambda answers, weights: 100 * _mean(answers.rouge, weights),
    "rougeL_whitespace": lambda answers, weights: 100 * _mean(answers.rouge_whitespace, weights),
    "caption_bleu": _bleu("captions", "bleu2_cumulative"),  # order 2 alone does not see captions of one word
    "caption_bleu1": _bleu("captions", "bleu1"), "caption_bleu2": _bleu("captions", "bleu2"),
    **{name: _intent(name) for name in ("intent_precision", "intent_recall", "intent_f1")},
    "is": _photos(lambda drawn, gold: image.inception_score(drawn)[0]),
    "is_std": _photos(lambda drawn, gold: image.inception_score(drawn)[1]),
    "fid": _photos(image.fid),
    "kid": _photos(lambda drawn, gold: image.kid(drawn, gold)[0]),
    "kid_std": _photos(lambda drawn, gold: image.kid(drawn, gold)[1]),
}


def score(name: str, answers: Answers, weights: Array) -> Array:
    """A score of ``SCORES`` or the corpus's own, under ``weights`` (K, E): (K,), nan where there is none."""
    return SCORES[name](answers, weights) if name in SCORES else _mean(answers.values[name], weights)


def score_once(name: str, answers: Answers) -> float | None:
    """A score of the answers as they are; None where there is nothing to score."""
    value = float(score(name, answers, np.ones((1, len(answers.dialogue_ids))))[0])
    return None if np.isnan(value) else value


def all_scores(answers: Answers) -> dict[str, Any]:
    """Every score of a run; ``n`` holds the numbers that they were computed on."""
    scores = {name: score_once(name, answers) for name in (*SCORES, *answers.values)}
    return {**scores, "sacrebleu_signature": text.bleu_signature(), **answers.counts}


def dev_scores(examples: Sequence[Example], responses: Sequence[Response], store: PhotoSource,
               extractor: FeatureExtractor) -> dict[str, Any]:
    """``bleu2`` (0 if no gold response has text) and ``fid`` (None below two photos) of dev answers."""
    rows = [answer_row(*pair) | {"images": pair[1].photos} for pair in zip(examples, responses, strict=True)]
    drawn = [photo for response in responses for photo in response.photos]
    gold = [store.tensor(photo_id) for row in rows for photo_id in row["gold_photo_ids"]]
    answers = reduce(rows, features_of(drawn, extractor), features_of(gold, extractor))
    return {"bleu2": score_once("bleu2", answers) or 0.0, "fid": score_once("fid", answers)}
