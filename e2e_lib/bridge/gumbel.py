"""The straight-through Gumbel-softmax (Eq. 4-7): discrete words forward, a gradient backward."""

import torch
from torch import Tensor
from torch.nn import functional as F


def gumbel_noise(shape: torch.Size | tuple[int, ...], rng: torch.Generator | None = None) -> Tensor:
    """Eq. 4: independent Gumbel(0, 1) samples, g = -log(-log u), float32 on the CPU."""
    # torch's exponential samples are never 0, so the logarithm is finite.
    return -torch.empty(shape).exponential_(generator=rng).log()


def check_temperature(temperature: float) -> None:
    """Raises ValueError for a temperature that is not positive."""
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")


def check_numbers(values: Tensor, logits: Tensor) -> None:
    """Raises ValueError if ``values``, the logits themselves or what was computed from them, hold NaN."""
    if torch.isnan(values).any():
        raise ValueError(f"the logits (shape {tuple(logits.shape)}) hold values that are not numbers; "
                         "lower the learning rate")


def softmax_with_temperature(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Eq. 5: y = softmax((z + g) / τ), logits z and noise g (…, V) to y (…, V); ``noise=None`` leaves g out.

    Raises ValueError for a temperature that is not positive or logits that are not numbers.
    """
    check_temperature(temperature)
    check_numbers(logits, logits)
    return F.softmax((logits if noise is None else logits + noise.to(logits)) / temperature, dim=-1)


def straight_through(relaxation: Tensor) -> Tensor:
    """Eq. 6-7: h = onehot(argmax y) - sg(y) + y, (…, V): one-hot forward, the gradient of y backward."""
    one_hot = F.one_hot(relaxation.argmax(-1), relaxation.shape[-1]).to(relaxation)
    return one_hot + (relaxation - relaxation.detach())
