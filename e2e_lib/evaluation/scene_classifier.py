"""The scene classifier: a small network that says what a MiniChat photo shows.

It judges drawn photos, and its features stand in for Inception's. It is no part of the model: it is trained
once, on every combination of thing, colour and place, and never changed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from e2e_lib.config import SHIPPED
from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.data.photos import square, to_floats
from e2e_lib.models.hub import load_own, locate

FEATURES = 64
SIDE = 64  # pixels


class SceneClassifier(nn.Module, PyTorchModelHubMixin):
    """Photos (B, 3, 64, 64), uint8, to logits for each attribute of ``scenes.ATTRIBUTES``."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [3, width, width * 3 // 2, 2 * width, 3 * width]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)
        self.to_features = nn.Linear(widths[-1], FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(ATTRIBUTES[name])) for name in ATTRIBUTES})

    def _hidden(self, photos: Tensor) -> Tensor:
        hidden = self.convolutions(to_floats(photos)).mean((2, 3))  # (B, 3·width)
        return nn.functional.silu(self.to_features(hidden))  # (B, F)

    def forward(self, photos: Tensor) -> dict[str, Tensor]:
        """(B, 3, 64, 64) uint8 to {attribute: logits (B, number of its values)}."""
        hidden = self._hidden(photos)
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.no_grad()
    def predict(self, photos: Sequence[Tensor] | Tensor, batch_size: int = 256) -> list[dict[str, Any]]:
        """The likeliest scene of each photo, uint8 (3, H, W) of any size: {attribute: value}."""
        rows: list[dict[str, Any]] = []
        for part in square(photos, SIDE).split(batch_size):
            best = {name: logits.argmax(-1).tolist() for name, logits in self(part).items()}
            rows += [{name: ATTRIBUTES[name][best[name][i]] for name in ATTRIBUTES} for i in range(len(part))]
        return rows

    @torch.no_grad()
    def extract(self, photos: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features (N, 64) and logits of the thing shown (N, 14), of N photos, uint8 (3, H, W) of any size.
        Features have a mean square of 1: with others, KID's cubic kernel gives astronomic distances."""
        hidden = self._hidden(square(photos, SIDE))
        return nn.functional.normalize(hidden, dim=1) * FEATURES**0.5, self.heads["thing"](hidden)


def load_scene_classifier() -> SceneClassifier:
    """The scene classifier that ships with the parts. Raises CheckpointError."""
    return load_own(SceneClassifier, locate(SHIPPED, "scene_reader")).eval()
