import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F

from e2e_lib.bridge.gumbel import gumbel_noise, softmax_with_temperature, straight_through
from e2e_lib.repro.randomness import generator


def test_the_noise_has_a_standard_gumbel_distribution():
    noise = gumbel_noise((200_000,), generator("noise")).double().numpy()
    assert np.isfinite(noise).all()
    assert stats.kstest(noise, stats.gumbel_r.cdf).pvalue > 0.01
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=4 * np.sqrt(np.pi**2 / 6 / noise.size))  # four standard errors
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.02)


def test_the_noise_depends_on_its_generator_alone():
    before = torch.random.get_rng_state()
    first = gumbel_noise((3, 5), generator(1))
    assert torch.equal(first, gumbel_noise((3, 5), generator(1)))
    assert not torch.equal(first, gumbel_noise((3, 5), generator(2)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_largest_noisy_logit_is_a_sample_of_the_softmax():
    logits = torch.tensor([1.5, 0.0, -1.0, 0.3, -2.5])
    n = 100_000
    chosen = (logits + gumbel_noise((n, 5), generator("argmax"))).argmax(-1)
    counts = torch.bincount(chosen, minlength=5).numpy()
    expected = n * np.exp(logits.double().numpy()) / np.exp(logits.double().numpy()).sum()
    assert stats.chisquare(counts, expected).pvalue > 0.01
    assert stats.chisquare(counts, np.roll(expected, 1)).pvalue < 1e-9  # the test tells distributions apart


@given(st.integers(1, 4), st.integers(2, 9), st.floats(0.01, 50), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_the_relaxation_is_eq_5_written_out(rows, words, temperature, seed):
    logits = 3 * torch.randn(rows, words, generator=generator(seed), dtype=torch.float64)
    noise = gumbel_noise((rows, words), generator(seed, "noise"))
    y = softmax_with_temperature(logits, temperature, noise)
    for t in range(rows):
        scaled = [(logits[t, i].item() + noise[t, i].item()) / temperature for i in range(words)]
        powers = [np.exp(value - max(scaled)) for value in scaled]
        assert y[t].tolist() == pytest.approx([power / sum(powers) for power in powers], abs=1e-12)


def test_a_lower_temperature_comes_closer_to_one_hot():
    logits = torch.randn(20, 30, generator=generator(0))
    peaks = [softmax_with_temperature(logits, temperature).max(-1).values.mean().item() for temperature in (10.0, 1.0, 0.1, 0.01)]
    assert peaks == sorted(peaks) and peaks[0] < 0.1 and peaks[-1] > 0.95


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.01])
def test_forward_is_one_hot_and_backward_is_the_softmax_jacobian(temperature):
    logits = torch.randn(3, 6, generator=generator(1), dtype=torch.float64, requires_grad=True)
    noise = gumbel_noise((3, 6), generator(2))
    h = straight_through(softmax_with_temperature(logits, temperature, noise))
    assert torch.allclose(h, F.one_hot((logits + noise).argmax(-1), 6).double(), atol=1e-15, rtol=0)
    for t in range(3):
        y = torch.softmax((logits[t] + noise[t].double()) / temperature, -1).detach()
        jacobian = (torch.diag(y) - torch.outer(y, y)) / temperature  # dy_i/dz_j
        for i in range(6):
            gradient, = torch.autograd.grad(h[t, i], logits, retain_graph=True)
            assert torch.allclose(gradient[t], jacobian[i], atol=1e-12)
            assert gradient.count_nonzero() == gradient[t].count_nonzero()  # the other positions get nothing


def test_forward_is_exactly_one_hot_in_float32():
    logits, noise = torch.randn(50, 400, generator=generator(4)), gumbel_noise((50, 400), generator(5))
    h = straight_through(softmax_with_temperature(logits, 0.5, noise))
    assert set(h.unique().tolist()) == {0.0, 1.0} and torch.equal(h.sum(-1), torch.ones(50))


def test_the_relaxation_passes_a_finite_difference_check():
    logits = torch.randn(2, 4, generator=generator(3), dtype=torch.float64, requires_grad=True)
    noise = gumbel_noise((2, 4), generator(6)).double()
    assert torch.autograd.gradcheck(lambda z: softmax_with_temperature(z, 0.7, noise), logits)


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_it_agrees_with_torch_on_the_same_noise(temperature):
    logits = torch.randn(4, 11, generator=generator(7), requires_grad=True)
    weight = torch.randn(4, 11, generator=generator(8))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = F.gumbel_softmax(logits, tau=temperature, hard=True)
        torch.manual_seed(5)
        noise = -torch.empty_like(logits, memory_format=torch.legacy_contiguous_format).exponential_().log()
    ours = straight_through(softmax_with_temperature(logits, temperature, noise))
    assert torch.allclose(ours, theirs, atol=1e-6)
    gradients = [torch.autograd.grad((h * weight).sum(), logits, retain_graph=True)[0] for h in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-6) and gradients[0].abs().max() > 1e-3


def test_ties_and_large_logits_still_give_one_word():
    h = straight_through(softmax_with_temperature(torch.tensor([[2.0, 2.0, 2.0], [1e4, -1e4, 0.0]]), 0.01))
    assert h.sum(-1).tolist() == [1.0, 1.0] and torch.isfinite(h).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-31, 1e31, float("inf"), float("nan")])
def test_a_temperature_that_is_not_positive_is_named(temperature):
    with pytest.raises(ValueError, match=re.escape(f"temperature must be positive, got {temperature};")):
        softmax_with_temperature(torch.zeros(2, 3), temperature)


def test_logits_that_are_not_numbers_are_named():
    logits = torch.zeros(2, 3)
    logits[1, 1] = float("nan")
    with pytest.raises(ValueError, match=r"logits \(shape \(2, 3\)\) hold NaN at position 1\."):
        softmax_with_temperature(logits, 1.0)
    with pytest.raises(ValueError, match=r"logits \(shape \(3,\)\) hold NaN\."):
        softmax_with_temperature(logits[1], 1.0)
    with pytest.raises(ValueError, match=r"hold NaN at index \(0, 1, 0\)\."):
        softmax_with_temperature(logits[None, :, None], 1.0)


def test_half_precision_becomes_float32_and_a_masked_word_has_no_probability():
    y = softmax_with_temperature(torch.tensor([1.0, -float("inf"), 3.0], dtype=torch.float16), 2.0)
    torch.testing.assert_close(y, torch.tensor([1 / (1 + np.e), 0.0, np.e / (1 + np.e)], dtype=torch.float32))
