"""The helpers of notebook 02 against enumeration, closed forms, finite differences and what can be counted in a picture."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from e2e_lib.bridge.estimators import ESTIMATORS, RELAXATIONS, bias_and_variance, exact_gradient
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.data.collate import Collator, PromptFormatter
from e2e_lib.experiments import polynomial
from e2e_lib.lessons import nb02_gumbel
from e2e_lib.models.end_to_end import caption_positions
from e2e_lib.models.language import load_language
from e2e_lib.report.plots import Figure
from e2e_lib.repro.randomness import generator

LOGITS = torch.tensor([[0.2, 1.0, -0.5]], dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------- confirm

def test_confirm_shows_what_holds_and_stops_at_what_does_not(capsys):
    nb02_gumbel.confirm("two is even", True, "2 = 2 · 1")
    assert capsys.readouterr().out == "✓ two is even: 2 = 2 · 1\n"
    with pytest.raises(AssertionError, match="three is even.*3 is odd"):
        nb02_gumbel.confirm("three is even", False, "3 is odd")


def test_confirm_bias_allows_four_standard_errors():
    nb02_gumbel.confirm_bias("near", {"relative_bias": 0.39, "standard_error": 0.1}, 0)
    with pytest.raises(AssertionError, match="0.410 ± 0.100, expected 0.000"):
        nb02_gumbel.confirm_bias("far", {"relative_bias": 0.41, "standard_error": 0.1}, 0)


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
    """ReinMax's gradient, averaged over every word it may draw."""
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
    rule, exact = (f(nb02_gumbel.PaintProblem(2), LOGITS) for f in (nb02_gumbel.trapezoid_gradient, lambda *p: exact_gradient(*p)[1]))
    torch.testing.assert_close(rule, exact, rtol=1e-10, atol=1e-12)
    rule, exact = (f(nb02_gumbel.PaintProblem(4), LOGITS) for f in (nb02_gumbel.trapezoid_gradient, lambda *p: exact_gradient(*p)[1]))
    assert (rule - exact).norm() > 0.1 * exact.norm()


def test_straight_through_gumbel_goes_to_the_trapezoid_as_the_temperature_falls():
    problem = nb02_gumbel.PaintProblem(4)
    free = LOGITS.expand(200_000, 1, 3).clone().requires_grad_()
    gradients, = torch.autograd.grad(ESTIMATORS["gumbel"](problem, free, 0.02, generator("limit")).sum(), free)
    error = gradients.std(0) / len(gradients) ** 0.5
    assert ((gradients.mean(0) - nb02_gumbel.trapezoid_gradient(problem, LOGITS)).abs() < 4 * error).all()


def test_an_average_of_draws_keeps_the_mean_and_divides_the_variance():
    problem = nb02_gumbel.PaintProblem()
    one, many = (bias_and_variance(nb02_gumbel.averaged(ESTIMATORS["decoupled"], copies), problem, LOGITS, draws=250, generator=generator(copies))
                 for copies in (1, 25))
    assert many["relative_variance"] * 25 == pytest.approx(one["relative_variance"], rel=0.4)
    assert abs(many["relative_bias"] - one["relative_bias"]) < 4 * (one["standard_error"] + many["standard_error"])


def test_a_sweep_asks_each_estimator_where_it_is_defined():
    found = nb02_gumbel.sweep(nb02_gumbel.PaintProblem(), LOGITS, (3, 1, 0.1), draws=12, seed=0)
    assert set(found) == set(ESTIMATORS) == set(nb02_gumbel.STYLES)
    assert {name: set(reports) for name, reports in found.items()} == {
        **dict.fromkeys(ESTIMATORS, {3, 1, 0.1}), "reinmax": {3, 1}, "reinforce": {1}}
    assert found["straight_through"][1]["relative_variance"] == 0 < found["gumbel"][1]["relative_variance"]
    assert found == nb02_gumbel.sweep(nb02_gumbel.PaintProblem(), LOGITS, (3, 1, 0.1), draws=12, seed=0)


@pytest.mark.parametrize("name", ["gumbel", "reinforce"])
def test_coins_start_fair_and_never_beat_the_optimum(name):
    values = polynomial.polynomial(name, 1.0, steps=5, exponent=3, seed=1)
    assert len(values) == 6 and values[0] == pytest.approx((0.45**3 + 0.55**3) / 2)
    assert min(values) > 0.45**3 and values == polynomial.polynomial(name, 1.0, steps=5, exponent=3, seed=1)


def test_long_training_of_the_coins_is_what_short_training_comes_near_to():
    optimum, start = 0.45**1.5, (0.45**1.5 + 0.55**1.5) / 2
    long = polynomial.long_polynomial()
    assert all(optimum < end < start for end in long.values())
    assert polynomial.polynomial("decoupled", 1.0, steps=80)[-1] == pytest.approx(long["decoupled", 1.0], abs=0.001)


# --------------------------------------------------------------------------------------------------------------- captions

def test_a_caption_is_read_as_joint_training_reads_it(config, examples):
    rows, store = examples
    example = next(e for e in rows if e.response.photo and not any(turn.photo for turn in e.context))
    model, tokenizer = load_language(config.model.language)
    caption = nb02_gumbel.read_caption(model.eval(), tokenizer, example, config.data.max_context)
    batch = Collator(PromptFormatter(tokenizer, 4, config.data.max_context), store, 64)([example])
    with torch.no_grad():
        logits, ids, real = caption_positions(model(batch.input_ids, attention_mask=batch.attention_mask).logits, batch)
    torch.testing.assert_close(caption.logits, logits[0])
    assert torch.equal(caption.ids, ids[0]) and real.all()
    assert tokenizer.decode(caption.ids).strip() == example.response.photo.caption
    assert [piece for piece in caption.pieces if piece != "␣"] == [tokenizer.decode([i]).strip() for i in caption.ids if tokenizer.decode([i]).strip()]


def test_captions_that_cannot_be_read_are_refused(config, examples):
    model, tokenizer = load_language(config.model.language)
    for unfit in (next(e for e in examples[0] if not e.response.photo), next(e for e in examples[0] if any(turn.photo for turn in e.context))):
        with pytest.raises(ValueError, match=f"dialogue {unfit.dialogue_id}, turn {unfit.index}"):
            nb02_gumbel.read_caption(model, tokenizer, unfit, config.data.max_context)


def test_slopes_of_chosen_words_are_y_times_one_minus_y_over_the_temperature():
    logits, noise = torch.randn(4, 6, generator=generator("z"), dtype=torch.float64), gumbel_noise((50, 4, 6), generator("g"))
    for temperature in (2.0, 0.5, 0.1):
        y = F.softmax((logits + noise) / temperature, -1).max(-1).values
        slopes = nb02_gumbel.chosen_slopes(logits, temperature, noise)
        torch.testing.assert_close(slopes, y * (1 - y) / temperature)
        assert slopes.max() <= 1 / (4 * temperature)


def test_the_mean_slope_has_the_limit_that_the_lesson_names():
    noise = gumbel_noise((400_000, 1, 3), generator("limit of slopes"))
    slopes = nb02_gumbel.chosen_slopes(LOGITS, 0.02, noise)
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
    (share, loss), first, last, mean = nb02_gumbel.between(problem).values()
    torch.testing.assert_close(loss[[0, -1]], problem.losses()[1:])
    numeric = [(loss[1] - loss[0]) / share[1], (loss[-1] - loss[-2]) / share[1]]
    drawn = [line[1][-1] - line[1][0] for line in (first, last)]
    for slope, near in zip(drawn, numeric, strict=True):
        assert slope == pytest.approx(float(near), abs=0.1 * float(loss[-1]))
    assert mean[1][-1] - mean[1][0] == pytest.approx(float(sum(drawn)) / 2)
    (_, loss), *_, rule = nb02_gumbel.between(nb02_gumbel.PaintProblem(2)).values()
    assert rule[1][-1] == pytest.approx(float(loss[-1]))


def test_no_line_is_lost_from_a_chart_or_its_legend():
    lines = {f"line {i}": ([1, 2], [i, i + 1]) for i in range(9)} | {"soft, τ = 0.1": ([1, 2], [3, 3]), "soft, τ = 1": ([1, 2], [4, 4])}
    figure = nb02_gumbel.panels_figure([nb02_gumbel.Panel("t", "x", "y", lines, level=("level", 2)), nb02_gumbel.Panel("u", "x", "y", {"other": ([1], [1])})], "")
    left, right = figure.axes
    assert len(left.containers) == len(lines) and [text.get_text() for text in right.get_legend().get_texts()][-1] == "other"
    assert {text.get_text() for text in right.get_legend().get_texts()} == {*lines, "level", "other"}
    low, one = (container.lines[0] for container in left.containers[-2:])
    assert low.get_color() == one.get_color() == nb02_gumbel.STYLES["soft"][0] and (low.get_linestyle(), one.get_linestyle()) == ("--", "-")


def test_what_has_no_variance_is_left_out_of_a_logarithmic_chart():
    found = {"straight_through": {1: {"relative_variance": 0.0}}, "gumbel": {1: {"relative_variance": 2.0}, 0.1: {"relative_variance": 0.0}}}
    panel = nb02_gumbel.sweep_panel(found, "relative_variance", "t", "y", logy=True)
    assert panel.lines == {nb02_gumbel.STYLES["gumbel"][2]: ([1], [2.0])}


def test_every_figure_can_be_drawn():
    problem, noise = nb02_gumbel.PaintProblem(), gumbel_noise((20, 1, 3), generator(0))
    p, ids = F.softmax(torch.randn(4, 6, generator=generator(1)), -1), torch.tensor([0, 1, 2, 3])
    for figure in (nb02_gumbel.choice_figure(problem, LOGITS, "n"), nb02_gumbel.frequency_figure(problem.words, {"a": p[0, :3], "b": p[1, :3]}, "n"),
                   nb02_gumbel.simplex_figure(problem, LOGITS, (1, 0.1), noise, "n"), nb02_gumbel.tangent_figure(problem, (1, 0.1), "n"),
                   nb02_gumbel.caption_figure(list("abcd"), p, ids, "n"), nb02_gumbel.slope_map(list("abcd"), (1, 0.1), [p[:, 0], torch.zeros(4)], "n")):
        assert isinstance(figure, Figure) and all(ax.get_title() or ax.get_title("left") or ax.get_ylabel() for ax in figure.axes)
        figure.draw_without_rendering()


def test_the_tangents_lie_on_the_loss_of_the_chosen_word_and_have_its_slope():
    """Two words: at a lead of x the slope is (∂f/∂h)·(e1 - e2) at the chosen word, times σ(x/τ) σ(-x/τ)/τ."""
    problem, temperature = nb02_gumbel.PaintProblem(), 0.5
    ax = nb02_gumbel.tangent_figure(problem, (1, temperature), "").axes[1]
    rgb, photo = problem.paints, problem.colour(torch.tensor(problem.mixture, dtype=torch.float64))
    for line in ax.lines[1:]:
        (x0, x1), (y0, y1) = line.get_data()
        x, word = (x0 + x1) / 2, 0 if (x0 + x1) / 2 >= -1e-9 else 1
        assert (y0 + y1) / 2 == pytest.approx(float(problem.losses()[word]))
        along = float((200 / 3 * (rgb[word] - photo)) @ (rgb[0] - rgb[1]))
        share = 1 / (1 + np.exp(-x / temperature))
        assert (y1 - y0) / (x1 - x0) == pytest.approx(along * share * (1 - share) / temperature, rel=1e-6, abs=1e-9)


def test_the_slider_draws_anew_and_says_what_it_is_where_it_cannot_be_shown():
    asked = []

    def draw(temperature):
        asked.append(temperature)
        return Figure(1, 1, f"τ = {temperature}")

    slider = nb02_gumbel.TemperatureSlider(draw, (0.1, 1, 10), start=1)
    handle, picture = slider.children
    before = picture.value
    handle.value = 0.1
    assert asked == [1, 0.1] and picture.value != before and "slider" in repr(slider)
