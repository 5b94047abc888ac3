"""The image perceptron (section 2.3, Eq. 3): BLIP-2's ViT, Q-Former and projection to the language model."""

from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    PreTrainedConfig,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.blip_2.modeling_blip_2 import Blip2PreTrainedModel

from e2e_lib.data.photos import normalised
from e2e_lib.models.hub import load_own, load_pretrained, loading
from e2e_lib.repro.randomness import seeded

HALF = (0.5, 0.5, 0.5)  # as mean and deviation, pixels from -1 to 1


class ImagePerceptron(nn.Module, PyTorchModelHubMixin):
    """P photos, uint8 (3, H, W) of any size, to query embeddings (P, Q, D) of the language model's width D.

    It scales photos to the side that the ViT was trained at and normalises them by ``mean`` and ``std``, of
    pixels from 0 to 1.
    """

    mean: Tensor
    std: Tensor
    projection_is_new = False  # whether its numbers are random, since no one has trained it yet

    def __init__(self, vision: dict[str, Any], qformer: dict[str, Any], queries: int, language_width: int,
                 mean: Sequence[float] = HALF, std: Sequence[float] = HALF) -> None:
        super().__init__()
        self.vision_model = Blip2VisionModel(Blip2VisionConfig(**vision))
        self.qformer = Blip2QFormerModel(Blip2QFormerConfig(**qformer))
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, queries, qformer["hidden_size"]))
        self.language_projection = nn.Linear(qformer["hidden_size"], language_width)
        self.register_buffer("mean", torch.tensor(mean, device="cpu").view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, device="cpu").view(3, 1, 1), persistent=False)

    @property
    def queries(self) -> int:
        """Q, how many query embeddings stand for one photo."""
        return self.query_tokens.shape[1]

    def pixel_values(self, photos: Tensor | Sequence[Tensor]) -> Tensor:
        """P photos as the ViT expects them, (P, 3, S, S), in its number format."""
        side: Any = self.vision_model.config.image_size
        return normalised(photos, side, self.mean, self.std).to(self.vision_model.dtype)

    def forward(self, photos: Tensor | Sequence[Tensor]) -> Tensor:
        pixels = self.pixel_values(photos)  # (P, 3, S, S)
        patches = self.vision_model(pixel_values=pixels).last_hidden_state  # (P, 1 + patches, vision width)
        queries = self.query_tokens.expand(len(pixels), -1, -1)  # (P, Q, Q-Former width)
        patches = patches.to(queries.dtype)  # a frozen ViT may be in half precision
        hidden = self.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state
        return self.language_projection(hidden)  # Eq. 3: (P, Q, D)


class _Blip2Parts(Blip2PreTrainedModel):
    """A ``Blip2ForConditionalGeneration`` without its language model, whose weights are never read."""

    config_class = Blip2Config
    _keys_to_ignore_on_load_unexpected = ["language_model", "language_projection"]  # noqa: RUF012

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        settings: Any = config
        self.vision_model = Blip2VisionModel._from_config(settings.vision_config)
        width = settings.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, settings.num_query_tokens, width))
        self.qformer = Blip2QFormerModel._from_config(settings.qformer_config)
        self.post_init()


def load_perceptron(source: str, language_width: int | None = None, trains: str = "all",
                    frozen: torch.dtype = torch.float32) -> ImagePerceptron:
    """The perceptron: its own files, or those of a ``Blip2ForConditionalGeneration``.

    BLIP-2's projection leads to its own language model; a new one, which has to be learnt, leads to another
    of ``language_width``. ``trains`` is "all", "qformer" (with the projection) or "projection"; that learns
    in float32, and a ViT that does not is in the format ``frozen``. Raises CheckpointError.
    """
    return freeze(_load(source, language_width), trains, frozen)


def freeze(perceptron: ImagePerceptron, trains: str, dtype: torch.dtype) -> ImagePerceptron:
    """The perceptron, of which learns what ``trains`` says (see ``load_perceptron``); a ViT that does not is
    in the format ``dtype``."""
    if trains != "all":
        vit: nn.Module = perceptron.vision_model
        vit.requires_grad_(False).to(dtype)
    if trains == "projection":
        perceptron.qformer.requires_grad_(False)
        perceptron.query_tokens.requires_grad_(False)
    return perceptron


def new_projection(width_in: int, width_out: int) -> nn.Linear:
    """A projection with random numbers, the same ones every time."""
    with seeded(0, "projection"):
        return nn.Linear(width_in, width_out)


def _load(source: str, language_width: int | None) -> ImagePerceptron:
    with loading("perceptron", source) as place:
        config, _ = PreTrainedConfig.get_config_dict(place)
        if config.get("model_type") == Blip2Config.model_type:
            if language_width is None:
                raise ValueError("it is BLIP-2's, so that the language model's width is needed")
            return _from_blip2(place, language_width)
        perceptron: ImagePerceptron = load_own(ImagePerceptron, place)
    return perceptron


def _from_blip2(place: str, language_width: int) -> ImagePerceptron:
    parts = load_pretrained(_Blip2Parts, place)
    processor, _ = BaseImageProcessor.get_image_processor_dict(place)
    config = parts.config
    with torch.device("meta"):  # its parts are at hand: a second set would only fill the memory
        perceptron = ImagePerceptron(config.vision_config.to_dict(), config.qformer_config.to_dict(),
                                     config.num_query_tokens, language_width, processor["image_mean"],
                                     processor["image_std"])
    perceptron.vision_model, perceptron.qformer = parts.vision_model, parts.qformer
    perceptron.query_tokens = parts.query_tokens
    perceptron.language_projection = new_projection(config.qformer_config.hidden_size, language_width)
    perceptron.projection_is_new = True
    return perceptron
