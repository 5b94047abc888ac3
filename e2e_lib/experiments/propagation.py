"""Do errors propagate (section 1)? Photos drawn by every system from captions of which a growing share of words is wrong, and from gold ones."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from e2e_lib import config as configuration
from e2e_lib.config import Config
from e2e_lib.corpora import prepare
from e2e_lib.data.examples import examples_of, load_split, subsample
from e2e_lib.data.minichat.chats import caption_words
from e2e_lib.data.minichat.corpus import read_scenes
from e2e_lib.data.minichat.questions import corrupt_words
from e2e_lib.data.minichat.scenes import render_photos
from e2e_lib.evaluation.image import image_scores
from e2e_lib.evaluation.scene_classifier import SceneClassifier
from e2e_lib.evaluation.scores import gold_photos
from e2e_lib.inference.respond import draw
from e2e_lib.models.systems import build
from e2e_lib.report.figures import CORE
from e2e_lib.repro import files, results
from e2e_lib.repro.files import weights_hash
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.randomness import generator, python_random, seed_of
from e2e_lib.repro.run_files import RUNS, read_answers, run_folder
from e2e_lib.training.loop import load_trained
from e2e_lib.versions import versions

SHARES = (0.0, 0.25, 0.5, 0.75)
Array = NDArray[np.float64]


def propagate(config: Config, seeds: Sequence[int], systems: Sequence[str], reader: SceneClassifier, echo: Callable[[str], None], *,
              photos: int = 48, root: Path = RUNS) -> Path:
    """Draws the gold captions of ``photos`` test photos, subsample spaced, with a share of their words replaced: the same wrong words for every
    system and seed. Writes ``results/<profile>/propagation.json``: scene accuracy by share, and its slope, with 95 % intervals over photos;
    "caption" is the share of thing, colour and place that the caption itself still names. Raises CheckpointError and ResultsError."""
    path, settings = results.RESULTS / config.profile / "propagation.json", _settings(config, systems)
    asked = {"photos": photos, "shares": list(SHARES), "seeds": list(seeds), "weights": _weights(settings, seeds, root)}
    if results.is_up_to_date(path, asked, echo):
        return path
    due = [row for row in read_answers(config.profile, seeds[:1], root, systems[0])[seeds[0]] if row["scene"]]
    rows = subsample(due, photos)
    if not rows:
        raise results.ResultsError("the test set has no photo whose scene its chat determines, so there is nothing to draw again")
    words = caption_words()
    captions = [[corrupt_words(row["gold_caption"], share, words, python_random("corrupt_words", i, share)) for i, row in enumerate(rows)] for share in SHARES]
    golds = [row["scene"]["gold"] for row in rows]
    found = {"caption": described(np.array([[named(caption, gold) for caption, gold in zip(said, golds, strict=True)] for said in captions]))}
    for system in systems:
        runs = []
        for seed in seeds:
            model = load_trained(settings[system], seed, root=root)
            read = [reader.read(draw(model.generator, said, config.inference, generator(seed, "corrupt_words"))) for said in captions]
            runs.append([[np.mean([one[name] == gold[name] for name in CORE]) for one, gold in zip(seen, golds, strict=True)] for seen in read])
            echo(f"errors, {system}, seed {seed}: scene accuracy {', '.join(f'{np.mean(right):.2f}' for right in runs[-1])}")
        found[system] = described(np.mean(runs, 0))
    return files.write_json(path, {"profile": config.profile, "asked": asked, "photos": len(rows), "systems": found,
                                   "provenance": provenance_record(config, seeds=seeds)})


def gold_fid(config: Config, seeds: Sequence[int], systems: Sequence[str], reader: SceneClassifier, echo: Callable[[str], None], *,
             root: Path = RUNS) -> Path:
    """How much of FID is the drawing, and how much the words? Every system and seed draws the gold captions of all test photos. Writes
    ``results/<profile>/gold_fid.json``: for each system, a number a seed, "from_gold" such captions, the same "before" the system was
    trained (seeds are then those of drawing alone), and "from_own" captions (as its run was scored); and "drawn_anew", what the same
    scenes have when MiniChat itself draws them with other accidents. Raises CheckpointError and ResultsError."""
    path, settings = results.RESULTS / config.profile / "gold_fid.json", _settings(config, systems)
    asked = {"seeds": list(seeds), "weights": _weights(settings, seeds, root), "numbers": versions("minichat", "scoring", "decoding", "training")}
    if results.is_up_to_date(path, asked, echo):
        return path
    scored = {(run["system"], run["seed"]): run["metrics"]["fid"] for run in results.read_runs(config.profile)}
    gold, anew, captions = shared_photos(config, prepare(config, echo))
    found: dict[str, dict[str, list[float]]] = {}
    for system in systems:
        found[system] = {"before": [], "from_gold": [], "from_own": [scored[system, seed] for seed in seeds]}
        untrained = build(settings[system])
        for seed in seeds:
            for when, model in (("before", untrained), ("from_gold", load_trained(settings[system], seed, root=root))):
                drawn = draw(model.generator, captions, config.inference, generator(seed, "gold"))
                found[system][when].append(fid_of(drawn, gold, reader))
            echo(f"gold captions, {system}, seed {seed}: FID* {found[system]['before'][-1]:.3f}, trained {found[system]['from_gold'][-1]:.3f}")
    return files.write_json(path, {"profile": config.profile, "asked": asked, "photos": len(gold), "drawn_anew": fid_of(anew, gold, reader),
                                   "systems": found, "provenance": provenance_record(config, seeds=seeds)})


def _settings(config: Config, systems: Sequence[str]) -> dict[str, Config]:
    return {system: configuration.replace(config, "model.system", system) for system in systems}


def _weights(settings: Mapping[str, Config], seeds: Sequence[int], root: Path) -> dict[str, str]:
    """The hash of every trained run's weights. Raises CheckpointError for a run that is missing or damaged."""
    return {f"{system}-seed{seed}": weights_hash(run_folder(made, seed, root) / "best")
            for system, made in settings.items() for seed in seeds}


def shared_photos(config: Config, corpus: Path) -> tuple[Tensor, Tensor, list[str]]:
    """The test responses' photos, and the same scenes drawn by MiniChat itself with other accidents, both (N, 3, S, S), uint8; the captions."""
    dialogues, store, _ = load_split(corpus, "test")
    examples = [example for dialogue in dialogues for example in examples_of(dialogue)]
    shared, scenes = [example.response.photo for example in examples if example.response.photo], read_scenes(corpus / "scenes.jsonl")
    anew = render_photos([scenes[photo.photo_id] for photo in shared], [seed_of("drawn anew", i) for i in range(len(shared))])
    return gold_photos(examples, store, config.data.photo_size), anew, [photo.caption for photo in shared]


def fid_of(drawn: Tensor, gold: Tensor, reader: SceneClassifier) -> float:
    return float(image_scores(drawn, gold, reader, kid_subsets=1)["fid"])


def named(caption: str, gold: Mapping[str, Any]) -> float:
    """The share of a scene's thing, colour and place that a caption names."""
    return float(np.mean([bool(re.search(rf"\b{gold[name]}s?\b", caption)) for name in CORE]))


def described(right: Array, draws: int = 2000) -> dict[str, Any]:
    """``right`` (shares, photos), from 0 to 1, as means by share and the slope of a least-squares line, with intervals over photos."""
    centred = np.array(SHARES) - np.mean(SHARES)
    slopes = centred @ right / np.square(centred).sum()  # one a photo; their mean is the slope of the means
    rng = np.random.default_rng(0)
    chosen = rng.integers(right.shape[1], size=(draws, right.shape[1]))
    return {"accuracy": [_interval(row, chosen) for row in right], "slope": _interval(slopes, chosen)}


def _interval(values: Array, chosen: NDArray[np.int64]) -> dict[str, float]:
    low, high = np.quantile(values[chosen].mean(1), (0.025, 0.975))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}
