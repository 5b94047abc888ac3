"""Settings tried on the dev split, as many for every system, so that none is behind for want of trying.

The systems of the tables have the settings of the profile, which stand first here. What dev says of others is
kept beside them: a system that others would suit better is told as such, and no test score chooses anything.
Every part is kept once it is done.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from e2e_lib.config import Config, replace
from e2e_lib.experiments.evaluate import Echo, evaluate
from e2e_lib.repro import files, results
from e2e_lib.repro.run_files import RUNS
from e2e_lib.training.loop import train

ROOT = RUNS / "tuning"
Changes = Mapping[str, Any]
OWN: Changes = {}
NO_GUIDANCE: Changes = {"inference.guidance_scale": 1.0}
# The photo's gradient into the words, where there is one, else how fast the parts learn.
TRIED: dict[str, tuple[Changes, ...]] = {
    "end_to_end": (OWN, *({"bridge.gradient_ratio": ratio} for ratio in (1.0, 3.0, 10.0)), NO_GUIDANCE),
    "end_to_end_aligned": (OWN, *({"bridge.gradient_ratio": ratio} for ratio in (1.0, 10.0)),
                           {"bridge.caption_source": "predicted"}, NO_GUIDANCE),
    "pipeline": (OWN, {"train.generator_rate": 0.0}, {"train.generator_rate": 1.0},
                 {"train.learning_rate": 4e-4}, NO_GUIDANCE),
    "divter": (OWN, {"train.generator_rate": 0.0}, {"train.generator_rate": 1.0},
               {"train.learning_rate": 4e-4}, NO_GUIDANCE)}


def label(system: str, changes: Changes) -> str:
    """What a system with other settings is called in results."""
    return ".".join([system, *(f"{key.partition('.')[2]}_{value}" for key, value in changes.items())])


def tune(config: Config, seeds: Sequence[int], echo: Echo) -> Path:
    """Trains every system with all that is TRIED, scores the dev split, and writes
    ``results/<profile>/tuning.json``. Raises what training raises."""
    for system, changes in _all():
        for seed in seeds:
            echo(f"== {label(system, changes)}, seed {seed}")
            run_one(config, system, changes, seed, echo)
    return summarise(config, seeds, echo)


def run_one(config: Config, system: str, changes: Changes, seed: int, echo: Echo) -> Path:
    """Trains a system with other settings and scores the dev split; returns the file of scores. Settings of
    inference alone need no training of their own."""
    run = replace(config, "model.system", system)
    trains = {key: value for key, value in changes.items() if not key.startswith("inference.")}
    for key, value in changes.items():
        run = replace(run, key, value)
    root = ROOT / label(system, trains) if trains else RUNS
    train(run, seed, echo, root=root)
    name = label(system, changes)
    return evaluate(run, seed, echo, label=name, into="tuning", answers=f"dev_answers_{name}", runs_root=root,
                    split="dev")


def summarise(config: Config, seeds: Sequence[int], echo: Echo) -> Path:
    """Writes ``results/<profile>/tuning.json``: "rows", one per system and what was tried, with its settings
    and its scores on dev. What was not run with all ``seeds`` is left out, and said. Raises ResultsError."""
    done = {(run["system"], run["seed"]): run for run in results.read_runs(config.profile, folder="tuning")}
    tried = [(system, changes) for system, changes in _all()
             if all((label(system, changes), seed) in done for seed in seeds)]
    if missing := [label(*each) for each in _all() if each not in tried]:
        echo(f"without runs of all seeds, and left out: {', '.join(missing)}")
    again = f"e2e {results.COMMANDS['tuning']} --profile {config.profile}"
    runs = [done[label(*each), seed] for each in tried for seed in seeds]
    summary = results.averages(runs, again)
    rows = [{"system": system, "settings": dict(changes),
             "scores": summary["systems"][label(system, changes)]} for system, changes in tried]
    return files.write_json(results.RESULTS / config.profile / "tuning.json", {
        "command": again, "split": "dev", "seeds": list(seeds), "rows": rows,
        **{key: value for key, value in summary.items() if key not in ("systems", "runs")}})


def _all() -> Iterator[tuple[str, Changes]]:
    return ((system, changes) for system, tried in TRIED.items() for changes in tried)
