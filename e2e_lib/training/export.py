"""Out again: what a run trained, as folders that the stock libraries load (peft, transformers, diffusers).

``language/`` (in Divter ``dialogue/``) is a LoRA adapter or a whole model, with its tokenizer;
``perceptron/`` is read by ``models.perceptron``; ``generator/`` is a StableDiffusionPipeline with the
source's own scheduler, LoRA of its UNet merged; ``translator/`` is Divter's. ``models.exported`` takes an
export in again.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderDC, StableDiffusionPipeline
from transformers import GenerationConfig

from e2e_lib.config import Config, ConfigError, Inference, replace
from e2e_lib.models import hub
from e2e_lib.models.adapter_files import is_adapter, merge_adapter, read_adapter, save_adapter
from e2e_lib.models.exported import ADAPTER, FILE, MERGED, NAMED, WHOLE, configuration, file_hashes
from e2e_lib.models.language import PACKAGE
from e2e_lib.models.perceptron import ImagePerceptron
from e2e_lib.models.systems import PhotoChatModel, build, origins
from e2e_lib.repro import files
from e2e_lib.repro.provenance import git_state, library_versions, relativize_paths
from e2e_lib.repro.randomness import seeded
from e2e_lib.training import checkpoints
from e2e_lib.training.model_card import licence_of, write_card

Echo = Callable[[str], None]


def export(run: Path | str, out: Path | str, merged: bool = False, echo: Echo = print) -> Path:
    """Writes the best weights of the run in the folder ``run`` as an export, see ``models.exported``.

    A language model with LoRA becomes an adapter, or, with ``merged``, a whole model. Returns the folder.
    Raises CheckpointError for a run that is missing, damaged or of another version, ConfigError for a folder
    that is not empty and for what cannot be exported, and files.SaveError; nothing is left where it fails.
    """
    run, out = Path(run), Path(out).expanduser().resolve()
    check_free(out)
    weights, state = checkpoints.load(run / "best", shape={"config": {}, "seed": int, "epoch": int})
    config = configuration(state["config"])
    checkpoints.check_made_with(state, config, run)
    adapted = config.model.language_lora > 0 and config.model.system != "divter"
    if merged and not adapted:
        raise ConfigError("--merged: the run trained its language model whole, without LoRA, so that there "
                          "is nothing to merge; leave it out")
    base = base_of(config) if adapted and not merged else None
    if merged:  # into weights that can take up the factors
        config = replace(config, "model.language_bits", 16)
    with seeded(0, "new weights"):  # which those of the run replace
        model = build(config)
    checkpoints.load_run(model, weights, config, state["seed"], run)
    sources = origins(config)
    with files.atomic_folder(out) as new:
        how = dict.fromkeys(sources, NAMED) | _save_parts(model, config, new, base)
        parts = {name: {"as": how[name], "licence": licence_of(source),
                        "from": _reachable(source) if how[name] == NAMED else relativize_paths(source)}
                 for name, source in sources.items()}
        for name, source in sources.items():
            echo(f"{name}: {how[name]}, from {source}")
        record = {"run": {"profile": config.profile, "system": config.model.system, "seed": state["seed"],
                          "epoch": state["epoch"], "weights": files.weights_hash(run / "best")},
                  "config": relativize_paths(asdict(config)), "parts": parts,
                  "numbers": state.get("numbers", {}), "versions": library_versions(), "git": git_state(),
                  "files": file_hashes(new, parts)}
        write_card(new, record, config, model.formatter)
        files.write_json(new / FILE, record)
        for path in new.rglob("*.safetensors"):
            path.chmod(0o644)  # an export is there to be passed on, and the library lets only its owner read
        check_free(out)  # another export may have ended meanwhile
    return out


def check_free(out: Path) -> None:
    """Raises ConfigError unless a folder can be made at ``out`` without replacing anything."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a new folder to export to")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is there and not empty, and an export replaces nothing; name a new folder, "
                          "or delete this one first")


def base_of(config: Config) -> tuple[str, str | None]:
    """The model to which a run's language adapter belongs, as peft finds it, and its revision.

    Raises ConfigError for one that stock code cannot load.
    """
    source = config.model.language
    if is_adapter(source):
        source, rank = read_adapter(Path(source).expanduser())
        if rank != config.model.language_lora:  # whose factors the weights took up
            raise _needs_merging(config.model.language, "is a model with an adapter of another rank")
    if source.startswith((PACKAGE, "shipped:")):
        raise _needs_merging(source, "is no folder or hub repository")
    if Path(source).expanduser().is_dir():
        return _reachable(source), None
    name, _, revision = hub.origin(source).partition("@")
    return name, revision or None


def _needs_merging(source: str, why: str) -> ConfigError:
    return ConfigError(f"model.language = {source!r} {why}, so that peft could not load what an adapter "
                       "belongs to; export the whole model: --merged")


def _reachable(source: str) -> str:
    """A part's source in such a form that it is found from any working folder."""
    return str(Path(source).expanduser().resolve()) if Path(source).expanduser().is_dir() else source


def _save_parts(model: Any, config: Config, out: Path, base: tuple[str, str | None] | None) -> dict[str, str]:
    """Writes a folder for each part of the system that was trained; returns how each is there."""
    settings = config.model
    if settings.system == "divter":
        save_translator(model.generator, out / "translator")
        return {"dialogue": save_language(model, config.inference, out / "dialogue"), "translator": WHOLE}
    lora = settings.language_lora > 0
    if lora and base is None:
        merge_adapter(model.language)
    parts = {"language": save_language(model, config.inference, out / "language", base)}
    if lora and base is None:
        parts["language"] = MERGED
    if perceptron := getattr(model, "perceptron", None):
        save_perceptron(perceptron, out / "perceptron")
        parts["perceptron"] = WHOLE
    save_generator(model.generator, settings.generator, out / "generator", settings.unet_lora > 0)
    return parts | {"generator": MERGED if settings.unet_lora else WHOLE}


def save_language(model: PhotoChatModel, inference: Inference, folder: Path,
                  base: tuple[str, str | None] | None = None) -> str:
    """Writes a language model whole, or its adapter to ``base``, with tokenizer and settings of generation;
    returns which."""
    formatter, how = model.formatter, dict[str, Any]()
    if inference.do_sample and inference.num_beams == 1:
        how = {"do_sample": True, "temperature": inference.temperature, "top_p": inference.top_p, "top_k": 0}
    generation = GenerationConfig(
        bos_token_id=model.tokenizer.bos_token_id, eos_token_id=[*formatter.eos_token_ids],
        pad_token_id=formatter.pad_token_id, max_new_tokens=inference.max_new_tokens,
        num_beams=inference.num_beams, **how)
    if base:
        save_adapter(model.language, folder, *base)
        generation.save_pretrained(folder)
    else:
        _forget_gguf(model.language)
        model.language.generation_config = generation  # what the source had might not be saved: it is checked
        model.language.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    _forget_places(folder)
    return ADAPTER if base else WHOLE


def save_perceptron(perceptron: ImagePerceptron, folder: Path) -> None:
    """Writes a perceptron with its projection, in the layout of ``models.perceptron.load_perceptron``."""
    parts: Any = perceptron
    config = {"vision": parts.vision_model.config.to_dict(), "qformer": parts.qformer.config.to_dict(),
              "queries": perceptron.queries, "language_width": perceptron.language_projection.out_features,
              "mean": perceptron.mean.flatten().tolist(), "std": perceptron.std.flatten().tolist()}
    perceptron.save_pretrained(folder, config=config)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card that the hub library adds
    _forget_places(folder)


def save_generator(generator: Any, source: str, folder: Path, lora: bool) -> None:
    """Writes an image generator as a StableDiffusionPipeline with the scheduler of its ``source``; LoRA is
    merged into the UNet, in float32."""
    if lora:
        generator.unet.float()
        generator.unet.fuse_lora()
        generator.unet.unload_lora()
    if isinstance(generator.vae, AutoencoderDC):  # by which the pipeline tells the size of its photos
        generator.vae.register_to_config(block_out_channels=generator.vae.config.encoder_block_out_channels)
    with hub.loading("generator", source) as place:
        name = diffusers.DDPMScheduler.load_config(place, subfolder="scheduler")["_class_name"]
        scheduler = getattr(diffusers, name).from_pretrained(place, subfolder="scheduler")
    StableDiffusionPipeline(
        vae=generator.vae, text_encoder=generator.text_encoder, tokenizer=generator.tokenizer,
        unet=generator.unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False).save_pretrained(folder)
    _forget_places(folder)


def save_translator(translator: Any, folder: Path) -> None:
    """Writes Divter's translator in the layout of ``models.translator.load_translator``."""
    for name, part in (("tokenizer", translator.tokenizer), ("vqvae", translator.vqvae),
                       ("transformer", translator.transformer)):
        part.save_pretrained(folder / name)
    _forget_places(folder)


def _forget_gguf(model: Any) -> None:
    """Lets the weights of a GGUF file be saved: they are in an ordinary format since they were read."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _forget_places(folder: Path) -> None:
    """Takes out of a part's settings where on this machine it was loaded from."""
    for path in folder.rglob("*.json"):
        settings = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(settings, dict) and (settings.keys() & {"_name_or_path", "name_or_path"}):
            kept = {key: value for key, value in settings.items()
                    if key not in ("_name_or_path", "name_or_path")}
            files.write_json(path, kept)
