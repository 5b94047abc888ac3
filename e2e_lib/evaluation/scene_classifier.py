"""The scene reader: a small classifier that says what a MiniChat photo shows.

It judges drawn photos (scene accuracy) and its features stand in for Inception's in IS, FID and KID. It is no part of
the model: it is trained once, on every triple, and never changed.
"""

from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.models.hub import load_own, locate

FEATURES = 64


class SceneClassifier(nn.Module, PyTorchModelHubMixin):
    """Photos (B, 3, 64, 64), uint8, to logits for each attribute of ``scenes.ATTRIBUTES``."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [3, width, width * 3 // 2, 2 * width, 3 * width]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)  # (B, 3·width, 4, 4)
        self.to_features = nn.Linear(widths[-1], FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(values)) for name, values in ATTRIBUTES.items()})

    def features(self, photos: Tensor) -> Tensor:
        """(B, 3, 64, 64) uint8 to (B, 64) features, the ones FID and KID compare, each photo's scaled to a mean square of 1.

        Without the scale, the cubic kernel of KID would turn features of any size into astronomic distances.
        """
        return torch.nn.functional.normalize(self._hidden(photos), dim=1) * FEATURES**0.5

    def _hidden(self, photos: Tensor) -> Tensor:
        if photos.dtype != torch.uint8 or photos.ndim != 4 or photos.shape[1:] != (3, 64, 64):
            raise ValueError(f"the scene reader takes uint8 photos of shape (B, 3, 64, 64), got {photos.dtype} {tuple(photos.shape)}")
        hidden = self.convolutions(photos.float() / 127.5 - 1)
        return torch.nn.functional.silu(self.to_features(hidden.mean((2, 3))))

    def forward(self, photos: Tensor) -> dict[str, Tensor]:
        """(B, 3, 64, 64) uint8 to {attribute: logits (B, values)}."""
        features = self._hidden(photos)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, photos: Tensor, batch_size: int = 256) -> list[dict[str, Any]]:
        """What each photo shows: one {attribute: value} a photo."""
        rows: list[dict[str, Any]] = []
        for part in photos.split(batch_size):
            best = {name: logits.argmax(-1).tolist() for name, logits in self(part).items()}
            rows += [{name: ATTRIBUTES[name][best[name][i]] for name in ATTRIBUTES} for i in range(len(part))]
        return rows


def load_scene_classifier(source: str) -> SceneClassifier:
    """The scene reader that ships with the parts. Raises CheckpointError."""
    return load_own(SceneClassifier, locate(source, "scene_reader")).eval()
