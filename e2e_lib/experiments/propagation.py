"""Do errors propagate (section 1)? Photos from captions with more and more wrong words, or from gold ones."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from e2e_lib import corpora
from e2e_lib.config import Config, replace
from e2e_lib.data.examples import split_examples, subsample
from e2e_lib.data.minichat.chats import caption_words
from e2e_lib.data.minichat.corpus import read_scenes
from e2e_lib.data.minichat.questions import corrupt_words
from e2e_lib.data.minichat.scenes import render_photos
from e2e_lib.evaluation.image import features_of, fid
from e2e_lib.evaluation.intervals import mean_interval
from e2e_lib.evaluation.minichat import CORE_ATTRIBUTES, scene_values
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.evaluation.scores import Array
from e2e_lib.experiments.comparison import numbers_of
from e2e_lib.experiments.evaluate import Echo, versions_of_answers
from e2e_lib.inference.respond import draw_photos
from e2e_lib.models.systems import build, origins, ready
from e2e_lib.repro import files, results
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.randomness import generator, python_random, seed_of
from e2e_lib.repro.run_files import RUNS, read_answers, run_folder
from e2e_lib.training.loop import load_trained

SHARES = (0.0, 0.25, 0.5, 0.75)


def propagate(config: Config, seeds: Sequence[int], systems: Sequence[str], echo: Echo, *,
              photos: int = 48) -> Path:
    """Draws ``photos`` gold test captions with a share of wrong words, the same for every system and seed.

    Writes ``results/<profile>/propagation.json``: scene accuracy by share, and its slope, with 95 % intervals
    over the photos' dialogues; "caption" is what captions themselves still name. Raises CheckpointError and
    ResultsError."""
    path = results.RESULTS / config.profile / "propagation.json"
    settings = {"photos": photos, "shares": list(SHARES), "seeds": list(seeds),
                "numbers": numbers_of(config),
                "weights": _weights(config, seeds, systems)}
    if results.is_up_to_date(path, settings, echo):
        return path
    answers = read_answers(config.profile, seeds[:1], RUNS, systems[0])[seeds[0]]
    due = subsample([(*pair, row["dialogue_id"]) for row in answers for pair in scenes_and_captions(row)],
                    photos)
    if not due:
        raise results.ResultsError("the test set has no photo whose scene its chat determines, so there is "
                                   "nothing to draw again (only MiniChat has such scenes)")
    words, gold = caption_words(), [scene["gold"] for scene, *_ in due]
    dialogue_ids = [row[-1] for row in due]
    captions = [[corrupt_words(caption, share, words, python_random("corrupt_words", i, share))
                 for i, (_, caption, _) in enumerate(due)] for share in SHARES]
    named = np.array([[named_share(*pair) for pair in zip(texts, gold, strict=True)] for texts in captions])
    scored, classifier = {"caption": by_share(named, dialogue_ids)}, load_scene_classifier()
    for system in systems:
        runs: list[list[list[float]]] = []
        for seed in seeds:
            model = load_trained(replace(config, "model.system", system), seed)
            runs.append([])
            for texts in captions:
                rng = generator(seed, "corrupt_words")
                scenes = classifier.predict(draw_photos(model.generator, texts, config.inference, rng))
                runs[-1].append([scene_values({"gold": one, "drawn": other, "named": None})["scene_accuracy"]
                                 for one, other in zip(gold, scenes, strict=True)])
            means = ", ".join(f"{np.mean(values):.2f}" for values in runs[-1])
            echo(f"errors, {system}, seed {seed}: scene accuracy {means}")
        scored[system] = by_share(np.mean(runs, 0), dialogue_ids)
    return files.write_json(path, {"profile": config.profile, "arguments": settings, "photos": len(due),
                                   "systems": scored, "provenance": provenance_record(config, seeds=seeds)})


def gold_fid(config: Config, seeds: Sequence[int], systems: Sequence[str], echo: Echo) -> Path:
    """How much of FID is the drawing, how much the words? Every system and seed draws all gold test captions.

    Writes ``results/<profile>/gold_fid.json``: a number per system and seed "from_gold" captions, "before" it
    was trained (seeds are then those of drawing alone) and "from_own" captions (its run's); and "drawn_anew",
    by MiniChat itself, the same scenes with other random details. Raises CheckpointError and ResultsError."""
    path = results.RESULTS / config.profile / "gold_fid.json"
    settings = {"seeds": list(seeds), "weights": _weights(config, seeds, systems),
                "numbers": versions_of_answers(config)}
    if results.is_up_to_date(path, settings, echo):
        return path
    runs = results.read_runs(config.profile)
    scored = {(run["system"], run["seed"]): run["metrics"]["fid"] for run in runs}
    corpus, extractor = corpora.prepare(config, echo), corpora.extractor_of(config.data)
    (examples, store), scenes = split_examples(
        corpus, "test", real_only=config.data.real_only), read_scenes(corpus / "scenes.jsonl")
    shared = [photo for example in examples for photo in example.response.photos]
    gold = features_of([store.tensor(photo.photo_id) for photo in shared], extractor)

    def fid_of(photos: Tensor) -> float:
        return fid(features_of(list(photos), extractor), gold)

    captions = [photo.caption for photo in shared]

    def drawn(model: Any, seed: int) -> float:
        return fid_of(draw_photos(model.generator, captions, config.inference, generator(seed, "gold")))

    before: dict[str, list[float]] = {}  # by the part that draws, which several systems have
    fids_by_system: dict[str, dict[str, list[float]]] = {}
    for system in systems:
        own = replace(config, "model.system", system)
        drawer = origins(own)["translator" if system == "divter" else "generator"]
        if drawer not in before:
            untrained = ready(build(own))
            before[drawer] = [drawn(untrained, seed) for seed in seeds]
        trained = []
        for number, seed in enumerate(seeds):
            trained.append(drawn(load_trained(own, seed), seed))
            echo(f"gold captions, {system}, seed {seed}: FID* {before[drawer][number]:.3f}, "
                 f"trained {trained[-1]:.3f}")
        fids_by_system[system] = {"before": before[drawer], "from_gold": trained,
                                  "from_own": [scored[system, seed] for seed in seeds]}
    anew = render_photos([scenes[photo.photo_id] for photo in shared],
                         [seed_of("drawn anew", i) for i in range(len(shared))])
    return files.write_json(path, {
        "profile": config.profile, "arguments": settings, "photos": len(gold), "drawn_anew": fid_of(anew),
        "systems": fids_by_system, "provenance": provenance_record(config, seeds=seeds)})


def _weights(config: Config, seeds: Sequence[int], systems: Sequence[str]) -> dict[str, str]:
    """The hash of every trained run's weights. Raises CheckpointError for one that is missing or damaged."""
    folders = {f"{system}-seed{seed}": run_folder(replace(config, "model.system", system), seed)
               for system in systems for seed in seeds}
    return {name: files.weights_hash(folder / "best") for name, folder in folders.items()}


def scenes_and_captions(row: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """The scenes of an answer's gold photos (see ``MiniChatScores.annotate``), each with its gold caption."""
    captions = dict(zip(row.get("gold_photo_ids", ()), row.get("gold_captions", ()), strict=True))
    return [(scene, captions[scene["photo_id"]]) for scene in row.get("scenes", ())]


def named_share(caption: str, gold: Mapping[str, Any]) -> float:
    """The share of a scene's thing, colour and place that a caption names."""
    return float(np.mean([bool(re.search(rf"\b{gold[name]}s?\b", caption)) for name in CORE_ATTRIBUTES]))


def by_share(values: Array, dialogue_ids: Sequence[str]) -> dict[str, Any]:
    """Values (shares, photos), 0 to 1: means by share and a least-squares line's slope, with intervals over
    the photos' dialogues."""
    centred = np.array(SHARES) - np.mean(SHARES)
    slopes = centred @ values / np.square(centred).sum()  # per photo; their mean is the slope of the means
    return {"accuracy": [mean_interval(row, dialogue_ids) for row in values],
            "slope": mean_interval(slopes, dialogue_ids)}
