"""What each vocabulary map and estimator is worth (sections 2.4.1-2.4.2; the paper has no ablation): its gradient beside the true one, and
the same joint training with it. Every part is kept once it is done, so that an interrupted ablation goes on."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e2e_lib import config as configuration
from e2e_lib import files, gradients, results
from e2e_lib.config import Config
from e2e_lib.data.corpus import prepare
from e2e_lib.data.examples import Collator, examples_of, load_split
from e2e_lib.data.minichat import caption_words
from e2e_lib.evaluation.run import evaluate
from e2e_lib.provenance import code_hash, stamp
from e2e_lib.randomness import generator
from e2e_lib.training import RUNS, load_trained, train

Echo = Callable[[str], None]

# The paper's own is "sentence". ReinMax needs a temperature of at least 1, so it has a row without annealing to compare it to.
VARIANTS: dict[str, tuple[str, ...]] = {
    "none": ("bridge.mapping=none",), "static_piece": ("bridge.mapping=static_piece",), "static_word": ("bridge.mapping=static_word",),
    "sentence": (), "word": ("bridge.mapping=word",), "span": ("bridge.mapping=span",),
    "span_constant": ("bridge.mapping=span", "bridge.temperature_end=1"),
    "span_reinmax": ("bridge.mapping=span", "bridge.estimator=reinmax", "bridge.temperature_end=1"),
    "span_decoupled": ("bridge.mapping=span", "bridge.estimator=decoupled", "bridge.temperature_end=1"),
}
MAPS = ("static_piece", "static_word", "sentence", "word", "span")
ESTIMATORS = (("straight_through", 1.0), ("gumbel", 1.0), ("gumbel", 0.1), ("decoupled", 1.0), ("gumbel_rao", 0.5), ("reinmax", 1.0))


def ablate(config: Config, seeds: Sequence[int], echo: Echo, *, variants: Sequence[str] = tuple(VARIANTS)) -> dict[str, Any]:
    """Trains and scores every variant with every seed; writes ``results/<profile>/ablations/`` and their summary ``ablations.json``.

    Raises ConfigError for a variant that does not exist, and whatever training and evaluation raise.
    """
    if unknown := set(variants) - set(VARIANTS):
        raise configuration.ConfigError(f"variant {sorted(unknown)[0]!r} is unknown; allowed: {', '.join(VARIANTS)}")
    for number, name in enumerate(variants, 1):
        changed = config
        for override in VARIANTS[name]:
            key, _, value = override.partition("=")
            changed = configuration.replace(changed, key, value)
        for seed in seeds:
            echo(f"== variant {number} of {len(variants)}: {name} ({', '.join(VARIANTS[name]) or 'as the paper'}), seed {seed}")
            root = RUNS / "ablations" / name
            train(changed, seed, echo, root=root)
            evaluate(changed, seed, echo, system=name, into="ablations", runs_root=root)
    return results.summarise(config.profile, folder="ablations")


def truths(config: Config, seed: int, echo: Echo, *, captions: int = 12, positions: int = 2, words: int = 5, noises: int = 16,
           draws: int = 2048) -> Path:
    """Compares every map and estimator with the exact gradient on ``captions`` dev captions of the trained model of ``seed``; writes
    ``results/<profile>/gradients.json``, one row each: mean, standard deviation and number over captions. Raises CheckpointError."""
    path = results.RESULTS / config.profile / "gradients.json"
    asked = {"captions": captions, "positions": positions, "words": words, "noises": noises, "draws": draws, "seed": seed,
             "code": code_hash(Path(__file__).parent / "bridge"), "settings": json.loads(json.dumps(asdict(config)))}
    if path.is_file() and results.load_json(path).get("asked") == asked:
        echo(f"{path} is there already")
        return path
    dialogues, store, _ = load_split(prepare(config, echo), "dev")
    sharing = [e for dialogue in dialogues for e in examples_of(dialogue) if e.response.photo and not e.response.text][:captions]
    model = load_trained(config, seed)
    collate = Collator(model.layout, store, config.data.photo_size)
    cases = [(mapping, *estimator) for mapping in MAPS for estimator in ESTIMATORS] + [("all", "reinforce", 1.0)]
    listed = caption_words()
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
                            "provenance": stamp(config, seeds={"training": seed})})
    return path
