"""The fast form of Eq. 5 at a caption's tokens against its three-line definition."""

import pytest
import torch

from e2e_lib.bridge import fast
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.repro.randomness import generator


@pytest.mark.parametrize("cached", [1, 40, 2**19])  # one caption at a time, two, all
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
def test_values_and_gradients_are_those_of_the_definition(monkeypatch, temperature, noisy, cached):
    monkeypatch.setattr(fast, "CACHED", cached)
    logits = torch.randn(5, 2, 9, generator=generator("z"), dtype=torch.float64, requires_grad=True)
    noise = gumbel_noise(logits.shape, generator("g")).double() if noisy else None
    ids = torch.tensor([[0, 3, 3], [1, 2, 0], [8, 8, 8], [4, 5, 6], [7, 0, 7]])
    weight = torch.randn(5, 2, 3, generator=generator("w"), dtype=torch.float64)
    values, gradients = [], []
    for function in (fast.token_probabilities, fast.plain_probabilities):
        values.append(function(logits, ids, temperature, noise))
        gradients += torch.autograd.grad((values[-1] * weight).sum(), logits)
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cached", [1, 2**19, "all at once"])  # as an accelerator takes them, padding too
def test_positions_that_are_not_real_have_no_probability_and_no_gradient(monkeypatch, cached):
    if cached == "all at once":
        monkeypatch.setattr(fast, "_runs", lambda real, width: [slice(0, real.numel())])
    else:
        monkeypatch.setattr(fast, "CACHED", cached)
    logits, ids = torch.randn(3, 2, 5, generator=generator("z")), torch.tensor([[0, 3], [1, 2], [4, 4]])
    real, weight = torch.tensor([[True, True], [True, False], [False, True]]), torch.randn(3, 2, 2, generator=generator("w"))
    gradients = []
    for filling in (0.0, float("nan"), float("inf"), -float("inf")):
        free = logits.masked_fill(~real[:, :, None], filling).requires_grad_()
        y = fast.token_probabilities(free, ids, 0.7, None, real)
        gradients += torch.autograd.grad((y * weight).sum(), free)
        assert not y[~real].any() and not gradients[-1][~real].any() and torch.equal(gradients[-1], gradients[0])
    free = logits.clone().requires_grad_()
    expected, = torch.autograd.grad((fast.plain_probabilities(free, ids, 0.7, None) * weight)[real].sum(), free)
    torch.testing.assert_close(gradients[0], expected)


@pytest.mark.parametrize("cached", [1, 10, 20, 2**19])
def test_runs_are_the_real_positions_in_order_and_fit_the_cache(monkeypatch, cached):
    monkeypatch.setattr(fast, "CACHED", cached)
    for seed in range(20):
        real = torch.rand(4, 5, generator=generator(seed)) < 0.6
        runs = fast._runs(real, 5)
        assert [row for rows in runs for row in range(rows.start, rows.stop)] == real.flatten().nonzero()[:, 0].tolist()
        assert all(rows.stop - rows.start <= max(1, cached // 5) for rows in runs)
    assert len(fast._runs(torch.ones(4, 5, dtype=torch.bool), 5)) == {1: 20, 10: 10, 20: 5, 2**19: 1}[cached]


def test_an_empty_batch_has_no_probabilities():
    assert fast.token_probabilities(torch.zeros(0, 2, 9), torch.zeros(0, 3).long(), 1.0, None).shape == (0, 2, 3)
