"""Is one system better than another? Paired bootstrap over test dialogues, with intervals and corrected p-values (for section 3.2).

Every system answers the same test contexts. A draw of the bootstrap takes as many dialogues as there are, with replacement; the same ones
for both systems, so that what is hard for both cancels out. Whole dialogues are drawn because responses of one dialogue are not
independent. A metric of a draw is the mean over seeds of the metric of each run, computed anew from weighted counts. Axes: E examples,
K draws, F features.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rouge_score.rouge_scorer import RougeScorer

from e2e_lib.config import Config
from e2e_lib.corpora import prepare
from e2e_lib.data.photos import PhotoStore
from e2e_lib.evaluation.scene_classifier import SceneClassifier
from e2e_lib.report.figures import CORE, wrong
from e2e_lib.repro import files, results
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.run_files import RUNS, read_answers, read_details

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """One run's answers to E test examples, reduced to what metrics are made of.

    Questions about details, asked apart, are examples of their own, to which no other metric applies. ``ngrams`` (E, 6): matches and
    totals of order 1, of order 2, length of hypothesis, length of reference; zeros where the gold response has no text. ``rouge`` (E,)
    from 0 to 1, nan where it has none. ``scenes`` (E,) the share of thing, colour and place drawn right, nan where no scene is due;
    ``details`` (E,) 1 for a question answered rightly, 0 wrongly, nan for other examples. ``drawn`` and ``gold`` are (number of photos, F)
    features and ``drawn_at``, ``gold_at`` the examples they belong to; ``things`` (number drawn, T) the reader's probabilities for the
    thing in each drawn photo.
    """

    ngrams: Array
    rouge: Array
    scenes: Array
    details: Array
    drawn: Array
    drawn_at: NDArray[np.int64]
    gold: Array
    gold_at: NDArray[np.int64]
    things: Array


def ngram_counts(hypothesis: str, reference: str) -> list[int]:
    """Clipped matches and totals of 1-grams, of 2-grams, and both lengths, split at white space as sacrebleu's ``tokenize="none"`` does."""
    sides = [text.split() for text in (hypothesis, reference)]
    counts = []
    for order in (1, 2):
        grams: list[dict[tuple[str, ...], int]] = [{}, {}]
        for words, found in zip(sides, grams, strict=True):
            for i in range(len(words) - order + 1):
                gram = tuple(words[i:i + order])
                found[gram] = found.get(gram, 0) + 1
        counts += [sum(min(n, grams[1].get(gram, 0)) for gram, n in grams[0].items()), sum(grams[0].values())]
    return [*counts, len(sides[0]), len(sides[1])]


def reduce(rows: Sequence[Mapping[str, Any]], drawn: Array, things: Array, gold: Array) -> Answers:
    """The rows of a run's ``answers.jsonl`` (and of ``details.jsonl``, which have "right") with the features of its drawn photos (in the
    rows' order), of the gold photos, and the drawn photos' probabilities for each thing. Raises ValueError where photos and rows do not
    agree in number."""
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    drawn_at = np.array([i for i, row in enumerate(rows) if row.get("image")], dtype=np.int64)
    gold_at = np.array([i for i, row in enumerate(rows) if row.get("gold_photo_id")], dtype=np.int64)
    for name, at, features in (("drawn", drawn_at, drawn), ("gold", gold_at, gold)):
        if len(at) != len(features):
            raise ValueError(f"{len(at)} answers with a {name} photo, but features of {len(features)}")
    said: list[tuple[str, str]] = [(row["text"], row.get("gold_text", "")) for row in rows]
    return Answers(
        ngrams=np.array([ngram_counts(*pair) if pair[1] else [0] * 6 for pair in said], dtype=np.float64).reshape(-1, 6),
        rouge=np.array([scorer.score(gold, text)["rougeL"].fmeasure if gold else np.nan for text, gold in said]),
        scenes=np.array([1 - len(wrong(row)) / len(CORE) if row.get("scene") else np.nan for row in rows]),
        details=np.array([float(row.get("right", np.nan)) for row in rows]),
        drawn=drawn, drawn_at=drawn_at, gold=gold, gold_at=gold_at, things=things)


# -------------------------------------------------------------------------------------------------------------- metrics

def _bleu(order: int) -> Callable[[Answers, Array], Array]:
    """BLEU-n of order n alone, as ``evaluation.text.bleu``: (K, E) weights to (K,)."""
    def metric(answers: Answers, weights: Array) -> Array:
        *grams, ours, theirs = (weights @ answers.ngrams).T
        matches, totals = grams[2 * (order - 1):2 * order]
        penalty = np.exp(np.minimum(0, 1 - theirs / np.maximum(ours, 1e-9)))
        return 100 * penalty * matches / np.maximum(totals, 1e-9)
    return metric


def _mean(field: str, scale: float) -> Callable[[Answers, Array], Array]:
    def metric(answers: Answers, weights: Array) -> Array:
        values = getattr(answers, field)
        due = ~np.isnan(values)
        counted = weights[:, due].sum(1)
        return np.where(counted > 0, scale * weights[:, due] @ values[due] / np.maximum(counted, 1), np.nan)
    return metric


def frechet(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """The Fréchet distance of two Gaussians; Σ √λ of the eigenvalues of the product stands for the trace of its root."""
    roots = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * roots)


def _moments(features: Array, weights: Array) -> tuple[Array, Array]:
    mean = weights @ features / weights.sum()
    centred = features - mean
    return mean, (centred * weights[:, None]).T @ centred / (weights.sum() - 1)


def _fid(answers: Answers, weights: Array) -> Array:
    pairs = ((w[answers.drawn_at], w[answers.gold_at]) for w in weights)
    return np.array([frechet(*_moments(answers.drawn, drawn), *_moments(answers.gold, gold)) if min(drawn.sum(), gold.sum()) > 1 else np.nan
                     for drawn, gold in pairs])


def _inception_score(answers: Answers, weights: Array) -> Array:
    """exp of the mean divergence of what a photo shows from what photos show: over all photos at once, without splits."""
    p = answers.things
    own = (p * np.log(p.clip(1e-12))).sum(1)
    w = weights[:, answers.drawn_at]
    w = w / w.sum(1, keepdims=True)
    marginal = w @ p
    return np.exp(w @ own - (marginal * np.log(marginal.clip(1e-12))).sum(1))


# Metric: how it is computed from weighted answers, and whether more of it is better.
METRICS: dict[str, tuple[Callable[[Answers, Array], Array], bool]] = {
    "bleu1": (_bleu(1), True), "bleu2": (_bleu(2), True), "rougeL": (_mean("rouge", 100), True), "is": (_inception_score, True),
    "fid": (_fid, False), "scene_accuracy": (_mean("scenes", 1), True), "details": (_mean("details", 1), True),
}


# ------------------------------------------------------------------------------------------------------------ bootstrap

def resamplings(dialogues: Sequence[str], draws: int, rng: np.random.Generator) -> Array:
    """How often each example counts in each draw (K, E), whole dialogues drawn with replacement."""
    names, of = np.unique(np.asarray(dialogues), return_inverse=True)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, of].astype(np.float64)


def resampled(runs: Sequence[Answers], weights: Array, metrics: Sequence[str] = tuple(METRICS)) -> dict[str, Array]:
    """Each metric of S runs (one a seed): on the test set as it is and then in each draw of ``weights`` (K, E), together (S, 1 + K)."""
    weights = np.vstack([np.ones((1, weights.shape[1])), weights])
    return {name: np.stack([METRICS[name][0](run, weights) for run in runs]) for name in metrics}


def compare(one: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """``one`` minus ``other``, as ``resampled`` gives them for the same seeds, in every metric. "difference" is that of the means over seeds
    on the test set as it is, "by_seed" that of each seed; "low" and "high" bound the 95 % interval of the former over the draws, and "p" is
    two-sided (at least 1 over the draws and one). A metric without anything to count is left out; so are draws in which nothing counts."""
    found = {}
    for name in one:
        differences = one[name] - other[name]  # (S, 1 + K)
        whole, drawn = np.split(differences.mean(0), [1])
        drawn = drawn[np.isfinite(drawn)]
        if not np.isfinite(whole[0]) or not len(drawn):
            continue
        low, high = np.quantile(drawn, (0.025, 0.975))
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        found[name] = {"difference": float(whole[0]), "by_seed": differences[:, 0].tolist(), "low": float(low), "high": float(high),
                       "p": float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))}
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the chance of at least one false claim among all of them stays below the level."""
    order = np.argsort(p_values)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


# ------------------------------------------------------------------------------------------------------------- all of it

def answers_of(config: Config, system: str, seed: int, corpus: Path, reader: SceneClassifier, root: Path = RUNS,
               folder: str = "answers") -> tuple[list[str], Answers]:
    """The dialogues that a run's test answers (in ``folder`` below the run's own) belong to, and the answers reduced. Raises ResultsError if
    they are missing, or hold fewer than two drawn photos."""
    rows = read_answers(config.profile, [seed], root, system, folder)[seed]
    asked = read_details(config.profile, [seed], root, system, folder)[seed]
    store, size = PhotoStore(corpus / "photos"), config.data.photo_size
    drawn = [torch.from_numpy(np.array(Image.open(row["image"]).convert("RGB"))).permute(2, 0, 1) for row in rows if row["image"]]
    gold = [store.tensor(row["gold_photo_id"], size) for row in rows if row["gold_photo_id"]]
    if len(drawn) < 2:
        raise results.ResultsError(f"{system}, seed {seed}, drew {len(drawn)} photos: too few to compare with others'")
    with torch.no_grad():
        features = [torch.cat([reader.features(part) for part in torch.stack(photos).split(256)]).double().numpy() for photos in (drawn, gold)]
        things = torch.cat([reader(part)["thing"].softmax(-1) for part in torch.stack(drawn).split(256)]).double().numpy()
    rows += [{"dialogue_id": row["dialogue_id"], "right": row["right"], "text": ""} for row in asked]
    return [row["dialogue_id"] for row in rows], reduce(rows, features[0], things, features[1])


def fid_by_number(answers: Answers, rng: np.random.Generator, subsets: int = 20) -> list[dict[str, float]]:
    """How FID falls with the number of photos: its mean and standard deviation over random subsets of N drawn and N gold photos."""
    most, found = min(len(answers.drawn), len(answers.gold)), []
    for n in (most * k // 8 for k in (1, 2, 3, 4, 6, 8)):
        if n < 2:
            continue
        values = [frechet(*(moment for side in (answers.drawn, answers.gold)
                            for moment in _moments(side[rng.choice(len(side), n, replace=False)], np.ones(n)))) for _ in range(subsets)]
        found.append({"n": n, "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))})
    return found


def read_all(config: Config, wanted: Mapping[str, tuple[str, Path]], seeds: Sequence[int], corpus: Path, reader: SceneClassifier,
             folder: str = "answers") -> tuple[dict[str, list[Answers]], list[str]]:
    """The runs of each name in ``wanted``, which says their system and the folder of all their runs, one a seed; and the dialogues that the
    answers belong to. Raises ResultsError for missing answers, and where one has answered other test examples than the first."""
    runs: dict[str, list[Answers]] = {}
    asked: list[str] = []
    for name, (system, root) in wanted.items():
        runs[name] = []
        for seed in seeds:
            dialogues, answers = answers_of(config, system, seed, corpus, reader, root, folder)
            if asked and dialogues != asked:
                raise results.ResultsError(f"{name}, seed {seed}, answered other test examples than {next(iter(wanted))}, seed {seeds[0]}: "
                                           "`e2e evaluate` makes them again")
            asked = dialogues
            runs[name].append(answers)
    return runs, asked


def differences(runs: Mapping[str, Sequence[Answers]], pairs: Iterable[tuple[str, str]], weights: Array,
                metrics: Sequence[str] = tuple(METRICS)) -> list[dict[str, Any]]:
    """A row for each pair and metric: "system" minus "than", with ``compare``'s figures and "p_corrected", Holm's, for all rows together.
    A run is scored once, however many pairs it is in. ``runs`` has the same seeds for every name."""
    scored = {name: resampled(of, weights, metrics) for name, of in runs.items()}
    rows: list[dict[str, Any]] = [{"system": one, "than": other, "metric": name, **found} for one, other in pairs
                                  for name, found in compare(scored[one], scored[other]).items()]
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_corrected"] = p
    return rows


def compared(config: Config, seeds: Sequence[int], runs: Mapping[str, Sequence[Answers]], dialogues: Sequence[str],
             pairs: Iterable[tuple[str, str]], metrics: Sequence[str] = tuple(METRICS), *, draws: int) -> dict[str, Any]:
    """What a file of differences holds: the rows of ``differences`` as "pairs", and what they were computed from. ``runs`` and ``dialogues``
    are as ``read_all`` gives them."""
    weights = resamplings(dialogues, draws, np.random.default_rng(0))
    return {"profile": config.profile, "seeds": list(seeds), "draws": draws, "dialogues": len(set(dialogues)), "examples": len(dialogues),
            "pairs": differences(runs, pairs, weights, metrics), "higher_is_better": {name: METRICS[name][1] for name in metrics},
            "provenance": provenance_record(config, seeds={"bootstrap": 0})}


def compare_systems(config: Config, seeds: Sequence[int], systems: Sequence[str], reader: SceneClassifier, echo: Callable[[str], None], *,
                    draws: int = 2000, root: Path = RUNS) -> Path:
    """Every pair of systems in every metric, and FID by the number of photos (of the first seed); writes
    ``results/<profile>/comparison.json``. All p-values are corrected together.

    Raises ResultsError for missing answers, and where systems have answered different test examples.
    """
    runs, dialogues = read_all(config, {system: (system, root) for system in systems}, seeds, prepare(config, echo), reader)
    rng = np.random.default_rng(0)
    return files.write_json(results.RESULTS / config.profile / "comparison.json", {
        **compared(config, seeds, runs, dialogues, itertools.combinations(systems, 2), draws=draws),
        "fid_by_number": {system: fid_by_number(runs[system][0], rng) for system in systems}})
