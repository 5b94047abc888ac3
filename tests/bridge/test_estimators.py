"""Gradient estimators against enumeration, closed forms, finite differences and torch's own Gumbel-softmax."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from e2e_lib.bridge import estimators
from e2e_lib.bridge.estimators import (
    ESTIMATORS,
    RELAXATIONS,
    bias_and_variance,
    compare_gradients,
    exact_gradient,
)
from e2e_lib.bridge.gumbel import gumbel_noise, softmax_with_temperature
from e2e_lib.repro.randomness import generator


def problem(positions=2, words=3, degree=2, key="problem"):
    """Random logits and an objective of the given degree in the one-hot vectors."""
    rng = generator(key)
    logits = torch.randn(positions, words, generator=rng, dtype=torch.float64)
    linear = torch.randn(positions, words, generator=rng, dtype=torch.float64)
    square = torch.randn(positions * words, positions * words, generator=rng, dtype=torch.float64)

    def objective(d):
        flat = d.reshape(-1)
        value = (linear * d).sum() + (flat @ square @ flat if degree >= 2 else 0)
        return value + (2 * (flat @ square @ flat).sin() if degree > 2 else 0)

    return logits, objective


def test_the_exact_gradient_is_that_of_finite_differences():
    logits, objective = problem(degree=3)
    _, gradient = exact_gradient(objective, logits)
    step, numeric = 1e-5, torch.zeros_like(logits)
    for at in torch.cartesian_prod(*map(torch.arange, logits.shape)).tolist():
        moved = torch.zeros_like(logits)
        moved[tuple(at)] = step
        up, down = (exact_gradient(objective, logits + sign * moved)[0] for sign in (1, -1))
        numeric[tuple(at)] = (up - down) / (2 * step)
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-8)


def test_the_exact_expectation_of_a_linear_objective_is_softmax_itself():
    logits, objective = problem(degree=1)
    value, gradient = exact_gradient(objective, logits)
    free = logits.clone().requires_grad_()
    closed = objective(F.softmax(free, -1))
    torch.testing.assert_close(value, closed.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(closed, free)[0])


def test_gumbel_max_samples_words_with_softmaxs_probabilities():
    logits, draws = torch.tensor([1.0, 0.0, -1.0, 2.0]), 40_000
    words = RELAXATIONS["gumbel"](logits.expand(draws, 4), 0.3, generator("draws"))
    share, expected = words.mean(0), F.softmax(logits, -1)
    assert (share - expected).abs().max() < 4 * math.sqrt(0.25 / draws)
    conditional = RELAXATIONS["gumbel_rao"](logits.expand(draws, 4), 0.3, generator("rao"), samples=1).mean(0)
    assert (conditional - expected).abs().max() < 4 * math.sqrt(0.25 / draws)


def test_gumbel_rao_has_the_mean_gradient_of_straight_through_gumbel_and_less_variance():
    """Words sampled first and noise given the words are distributed as noise sampled first."""
    logits, draws = torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64), 60_000
    free = logits.expand(draws, 3).clone().requires_grad_()
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def mean_gradient(name):
        h = RELAXATIONS[name](free, 0.7, generator(name)) if name == "gumbel" else estimators.gumbel_rao(free, 0.7, generator(name), samples=4)
        gradient, = torch.autograd.grad((h * weight).sum(), free)
        return gradient.mean(0), gradient.std(0) / draws**0.5

    (one, error1), (other, error2) = mean_gradient("gumbel"), mean_gradient("gumbel_rao")
    assert ((one - other).abs() < 4.5 * (error1**2 + error2**2).sqrt()).all()
    assert (error2 < error1).all()  # Rao-Blackwell


def mean_gradient_by_enumeration(relaxation, logits, objective):
    """The exact expectation of a relaxation's gradient over the words it samples, for one that takes the words."""
    total = torch.zeros_like(logits)
    words = logits.shape[-1]
    for choice in torch.cartesian_prod(*[torch.arange(words)] * len(logits)).reshape(-1, len(logits)):
        free = logits.clone().requires_grad_()
        gradient, = torch.autograd.grad(objective(relaxation(free, 1.0, sampled_ids=choice)), free)
        total += F.log_softmax(logits, -1)[torch.arange(len(logits)), choice].sum().exp() * gradient
    return total


@pytest.mark.parametrize("key", ["a", "b", "c"])
def test_reinmax_is_exact_for_quadratic_objectives_and_straight_through_is_not(key):
    logits, objective = problem(positions=1, words=4, degree=2, key=key)
    _, exact = exact_gradient(objective, logits)
    torch.testing.assert_close(mean_gradient_by_enumeration(RELAXATIONS["reinmax"], logits, objective), exact, rtol=1e-10, atol=1e-12)
    decoupled = mean_gradient_by_enumeration(RELAXATIONS["decoupled"], logits, objective)
    assert (decoupled - exact).norm() / exact.norm() > 0.02


def test_every_estimator_but_the_argmax_is_unbiased_for_linear_objectives_at_temperature_one():
    """E softmax((z+g)/τ) is not softmax(z), so Gumbel ones are biased even here; what draws words and learns by softmax(z) is not."""
    logits, objective = problem(degree=1)
    _, exact = exact_gradient(objective, logits)
    for name in ("decoupled", "reinmax"):
        torch.testing.assert_close(mean_gradient_by_enumeration(RELAXATIONS[name], logits, objective), exact)


def reinforce_on_every_sample(monkeypatch, objective, logits, samples):
    """REINFORCE's value and gradient for every choice of its samples' words, and how likely each is: (N, …), (N, n, V), (N,)."""
    positions, words = logits.shape
    every = torch.cartesian_prod(*[torch.arange(words)] * positions).reshape(-1, positions)  # (W, n)
    likely = F.log_softmax(logits, -1)[torch.arange(positions), every].sum(-1).exp()  # (W,)
    values, gradients, probabilities = [], [], []
    for drawn in itertools.product(range(len(every)), repeat=samples):
        noises = iter(1e6 * F.one_hot(every[list(drawn)], words))  # the largest noise decides which words are drawn
        monkeypatch.setattr(estimators, "gumbel_noise", lambda *_, noises=noises: next(noises))
        free = logits.clone().requires_grad_()
        value = estimators.reinforce(objective, free, samples=samples)
        values.append(value.detach())
        gradients += torch.autograd.grad(value.sum(), free)
        probabilities.append(likely[list(drawn)].prod())
    return torch.stack(values), torch.stack(gradients), torch.stack(probabilities)


@pytest.mark.parametrize(("degree", "samples", "words"), [(1, 2, 3), (2, 2, 3), (3, 2, 3), (3, 3, 2)])
def test_reinforce_has_the_exact_gradient_for_its_mean_over_all_samples(monkeypatch, degree, samples, words):
    logits, objective = problem(degree=degree, words=words)
    expectation, exact = exact_gradient(objective, logits)
    values, gradients, probabilities = reinforce_on_every_sample(monkeypatch, objective, logits, samples)
    torch.testing.assert_close(probabilities.sum().item(), 1.0)
    torch.testing.assert_close((probabilities * values).sum(), expectation, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((probabilities[:, None, None] * gradients).sum(0), exact, rtol=1e-10, atol=1e-12)
    _, raised, _ = reinforce_on_every_sample(monkeypatch, lambda d: objective(d) + 7, logits, samples)
    torch.testing.assert_close(raised, gradients, rtol=1e-10, atol=1e-12)  # what the other samples earn on average is taken off


def test_reinforce_with_one_reward_per_row_gives_each_row_its_own_gradient(monkeypatch):
    logits = torch.tensor([[0.0, 0.5], [0.0, 0.0]], dtype=torch.float64)
    worth = torch.tensor([[1.0, 0.0], [3.0, 3.0]], dtype=torch.float64)
    values, gradients, probabilities = reinforce_on_every_sample(monkeypatch, lambda d: (d * worth).sum(-1), logits, 2)
    p = 1 / (1 + math.exp(0.5))
    assert values.shape[1:] == (2,)
    mean = (probabilities[:, None, None] * gradients).sum(0)
    torch.testing.assert_close(mean[0], p * (1 - p) * torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert not gradients[:, 1].any()  # a row that always earns the same has nothing to learn


def test_variance_falls_with_conditional_noise_and_grows_as_the_temperature_falls():
    logits, objective = problem(degree=2)
    variance = {(name, t): bias_and_variance(ESTIMATORS[name], objective, logits, temperature=t, draws=100, rng=generator(name, t))
                ["relative_variance"] for name, t in (("gumbel", 0.3), ("gumbel", 1.0), ("gumbel_rao", 0.3))}
    assert variance["gumbel_rao", 0.3] < variance["gumbel", 0.3] > variance["gumbel", 1.0]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_seed_gives_the_same_gradient_again_and_leaves_the_global_state_alone(name):
    logits, objective = problem()
    state = torch.get_rng_state()
    gradients = []
    for _ in range(2):
        free = logits.clone().requires_grad_()
        gradients.append(torch.autograd.grad(ESTIMATORS[name](objective, free, rng=generator("again")), free)[0])
    assert torch.equal(*gradients) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("name", "temperature", "message"), [
    *((name, t, "must be") for name in ESTIMATORS for t in (0.0, -1.0, float("nan"))),
    ("reinmax", 0.5, "at least 1"), ("reinforce", 0.5, "must be 1")])
def test_temperatures_out_of_range_are_refused(name, temperature, message):
    logits, objective = problem()
    with pytest.raises(ValueError, match=message):
        ESTIMATORS[name](objective, logits.requires_grad_(), temperature=temperature)


def test_too_many_choices_are_refused_with_their_number():
    with pytest.raises(ValueError, match=r"10 positions of 10 words make 10,000,000,000"):
        exact_gradient(lambda d: d.sum(), torch.zeros(10, 10))


def distance(words):
    """Polynomial programming's |x - 0.45|^1.5 of binary latents x (Tucker et al. 2017): 0.45^1.5 = 0.3019 for x = 0, 0.4079 for x = 1."""
    return (words[..., 1] - 0.45).abs().pow(1.5).mean()


SLOPES = -1.5 * 0.45**0.5, 1.5 * 0.55**0.5  # of |x - 0.45|^1.5 at x = 0 and at x = 1


def expected_distance(p):
    return (1 - p) * 0.45**1.5 + p * 0.55**1.5


def latent(p):
    return torch.tensor([[0.0, math.log(p / (1 - p))]], dtype=torch.float64)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9])
def test_straight_through_and_reinmax_take_the_slopes_that_are_known_of_them(p):
    """Of f(1) - f(0), straight-through sees the slope at the word sampled (Euler's rule), ReinMax the mean of both ends (Heun's), which
    points to the optimum from everywhere (Liu et al. 2023)."""
    mean = [float(mean_gradient_by_enumeration(RELAXATIONS[name], latent(p), distance)[0, 1]) for name in ("decoupled", "reinmax")]
    assert mean == pytest.approx([p * (1 - p) * ((1 - p) * SLOPES[0] + p * SLOPES[1]), p * (1 - p) * sum(SLOPES) / 2], rel=1e-10)
    assert mean[1] > 0


def test_straight_through_stops_where_it_is_known_to_stop():
    """Where its mean gradient is zero: short of the optimum, at 0.3522."""
    p = SLOPES[0] / (SLOPES[0] - SLOPES[1])
    assert expected_distance(p) == pytest.approx(0.3522, abs=5e-5)
    assert float(mean_gradient_by_enumeration(RELAXATIONS["decoupled"], latent(p), distance)[0, 1]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("temperature", "end"), [(0.1, 0.33541), (1.0, 0.35134)])
def test_straight_through_gumbel_stops_where_it_is_known_to_stop(monkeypatch, temperature, end):
    """Where its mean gradient is zero, as scipy.integrate.quad and brentq find it; training at τ = 0.1 is published to end at 0.3365. The
    mean over all noises is an integral over the difference of two of them, which is logistic: here over its quantiles."""
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    noise = torch.stack([torch.zeros_like(u), (u / (1 - u)).log()], -1)[:, None]  # (N, 1, 2)
    monkeypatch.setattr(estimators, "gumbel_noise", lambda *_: noise)

    def mean_gradient(p):
        free = latent(p).requires_grad_()
        return float(torch.autograd.grad(distance(RELAXATIONS["gumbel"](free.expand(len(u), 1, 2), temperature)), free)[0][0, 1])

    low, high = 0.05, 0.95
    assert mean_gradient(low) < 0 < mean_gradient(high)  # so training comes here from both sides
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_gradient(middle) < 0 else (low, middle)
    assert expected_distance(low) == pytest.approx(end, abs=3e-4)


def test_noise_is_sampled_from_rng():
    logits = torch.randn(3, 4)
    assert torch.equal(RELAXATIONS["soft"](logits, 0.5, generator("x")), softmax_with_temperature(logits, 0.5, gumbel_noise((3, 4), generator("x"))))


# ------------------------------------------------------------------------------------------------------------- extreme logits

def masked_problem(masked):
    """Logits (2, 4), those at ``masked`` -inf, and numbers (2, 4) to make objectives of."""
    logits, weight = torch.tensor([[0.3, -0.2, 1.0, 0.4], [0.0, 0.5, -1.0, 0.2]]), torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.1, 0.2, -0.7, 1.5]])
    for at in masked:
        logits[at] = -math.inf
    return logits, weight


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_masked_word_gets_no_gradient_and_the_others_what_they_get_without_it(monkeypatch, name):
    logits, weight = masked_problem([(0, 1), (1, 1)])
    results = []
    for columns in ([0, 1, 2, 3], [0, 2, 3]):
        rng = generator("mask")

        def exponential(self, generator=None, rng=rng, columns=columns):  # the same for a word, whichever others there are
            return self.copy_((0.01 + 3 * torch.rand(*self.shape[:-1], 4, generator=rng))[..., columns])

        monkeypatch.setattr(torch.Tensor, "exponential_", exponential)
        free = logits[:, columns].clone().requires_grad_()
        values = torch.stack([ESTIMATORS[name](lambda d, w=weight[:, columns]: (d * w).sum() + (d * w).sum()**2, free) for _ in range(8)])
        results.append((values.detach(), torch.autograd.grad(values.sum(), free)[0]))
    (values, gradient), (fewer_values, fewer_gradient) = results
    assert gradient.isfinite().all() and not gradient[:, 1].any() and gradient.abs().max() > 0.01
    torch.testing.assert_close(gradient[:, [0, 2, 3]], fewer_gradient)
    torch.testing.assert_close(values, fewer_values)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_confidence_is_finite_in_every_type(relaxation, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-6e4, 6e4, 6e4], [-math.inf, 0.0, -6e4], [0.0, -math.inf, -math.inf]], dtype=dtype).requires_grad_()
    for sampled_ids in (None, torch.tensor([1, 0, 2, 1])):  # the second are all but impossible, or masked
        for temperature in (1.0, 50.0):
            y = RELAXATIONS[relaxation](logits, temperature, generator("extreme"), sampled_ids)
            gradient, = torch.autograd.grad((y * torch.tensor([1.0, 2.0, 3.0])).sum(), logits)
            assert y.dtype == (dtype if dtype == torch.float64 else torch.float32) and y.isfinite().all()
            assert gradient.dtype == dtype and gradient.isfinite().all() and not gradient[logits == -math.inf].any()


def test_the_exact_gradient_never_asks_for_a_masked_word():
    logits, weight = masked_problem([(0, 1), (1, 2)])
    weight = weight.masked_fill(logits == -math.inf, math.nan)

    def objective(d):
        value = weight[d.bool()].sum()
        assert value.isfinite()
        return value

    value, gradient = exact_gradient(objective, logits)
    p = F.softmax(logits, -1)
    means = (p * weight.nan_to_num()).sum(-1, keepdim=True)
    torch.testing.assert_close(value, means.sum())
    torch.testing.assert_close(gradient, p * (weight.nan_to_num() - means))  # of a sum of expectations, in closed form


@pytest.mark.parametrize("name", [*ESTIMATORS, "exact"])
@pytest.mark.parametrize(("values", "message"), [
    ([math.nan, 0.0], "hold NaN at position 1"), ([math.inf, 0.0], r"hold \+inf at position 1"), ([-math.inf, -math.inf], "hold -inf for every word at position 1")])
def test_logits_without_a_softmax_are_named_the_same_by_every_estimator(name, values, message):
    logits = torch.stack([torch.zeros(2), torch.tensor(values)]).requires_grad_()
    with pytest.raises(ValueError, match=rf"logits \(shape \(2, 2\)\) {message}"):
        exact_gradient(torch.sum, logits) if name == "exact" else ESTIMATORS[name](torch.sum, logits)


def test_estimates_are_compared_with_the_exact_gradient_as_by_hand():
    """Losses in another unit have other gradients, and the same numbers."""
    estimates, exact = (np.random.default_rng(k).normal(1, 1, shape) for k, shape in enumerate([(7, 2, 3), (2, 3)]))
    rows, wanted = estimates.reshape(7, 6), exact.reshape(6)
    mean, size = rows.mean(0), np.linalg.norm(wanted)
    scale = np.linalg.lstsq(mean[:, None], wanted, rcond=None)[0]
    expected = {
        "cosine": mean @ wanted / np.linalg.norm(mean) / size,
        "cosine_of_one": np.mean([row @ wanted / np.linalg.norm(row) / size for row in rows]),
        "length": np.linalg.norm(mean) / size, "relative_bias": np.linalg.norm(mean - wanted) / size,
        "scaled_bias": np.linalg.norm(scale * mean - wanted) / size, "relative_variance": rows.var(0, ddof=1).sum() / size**2,
        "standard_error": np.sqrt(rows.var(0, ddof=1).sum() / 7) / size}
    for unit in (1, 50):
        assert compare_gradients(torch.from_numpy(estimates * unit), torch.from_numpy(exact * unit)) == pytest.approx(expected)
