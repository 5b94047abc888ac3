"""Gradient estimators against enumeration, closed forms, finite differences and torch's own Gumbel-softmax."""

import math

import pytest
import torch
from torch.nn import functional as F

from e2e_lib.bridge import estimators
from e2e_lib.bridge.estimators import ESTIMATORS, RELAXATIONS, bias_and_variance, exact_gradient
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


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_reinforce_is_unbiased(degree):
    logits, objective = problem(degree=degree)
    report = bias_and_variance(ESTIMATORS["reinforce"], objective, logits, draws=1000, rng=generator("reinforce", degree))
    assert report["relative_bias"] < 4 * report["standard_error"] and report["cosine"] > 0.95


def test_reinforce_with_one_reward_per_row_gives_each_row_its_own_gradient():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    worth = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    gradients, rng = [], generator("rows")
    for _ in range(400):
        free = logits.clone().requires_grad_()
        value = estimators.reinforce(lambda d: (d * worth).sum(-1), free, rng=rng)
        assert value.shape == (2,)
        gradients.append(torch.autograd.grad(value.sum(), free)[0])
    mean = torch.stack(gradients).mean(0)
    torch.testing.assert_close(mean[0], torch.tensor([0.25, -0.25], dtype=torch.float64), atol=0.02, rtol=0)
    assert not mean[1].any()  # a row that always earns the same has nothing to learn


def test_variance_falls_with_conditional_noise_and_grows_as_the_temperature_falls():
    logits, objective = problem(degree=2)
    variance = {(name, t): bias_and_variance(ESTIMATORS[name], objective, logits, temperature=t, draws=500, rng=generator(name, t))
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


@pytest.mark.parametrize(("name", "temperature", "published"), [("straight_through_draws", 1.0, 0.3522), ("gumbel", 0.1, 0.3365), ("reinmax", 1.0, 0.3054)])
def test_polynomial_programming_ends_where_it_should(name, temperature, published):
    """128 binary latents, minimise the mean of |x - 0.45|^1.5 (optimum in closed form 0.45^1.5 = 0.3019): where each estimator ends after
    8,000 steps of 1e-3 (here an eighth of the steps, eight times as long) is known to a few thousandths."""
    rng = generator("polynomial", name)
    logits = torch.zeros(128, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 8e-3)
    relaxation = RELAXATIONS["decoupled" if name == "straight_through_draws" else name]
    for _ in range(1000):
        words = relaxation(logits.expand(64, 128, 2), temperature, rng)
        loss = (words[..., 1] - 0.45).abs().pow(1.5).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    p = F.softmax(logits.detach(), -1)[:, 1]
    expected = (p * 0.55**1.5 + (1 - p) * 0.45**1.5).mean()
    assert expected == pytest.approx(published, abs=0.003)
    assert expected >= 0.45**1.5 - 1e-6


def test_noise_is_sampled_from_rng():
    logits = torch.randn(3, 4)
    assert torch.equal(RELAXATIONS["soft"](logits, 0.5, generator("x")), softmax_with_temperature(logits, 0.5, gumbel_noise((3, 4), generator("x"))))
