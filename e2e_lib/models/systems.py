"""The three systems that the paper compares (section 3.1.4), made of the parts that a configuration names."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from e2e_lib.bridge import CaptionBridge
from e2e_lib.bridge.estimators import RELAXATIONS
from e2e_lib.config import Bridge, Config, ConfigError
from e2e_lib.data.collate import Batch, PromptFormatter
from e2e_lib.models import hub
from e2e_lib.models.adapter_files import load_language
from e2e_lib.models.adapters import FORMATS
from e2e_lib.models.captioner import Captioner, load_captioner
from e2e_lib.models.end_to_end import EndToEndModel
from e2e_lib.models.generator import load_generator
from e2e_lib.models.language import check_bits
from e2e_lib.models.losses import Output
from e2e_lib.models.perceptron import load_perceptron
from e2e_lib.models.pipeline import Pipeline
from e2e_lib.models.projection import fit_projection
from e2e_lib.models.translator import load_translator


class PhotoChatModel(Protocol):
    """What training and answering need of a system; all three are torch modules."""

    language: Any
    tokenizer: Any
    generator: Any
    formatter: PromptFormatter
    joint: bool  # whether one loss trains all parts

    @property
    def captioner(self) -> Captioner | None:
        """Where context photos are read as captions."""

    def __call__(self, batch: Batch, *, temperature: float, seed: int) -> Output: ...

    def embed_context(self, batch: Batch) -> Tensor: ...

    def trained_parts(self) -> dict[str, nn.Module]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any: ...

    def to(self, device: torch.device) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...


def origins(config: Config) -> dict[str, str]:
    """Where the parts of a configuration's system come from, by name, with the hub's commits."""
    model = config.model
    sees = "perceptron" if model.joint and model.image_input == "qformer" else "captioner"
    names = ("dialogue", sees, "translator") if model.system == "divter" else ("language", sees, "generator")
    return {name: hub.origin(getattr(model, name)) for name in names}


def build(config: Config) -> PhotoChatModel:
    """The system of a configuration, from its pretrained parts.

    Raises CheckpointError when a part is missing or damaged, and ConfigError where two do not belong together
    or a setting is more, or less, than what they can do.
    """
    try:
        return _build(config)
    except ValueError as error:  # a context that holds no photo, a bridge's tokenizer without offsets
        raise ConfigError(str(error)) from error


def ready(model: PhotoChatModel) -> PhotoChatModel:
    """The model ready to answer: in evaluation mode, on this machine's accelerator if it has one."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return (model.to(device) if device else model).eval()


def _build(config: Config) -> PhotoChatModel:
    parts, context = config.model, config.data.max_context
    is_divter = parts.system == "divter"
    frozen: torch.dtype = getattr(torch, parts.frozen)
    check_formats(config)
    language, tokenizer = (load_language(parts.dialogue, "dialogue", GPT2LMHeadModel) if is_divter
                           else load_language(parts.language, lora=parts.language_lora, frozen=frozen,
                                              chat_format=parts.chat_format, bits=parts.language_bits,
                                              compute=FORMATS[config.train.mixed_precision]))
    longest, positions = context + config.inference.max_new_tokens, language.config.max_position_embeddings
    if longest > positions:
        room = positions - config.inference.max_new_tokens
        advice = f"--set data.max_context={room}" if room > positions // 2 else "lower both"
        raise ConfigError(f"data.max_context = {context} and inference.max_new_tokens = "
                          f"{config.inference.max_new_tokens} make {longest} tokens, but the language model "
                          f"reads {positions} at most: {advice}")
    generator: Any = (load_translator(parts.translator) if is_divter
                      else load_generator(parts.generator, parts.unet_lora, frozen))
    if config.train.generator_rate == 0:
        getattr(generator, generator.learner).requires_grad_(False)
    if not is_divter:  # whose steps are the codes of a photo
        generator.sampler(config.inference.num_inference_steps)
    captioner: Any = (load_captioner(parts.captioner, parts.captioner_samples)
                      if not parts.joint or parts.image_input == "captions" else None)
    if not parts.joint:
        return Pipeline(language, tokenizer, captioner, generator, context, config.train.caption_dropout)
    width = language.config.hidden_size
    perceptron = (None if captioner
                  else load_perceptron(parts.perceptron, width, parts.perceptron_trains, frozen))
    if perceptron and (parts.projection or perceptron.language_projection.out_features != width):
        perceptron.projection_is_new = fit_projection(perceptron, width, parts.projection)
    for name in ("temperature_start", "temperature_end"):
        temperature = getattr(config.bridge, name)
        try:
            RELAXATIONS[config.bridge.estimator](torch.zeros(2), temperature, torch.Generator())
        except ValueError as error:
            raise ConfigError(f"bridge.{name} = {temperature:g}: {error}") from None
    return EndToEndModel(
        language=language, tokenizer=tokenizer, perceptron=perceptron, generator=generator,
        captioner=captioner,
        bridge=new_bridge(config.bridge, tokenizer, generator), max_context=context,
        settings=config.bridge, image_loss_weight=config.train.image_loss_weight,
        caption_dropout=config.train.caption_dropout)


def check_formats(config: Config) -> None:
    """Raises ConfigError where frozen weights and the forward pass would not work together, the language
    model cannot be in so few bits, or little of what is to be shared out learns."""
    needed = {"float32": ("no", "fp16", "bf16"), "float16": ("fp16",), "bfloat16": ("bf16",)}
    if config.train.mixed_precision not in needed[config.model.frozen]:
        raise ConfigError(f"model.frozen = {config.model.frozen!r} needs train.mixed_precision = "
                          f"{needed[config.model.frozen][0]!r}, found {config.train.mixed_precision!r}")
    if config.train.full_sharding and config.model.language_lora:
        raise ConfigError(f"train.full_sharding = true shares out a language model that learns whole; with "
                          f"model.language_lora = {config.model.language_lora} little of it does: set "
                          "train.optimizer_sharding=true instead, or model.language_lora=0")
    check_bits(config.model.language_bits, config.model.language, config.model.language_lora)


def new_bridge(settings: Bridge, tokenizer: Any, generator: Any) -> CaptionBridge:
    """The bridge from a language model's ``tokenizer`` to an image ``generator``. Raises ConfigError."""
    words = word_list(settings.word_list) if settings.mapping == "static_word" else []
    try:
        return CaptionBridge(tokenizer, generator.tokenizer, settings.mapping, pooling=settings.pooling,
                             estimator=settings.estimator, added_at=settings.added_at, words=words,
                             length=generator.max_length, top_k=settings.top_k or None)
    except ValueError as error:
        raise ConfigError(f"settings of bridge: {error}") from None


def word_list(source: str) -> list[str]:
    """The words of the static word-level map. Raises ConfigError for a file that cannot be read."""
    shipped = source.startswith("shipped:")
    path = hub.WEIGHTS / source.removeprefix("shipped:") if shipped else Path(source).expanduser()
    try:
        return path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"bridge.word_list = {source!r} is neither a list that ships with the package nor "
                          f"a text file of one word per line: {error}") from None
