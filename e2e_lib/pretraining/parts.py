"""The folder of pretrained parts that ships with the package: making it, measuring it, and its manifest."""

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from e2e_lib.config import Config, ConfigError
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.minichat.chats import CAPTION_DETAIL, HELD_OUT, describe, sample_scene
from e2e_lib.data.minichat.questions import omitted_attributes
from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene
from e2e_lib.data.photos import to_image
from e2e_lib.evaluation.minichat import CORE_ATTRIBUTES
from e2e_lib.evaluation.scene_classifier import SceneClassifier
from e2e_lib.inference.chat import PhotoAlbum
from e2e_lib.inference.respond import draw_photos, generate_texts
from e2e_lib.models.captioner import load_captioner
from e2e_lib.models.hub import load_own
from e2e_lib.models.systems import PhotoChatModel, build
from e2e_lib.models.translator import load_translator
from e2e_lib.pretraining import image, language, vision
from e2e_lib.pretraining.fit import STEPS, Pretraining, sample_photos
from e2e_lib.repro import files
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.randomness import generator, python_random

WORK = Path("runs") / "pretraining"
BASELINE_STAGES = ("captioner", "dialogue", "dialogue_answers", "vqvae", "translator")
STAGES = tuple(name for name in STEPS if name not in BASELINE_STAGES)
MAX_BYTES, MAX_BASELINE_BYTES = 10_000_000, 5_000_000  # that may ship
KINDS = ("seen", "unseen")  # triples in pretraining, and in the test split only
COUNT = 400  # unseen photos, and scenes of each kind, that the parts are measured on


def pretrain(config: Config, echo: Callable[[str], None], out: Path | None = None) -> Path:
    """Makes every part, one after another, resuming what was begun; returns their folder ``out``.

    Writes them with their manifest, and what they reach to ``results/<profile>/pretraining.json``. Raises
    files.SaveError and CheckpointError, and ValueError if the parts are too large to ship.
    """
    out = files.make_folder(out or WORK / config.profile / "parts")
    train_parts(Pretraining(config, WORK / config.profile, out, echo))
    write_manifest(config, out, STAGES, MAX_BYTES)
    echo("measuring what the parts reach on unseen photos …")
    return _write_results("pretraining", config, echo, out, measure(config, out))


def pretrain_baselines(config: Config, echo: Callable[[str], None], shipped: Path,
                       out: Path | None = None) -> Path:
    """The same for the baselines' parts, from the ``shipped`` ones; see ``pretraining_baselines.json``."""
    out = files.make_folder(out or WORK / config.profile / "baselines")
    train_baselines(Pretraining(config, WORK / config.profile, shipped, echo), out)
    write_manifest(config, out, BASELINE_STAGES, MAX_BASELINE_BYTES)
    return _write_results("pretraining_baselines", config, echo, out, measure_baselines(config, shipped, out))


def _write_results(name: str, config: Config, echo: Callable[[str], None], out: Path,
                   scores: dict[str, Any]) -> Path:
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    record = {**scores, "weights_bytes": size, "seconds": sum(manifest["seconds"].values()),
              "n": dict.fromkeys(scores, COUNT), "command": manifest["command"],
              "inference": asdict(config.inference)}
    files.write_json(Path("results") / config.profile / f"{name}.json", record)
    echo(json.dumps(record, indent=1))
    return out


def train_parts(run: Pretraining) -> None:
    """Trains all parts and saves each below ``run.parts`` in the hub's own layout, in half precision."""
    out = run.parts
    save_part(vision.train_scene_classifier(run), out / "scene_reader")
    save_part(image.train_autoencoder(run), out / "generator" / "vae")
    if not (out / "language" / "tokenizer.json").exists():
        language.train_tokenizers(run.config, out)
    save_part(language.train_language(run), out / "language")
    save_part(vision.train_perceptron(run), out / "perceptron")
    for name, part in zip(("language", "perceptron"), vision.train_visual_instruction(run), strict=True):
        save_part(part, out / name)
    trained = image.train_generator(run)
    save_part(trained.unet, out / "generator" / "unet")
    save_part(trained.text_encoder, out / "generator" / "text_encoder")
    trained.scheduler.save_pretrained(out / "generator" / "scheduler")


def train_baselines(run: Pretraining, out: Path) -> None:
    """Trains the parts that only the baselines have, from ``run.parts``; saves each below ``out``."""
    tokenizer = AutoTokenizer.from_pretrained(run.parts / "language")
    for name, train in (("captioner", vision.train_captioner), ("dialogue", language.train_dialogue)):
        save_part(train(run), out / name)
        tokenizer.save_pretrained(out / name)
    scale = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    files.write_json(out / "captioner" / "preprocessor_config.json", scale)
    translator = image.train_translator(run, image.train_vqvae(run))
    save_part(translator.vqvae, out / "translator" / "vqvae")
    save_part(translator.transformer, out / "translator" / "transformer")
    # A new one: the translator's own would be saved with the padding of its last use.
    words = AutoTokenizer.from_pretrained(run.parts / "generator" / "tokenizer")
    words.save_pretrained(out / "translator" / "tokenizer")


def save_part(part: Any, folder: Path) -> None:
    """Saves a part in half precision: half the download, and a smaller difference than between two seeds."""
    half = copy.deepcopy(part).to(memory_format=torch.contiguous_format).half()
    half.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card that the hub library adds


def write_manifest(config: Config, folder: Path, stages: Sequence[str], max_bytes: int) -> None:
    """Writes manifest.json: SHA-256 of files, time, settings, versions. ConfigError over ``max_bytes``."""
    states = {name: json.loads((WORK / config.profile / name / "state.json").read_text(encoding="utf-8"))
              for name in stages}
    (folder / "manifest.json").unlink(missing_ok=True)
    hashes = files.sha256_folder(folder)
    size = sum((folder / name).stat().st_size for name in hashes)
    if size > max_bytes:
        raise ConfigError(f"the parts take {size:,} bytes, more than the {max_bytes:,} that may ship; "
                          "make them smaller")
    option = " --baselines" if stages is BASELINE_STAGES else ""
    record = provenance_record(config, seeds={"pretraining": config.pretrain.seed})
    files.write_json(folder / "manifest.json", {
        "command": f"e2e pretrain --profile {config.profile}{option}", "bytes": size,
        "seconds": {name: round(state["seconds"]) for name, state in states.items()},
        "settings": asdict(config.pretrain), "versions": record["versions"], "platform": record["platform"],
        "files": hashes})


def measure(config: Config, parts: Path) -> dict[str, Any]:
    """What the saved parts reach on unseen photos and scenes: accuracies (0 to 1) by attribute, and PSNR."""
    own: dict[str, Any] = {part: str((parts / part).resolve())
                           for part in ("language", "perceptron", "generator")}
    config = replace(config, model=replace(config.model, **own))
    classifier = load_own(SceneClassifier, str(parts / "scene_reader")).eval()
    model, seed = build(config).eval(), config.pretrain.seed
    every_triple, every_scene = sample_photos(COUNT, seed, "unseen photos", every_triple=True)
    photos, scenes = sample_photos(COUNT, seed, "unseen seen-triple photos")
    reconstructed = image.reconstruct(model.generator.vae, photos)
    accuracy_of = partial(drawn_accuracy, model.generator, classifier, config)
    return {
        "scene_reader": attribute_accuracy(classifier.predict(every_triple), every_scene),
        "autoencoder_psnr_db": image.psnr_db(reconstructed, photos).mean().item(),
        "drawn_from_gold": {kind: accuracy_of(kind) for kind in KINDS},
        "drawn_from_everything": accuracy_of("seen", detail=1.0, names=ATTRIBUTES),
        "perceptron": caption_accuracy(caption_photos(model, config, photos), scenes),
    }


def measure_baselines(config: Config, shipped: Path, parts: Path) -> dict[str, Any]:
    """What the baselines' parts reach on unseen photos and scenes, as ``measure``."""
    classifier = load_own(SceneClassifier, str(shipped / "scene_reader")).eval()
    photos, scenes = sample_photos(COUNT, config.pretrain.seed, "unseen seen-triple photos")
    captioner = load_captioner(str((parts / "captioner").resolve()))
    translator = load_translator(str((parts / "translator").resolve())).eval()
    reconstructed = torch.cat([translator.to_photos(translator.to_codes(part)) for part in photos.split(64)])
    return {
        "captioner": caption_accuracy(captioner.generate_captions(list(photos)), scenes),
        "vqvae_psnr_db": image.psnr_db(reconstructed, photos).mean().item(),
        "drawn_from_gold": {kind: drawn_accuracy(translator, classifier, config, kind) for kind in KINDS},
    }


def gold_scene(kind: str, index: int, seed: int) -> Scene:
    """A scene whose triple occurs in pretraining ("seen") or in the test split only ("unseen")."""
    rng = python_random(seed, "gold captions", kind, index)
    scene = sample_scene(rng, "train")
    if kind == "seen":
        return scene
    thing, colour, place = rng.choice(sorted(HELD_OUT))
    return replace(scene, thing=thing, colour=colour, place=place)


def drawn_accuracy(
        drawer: Any, classifier: SceneClassifier, config: Config, kind: str, *, count: int = COUNT,
        detail: float = CAPTION_DETAIL, names: Iterable[str] = CORE_ATTRIBUTES) -> dict[str, float]:
    """How often photos drawn from gold captions show their scene; ``detail``: share of details named."""
    seed = config.pretrain.seed
    scenes = [gold_scene(kind, i, seed) for i in range(count)]
    captions = [describe(scene, python_random(seed, "gold caption", i), detail)
                for i, scene in enumerate(scenes)]
    photos = draw_photos(drawer, captions, config.inference, generator(seed, "drawn from gold"))
    return attribute_accuracy(classifier.predict(photos), scenes, names)


def attribute_accuracy(predictions: Sequence[Mapping[str, Any]], scenes: Sequence[Scene],
                       names: Iterable[str] = ATTRIBUTES) -> dict[str, float]:
    """The share (0 to 1) of predictions that give the scene's own value, for each attribute."""
    pairs = list(zip(predictions, scenes, strict=True))
    return {name: float(np.mean([prediction[name] == getattr(scene, name) for prediction, scene in pairs]))
            for name in names}


def caption_accuracy(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """How often captions name the thing, colour and place of their photo's scene."""
    omitted = [omitted_attributes(scene, caption) for scene, caption in zip(scenes, captions, strict=True)]
    return {name: float(np.mean([name not in names for names in omitted])) for name in CORE_ATTRIBUTES}


def caption_photos(model: PhotoChatModel, config: Config, photos: Tensor) -> list[str]:
    """What a model says of each photo (N, 3, S, S), uint8, where the photo is all the context there is."""
    album = PhotoAlbum()
    turns = [Turn(0, "", (SharedPhoto(album.add(to_image(photo)), "?"),)) for photo in photos]
    examples = [Example("look", 1, (turn,), Turn(1, "")) for turn in turns]
    settings = replace(config.inference, do_sample=False)
    batches = (examples[first:first + 64] for first in range(0, len(examples), 64))
    return [(response.captions or [""])[0] for batch in batches for response in generate_texts(
        model, batch, album, settings, generator(config.pretrain.seed, "tell"))]
