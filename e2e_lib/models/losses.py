"""What a training pass returns, and the text loss (Eq. 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from e2e_lib.bridge.gumbel import full_precision
from e2e_lib.data.collate import Batch


@dataclass
class Output:
    """What one forward pass gives: the mean ``text_loss`` () of its ``tokens`` that have a loss (Eq. 2), and
    the mean ``image_loss`` () of its response photos (Eq. 12), whose weight λ is ``image_weight``.

    ``captions`` are those that the photos were drawn from, ``truncated`` how many of them were longer than
    the text encoder's limit.
    """

    text_loss: Tensor
    image_loss: Tensor
    captions: list[str]
    truncated: int
    tokens: int
    image_weight: float = 1.0

    @property
    def loss(self) -> Tensor:
        """Eq. 13, (): the text loss plus λ times the image loss."""
        return self.text_loss + self.image_weight * self.image_loss

    def part_of(self, tokens: int, photos: int) -> Tensor:
        """Its part () of the loss of a step of so many tokens and photos, in all batches and processes.

        The parts add up to Eq. 13 of all of them at once, however they are cut into batches.
        """
        text = self.text_loss * (self.tokens / tokens)
        return text + self.image_weight * self.image_loss * (len(self.captions) / max(1, photos))


def left_out(rngs: Sequence[torch.Generator], share: float) -> list[bool]:
    """Which of a batch's captions, a random ``share`` from 0 to 1 of all, are left out; by ``rngs``, one
    each."""
    return [bool(torch.rand((), generator=rng) < share) for rng in rngs]


def response_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Eq. 2: mean cross-entropy of the tokens that have a loss, from their logits (N, V1), see
    ``language.response_logits``."""
    return F.cross_entropy(full_precision(logits), batch.labels[batch.is_learnt])


def misfit(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str:
    """How ``saved`` weights, by name, differ in names and shapes from a model's ``own``, in words; "" where
    they fit."""
    here, there = ({name: tuple(tensor.shape) for name, tensor in tensors.items()}
                   for tensors in (own, saved))
    different = sorted({name for name, _ in here.items() ^ there.items()})
    if not different:
        return ""
    name = different[0]
    return (f"{len(different)} tensors differ, {name} first ({there.get(name, 'none')} there, "
            f"{here.get(name, 'none')} here)")


def trainable_weights(model: Any) -> dict[str, Tensor]:
    """A torch module's weights that have a gradient, by name; the rest comes from the configured sources."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}
