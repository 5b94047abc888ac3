"""What each variant of the model is worth after joint training, and what it costs (not in the paper).

Every part is kept once it is done, so that an interrupted ablation goes on.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from e2e_lib import corpora
from e2e_lib.config import Config, replace
from e2e_lib.data.collate import Collator
from e2e_lib.data.examples import split_examples
from e2e_lib.experiments.comparison import differences_record, numbers_of, read_runs
from e2e_lib.experiments.evaluate import Echo, evaluate
from e2e_lib.experiments.variants import MAPS, VARIANTS, apply_variant, names_of, reference_of, run_root
from e2e_lib.models.systems import build
from e2e_lib.repro import files, results
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.run_files import run_folder
from e2e_lib.training.dev import dev_examples
from e2e_lib.training.loop import train
from e2e_lib.versions import versions

MAX_TEXT_ONLY = 300  # of the test contexts without a photo; all with one are answered
ANSWERS = "answers-ablation"
COMPARED = ("bleu2", "rougeL", "fid")  # besides what only the corpus has


def ablate(config: Config, seeds: Sequence[int], echo: Echo, variants: Sequence[str]) -> dict[str, Any]:
    """Trains and scores variants (names or groups) with every seed; returns the summary of all of them.
    Writes ``results/<profile>/ablations/``. Raises ConfigError for a variant that does not exist."""
    names = names_of(variants)
    for number, name in enumerate(names, 1):
        variant, root = apply_variant(config, name), run_root(config, name)
        scored = replace(variant, "evaluation.max_text_only_examples", MAX_TEXT_ONLY)
        for seed in seeds:
            echo(f"== variant {number} of {len(names)}: {name} ({', '.join(VARIANTS[name])}), seed {seed}")
            train(variant, seed, echo, root=root)
            evaluate(scored, seed, echo, label=name, into="ablations", answers=ANSWERS, runs_root=root)
    return results.summarise(config.profile, folder="ablations")


def differences(config: Config, seeds: Sequence[int], echo: Echo) -> Path | None:
    """Every variant with runs of all ``seeds`` minus its reference, with intervals as between systems.
    Writes ``results/<profile>/ablation_differences.json``, if there is a pair. Raises as ``read_runs``."""
    path = results.RESULTS / config.profile / "ablation_differences.json"
    weights = {(run["system"], run["seed"]): run["provenance"]["weights"]
               for run in results.read_runs(config.profile, folder="ablations")}
    folders = {name: (apply_variant(config, name), run_root(config, name)) for name in VARIANTS}
    roots = {name: (variant.model.system, root) for name, (variant, root) in folders.items() if all(
        (name, seed) in weights and (run_folder(variant, seed, root) / ANSWERS).is_dir() for seed in seeds)}
    pairs = [(name, reference_of(name)) for name in roots if name != "none" and reference_of(name) in roots]
    missing = ", ".join(name for name in VARIANTS if name not in roots) or "none"
    echo(f"{len(pairs)} of {len(VARIANTS) - 1} variants have runs of seeds {', '.join(map(str, seeds))} "
         f"and are compared; without: {missing}")
    settings = {"seeds": list(seeds), "numbers": numbers_of(config),
                "weights": {f"{name}-seed{seed}": weights[name, seed] for name in roots for seed in seeds}}
    if not pairs:
        return None
    if not results.is_up_to_date(path, settings, echo):
        runs = read_runs(config, roots, seeds, corpora.prepare(config, echo), ANSWERS)
        files.write_json(path, {"command": f"e2e ablate --profile {config.profile}", "arguments": settings,
                                **differences_record(config, seeds, runs, pairs, echo, COMPARED)})
    return path


def measurement_settings(config: Config) -> dict[str, Any]:
    """What a measurement of gradients or steps depends on, besides its own arguments."""
    return {"numbers": versions("minichat", "training", "gradients"),
            "settings": {name: asdict(config)[name] for name in ("profile", "data", "bridge", "train")}}


def step_seconds(config: Config, echo: Echo, *, rounds: int = 15, batch: int = 16) -> Path:
    """Times a training step with every map, in turn, on one batch half of which shares photos.

    Writes ``results/<profile>/steps.json``: median seconds, and the median and standard deviation over
    ``rounds`` of the ratio to a step without a gradient."""
    path = results.RESULTS / config.profile / "steps.json"
    settings = {"rounds": rounds, "batch": batch, **measurement_settings(config)}
    if results.is_up_to_date(path, settings, echo):
        return path
    examples, store = split_examples(corpora.prepare(config, echo), "dev", real_only=config.data.real_only)
    models: dict[str, Any] = {name: build(apply_variant(config, name)).train() for name in MAPS}
    collated = Collator(models["none"].formatter, store)(dev_examples(examples, batch))
    seconds: dict[str, list[float]] = {name: [] for name in MAPS}
    for number in range(rounds + 1):
        for name, model in models.items():
            began = time.perf_counter()
            model.zero_grad()
            model(collated, temperature=0.5, seed=number).loss.backward()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    rows = []
    for name in MAPS:
        ratios = [one / none for one, none in zip(seconds[name], seconds["none"], strict=True)]
        rows.append({"mapping": name, "seconds": statistics.median(seconds[name]),
                     "over_none": statistics.median(ratios), "std": statistics.stdev(ratios)})
    return files.write_json(path, {
        "command": f"e2e ablate --profile {config.profile}", "arguments": settings, "rows": rows,
        "threads": torch.get_num_threads(), "provenance": provenance_record(config, seeds={})})
