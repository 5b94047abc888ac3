"""Putting the pretrained parts together: the folder that ships with the package, what it reaches, and what made it."""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from e2e_lib import config as configuration
from e2e_lib.config import Config
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.minichat.chats import HELD_OUT, describe, sample_scene
from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene
from e2e_lib.data.photos import to_floats
from e2e_lib.evaluation.scene_classifier import SceneClassifier
from e2e_lib.evaluation.sharing import CORE_ATTRIBUTES
from e2e_lib.inference.respond import draw, write
from e2e_lib.models.captioner import load_captioner
from e2e_lib.models.end_to_end import EndToEndModel
from e2e_lib.models.hub import load_own
from e2e_lib.models.systems import build
from e2e_lib.models.translator import load_translator
from e2e_lib.pretraining import image as drawing
from e2e_lib.pretraining import language
from e2e_lib.pretraining import vision as sight
from e2e_lib.pretraining.fit import Echo, photo_pool
from e2e_lib.repro import files
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.randomness import generator, python_random

WORK = Path("runs") / "pretraining"
MAX_BYTES, MAX_BASELINE_BYTES = 10_000_000, 5_000_000


def pretrain(config: Config, echo: Echo, out: Path | None = None) -> Path:
    """Makes every part, one after another, resuming what was begun; writes them to ``out`` with their manifest, and what they reach
    to ``results/<profile>/pretraining.json``. Returns ``out``. Raises files.SaveError and CheckpointError."""
    work = WORK / config.profile
    out = out or work / "parts"
    train_parts(config, work, out, echo)
    seconds = write_manifest(config, out, STEPS, MAX_BYTES)
    echo("measuring what the parts reach on unseen photos …")
    reached = measure(config, out, seconds)
    files.write_json(Path("results") / config.profile / "pretraining.json", reached)
    echo(json.dumps(reached, indent=1))
    return out


def pretrain_baselines(config: Config, echo: Echo, shipped: Path, out: Path | None = None) -> Path:
    """The same for the parts that only the baselines have, from the ``shipped`` parts; what they reach goes to
    ``results/<profile>/pretraining_baselines.json``."""
    work = WORK / config.profile
    out = out or work / "baselines"
    made = {"captioner": sight.train_captioner(config, work, shipped, echo), "dialogue": language.train_dialogue(config, work, shipped, echo)}
    words = AutoTokenizer.from_pretrained(shipped / "language")
    for name, part in made.items():
        save_part(part, out / name)
        words.save_pretrained(out / name)
    files.write_json(out / "captioner" / "preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    translator = drawing.train_translator(config, work, shipped, drawing.train_vqvae(config, work, echo), echo)
    save_part(translator.vqvae, out / "translator" / "vqvae")
    save_part(translator.transformer, out / "translator" / "transformer")
    translator.tokenizer.save_pretrained(out / "translator" / "tokenizer")
    seconds = write_manifest(config, out, BASELINE_STEPS, MAX_BASELINE_BYTES)
    reached = measure_baselines(config, shipped, out, seconds)
    files.write_json(Path("results") / config.profile / "pretraining_baselines.json", reached)
    echo(json.dumps(reached, indent=1))
    return out


BASELINE_STEPS = ("captioner", "dialogue", "dialogue_answers", "vqvae", "translator")
STEPS = ("scene_reader", "autoencoder", "decoder", "language", "answers", "sight", "perceptron", "looking", "text_encoder", "generator", "light")


def train_parts(config: Config, work: Path, out: Path, echo: Echo) -> None:
    """Trains the five parts and saves each below ``out`` in the hub's own layout, in half precision."""
    save_part(sight.train_scene_classifier(config, work, echo), out / "scene_reader")
    save_part(drawing.train_autoencoder(config, work, echo), out / "generator" / "vae")
    if not (out / "language" / "tokenizer.json").exists():
        language.train_tokenizers(config, out)
    save_part(language.train_language(config, work, out, echo), out / "language")
    save_part(sight.train_perceptron(config, work, out, echo), out / "perceptron")
    for name, part in zip(("language", "perceptron"), sight.train_looking(config, work, out, echo), strict=True):
        save_part(part, out / name)
    made = drawing.train_generator(config, work, out, echo)
    for name, part in (("unet", made.unet), ("text_encoder", made.text_encoder)):
        save_part(part, out / "generator" / name)
    made.scheduler.save_pretrained(out / "generator" / "scheduler")


def save_part(part: Any, folder: Path) -> None:
    """Saves a part in half precision, which halves the download and changes what it does by less than a seed does."""
    half = copy.deepcopy(part).to(memory_format=torch.contiguous_format).half()
    half.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card that the hub library adds


def write_manifest(config: Config, folder: Path, stages: tuple[str, ...], most: int) -> float:
    """Writes ``manifest.json``: the SHA-256 of every file, the settings and versions that made them; returns the seconds that the ``stages``
    took in all. Raises ValueError over ``most`` bytes."""
    seconds = {name: json.loads((WORK / config.profile / name / "state.json").read_text())["seconds"] for name in stages}
    (folder / "manifest.json").unlink(missing_ok=True)
    hashes = files.sha256_folder(folder)
    size = sum((folder / name).stat().st_size for name in hashes)
    if size > most:
        raise ValueError(f"the parts take {size:,} bytes, more than the {most:,} that may ship; make them smaller")
    made = provenance_record(config, seeds={"pretraining": config.pretrain.seed})
    files.write_json(folder / "manifest.json", {
        "command": f"e2e pretrain --profile {config.profile}", "bytes": size, "seconds": {k: round(v) for k, v in seconds.items()},
        "settings": asdict(config.pretrain), "versions": made["versions"], "platform": made["platform"], "files": hashes})
    return sum(seconds.values())


def measure(config: Config, folder: Path, seconds: float, photos: int = 400) -> dict[str, Any]:
    """What the saved parts reach on photos and scenes drawn anew, with ``photos`` of each kind."""
    for part in ("language", "perceptron", "generator"):
        config = configuration.replace(config, f"model.{part}", str((folder / part).resolve()))
    reader = load_own(SceneClassifier, str(folder / "scene_reader")).eval()
    model = build(config).eval()
    seed = config.pretrain.seed
    every, shown = photo_pool(photos, seed, "unseen photos", every_triple=True)
    fresh, scenes = photo_pool(photos, seed, "unseen seen-triple photos")
    wanted = {kind: [scene_of(kind, i, seed) for i in range(photos)] for kind in ("seen", "unseen")}

    def drawn(kind: str, detail: float) -> dict[str, float]:
        return sight.reading_accuracy(reader.read(draw_captions(model.generator, config, wanted[kind], detail)), wanted[kind])

    return {
        "scene_reader": sight.reading_accuracy(reader.read(every), shown),
        "autoencoder_psnr_db": drawing.psnr_db(drawing.redrawn(model.generator.vae, fresh), fresh).mean().item(),
        "drawn_from_gold": {kind: core(drawn(kind, 0.35)) for kind in wanted},
        "drawn_from_everything": drawn("seen", 1.0),
        "perceptron": core(sight.reading_accuracy([words_of(caption) for caption in tell(model, config, fresh)], scenes)),
        "weights_bytes": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()), "seconds": round(seconds),
        "n": {"scene_reader": photos, "autoencoder_psnr_db": photos, "drawn_from_gold": photos, "drawn_from_everything": photos,
              "perceptron": photos},
        "command": f"e2e pretrain --profile {config.profile}", "inference": asdict(config.inference),
    }


def measure_baselines(config: Config, shipped: Path, folder: Path, seconds: float, photos: int = 400) -> dict[str, Any]:
    """What the baselines' parts reach on photos and scenes drawn anew, with ``photos`` of each kind."""
    reader = load_own(SceneClassifier, str(shipped / "scene_reader")).eval()
    seed = config.pretrain.seed
    fresh, scenes = photo_pool(photos, seed, "unseen seen-triple photos")
    told = load_captioner(str((folder / "captioner").resolve())).generate_captions(fresh)
    translator = load_translator(str((folder / "translator").resolve())).eval()
    coded = torch.cat([translator.to_photos(translator.to_codes(to_floats(part))) for part in fresh.split(64)])
    drawn = {}
    for kind in ("seen", "unseen"):
        wanted = [scene_of(kind, i, seed) for i in range(photos)]
        drawn[kind] = core(sight.reading_accuracy(reader.read(draw_captions(translator, config, wanted)), wanted))
    return {
        "captioner": core(sight.reading_accuracy([words_of(caption) for caption in told], scenes)),
        "vqvae_psnr_db": drawing.psnr_db(coded, fresh).mean().item(),
        "drawn_from_gold": drawn, "weights_bytes": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()), "seconds": round(seconds),
        "n": {"captioner": photos, "vqvae_psnr_db": photos, "drawn_from_gold": photos},
        "command": f"e2e pretrain --profile {config.profile} --baselines", "inference": asdict(config.inference),
    }


def core(accuracy: dict[str, float]) -> dict[str, float]:
    return {name: accuracy[name] for name in CORE_ATTRIBUTES}


def scene_of(kind: str, index: int, seed: int) -> Scene:
    """A scene whose triple pretraining has met ("seen") or that occurs in the test split only ("unseen")."""
    rng = python_random(seed, "gold captions", kind, index)
    scene = sample_scene(rng, "train")
    if kind == "seen":
        return scene
    thing, colour, place = rng.choice(sorted(HELD_OUT))
    return replace(scene, thing=thing, colour=colour, place=place)


def draw_captions(drawer: Any, config: Config, scenes: list[Scene], detail: float = 0.35) -> Tensor:
    """A photo (3, S, S) by ``drawer`` (an image generator or translator) for a gold caption of each scene: as dialogues hold them, or with more
    ``detail``, up to 1 for all that there is."""
    captions = [describe(scene, python_random(config.pretrain.seed, "gold caption", i), detail) for i, scene in enumerate(scenes)]
    return draw(drawer, captions, config.inference, generator(config.pretrain.seed, "drawn from gold"))


def tell(model: EndToEndModel, config: Config, photos: Tensor) -> list[str]:
    """What the language model says of each photo, seen through the perceptron alone."""
    asked = [Example("look", 1, (Turn(0, "", SharedPhoto(str(i), "?")),), Turn(1, "")) for i in range(len(photos))]
    settings = replace(config.inference, do_sample=False)
    captions = []
    for first in range(0, len(asked), 64):
        answers = write(model, asked[first:first + 64], _Shown(photos), settings, generator(config.pretrain.seed, "tell"), photos.shape[-1])
        captions += [answer.caption or "" for answer in answers]
    return captions


class _Shown:
    """Photos by number, read like a PhotoStore."""

    def __init__(self, photos: Tensor) -> None:
        self.photos = photos

    def tensor(self, photo_id: str, size: int) -> Tensor:
        return self.photos[int(photo_id)]


def words_of(caption: str) -> dict[str, Any]:
    """Which thing, colour and place a caption names (None where it names none); the other attributes are None."""
    words = [word.strip(",.").lower() for word in caption.split()]
    singular = {word.removesuffix("s") for word in words} | set(words)
    return {name: next((value for value in values if value in singular), None) if name in CORE_ATTRIBUTES else None
            for name, values in ATTRIBUTES.items()}
