"""What a training pass returns, and the text loss (Eq. 2)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from e2e_lib.data.collate import Batch


@dataclass
class Output:
    """What one forward pass gives: ``loss`` = ``text_loss`` + λ ``image_loss`` (Eq. 13), all ().

    ``captions`` are those that the photos were drawn from, ``truncated`` how many of them were longer than
    the text encoder's limit.
    """

    loss: Tensor
    text_loss: Tensor
    image_loss: Tensor
    captions: list[str]
    truncated: int


def response_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Eq. 2: mean cross-entropy of the tokens that have a loss, from their logits (N, V1), see
    ``language.response_logits``."""
    return F.cross_entropy(logits.float(), batch.labels[batch.is_learnt])


def trainable_weights(model: Any) -> dict[str, Tensor]:
    """A torch module's weights that have a gradient, by name; the rest comes from the configured sources."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}
