"""The straight-through Gumbel-softmax (section 2.4.1, Eq. 4-7): discrete words forward, a gradient backward."""

import torch
from torch import Tensor
from torch.nn import functional as F


def gumbel_noise(shape: torch.Size | tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Eq. 4: independent Gumbel(0, 1) draws, g = -log(-log u), float32 on the CPU."""
    # The exponential of a generator never returns 0 in torch, so the logarithm is always finite.
    return -torch.empty(shape).exponential_(generator=generator).log()


def check(logits: Tensor, temperature: float) -> None:
    """Raises ValueError for a temperature that is not positive or logits that are not numbers."""
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if torch.isnan(logits).any():
        raise ValueError(f"the logits (shape {tuple(logits.shape)}) hold values that are not numbers; lower the learning rate")


def softmax_with_temperature(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Eq. 5: y = softmax((z + g) / τ) over the last axis; ``noise=None`` leaves g out.

    Raises ValueError for a temperature that is not positive or logits that are not numbers.
    """
    check(logits, temperature)
    return F.softmax((logits if noise is None else logits + noise.to(logits)) / temperature, dim=-1)


def straight_through(relaxation: Tensor) -> Tensor:
    """Eq. 6-7: h = onehot(argmax y) - sg(y) + y; exactly one-hot forward, the gradient of y backward."""
    hard = F.one_hot(relaxation.argmax(-1), relaxation.shape[-1]).to(relaxation)
    return hard + (relaxation - relaxation.detach())


def straight_through_gumbel_softmax(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Eq. 4-7 in one call: (…, V) logits to (…, V) one-hot vectors that carry the relaxation's gradient."""
    return straight_through(softmax_with_temperature(logits, temperature, noise))
