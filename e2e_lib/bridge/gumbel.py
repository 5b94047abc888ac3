"""The straight-through Gumbel-softmax (Eq. 4-7): discrete words forward, a gradient backward.

A logit of -inf masks its word: no probability and no gradient, as long as one word of the position is left.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 1e-30, 1e30  # beyond them, τ or gradients of 1/τ leave float32


def gumbel_noise(shape: torch.Size | tuple[int, ...], rng: torch.Generator | None = None) -> Tensor:
    """Eq. 4: independent Gumbel(0, 1) samples, g = -log(-log u), float32 on the CPU."""
    # torch's exponential samples are never 0, so the logarithm is finite.
    return -torch.empty(shape).exponential_(generator=rng).log()


def full_precision(values: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return values if values.dtype == torch.float64 else values.float()


def check_temperature(temperature: float) -> None:
    """Raises ValueError for a temperature that is not positive or that float32 cannot divide by."""
    if not LEAST_TEMPERATURE <= temperature <= LARGEST_TEMPERATURE:
        raise ValueError(f"the temperature must be positive, got {temperature}; allowed: numbers from "
                         f"{LEAST_TEMPERATURE:g} to {LARGEST_TEMPERATURE:g}")


def check_logits(largest: Tensor, logits: Tensor, real: Tensor | None = None) -> None:
    """Raises ValueError where a position of the logits (…, V) leaves no softmax to take.

    ``largest`` (…) is a position's largest value, or log-sum-exp, of the logits or of (z + g)/τ. It is not
    finite where one is NaN or +inf or all are -inf. ``real`` (…) is False for padding, which may hold
    anything.
    """
    bad = ~largest.isfinite() if real is None else ~largest.isfinite() & real
    if not bad.any():
        return
    at = bad.nonzero()[0].tolist()
    row, names = logits.detach()[tuple(at)], ("caption", "position")[2 - min(2, len(at)):]
    place = (", ".join(f"{name} {i}" for name, i in zip(names, at, strict=True)) if len(at) <= 2
             else f"index {tuple(at)}")
    found = ("NaN" if row.isnan().any() else "+inf" if (row == math.inf).any()
             else "-inf for every word" if (row == -math.inf).all()
             else "numbers that the noise or the temperature makes too large")
    raise ValueError(
        f"the logits (shape {tuple(logits.shape)}) hold {found}{' at ' if at else ''}{place}. NaN and +inf "
        "come from half precision, or from training that diverged, as with too high a learning rate; -inf "
        "masks a word, and one has to be left; padding is ignored where a source_mask says that it is")


def softmax_with_temperature(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Eq. 5: y = softmax((z + g) / τ), logits z and noise g (…, V) to y (…, V), float32 or float64;
    ``noise=None`` leaves g out.

    Raises ValueError for a temperature that is not positive and for logits that have no softmax.
    """
    check_temperature(temperature)
    z = full_precision(logits)
    scaled = (z if noise is None else z + noise.to(z)) / temperature
    check_logits(scaled.detach().amax(-1), logits)
    return F.softmax(scaled, dim=-1)


def straight_through(relaxation: Tensor) -> Tensor:
    """Eq. 6-7: h = onehot(argmax y) - sg(y) + y, (…, V): one-hot forward, the gradient of y backward."""
    one_hot = F.one_hot(relaxation.argmax(-1), relaxation.shape[-1]).to(relaxation)
    return one_hot + (relaxation - relaxation.detach())
