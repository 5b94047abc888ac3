"""Is one system better than another? Paired bootstrap over test dialogues, from saved answers (section 3.2).

Every system answers the same test contexts. The score of a resampled test set is the mean over seeds of the
score of each run. Axes: E examples, K resampled sets, S seeds.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e2e_lib import corpora
from e2e_lib.config import Config
from e2e_lib.evaluation import bootstrap, image
from e2e_lib.evaluation.scores import METRICS, Answers, Array, score
from e2e_lib.experiments.evaluate import Echo, saved_answers
from e2e_lib.repro import files, results
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.run_files import RUNS

COMPARED = ("bleu1", "bleu2", "rougeL", "is", "fid")  # and what only the corpus has
Runs = Mapping[str, Sequence[Answers]]  # by name, one per seed


def compare_systems(config: Config, seeds: Sequence[int], systems: Sequence[str], echo: Echo, *,
                    draws: int = 2000) -> Path:
    """Every pair of systems in every metric, and FID by the number of photos (of the first seed).
    Writes ``results/<profile>/comparison.json``; all p are corrected together. Raises as ``read_runs``."""
    roots, rng = {system: (system, RUNS) for system in systems}, np.random.default_rng(0)
    runs = read_runs(config, roots, seeds, corpora.prepare(config, echo))
    pairs = itertools.combinations(systems, 2)
    return files.write_json(results.RESULTS / config.profile / "comparison.json", {
        **differences_record(config, seeds, runs, pairs, draws=draws),
        "fid_by_number": {system: fid_by_number(runs[system][0], rng) for system in systems}})


def read_runs(config: Config, roots: Mapping[str, tuple[str, Path]], seeds: Sequence[int], corpus: Path,
              folder: str = "answers") -> dict[str, list[Answers]]:
    """The answers of runs by name, one per seed; ``roots`` has each name's system and folder of all runs.
    Raises ResultsError for missing answers, or other test examples than others'.
    """
    runs: dict[str, list[Answers]] = {name: [] for name in roots}
    first: Answers | None = None
    for (name, (system, root)), seed in itertools.product(roots.items(), seeds):
        answers = saved_answers(config, system, seed, corpus, root, folder)
        first = first or answers
        if answers.dialogue_ids != first.dialogue_ids:
            raise results.ResultsError(f"{name}, seed {seed}, answered other test examples than "
                                       f"{[*roots][0]}, seed {seeds[0]}: `e2e evaluate` makes them again")
        runs[name].append(answers)
    return runs


def differences_record(config: Config, seeds: Sequence[int], runs: Runs, pairs: Iterable[tuple[str, str]],
                       metrics: Sequence[str] = (), *, draws: int) -> dict[str, Any]:
    """What a file of differences holds: the rows of ``differences`` as "pairs", and what they were made from.
    ``metrics`` are by default ``COMPARED`` and those that only the corpus has."""
    known, dialogue_ids = corpora.metrics_of(config.data), next(iter(runs.values()))[0].dialogue_ids
    metrics = metrics or [name for name in known if name in COMPARED or name not in METRICS]
    weights = bootstrap.resamplings(dialogue_ids, draws, np.random.default_rng(0))
    return {"profile": config.profile, "seeds": list(seeds), "draws": draws, "examples": len(dialogue_ids),
            "dialogues": len(set(dialogue_ids)), "pairs": differences(runs, pairs, weights, metrics),
            "higher_is_better": {name: known[name].better == "higher" for name in metrics},
            "provenance": provenance_record(config, seeds={"bootstrap": 0})}


def differences(runs: Runs, pairs: Iterable[tuple[str, str]], weights: Array,
                metrics: Sequence[str]) -> list[dict[str, Any]]:
    """A row per pair and metric: "system" minus "than", with the numbers of ``bootstrap.paired_difference``.

    "p_corrected" is Holm's, for all rows together. ``weights`` (K, E) are the resampled test sets. A run is
    scored once, however many pairs it is in. A metric with nothing to score is left out."""
    sets = np.vstack([np.ones((1, weights.shape[1])), weights])  # (1 + K, E)
    scored = {(name, metric): np.stack([score(metric, answers, sets) for answers in runs[name]])
              for name in runs for metric in metrics}  # (S, 1 + K) each
    rows: list[dict[str, Any]] = [
        {"system": one, "than": other, "metric": metric, **row} for one, other in pairs for metric in metrics
        if (row := bootstrap.paired_difference(scored[one, metric], scored[other, metric]))]
    for row, p in zip(rows, bootstrap.holm([row["p"] for row in rows]), strict=True):
        row["p_corrected"] = p
    return rows


def fid_by_number(answers: Answers, rng: np.random.Generator, subsets: int = 20) -> list[dict[str, float]]:
    """FID by the number N of photos: mean and standard deviation over subsets of N drawn and N gold ones."""
    most, rows = min(len(answers.drawn), len(answers.gold)), []
    for n in (most * k // 8 for k in (1, 2, 3, 4, 6, 8) if most * k // 8 > 1):
        values = [image.fid(*(photos.take(torch.from_numpy(rng.choice(len(photos), n, replace=False)))
                              for photos in (answers.drawn, answers.gold))) for _ in range(subsets)]
        rows.append({"n": n, "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))})
    return rows
