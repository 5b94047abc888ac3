"""Is one system better than another? Paired over test dialogues, from saved answers (section 3.2).

Every system answers the same test contexts. A difference is that of the systems' scores in the tables: of
means over seeds. Its interval is for these trained models. Axes: E examples, K sets of them, S seeds.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from e2e_lib import corpora
from e2e_lib.config import Config
from e2e_lib.evaluation import image, intervals
from e2e_lib.evaluation.scores import METRICS, Answers, score
from e2e_lib.experiments.evaluate import Echo, saved_answers, versions_of_answers
from e2e_lib.repro import files, results
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.run_files import RUNS
from e2e_lib.versions import versions

COMPARED = ("bleu1", "bleu2", "rougeL", "is", "fid")  # besides what only the corpus has
Runs = Mapping[str, Sequence[Answers]]  # by name, one per seed


def compare_systems(config: Config, seeds: Sequence[int], systems: Sequence[str], echo: Echo) -> Path:
    """Every pair of systems in every metric, and FID by the number of photos (of the first seed).
    Writes ``results/<profile>/comparison.json``; all p are corrected together. Raises as ``read_runs``."""
    roots = {system: (system, RUNS) for system in systems}
    runs = read_runs(config, roots, seeds, corpora.prepare(config, echo))
    pairs = [*itertools.combinations(systems, 2)]
    return files.write_json(results.RESULTS / config.profile / "comparison.json", {
        **differences_record(config, seeds, runs, pairs, echo),
        "fid_by_number": {system: fid_by_number(runs[system][0]) for system in systems}})


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


def differences_record(config: Config, seeds: Sequence[int], runs: Runs, pairs: Sequence[tuple[str, str]],
                       echo: Echo, metrics: Sequence[str] = COMPARED) -> dict[str, Any]:
    """What a file of differences holds: the rows of ``differences`` as "pairs", and what they were made from.
    Compared are ``metrics`` and those that only the corpus has; what has no interval is said."""
    known, dialogue_ids = corpora.metrics_of(config.data), next(iter(runs.values()))[0].dialogue_ids
    compared = [name for name in known if name in metrics or name not in METRICS]
    rows = differences(runs, pairs, compared)
    found = {(row["system"], row["than"], row["metric"]) for row in rows}
    for pair, metric in itertools.product(pairs, compared):
        if (*pair, metric) not in found:
            echo(f"{' and '.join(pair)} are not compared in {known[metric].label}: fewer than two dialogues "
                 "have something to score")
    return {"profile": config.profile, "seeds": list(seeds), "examples": len(dialogue_ids),
            "dialogues": len(set(dialogue_ids)), "pairs": rows,
            "higher_is_better": {name: known[name].better == "higher" for name in compared},
            "numbers": numbers_of(config), "provenance": provenance_record(config, seeds={})}


def numbers_of(config: Config) -> dict[str, int]:
    """The versions of all that decides a difference and its interval."""
    return {**versions_of_answers(config), **versions("intervals")}


def differences(runs: Runs, pairs: Iterable[tuple[str, str]],
                metrics: Sequence[str]) -> list[dict[str, Any]]:
    """A row per pair and metric: "system" minus "than", with the numbers of ``intervals.paired_difference``.

    "p_corrected" is Holm's, for all rows together. A run is scored once, however many pairs it is in, by the
    function that gives the tables' scores. A metric in which a pair has no interval is left out."""
    sets = intervals.left_out(next(iter(runs.values()))[0].dialogue_ids)  # (K, E), the test set first
    scored = {(name, metric): np.stack([score(metric, answers, sets) for answers in runs[name]])
              for name in runs for metric in metrics}  # (S, K) each
    rows: list[dict[str, Any]] = [
        {"system": one, "than": other, "metric": metric, **row} for one, other in pairs for metric in metrics
        if (row := intervals.paired_difference(scored[one, metric], scored[other, metric]))]
    for row, p in zip(rows, intervals.holm([row["p"] for row in rows]), strict=True):
        row["p_corrected"] = p
    return rows


def fid_by_number(answers: Answers, subsets: int = 20) -> list[dict[str, float]]:
    """How FID falls as N, the number of examples, grows: mean and standard deviation over random subsets of N
    of the examples that have both a drawn and a gold photo.

    The same examples stand on both sides, as they do in the tables' FID, so that N alone changes; drawn apart
    on either side, a perfect copy of the gold photos would have a FID, too. The larger N, the more examples
    subsets share, which makes the standard deviation smaller, too: with all of them it is 0."""
    sides = ((answers.drawn, answers.drawn_rows), (answers.gold, answers.gold_rows))
    both, rng, rows = np.intersect1d(answers.drawn_rows, answers.gold_rows), np.random.default_rng(0), []

    def fid_of(examples: NDArray[np.int64]) -> float:
        return image.fid(*(photos.take(torch.from_numpy(np.isin(row_of, examples).nonzero()[0]))
                           for photos, row_of in sides))

    for n in (len(both) * k // 8 for k in (1, 2, 3, 4, 6, 8) if len(both) * k // 8 > 1):
        values = [fid_of(rng.choice(both, n, replace=False)) for _ in range(subsets)]
        rows.append({"n": n, "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))})
    return rows
