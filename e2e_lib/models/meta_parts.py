"""The parts of a configuration on the meta device: every weight with its size and format, and no numbers.

They are what ``systems.build`` makes, from configurations alone; a test compares the two.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel, VQModel
from torch import nn
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPTextConfig,
    CLIPTextModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from e2e_lib.bridge.alignment import vocabulary_size
from e2e_lib.config import Config, Model
from e2e_lib.models import nf4
from e2e_lib.models.adapters import FORMATS, add_language_lora, add_unet_lora
from e2e_lib.models.generator import ImageGenerator
from e2e_lib.models.hub import load_tokenizer, loading
from e2e_lib.models.known_configs import KNOWN, place_of, read
from e2e_lib.models.language import add_markers, check_bits
from e2e_lib.models.perceptron import ImagePerceptron, freeze

MARKERS = 4  # padding, [IMG], [/IMG] and the image token, which no known tokenizer has


@dataclass
class MetaParts:
    """A system's parts; what it has not is None. ``generator`` holds the text encoder, UNet and autoencoder
    of the image generator."""

    language: Any
    perceptron: ImagePerceptron | None = None
    captioner: Any = None
    generator: ImageGenerator | None = None
    vqvae: Any = None
    transformer: Any = None
    caption_length: int = 0  # of the translator's captions, in tokens

    def modules(self) -> dict[str, nn.Module]:
        """All modules with weights, by name."""
        generator = self.generator
        parts = {"language": self.language, "perceptron": self.perceptron, "captioner": self.captioner,
                 "text_encoder": generator and generator.text_encoder, "unet": generator and generator.unet,
                 "vae": generator and generator.vae, "transformer": self.transformer, "vqvae": self.vqvae}
        return {name: part for name, part in parts.items() if part is not None}


class _Words:
    """As much of a tokenizer as an image generator asks for when it is made."""

    def get_vocab(self) -> dict[str, int]:
        return {}


def build(config: Config, device: str = "meta") -> MetaParts:
    """The parts on the meta device, or with random weights on another. Raises CheckpointError and
    ConfigError."""
    model, frozen = config.model, getattr(torch, config.model.frozen)
    with torch.device(device):
        if model.system == "divter":
            language = _language(model.dialogue, "dialogue", 0, frozen)
            return MetaParts(language, captioner=_captioner(model.captioner), **_translator(model.translator))
        language = _language(model.language, "language", model.language_lora, frozen,
                             model.language_bits, FORMATS[config.train.mixed_precision])
        generator = _generator(model, frozen)
        if model.joint and model.image_input == "qformer":
            perceptron = _perceptron(model, language.config.hidden_size, frozen)
            return MetaParts(language, perceptron=perceptron, generator=generator)
        return MetaParts(language, captioner=_captioner(model.captioner), generator=generator)


def _language(source: str, part: str, lora: int, frozen: torch.dtype, bits: int = 16,
              compute: torch.dtype = torch.float32) -> Any:
    check_bits(bits, source, lora)
    place, divter = place_of(source, part), part == "dialogue"
    settings: Any = (GPT2Config if divter else LlamaConfig)(
        **read(place, "config.json", part, "gpt2" if divter else "llama"))
    if place in KNOWN:
        settings.vocab_size += MARKERS
    else:
        with loading(part, place):
            tokenizer = load_tokenizer(place, kind=AutoTokenizer if divter else PreTrainedTokenizerFast)
        grows = add_markers(tokenizer)
        size = vocabulary_size(tokenizer)
        settings.vocab_size = size if grows or size > settings.vocab_size else settings.vocab_size
    model: Any = (GPT2LMHeadModel if divter else LlamaForCausalLM)._from_config(
        settings, dtype=frozen if lora else torch.float32)
    if bits == 4:
        nf4.quantize(model, compute)
    if lora:  # which rows are new does not matter to their size
        add_language_lora(model, lora, range(settings.vocab_size - MARKERS, settings.vocab_size))
    return model


def _perceptron(model: Model, language_width: int, frozen: torch.dtype) -> ImagePerceptron:
    place = place_of(model.perceptron, "perceptron")
    settings = read(place, "config.json", "perceptron")
    if settings.get("model_type") == Blip2Config.model_type:
        whole: Any = Blip2Config(**settings)
        settings = {"vision": whole.vision_config.to_dict(), "qformer": whole.qformer_config.to_dict(),
                    "queries": whole.num_query_tokens}
    try:
        perceptron = ImagePerceptron(**settings | {"language_width": language_width})
        perceptron = perceptron.to(perceptron.query_tokens.device)  # what stands on the CPU
    except (TypeError, KeyError) as error:
        with loading("perceptron", model.perceptron):  # says what a user can do
            raise ValueError(f"its config.json is no perceptron's: {error}") from None
    return freeze(perceptron, model.perceptron_trains, frozen)


def _generator(model: Model, frozen: torch.dtype) -> ImageGenerator:
    place = place_of(model.generator, "generator")
    settings = {name: read(place, f"{name}/config.json", "generator", wanted)
                for name, wanted in (("text_encoder", "clip_text_model"), ("unet", "UNet2DConditionModel"),
                                     ("vae", ""))}
    vae_class = getattr(diffusers, settings["vae"]["_class_name"])
    unet = UNet2DConditionModel.from_config(settings["unet"])
    text_encoder = CLIPTextModel._from_config(CLIPTextConfig(**settings["text_encoder"]), dtype=frozen)
    with torch.device("cpu"):  # whose few numbers decide nothing here
        scheduler = DDPMScheduler.from_config(
            read(place, "scheduler/scheduler_config.json", "generator"))
    vae = vae_class.from_config(settings["vae"])
    for part, dtype in ((unet, frozen if model.unet_lora else torch.float32), (vae, frozen)):
        nn.Module.to(part, dtype)  # the library's own warns
    generator = ImageGenerator(_Words(), text_encoder, unet, vae, scheduler)
    if model.unet_lora:
        add_unet_lora(generator.unet, model.unet_lora)
    return generator


def _captioner(source: str) -> Any:
    settings = read(place_of(source, "captioner"), "config.json", "captioner", "blip-2")
    return Blip2ForConditionalGeneration._from_config(Blip2Config(**settings),
                                                       dtype=torch.float32).requires_grad_(False)


def _translator(source: str) -> dict[str, Any]:
    place = place_of(source, "translator")
    transformer = GPT2LMHeadModel._from_config(
        GPT2Config(**read(place, "transformer/config.json", "translator", "gpt2")), dtype=torch.float32)
    vqvae = VQModel.from_config(read(place, "vqvae/config.json", "translator", "VQModel"))
    with loading("translator", source):
        length = load_tokenizer(str(Path(place) / "tokenizer")).model_max_length
    return {"vqvae": vqvae.requires_grad_(False), "transformer": transformer, "caption_length": length}
