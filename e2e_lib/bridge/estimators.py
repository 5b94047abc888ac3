"""Gradient estimators for sampled words: the paper's (section 2.4.1), its alternatives, the exact gradient.

Words d are sampled from softmax(z), and an objective f(d) is computed from them; the gradient wanted is that
of the expectation E f(d) with respect to z. Every estimator has one signature,

    estimator(objective, logits, temperature=1.0, rng=None) -> Tensor

where ``objective`` takes vectors over the vocabulary, shaped as ``logits`` (…, V), and returns one number or
one per row of the batch. The value returned is the sample's objective; ``backward()`` leaves the estimate in
``logits.grad``. All but REINFORCE evaluate the objective at a relaxation(logits, temperature, rng,
sampled_ids): vectors (…, V) that stand for words forward and carry a gradient backward. ``sampled_ids`` (…)
are words already sampled from softmax(logits), such as a caption's, for relaxations whose gradient depends on
the sample. A logit of -inf masks its word: it gets no probability and no gradient. Vectors are float32 for
logits of half precision. ValueError is raised for temperatures that are not positive, and for logits that
hold NaN or +inf or have no word left at a position.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from e2e_lib.bridge.gumbel import (
    check_logits,
    check_temperature,
    full_precision,
    gumbel_noise,
    straight_through,
)
from e2e_lib.bridge.gumbel import softmax_with_temperature as softmax

Objective = Callable[[Tensor], Tensor]
Relaxation = Callable[..., Tensor]
Estimator = Callable[..., Tensor]
Rng = torch.Generator | None
Ids = Tensor | None
MOST_CHOICES = 200_000


def _checked(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The logits in full precision. Raises ValueError for a temperature or logits that cannot be used."""
    check_temperature(temperature)
    check_logits(logits.detach().amax(-1), logits)
    return full_precision(logits)


def _with_gradient(values: Tensor, logits: Tensor) -> Tensor:
    """``values`` (…, V) forward, the gradient of the logits (…, V) backward; -inf and none where masked."""
    moved, masked = values + (logits - logits.detach()), logits == -math.inf
    return moved.masked_fill(masked, -math.inf) if masked.any() else moved


def _sample(logits: Tensor, rng: Rng, sampled_ids: Ids = None) -> Tensor:
    """One word per position from softmax(logits), one-hot (…, V); by the Gumbel-max trick, so that a seed
    gives the same words on any device."""
    if sampled_ids is None:
        sampled_ids = (logits.detach() + gumbel_noise(logits.shape, rng).to(logits)).argmax(-1)  # (…)
    return F.one_hot(sampled_ids, logits.shape[-1]).to(logits)


def straight_through_argmax(logits: Tensor, temperature: float = 1.0, rng: Rng = None,
                            sampled_ids: Ids = None) -> Tensor:
    """The likeliest words, the gradient of softmax(z/τ) (Bengio et al. 2013; the paper's released code)."""
    return straight_through(softmax(logits, temperature))


def straight_through_gumbel(logits: Tensor, temperature: float = 1.0, rng: Rng = None,
                            sampled_ids: Ids = None) -> Tensor:
    """Eq. 4-7: words sampled with Gumbel noise, the gradient of softmax((z + g)/τ) (Jang et al. 2017)."""
    return straight_through(softmax(logits, temperature, gumbel_noise(logits.shape, rng)))


def gumbel_softmax(logits: Tensor, temperature: float = 1.0, rng: Rng = None,
                   sampled_ids: Ids = None) -> Tensor:
    """Eq. 4-5 alone: mixtures of words, forward too (Maddison et al. 2017), and never a real word."""
    return softmax(logits, temperature, gumbel_noise(logits.shape, rng))


def decoupled(logits: Tensor, temperature: float = 1.0, rng: Rng = None, sampled_ids: Ids = None) -> Tensor:
    """Words sampled from softmax(z), the gradient of softmax(z/τ): one temperature to sample with, another to
    learn with (Shah et al. 2024)."""
    y = softmax(logits, temperature)
    return _sample(full_precision(logits), rng, sampled_ids) + (y - y.detach())


def gumbel_rao(logits: Tensor, temperature: float = 1.0, rng: Rng = None, sampled_ids: Ids = None,
               samples: int = 16) -> Tensor:
    """Eq. 6-7, the gradient averaged over ``samples`` noises that sample the same words (Paulus et al.
    2021)."""
    logits = _checked(logits, temperature)
    one_hot = _sample(logits, rng, sampled_ids)
    # Given that a word has the largest noisy logit, that is Gumbel around log Σ exp z and bounds the others;
    # of log p instead of z, so that the sum is 1 and nothing becomes too large.
    exponentials = torch.empty((samples, *logits.shape)).exponential_(generator=rng).to(logits)
    largest = (exponentials * one_hot).sum(-1, keepdim=True)  # (samples, …, 1)
    others = exponentials * (-F.log_softmax(logits.detach(), -1)).exp() + largest  # (samples, …, V)
    noisy = -torch.where(one_hot.bool(), largest, others).log()
    y = F.softmax(_with_gradient(noisy, logits) / temperature, -1).mean(0)  # (…, V)
    return one_hot + (y - y.detach())


def reinmax(logits: Tensor, temperature: float = 1.0, rng: Rng = None, sampled_ids: Ids = None) -> Tensor:
    """ReinMax (Liu et al. 2023): straight-through corrected to second order, exact in expectation where the
    objective is quadratic and τ = 1. Raises ValueError for τ < 1, where its correction overshoots."""
    logits = _checked(logits, temperature)
    if temperature < 1:
        raise ValueError(f"ReinMax needs a temperature of at least 1, got {temperature}")
    one_hot = _sample(logits, rng, sampled_ids)
    middle = (one_hot + F.softmax(logits.detach() / temperature, -1)) / 2
    log_middle = middle.clamp_min(torch.finfo(logits.dtype).tiny).log()
    y = 2 * F.softmax(_with_gradient(log_middle, logits), -1) - F.softmax(logits, -1) / 2
    return one_hot + (y - y.detach())


def reinforce(objective: Objective, logits: Tensor, temperature: float = 1.0, rng: Rng = None, *,
              samples: int = 16) -> Tensor:
    """REINFORCE with a leave-one-out baseline (Kool et al. 2019): unbiased, without a gradient of the
    objective, which it evaluates ``samples`` times. It has no temperature: any other than 1 raises
    ValueError."""
    logits = _checked(logits)
    if temperature != 1:
        raise ValueError(f"REINFORCE samples from softmax(z), the temperature must be 1, got {temperature}")
    if samples < 2:
        raise ValueError(f"leave-one-out needs at least 2 samples, got {samples}")
    words = [_sample(logits, rng) for _ in range(samples)]
    with torch.no_grad():
        values = torch.stack([objective(one_hot) for one_hot in words])  # (samples,) or (samples, B)
    advantage = (values - values.mean(0)) * samples / (samples - 1)
    log_softmax = F.log_softmax(logits, -1)
    # A product with the one-hot vector would be NaN where another word is masked.
    log_p = torch.stack([log_softmax.masked_fill(one_hot == 0, 0).sum(-1) for one_hot in words])
    # log_p: (samples, …)
    # One number for all rows: every position shares the reward. One per row: only that row's positions do.
    log_p = log_p.flatten(values.ndim).sum(-1) if log_p.ndim > values.ndim else log_p  # shaped as values
    surrogate = (advantage * log_p).mean(0)
    return values.mean(0) + (surrogate - surrogate.detach())


def estimator_from(relaxation: Relaxation) -> Estimator:
    """The estimator that evaluates the objective at a relaxation's vectors and takes their gradient."""
    def estimator(objective: Objective, logits: Tensor, temperature: float = 1.0, rng: Rng = None) -> Tensor:
        return objective(relaxation(logits, temperature, rng))
    return estimator


RELAXATIONS: dict[str, Relaxation] = {
    "straight_through": straight_through_argmax, "gumbel": straight_through_gumbel, "soft": gumbel_softmax,
    "decoupled": decoupled, "gumbel_rao": gumbel_rao, "reinmax": reinmax}
ESTIMATORS: dict[str, Estimator] = {
    **{name: estimator_from(relaxation) for name, relaxation in RELAXATIONS.items()}, "reinforce": reinforce}


def exact_gradient(objective: Objective, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The expectation () of the objective over words sampled from softmax(logits) and its gradient, shaped as
    ``logits`` (n, V). It visits all Vⁿ choices of words, those that are masked left out, and raises
    ValueError if Vⁿ is more than 200,000."""
    logits = _checked(logits)
    positions, words = logits.shape
    if words**positions > MOST_CHOICES:
        raise ValueError(f"{positions} positions of {words} words make {words**positions:,} choices, "
                         f"more than {MOST_CHOICES:,}: estimate instead")
    free = logits.detach().clone().requires_grad_()
    log_p, expectation = F.log_softmax(free, -1), free.new_zeros(())
    for choice in itertools.product(*((row > -math.inf).nonzero()[:, 0].tolist() for row in logits)):
        ids = torch.tensor(choice)  # (n,)
        with torch.no_grad():
            value = objective(F.one_hot(ids, words).to(free)).sum()
        expectation = expectation + value * log_p[torch.arange(positions), ids].sum().exp()
    return expectation.detach(), torch.autograd.grad(expectation, free)[0]


def compare_gradients(estimates: Tensor, exact: Tensor) -> dict[str, float]:
    """Estimates (draws, …) of a gradient compared with the exact one (…).

    ``cosine`` of their mean with it, ``cosine_of_one`` of a single estimate (on average), ``length`` of the
    mean over the exact one's, ``relative_bias`` |mean - exact| / |exact| and ``scaled_bias``, what is left of
    it after the best scale, ``relative_variance`` Σ var / |exact|² and the ``standard_error`` of the mean,
    over |exact|.
    """
    rows, exact = estimates.double().flatten(1), exact.double().flatten()  # (draws, n), (n,)
    mean, size, variance = rows.mean(0), exact.norm(), rows.var(0).sum()
    scale = (mean @ exact) / (mean @ mean).clamp_min(1e-30)
    return {name: float(value) for name, value in {
        "cosine": F.cosine_similarity(mean, exact, dim=0),
        "cosine_of_one": F.cosine_similarity(rows, exact[None], dim=1).mean(),
        "length": mean.norm() / size, "relative_bias": (mean - exact).norm() / size,
        "scaled_bias": (scale * mean - exact).norm() / size, "relative_variance": variance / size**2,
        "standard_error": (variance / len(rows)).sqrt() / size}.items()}


def bias_and_variance(estimator: Estimator, objective: Objective, logits: Tensor, *, temperature: float = 1.0,
                      draws: int = 1000, rng: Rng = None) -> dict[str, float]:
    """``compare_gradients`` of ``draws`` estimates with the exact gradient, and ``draws`` itself."""
    _, exact = exact_gradient(objective, logits)
    estimates: list[Tensor] = []
    for _ in range(draws):
        free = logits.detach().clone().requires_grad_()
        estimates += torch.autograd.grad(estimator(objective, free, temperature, rng).sum(), free)
    return {**compare_gradients(torch.stack(estimates), exact), "draws": draws}
