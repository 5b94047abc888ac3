"""The comparison of systems on other terms (not in the paper).

"clean": all systems on captions that are right, where the photo can tell the words nothing new.
"clean_ratio_1": the aligned system on those, with a gradient as long as the text's instead of three times as
long, which dev chose on wrong captions; it says whether that length is what the photo costs where it has
nothing to say, and is compared with the systems of "clean". "control":
the end-to-end system whose gradient speaks of every word, with another word's embedding for each word.
Systems begin from clean parts, where any gradient might keep the model from learning wrong captions; the
control says how much of the gain that is. "told_more": the baselines with the captioner's likeliest captions,
which tell nearly every detail, instead of sampled ones, which tell as much as people's do. "early_stopping":
the best epoch on dev, as in the paper, which from clean parts is one that has learnt little of the captions.
Every part is kept once it is done.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_lib import corpora
from e2e_lib.config import SYSTEMS, Config, replace
from e2e_lib.experiments.comparison import differences_record, numbers_of, read_runs
from e2e_lib.experiments.evaluate import Echo, evaluate
from e2e_lib.repro import files, results
from e2e_lib.repro.run_files import RUNS
from e2e_lib.training.loop import train

ROOT = RUNS / "terms"


@dataclass(frozen=True)
class Terms:
    """Which systems are trained with what else, and what each is compared with: every system on the terms
    ``beside`` (these or earlier ones), or itself on the profile's own."""

    systems: tuple[str, ...]
    settings: dict[str, Any]
    beside: str = ""


TERMS = {"clean": Terms(SYSTEMS, {"data.caption_faults": "none"}, beside="clean"),
         "clean_ratio_1": Terms(("end_to_end_aligned",), {"data.caption_faults": "none",
                                                          "bridge.gradient_ratio": 1.0}, beside="clean"),
         "control": Terms(("end_to_end_aligned",), {"bridge.mapping": "aligned_shuffled"}),
         "early_stopping": Terms(SYSTEMS, {"train.keep": "best"}, beside="early_stopping"),
         "told_more": Terms(("pipeline", "divter"), {"model.captioner_samples": False})}


def settings_of(config: Config, name: str, system: str) -> Config:
    """The configuration of a system on the terms ``name``."""
    config = replace(config, "model.system", system)
    for key, value in TERMS[name].settings.items():
        config = replace(config, key, value)
    return config


def label(name: str, system: str) -> str:
    """What a system on other terms is called in results."""
    return f"{system}.{name}"


def compare(config: Config, seeds: Sequence[int], echo: Echo) -> Path:
    """Trains and scores every system on its other terms with every seed; writes
    ``results/<profile>/terms.json``. Its "pairs" include systems on the profile's own terms, of which there
    must be runs (``e2e reproduce``). Raises ResultsError without them, and what training raises."""
    for name, terms in TERMS.items():
        for system, seed in itertools.product(terms.systems, seeds):
            echo(f"== {name}: {system}, seed {seed}")
            run, root = settings_of(config, name, system), ROOT / name
            train(run, seed, echo, root=root)
            evaluate(run, seed, echo, label=label(name, system), into="terms", runs_root=root)
    return summarise(config, seeds, echo)


def summarise(config: Config, seeds: Sequence[int], echo: Echo) -> Path:
    """Writes ``results/<profile>/terms.json``: averages over seeds as in a summary, and "pairs" with
    intervals, all p-values corrected together. Terms without runs of all systems and ``seeds`` are left out,
    and said. Raises ResultsError."""
    path = results.RESULTS / config.profile / "terms.json"
    runs = {(run["system"], run["seed"]): run for run in results.read_runs(config.profile, folder="terms")}
    whole = {name: terms for name, terms in TERMS.items()
             if all((label(name, system), seed) in runs for system in terms.systems for seed in seeds)}
    if missing := [name for name in TERMS if name not in whole]:
        echo(f"without runs of all systems and seeds, and left out: {', '.join(missing)}")
    labels = {label(name, system): (system, ROOT / name)
              for name, terms in whole.items() for system in terms.systems}
    own = {system: (system, RUNS) for terms in whole.values() for system in terms.systems
           if not terms.beside}
    done = [runs[name, seed] for name in labels for seed in seeds]
    compared = [run for run in results.read_runs(config.profile)
                if run["system"] in own and run["seed"] in seeds]
    again = f"e2e {results.COMMANDS['terms']} --profile {config.profile}"
    arguments = {"seeds": list(seeds), "numbers": numbers_of(config),
                 "weights": {f"{run['system']}-seed{run['seed']}": run["provenance"]["weights"]
                             for run in [*done, *compared]}}
    if not done or results.is_up_to_date(path, arguments, echo):
        return path
    pairs = [pair for name in whole for pair in _pairs(name, whole)]
    answers = read_runs(config, {**labels, **own}, seeds, corpora.prepare(config, echo))
    record = differences_record(config, seeds, answers, pairs, echo)
    return files.write_json(path, {"command": again, "arguments": arguments,
                                   **results.averages(done, again), **record})


def _pairs(name: str, whole: dict[str, Terms]) -> list[tuple[str, str]]:
    """The labels of all that are compared on the terms ``name``; those beside terms that are not among the
    ``whole`` ones are left out."""
    names, beside = [label(name, system) for system in whole[name].systems], whole[name].beside
    if not beside:
        return [*zip(names, whole[name].systems, strict=True)]
    if beside == name:
        return [*itertools.combinations(names, 2)]
    others = whole[beside].systems if beside in whole else ()
    return [*itertools.product(names, (label(beside, system) for system in others))]
