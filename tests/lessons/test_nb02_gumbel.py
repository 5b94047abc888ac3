"""The helpers of notebook 02 against enumeration, closed forms, finite differences and what can be counted in a picture."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from e2e_lib.bridge.estimators import ESTIMATORS, RELAXATIONS, bias_and_variance, exact_gradient
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.experiments import polynomial
from e2e_lib.lessons import nb02_gumbel
from e2e_lib.models.language import load_language
from e2e_lib.report import plots
from e2e_lib.repro.randomness import generator

LOGITS = torch.tensor([[0.2, 1.0, -0.5]], dtype=torch.float64)


def test_a_bias_may_be_four_standard_errors_from_what_is_expected(capsys):
    nb02_gumbel.observe_bias("near", {"relative_bias": 0.39, "standard_error": 0.1}, 0)
    nb02_gumbel.observe_bias("far", {"relative_bias": 0.41, "standard_error": 0.1}, 0)
    assert capsys.readouterr().out == ("✓ near: bias 0.390 ± 0.100, expected 0.000\n"
                                       "✗ does not hold here: far: bias 0.410 ± 0.100, expected 0.000\n")


# --------------------------------------------------------------------------------------------------------------- problems

@pytest.mark.parametrize("exponent", [1.5, 2, 4])
def test_the_paint_problem_compares_colours(exponent):
    problem = nb02_gumbel.PaintProblem(exponent)
    rgb = np.array([[int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)] for colour in problem.hexes])
    photo = np.array(problem.mixture) @ rgb
    np.testing.assert_allclose(problem.losses(), 100 * (np.abs(rgb - photo) ** exponent).mean(1), rtol=1e-12)
    assert problem(torch.tensor([problem.mixture], dtype=torch.float64)) == 0
    assert problem(torch.zeros(7, 5, 1, 3)).shape == (7, 5)
    for colour, swatch in zip(rgb, problem.swatches(torch.eye(3)), strict=True):
        assert (swatch == np.round(colour * 255)).all() and swatch.shape == (8, 8, 3)


def expected_reinmax(objective, logits):
    """ReinMax's gradient, averaged over every word it may sample."""
    total = torch.zeros_like(logits)
    for word, share in enumerate(F.softmax(logits[0], -1)):
        free = logits.clone().requires_grad_()
        total += share * torch.autograd.grad(objective(RELAXATIONS["reinmax"](free, 1.0, sampled_ids=torch.tensor([word]))), free)[0]
    return total


@pytest.mark.parametrize("exponent", [1.5, 2, 4])
def test_the_trapezoid_gradient_is_what_reinmax_expects(exponent):
    problem = nb02_gumbel.PaintProblem(exponent)
    torch.testing.assert_close(nb02_gumbel.trapezoid_gradient(problem, LOGITS), expected_reinmax(problem, LOGITS), rtol=1e-10, atol=1e-12)


def test_the_trapezoid_gradient_is_exact_for_a_parabola_and_for_nothing_steeper():
    problem = nb02_gumbel.PaintProblem(2)
    rule, exact = nb02_gumbel.trapezoid_gradient(problem, LOGITS), exact_gradient(problem, LOGITS)[1]
    torch.testing.assert_close(rule, exact, rtol=1e-10, atol=1e-12)
    problem = nb02_gumbel.PaintProblem(4)
    rule, exact = nb02_gumbel.trapezoid_gradient(problem, LOGITS), exact_gradient(problem, LOGITS)[1]
    assert (rule - exact).norm() > 0.1 * exact.norm()


def test_straight_through_gumbel_goes_to_the_trapezoid_as_the_temperature_falls():
    problem = nb02_gumbel.PaintProblem(4)
    free = LOGITS.expand(200_000, 1, 3).clone().requires_grad_()
    gradients, = torch.autograd.grad(ESTIMATORS["gumbel"](problem, free, 0.02, generator("limit")).sum(), free)
    error = gradients.std(0) / len(gradients) ** 0.5
    assert ((gradients.mean(0) - nb02_gumbel.trapezoid_gradient(problem, LOGITS)).abs() < 4 * error).all()


def test_an_average_of_estimates_keeps_the_mean_and_divides_the_variance():
    problem = nb02_gumbel.PaintProblem()
    one, many = (bias_and_variance(nb02_gumbel.averaged(ESTIMATORS["decoupled"], copies), problem, LOGITS, draws=250,
                                   rng=generator(copies))
                 for copies in (1, 25))
    assert many["relative_variance"] * 25 == pytest.approx(one["relative_variance"], rel=0.4)
    assert abs(many["relative_bias"] - one["relative_bias"]) < 4 * (one["standard_error"] + many["standard_error"])


def test_a_sweep_has_each_estimator_at_the_temperatures_it_is_defined_for():
    reports = nb02_gumbel.sweep(nb02_gumbel.PaintProblem(), LOGITS, (3, 1, 0.1), draws=12, seed=0)
    assert set(plots.ESTIMATOR_STYLES) == set(ESTIMATORS)
    assert {name: set(reports.loc[name].index) for name in reports.index.levels[0]} == {
        **dict.fromkeys(ESTIMATORS, {3, 1, 0.1}), "reinmax": {3, 1}, "reinforce": {1}}
    variance = reports["relative_variance"]
    assert variance["straight_through", 1] == 0 < variance["gumbel", 1]
    again = nb02_gumbel.sweep(nb02_gumbel.PaintProblem(), LOGITS, (3, 1, 0.1), draws=12, seed=0)
    pd.testing.assert_frame_equal(reports, again)


@pytest.mark.parametrize("name", ["gumbel", "reinforce"])
def test_polynomial_programming_starts_fair_and_never_beats_the_optimum(name):
    values = polynomial.polynomial(name, 1.0, steps=5, exponent=3, seed=1)
    assert len(values) == 6 and values[0] == pytest.approx((0.45**3 + 0.55**3) / 2)
    assert min(values) > 0.45**3 and values == polynomial.polynomial(name, 1.0, steps=5, exponent=3, seed=1)


def test_short_polynomial_programming_ends_near_long_training():
    optimum, start = 0.45**1.5, (0.45**1.5 + 0.55**1.5) / 2
    long = polynomial.long_polynomial()
    assert all(optimum < end < start for end in long.values())
    assert polynomial.polynomial("decoupled", 1.0, steps=80)[-1] == pytest.approx(long["decoupled", 1.0], abs=0.001)


# --------------------------------------------------------------------------------------------------- the reader's Eq. 4-7

def choice(noise=lambda u: -(-u.log()).log(), divide=True, straight=True, detached=False):
    """A reader's Eq. 4-7, right or with one fault."""
    def choose(z, u, temperature):
        y = F.softmax((z + noise(u)) / (temperature if divide else 1), -1)
        one_hot = F.one_hot(y.argmax(-1), 3).to(y)
        return one_hot if detached else one_hot + (y - y.detach()) if straight else y
    return choose


def test_a_right_choice_passes_the_check_in_three_lines(capsys):
    nb02_gumbel.check_choice(choice(), LOGITS, 50, 0)
    assert capsys.readouterr().out.count("✓") == 3


@pytest.mark.parametrize(("fault", "says"), [
    ({"noise": lambda u: u}, "forward, your words"), ({"noise": lambda u: u.log()}, "forward, your words"),
    ({"straight": False}, "no mixtures"), ({"divide": False}, "backward"), ({"detached": True}, "backward")])
def test_each_fault_of_a_choice_is_named(fault, says):
    with pytest.raises(AssertionError, match=says):
        nb02_gumbel.check_choice(choice(**fault), LOGITS, 50, 0)


def test_the_reported_slope_has_its_closed_form():
    """Two words: (∂f/∂h)·(e1 - e2) at the chosen word, times σ(x/τ) σ(-x/τ)/τ."""
    problem, leads = nb02_gumbel.PaintProblem(), [-1.5, -0.2, 0.4, 2.0]
    values, slopes = nb02_gumbel.reported_slopes(problem, 0.5, leads)
    for lead, value, slope in zip(leads, values, slopes, strict=True):
        word = 0 if lead >= 0 else 1
        one_hot = torch.eye(3, dtype=torch.float64)[word][None].requires_grad_()
        along, = torch.autograd.grad(problem(one_hot), one_hot)
        share = 1 / (1 + np.exp(-lead / 0.5))
        assert float(value) == pytest.approx(float(problem.losses()[word]))
        assert float(slope) == pytest.approx(float(along[0, 0] - along[0, 1]) * share * (1 - share) / 0.5)


# --------------------------------------------------------------------------------------------------------------- captions

def test_the_words_of_a_caption_are_its_tokens_as_text(config, examples):
    rows, _ = examples
    caption = next(e.response.photos[0].caption for e in rows if e.response.photos)
    _, tokenizer = load_language(config.model.language)
    ids = torch.tensor(tokenizer(caption, add_special_tokens=False)["input_ids"])
    texts = nb02_gumbel.words(tokenizer, ids)
    assert len(texts) == len(ids) and all(texts) and "".join(texts).replace("␣", "") == caption.replace(" ", "")


def test_slopes_of_sampled_words_are_y_times_one_minus_y_over_the_temperature():
    logits, noise = torch.randn(4, 6, generator=generator("z"), dtype=torch.float64), gumbel_noise((50, 4, 6), generator("g"))
    for temperature in (2.0, 0.5, 0.1):
        y = F.softmax((logits + noise) / temperature, -1).max(-1).values
        slopes = nb02_gumbel.slopes_of_sampled_words(logits, temperature, noise)
        torch.testing.assert_close(slopes, y * (1 - y) / temperature)
        assert slopes.max() <= 1 / (4 * temperature)


def test_the_mean_slope_has_the_limit_that_the_lesson_names():
    noise = gumbel_noise((400_000, 1, 3), generator("limit of slopes"))
    slopes = nb02_gumbel.slopes_of_sampled_words(LOGITS, 0.02, noise)
    error = slopes.std() / len(noise) ** 0.5
    assert abs(slopes.mean() - (1 - F.softmax(LOGITS, -1).square().sum()) / 2) < 4 * error


# ---------------------------------------------------------------------------------------------------------------- figures

def test_the_triangle_is_equilateral_and_its_middle_is_as_far_from_each_corner():
    corners, middle = nb02_gumbel.to_plane(torch.eye(3)), nb02_gumbel.to_plane(torch.full((3,), 1 / 3))
    sides = [np.linalg.norm(a - b) for a, b in itertools.combinations(corners, 2)]
    np.testing.assert_allclose(sides, 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(corners - middle, axis=1), 3**-0.5, rtol=1e-6)


def test_the_way_between_two_words_starts_and_ends_at_their_losses():
    problem = nb02_gumbel.PaintProblem(4)
    lines = problem.between_words()
    loss = lines["loss of the mixture"].to_numpy()
    np.testing.assert_allclose(loss[[0, -1]], problem.losses()[1:])
    numeric = np.diff(loss)[[0, -1]] / lines.index[1]
    slopes = (lines.iloc[-1] - lines.iloc[0])[["slope at the left end", "slope at the right end"]]
    np.testing.assert_allclose(slopes, numeric, atol=0.1 * loss[-1])
    mean = lines["mean of the two (trapezoid)"]
    assert mean.iloc[-1] - mean.iloc[0] == pytest.approx(slopes.mean())
    parabola = nb02_gumbel.PaintProblem(2).between_words().iloc[-1]
    assert parabola["mean of the two (trapezoid)"] == pytest.approx(parabola["loss of the mixture"])


def test_what_has_no_variance_is_left_out_of_a_logarithmic_chart():
    reports = pd.DataFrame({"relative_variance": [0.0, 2.0, 0.0], "standard_error": 1.0}, pd.MultiIndex.from_tuples(
        [("straight_through", 1), ("gumbel", 1), ("gumbel", 0.1)], names=["estimator", "τ"]))
    panel = nb02_gumbel.sweep_panel(reports, "relative_variance", "t", "y", log="xy")
    label = plots.ESTIMATOR_STYLES["gumbel"][0]
    assert list(panel.lines) == [label] and panel.lines[label].dropna().to_dict() == {1: 2.0}


def test_the_slider_shows_the_figure_of_its_temperature():
    noise = gumbel_noise((20, 1, 3), generator("slider"))
    slider, shown = nb02_gumbel.temperature_slider(nb02_gumbel.PaintProblem(), LOGITS, (10, 1, 0.05), noise, "N = 20")
    assert slider.options == [0.05, 1, 10] and slider.value == 1
    for temperature in (1, 10):
        slider.value = temperature
        assert shown.alt_text == f"τ = {temperature} · N = 20" and shown.object.startswith(b"\x89PNG")


def test_the_tangents_lie_on_the_loss_of_the_chosen_word_and_have_its_slope():
    """Two words: at a lead of x the slope is (∂f/∂h)·(e1 - e2) at the chosen word, times σ(x/τ) σ(-x/τ)/τ."""
    problem, temperature = nb02_gumbel.PaintProblem(), 0.5
    ax = nb02_gumbel.tangent_figure(problem, (1, temperature), "").axes[1]
    rgb, photo = problem.colour(torch.eye(3, dtype=torch.float64)), problem.colour(torch.tensor(problem.mixture, dtype=torch.float64))
    for line in ax.lines[1:]:
        (x0, x1), (y0, y1) = line.get_data()
        x, word = (x0 + x1) / 2, 0 if (x0 + x1) / 2 >= -1e-9 else 1
        assert (y0 + y1) / 2 == pytest.approx(float(problem.losses()[word]))
        along = float((200 / 3 * (rgb[word] - photo)) @ (rgb[0] - rgb[1]))
        share = 1 / (1 + np.exp(-x / temperature))
        assert (y1 - y0) / (x1 - x0) == pytest.approx(along * share * (1 - share) / temperature, rel=1e-6, abs=1e-9)
