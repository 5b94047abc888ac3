"""The image perceptron (section 2.3, Eq. 3): BLIP-2's ViT, Q-Former and projection to the language model."""

from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel

from e2e_lib.data.photos import square, to_floats
from e2e_lib.models.hub import load_own, loading


class ImagePerceptron(nn.Module, PyTorchModelHubMixin):
    """P photos, uint8 (3, H, W) of any size, to query embeddings (P, Q, D) of the language model's width D.
    """

    def __init__(self, vision: dict[str, Any], qformer: dict[str, Any], queries: int,
                 language_width: int) -> None:
        super().__init__()
        self.vision_model = Blip2VisionModel(Blip2VisionConfig(**vision))
        self.qformer = Blip2QFormerModel(Blip2QFormerConfig(**qformer))
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, queries, qformer["hidden_size"]))
        self.language_projection = nn.Linear(qformer["hidden_size"], language_width)

    @property
    def queries(self) -> int:
        """Q, how many query embeddings stand for one photo."""
        return self.query_tokens.shape[1]

    def forward(self, photos: Tensor | Sequence[Tensor]) -> Tensor:
        side: Any = self.vision_model.config.image_size
        pixels = to_floats(square(photos, side))  # (P, 3, S, S)
        patches = self.vision_model(pixel_values=pixels).last_hidden_state  # (P, 1 + patches, vision width)
        queries = self.query_tokens.expand(len(pixels), -1, -1)  # (P, Q, Q-Former width)
        hidden = self.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state
        return self.language_projection(hidden)  # Eq. 3: (P, Q, D)


def load_perceptron(source: str) -> ImagePerceptron:
    """The perceptron in float32. Raises CheckpointError."""
    with loading("perceptron", source) as place:
        perceptron: ImagePerceptron = load_own(ImagePerceptron, place)
    return perceptron
