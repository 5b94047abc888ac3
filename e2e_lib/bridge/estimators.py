"""Gradients estimator_from a choice of words: the paper's straight-estimator_from Gumbel-softmax (section 2.4.1) beside its rivals, and the truth.

The question each answers: the words d are drawn from softmax(z), an objective f(d) is computed from them; what is the gradient of the
expectation E f(d) with respect to z? Every estimator has one signature,

    estimator(objective, logits, temperature=1.0, generator=None) -> Tensor

where ``objective`` takes vectors over the vocabulary, shaped as ``logits`` (…, V), and returns one number or one number a batch row.
The value returned is the objective of what was drawn; its ``backward()`` leaves the estimate in ``logits.grad``.
``exact_gradient`` adds up every possible choice, for problems small enough.
"""

import itertools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from e2e_lib.bridge.gumbel import check, gumbel_noise, softmax_with_temperature, straight_through

Objective = Callable[[Tensor], Tensor]
MOST_CHOICES = 200_000


class Relaxation(Protocol):
    """Logits (…, V) to vectors (…, V) that stand for words forward and carry a gradient backward.

    ``drawn`` (…) are the words, where they have been drawn from softmax(logits) already, as a caption's have; estimators whose gradient
    does not depend on the draw ignore it.
    """

    def __call__(self, logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None, *,
                 drawn: Tensor | None = None) -> Tensor: ...


def _draw(logits: Tensor, generator: torch.Generator | None, drawn: Tensor | None = None) -> Tensor:
    """One word for each position from softmax(logits), as one-hot vectors; by the Gumbel-max trick, so that a seed means the same on any device."""
    if drawn is None:
        drawn = (logits.detach() + gumbel_noise(logits.shape, generator).to(logits)).argmax(-1)
    return F.one_hot(drawn, logits.shape[-1]).to(logits)


def straight_through_argmax(logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None, *, drawn: Tensor | None = None) -> Tensor:
    """The likeliest words, with the gradient of softmax(z/τ) (Bengio et al. 2013; the paper's released code). Draws nothing."""
    return straight_through(softmax_with_temperature(logits, temperature))


def straight_through_gumbel(logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None, *, drawn: Tensor | None = None) -> Tensor:
    """Eq. 4-7: words drawn with Gumbel noise, with the gradient of softmax((z + g)/τ) (Jang et al. 2017)."""
    return straight_through(softmax_with_temperature(logits, temperature, gumbel_noise(logits.shape, generator)))


def gumbel_softmax(logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None, *, drawn: Tensor | None = None) -> Tensor:
    """Eq. 4-5 alone: mixtures of words, forward too (Maddison et al. 2017). Low variance, but the objective never meets a real word."""
    return softmax_with_temperature(logits, temperature, gumbel_noise(logits.shape, generator))


def decoupled(logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None, *, drawn: Tensor | None = None,
                      forward_temperature: float = 1.0) -> Tensor:
    """Words drawn from softmax(z/τ_f), with the gradient of softmax(z/τ): one temperature to explore with, another to learn with
    (Shah et al. 2024). The exact gradient it is compared to is that of τ_f = 1."""
    check(logits, forward_temperature)
    y = softmax_with_temperature(logits, temperature)
    return _draw(logits / forward_temperature, generator, drawn) + (y - y.detach())


def gumbel_rao(logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None, *, drawn: Tensor | None = None,
                       samples: int = 16) -> Tensor:
    """Eq. 6-7 with the gradient averaged over ``samples`` noises that would all have chosen the same words (Paulus et al. 2021)."""
    check(logits, temperature)
    hard = _draw(logits, generator, drawn)
    # Given that word i wins, its noisy logit has Gumbel's law around log Σ exp z; the others' are cut off below it.
    exponentials = torch.empty((samples, *logits.shape)).exponential_(generator=generator).to(logits)
    log_total = logits.detach().logsumexp(-1, keepdim=True)
    won = (exponentials * hard).sum(-1, keepdim=True)  # the winner's own exponential
    noisy = torch.where(hard.bool(), log_total - won.log(), -(exponentials * (-logits.detach()).exp() + won * (-log_total).exp()).log())
    y = F.softmax((logits + (noisy - logits.detach())) / temperature, -1).mean(0)
    return hard + (y - y.detach())


def reinmax(logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None, *, drawn: Tensor | None = None) -> Tensor:
    """ReinMax (Liu et al. 2023): straight-estimator_from corrected to second order, exact in expectation where the objective is quadratic and
    τ = 1. Raises ValueError for τ < 1, where its correction overshoots."""
    check(logits, temperature)
    if temperature < 1:
        raise ValueError(f"ReinMax needs a temperature of at least 1, got {temperature}")
    hard = _draw(logits, generator, drawn)
    middle = (hard + F.softmax(logits.detach() / temperature, -1)) / 2
    anchored = F.softmax((middle.clamp_min(torch.finfo(logits.dtype).tiny).log() - logits).detach() + logits, -1)
    y = 2 * anchored - F.softmax(logits, -1) / 2
    return hard + (y - y.detach())


RELAXATIONS: dict[str, Relaxation] = {
    "straight_through": straight_through_argmax, "gumbel": straight_through_gumbel, "soft": gumbel_softmax, "decoupled": decoupled,
    "gumbel_rao": gumbel_rao, "reinmax": reinmax,
}


def estimator_from(relaxation: Relaxation) -> "Estimator":
    """The estimator that asks for the objective of a relaxation's vectors and takes their gradient."""
    def estimator(objective: Objective, logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        return objective(relaxation(logits, temperature, generator))
    return estimator


def reinforce(objective: Objective, logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None, *,
              samples: int = 16) -> Tensor:
    """REINFORCE, each draw judged against the mean of the others (Kool et al. 2019): unbiased, and needs no gradient of the objective.

    It asks for the objective ``samples`` times, and has no temperature: any other than 1 is refused with a ValueError.
    """
    check(logits, temperature)
    if temperature != 1:
        raise ValueError(f"REINFORCE draws from the model itself and has no temperature; it must be 1, got {temperature}")
    if samples < 2:
        raise ValueError(f"leave-one-out needs at least 2 samples, got {samples}")
    drawn = [_draw(logits, generator) for _ in range(samples)]
    with torch.no_grad():
        values = torch.stack([objective(d) for d in drawn])  # (samples,) or (samples, B)
    advantage = (values - values.mean(0)) * samples / (samples - 1)
    # One number for all rows: every position shares the reward. One a row: only that row's positions do.
    log_likelihood = torch.stack([(d * F.log_softmax(logits, -1)).sum(-1) for d in drawn])
    log_likelihood = log_likelihood.flatten(values.ndim).sum(-1) if log_likelihood.ndim > values.ndim else log_likelihood
    surrogate = (advantage * log_likelihood).mean(0)
    return values.mean(0) + (surrogate - surrogate.detach())


Estimator = Callable[..., Tensor]
ESTIMATORS: dict[str, Estimator] = {**{name: estimator_from(relaxation) for name, relaxation in RELAXATIONS.items()}, "reinforce": reinforce}


def exact_gradient(objective: Objective, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The expectation of the objective over words drawn from softmax(logits), (), and its gradient, shaped as ``logits`` (n, V).

    Every one of the Vⁿ choices is visited. Raises ValueError if there are more than 200,000.
    """
    check(logits, 1.0)
    positions, words = logits.shape
    if words**positions > MOST_CHOICES:
        raise ValueError(f"{positions} positions of {words} words make {words**positions:,} choices, more than {MOST_CHOICES:,}: estimate instead")
    free = logits.detach().clone().requires_grad_()
    log_p = F.log_softmax(free, -1)
    expectation = free.new_zeros(())
    where = torch.arange(positions)
    for choice in itertools.product(range(words), repeat=positions):
        chosen = torch.tensor(choice)
        with torch.no_grad():
            value = objective(F.one_hot(chosen, words).to(free)).sum()
        expectation = expectation + value * log_p[where, chosen].sum().exp()
    gradient, = torch.autograd.grad(expectation, free)
    return expectation.detach(), gradient


def compare_gradients(estimated: Tensor, truth: Tensor) -> dict[str, float]:
    """Estimates (draws, …) of a gradient against the true one (…).

    ``cosine`` of their mean with it and of one alone (a mean over draws), ``length`` of the mean over the truth's, ``relative_bias``
    |mean - truth| / |truth| and what is left of it after the best scale, ``relative_variance`` Σ var / |truth|², and the standard error of
    the mean, also over |truth|.
    """
    flat, t = estimated.double().flatten(1), truth.double().flatten()
    mean, size = flat.mean(0), t.norm()
    variance = flat.var(0).sum()
    scale = (mean @ t) / (mean @ mean).clamp_min(1e-30)
    return {
        "cosine": float(F.cosine_similarity(mean, t, dim=0)), "cosine_of_one": float(F.cosine_similarity(flat, t[None], dim=1).mean()),
        "length": float(mean.norm() / size), "relative_bias": float((mean - t).norm() / size), "scaled_bias": float((scale * mean - t).norm() / size),
        "relative_variance": float(variance / size**2), "standard_error": float((variance / len(flat)).sqrt() / size)}


def bias_and_variance(estimator: Estimator, objective: Objective, logits: Tensor, *, temperature: float = 1.0, draws: int = 1000,
                      generator: torch.Generator | None = None) -> dict[str, float]:
    """How far an estimator is from the exact gradient, over ``draws`` draws: ``compare_gradients``'s figures and ``draws``."""
    _, exact = exact_gradient(objective, logits)
    estimates = []
    for _ in range(draws):
        free = logits.detach().clone().requires_grad_()
        gradient, = torch.autograd.grad(estimator(objective, free, temperature=temperature, generator=generator).sum(), free)
        estimates.append(gradient)
    return {**compare_gradients(torch.stack(estimates), exact), "draws": draws}
