"""What a training pass returns, and the text loss (Eq. 2)."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from e2e_lib.data.collate import IGNORED


@dataclass
class Output:
    """What one forward pass gives. ``loss`` = ``text_loss`` + λ ``image_loss`` (Eq. 13); ``drawn`` are the captions the photos were
    drawn from, ``truncated`` how many of them were longer than the text encoder's limit."""

    loss: Tensor
    text_loss: Tensor
    image_loss: Tensor
    drawn: list[str]
    truncated: int


def trainable_weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights that have a gradient, by name."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def response_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 2: mean cross-entropy of the response's tokens, (B, T, V1) logits and (B, T) labels, each predicted one position earlier."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
