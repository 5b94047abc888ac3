"""What each vocabulary map, estimator and ingredient is worth (sections 2.4.1-2.5; the paper has no ablation): a gradient reference_of the true one,
the same joint training with it, and its cost. Every part is kept once it is done, so that an interrupted ablation goes on."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from e2e_lib import config as configuration
from e2e_lib.config import Config, ConfigError
from e2e_lib.corpora import prepare
from e2e_lib.data.collate import Collator
from e2e_lib.data.examples import Example, examples_of, load_split
from e2e_lib.data.minichat.chats import caption_words
from e2e_lib.evaluation.scene_classifier import SceneClassifier
from e2e_lib.experiments import comparison, polynomial
from e2e_lib.experiments import gradient_alignment as gradients
from e2e_lib.experiments.evaluate import evaluate
from e2e_lib.models.systems import build
from e2e_lib.repro import files, results
from e2e_lib.repro.files import weights_hash
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.randomness import generator
from e2e_lib.repro.run_files import RUNS, run_folder
from e2e_lib.training.dev import dev_examples
from e2e_lib.training.loop import load_trained, train
from e2e_lib.versions import versions

Echo = Callable[[str], None]

# What a variant changes of the profile, which is the paper's way: "sentence" changes nothing.
MAPS = ("none", "static_piece", "static_word", "sentence", "word", "span")
VARIANTS: dict[str, tuple[str, ...]] = {
    **{name: (f"bridge.mapping={name}",) for name in MAPS},
    # Estimators with the map that tells words apart. ReinMax needs a temperature of at least 1, so it and its rivals have no annealing.
    # "soft" would be "gumbel" again: the bridge gives the text encoder whole tokens. REINFORCE would draw many photos for each caption.
    # "straight_through" and "decoupled" are alike as long as the caption that is drawn is the gold one: a check that training repeats itself.
    "span_straight_through": ("bridge.mapping=span", "bridge.estimator=straight_through", "bridge.temperature_end=1"),
    "span_gumbel": ("bridge.mapping=span", "bridge.temperature_end=1"),
    "span_decoupled": ("bridge.mapping=span", "bridge.estimator=decoupled", "bridge.temperature_end=1"),
    "span_gumbel_rao": ("bridge.mapping=span", "bridge.estimator=gumbel_rao", "bridge.temperature_end=1"),
    "span_reinmax": ("bridge.mapping=span", "bridge.estimator=reinmax", "bridge.temperature_end=1"),
    # The other ingredients, one at a time.
    "no_perceptron": ("model.image_input=captions",),
    "own_captions": ("bridge.caption_source=predicted",),
    "no_noise": ("bridge.noise=false",),
    "temperature_1": ("bridge.temperature_start=1", "bridge.temperature_end=1"),
    "temperature_0.01": ("bridge.temperature_start=0.01", "bridge.temperature_end=0.01"),
    "weight_0.1": ("train.image_loss_weight=0.1",),
    "weight_10": ("train.image_loss_weight=10",),
    # At λ = 1 the image's gradient is about a hundredth of the words' (notebook 04); here they are alike. Since gradients are clipped together,
    # λ also turns the words' own gradient down, with or without a map.
    "weight_100_none": ("train.image_loss_weight=100", "bridge.mapping=none"),
    "weight_100": ("train.image_loss_weight=100",),
    "weight_100_span": ("train.image_loss_weight=100", "bridge.mapping=span", "bridge.temperature_end=1"),
}
GROUPS = {"maps": MAPS, "estimators": tuple(name for name in VARIANTS if name.startswith("span_")),
          "ingredients": tuple(VARIANTS)[list(VARIANTS).index("no_perceptron"):]}
ESTIMATORS = (("straight_through", 1.0), ("gumbel", 1.0), ("gumbel", 0.1), ("decoupled", 1.0), ("gumbel_rao", 0.5), ("reinmax", 1.0))
COINS = (("decoupled", 1.0), ("gumbel", 1.0), ("gumbel", 0.1), ("soft", 0.1), ("reinmax", 1.0))
OTHERS = 300  # of the test contexts without a photo; all with one are answered
ANSWERS = "answers-ablation"
COMPARED = ("bleu2", "rougeL", "fid", "scene_accuracy", "details")


def names_of(asked: Sequence[str]) -> list[str]:
    """Variants by their own names or their groups', each once, in order. Raises ConfigError for a name that is neither."""
    names = [name for word in asked for name in (GROUPS.get(word) or (word,))]
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ConfigError(f"variant {unknown[0]!r} is unknown; allowed: {', '.join([*GROUPS, *VARIANTS])}")
    return list(dict.fromkeys(names))


def apply_variant(config: Config, name: str) -> Config:
    """The configuration of a variant."""
    for override in VARIANTS[name]:
        key, _, value = override.partition("=")
        config = configuration.replace(config, key, value)
    return config


def reference_of(name: str) -> str:
    """What a variant is compared with: training that differs in having no gradient from the image, for maps and estimators; else the
    paper's way."""
    if name in (*MAPS, *GROUPS["estimators"], "weight_100_none"):
        return "none"
    return "weight_100_none" if name.startswith("weight_100") else "sentence"


def run_root(config: Config, name: str) -> Path:
    """The folder of a variant's runs. One that changes nothing is the profile's own run, which is not trained twice."""
    return RUNS if apply_variant(config, name) == config else RUNS / "ablations" / name


def ablate(config: Config, seeds: Sequence[int], echo: Echo, variants: Sequence[str] = tuple(GROUPS)) -> dict[str, Any]:
    """Trains and scores variants with every seed; writes ``results/<profile>/ablations/`` and their summary ``ablations.json``.

    Raises ConfigError for a variant that does not exist, and whatever training and evaluation raise.
    """
    names = names_of(variants)
    for number, name in enumerate(names, 1):
        variant = apply_variant(config, name)
        root = run_root(config, name)
        for seed in seeds:
            echo(f"== variant {number} of {len(names)}: {name} ({', '.join(VARIANTS[name])}), seed {seed}")
            train(variant, seed, echo, root=root)
            evaluate(configuration.replace(variant, "evaluation.max_text_only_examples", OTHERS), seed, echo, label=name, into="ablations", answers=ANSWERS,
                     runs_root=root)
    return results.summarise(config.profile, folder="ablations")


def differences(config: Config, seeds: Sequence[int], reader: SceneClassifier, echo: Echo, *, draws: int = 5000) -> Path | None:
    """Every variant whose runs of all ``seeds`` stand, ``reference_of`` its reference: paired bootstrap over test dialogues, as between systems;
    writes ``results/<profile>/ablation_differences.json``, or nothing where there is no such pair.

    Raises ResultsError where variants have answered different test examples.
    """
    path = results.RESULTS / config.profile / "ablation_differences.json"
    runs = {(run["system"], run["seed"]): run["provenance"]["weights"] for run in results.read_runs(config.profile, folder="ablations")}

    def stands(name: str, seed: int) -> bool:
        return (name, seed) in runs and (run_folder(config, seed, run_root(config, name)) / ANSWERS).is_dir()

    wanted = {name: ("end_to_end", run_root(config, name)) for name in VARIANTS if all(stands(name, seed) for seed in seeds)}
    pairs = [(name, reference_of(name)) for name in wanted if name != "none" and reference_of(name) in wanted]
    echo(f"{len(pairs)} of {len(VARIANTS) - 1} variants have runs of seeds {', '.join(map(str, seeds))} and are compared; "
         f"without: {', '.join(name for name in VARIANTS if name not in wanted) or 'none'}")
    asked = {"draws": draws, "seeds": list(seeds), "numbers": versions("minichat", "scoring", "decoding", "training"),
             "weights": {f"{name}-seed{seed}": runs[name, seed] for name in wanted for seed in seeds}}
    if not pairs:
        return None
    if results.is_up_to_date(path, asked, echo):
        return path
    answers, dialogues = comparison.read_all(config, wanted, seeds, prepare(config, echo), reader, ANSWERS)
    return files.write_json(path, {"command": f"e2e ablate --profile {config.profile}", "asked": asked,
                                   **comparison.compared(config, seeds, answers, dialogues, pairs, COMPARED, draws=draws)})


def _made_by(config: Config) -> dict[str, Any]:
    """What a measurement depends on, reference_of its own arguments."""
    return {"numbers": versions("minichat", "training", "gradients"),
            "settings": {section: asdict(config)[section] for section in ("profile", "data", "bridge", "train")}}


def _examples(config: Config, echo: Echo) -> tuple[list[Example], Any]:
    dialogues, store, _ = load_split(prepare(config, echo), "dev")
    return [example for dialogue in dialogues for example in examples_of(dialogue)], store


def truths(config: Config, seed: int, echo: Echo, *, captions: int = 36, positions: int = 2, words: int = 5, noises: int = 16,
           draws: int = 2048) -> Path:
    """Compares every map and estimator with the exact gradient on ``captions`` dev captions of the trained model of ``seed``; writes
    ``results/<profile>/gradients.json``, one row each: mean, standard deviation and number over captions. Raises CheckpointError."""
    path = results.RESULTS / config.profile / "gradients.json"
    asked = {"captions": captions, "positions": positions, "words": words, "noises": noises, "draws": draws, "seed": seed,
             "weights": weights_hash(run_folder(config, seed) / "best"), **_made_by(config)}
    if results.is_up_to_date(path, asked, echo):
        return path
    examples, store = _examples(config, echo)
    sharing = [e for e in examples if e.response.photo and not e.response.text][:captions]
    model = load_trained(config, seed)
    collate, listed = Collator(model.formatter, store, config.data.photo_size), caption_words()
    cases = [(mapping, *estimator) for mapping in MAPS if mapping != "none" for estimator in ESTIMATORS] + [("all", "reinforce", 1.0)]
    found: dict[tuple[str, str, float], list[dict[str, Any]]] = {case: [] for case in cases}
    said = []
    for number, example in enumerate(sharing, 1):
        family = gradients.family_of(model, collate([example]), positions=positions, words=words, draws=noises, rng=generator(seed, "family", number))
        expected, truth = family.truth()
        said.append({"caption": example.response.photo.caption if example.response.photo else "", "expected_image_loss": float(expected),
                     "spread": float(family.losses.std()), "gradient_norm": float(truth.norm())})
        for row in gradients.measure(family, model, cases, draws=draws, rng=generator(seed, "draws", number), words=listed):
            found[row["mapping"], row["estimator"], row["temperature"]].append(row)
        echo(f"caption {number} of {len(sharing)}: {len(family.texts)} variants, image loss {float(expected):.4f}")
    rows = []
    for (mapping, estimator, temperature), measured in found.items():
        keys = [key for key, value in measured[0].items() if isinstance(value, float) and key != "temperature"]
        rows.append({"mapping": mapping, "estimator": estimator, "temperature": temperature, "n": len(measured),
                     **{key: {"mean": statistics.fmean(row[key] for row in measured), "std": statistics.stdev(row[key] for row in measured)}
                        for key in keys}})
    files.write_json(path, {"command": f"e2e ablate --profile {config.profile}", "asked": asked, "rows": rows, "captions": said,
                            "provenance": provenance_record(config, seeds={"training": seed})})
    return path


def step_seconds(config: Config, echo: Echo, *, rounds: int = 15, batch: int = 16) -> Path:
    """Times a training step with every map, in turn, on one batch half of which shares photos; writes ``results/<profile>/steps.json``:
    median seconds, and the ratio to a step without a gradient, mean and standard deviation over ``rounds``."""
    path = results.RESULTS / config.profile / "steps.json"
    asked = {"rounds": rounds, "batch": batch, **_made_by(config)}
    if results.is_up_to_date(path, asked, echo):
        return path
    examples, store = _examples(config, echo)
    models = {name: build(apply_variant(config, name)).train() for name in MAPS}
    collated = Collator(models["none"].formatter, store, config.data.photo_size)(dev_examples(examples, batch))
    seconds: dict[str, list[float]] = {name: [] for name in MAPS}
    for number in range(rounds + 1):
        for name, model in models.items():
            began = time.perf_counter()
            model.zero_grad()
            model(collated, temperature=0.5, rng=generator("step", number)).loss.backward()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    ratios = {name: [one / none for one, none in zip(seconds[name], seconds["none"], strict=True)] for name in MAPS}
    rows = [{"mapping": name, "seconds": statistics.median(seconds[name]), "over_none": statistics.median(ratios[name]),
             "std": statistics.stdev(ratios[name])} for name in MAPS]
    files.write_json(path, {"command": f"e2e ablate --profile {config.profile}", "asked": asked, "threads": torch.get_num_threads(), "rows": rows,
                            "provenance": provenance_record(config, seeds={})})
    return path


def coins(echo: Echo, *, steps: int = 8000, learning_rate: float = 1e-3, seed: int = 0) -> Path:
    """Where polynomial programming (notebook 02) ends with each estimator after long training; writes ``results/estimators/polynomial.json``."""
    path = results.RESULTS / "estimators" / "polynomial.json"
    asked = {"steps": steps, "learning_rate": learning_rate, "seed": seed, "numbers": versions("gradients")}
    if results.is_up_to_date(path, asked, echo):
        return path
    rows = []
    for name, temperature in COINS:
        rows.append({"estimator": name, "temperature": temperature,
                     "end": polynomial.polynomial(name, temperature, steps=steps, learning_rate=learning_rate, seed=seed)[-1]})
        echo(f"coins, {name} at {temperature:g}: {rows[-1]['end']:.4f}")
    files.write_json(path, {"command": "e2e ablate", "asked": asked, "rows": rows})
    return path
