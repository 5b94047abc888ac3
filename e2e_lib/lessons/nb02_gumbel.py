"""The problems and figures of notebook 02, on the straight-through Gumbel-softmax (section 2.4.1, Eq. 4-7).

Axes: K samples, C caption positions, V words. The estimators are those of ``bridge.estimators``.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from torch import Tensor
from torch.nn import functional as F

from e2e_lib.bridge.estimators import ESTIMATORS, Estimator, Objective, Rng, bias_and_variance
from e2e_lib.bridge.gumbel import softmax_with_temperature, straight_through
from e2e_lib.data.collate import PromptFormatter
from e2e_lib.data.examples import Example
from e2e_lib.report.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Figure, style_axes
from e2e_lib.repro import randomness

# Estimator: its colour, marker and name in figures.
STYLES = {
    "straight_through": (GREY, "x", "straight-through argmax"), "decoupled": (SKY, "v", "decoupled"),
    "gumbel": (VERMILLION, "o", "straight-through Gumbel (the paper)"),
    "gumbel_rao": (ORANGE, "s", "Gumbel-Rao"), "soft": (GREEN, "^", "soft"),
    "reinmax": (BLUE, "D", "ReinMax"), "reinforce": (PURPLE, "*", "REINFORCE, leave-one-out"),
}


def confirm(claim: str, holds: bool, numbers: str) -> None:
    """Prints a claim that was checked, and its numbers. Raises AssertionError where it does not hold."""
    assert holds, f"this should hold and does not: {claim} ({numbers})"
    print(f"✓ {claim}: {numbers}")


def confirm_bias(claim: str, report: Mapping[str, Any], expected: float) -> None:
    """``confirm`` that a relative bias is as expected, within four standard errors."""
    bias, error = report["relative_bias"], report["standard_error"]
    numbers = f"bias {bias:.3f} ± {error:.3f}, expected {expected:.3f}"
    confirm(claim, abs(bias - expected) < 4 * error + 1e-9, numbers)


@dataclass(frozen=True)
class PaintProblem:
    """A caption lacks its colour word; a picture in that word's colour is compared with the photo's colour.

    An objective as ``bridge.estimators`` takes it: vectors (…, 1, V) over the words to the mean of |colour -
    photo|^``exponent`` over red, green and blue, (…), in percent. A mixture of words paints a mixture of
    their colours.
    """

    exponent: float = 2.0
    words: tuple[str, ...] = ("orange", "pink", "blue")
    hexes: tuple[str, ...] = (ORANGE, PURPLE, BLUE)
    mixture: tuple[float, ...] = (0.6, 0.4, 0.0)  # the photo's colour, as a mixture of the words'

    def colour(self, vectors: Tensor) -> Tensor:
        """What is painted, red, green and blue from 0 to 1: (…, V) to (…, 3)."""
        return vectors @ vectors.new_tensor([to_rgb(colour) for colour in self.hexes])

    def swatches(self, vectors: Tensor) -> list[np.ndarray]:
        """Pictures (8, 8, 3) of one colour each, of vectors (K, V)."""
        colours = (self.colour(vectors) * 255).round().to(torch.uint8)  # (K, 3)
        return list(colours[:, None, None].expand(-1, 8, 8, 3).numpy())

    def __call__(self, vectors: Tensor) -> Tensor:
        photo = self.colour(vectors.new_tensor(self.mixture))
        return (self.colour(vectors)[..., 0, :] - photo).abs().pow(self.exponent).mean(-1) * 100

    def losses(self) -> Tensor:
        """The loss of each word, (V,)."""
        return self(torch.eye(len(self.words), dtype=torch.float64)[:, None])

    def between_words(self) -> pd.DataFrame:
        """The loss on the way from the second word to the third (index 0 to 1), and lines with its end
        slopes."""
        start, end = torch.eye(3, dtype=torch.float64)[1:]
        x = torch.linspace(0, 1, 51, dtype=torch.float64).requires_grad_()
        y = self((start + x[:, None] * (end - start))[:, None])  # (51,)
        slope, x, y = torch.autograd.grad(y.sum(), x)[0], x.detach(), y.detach()
        return pd.DataFrame({"loss of the mixture": y, "slope at the left end": y[0] + slope[0] * x,
                             "slope at the right end": y[-1] - slope[-1] * (1 - x),
                             "mean of the two (trapezoid)": y[0] + (slope[0] + slope[-1]) / 2 * x}, x.numpy())


def trapezoid_gradient(objective: Objective, logits: Tensor) -> Tensor:
    """The gradient (1, V) with each difference f(i) - f(j) between words replaced by the trapezoid rule.

    The exact one is Σ_j p_i p_j (f(i) - f(j)) for word i; here each difference is the mean of the slopes at
    its two ends. ReinMax gives this in expectation, and straight-through Gumbel as τ goes to 0.
    """
    one_hot = torch.eye(logits.shape[-1]).to(logits)[:, None].requires_grad_()  # (V, 1, V)
    slopes = torch.autograd.grad(objective(one_hot).sum(), one_hot)[0][:, 0]  # (V, V)
    along = slopes - slopes.diagonal()[:, None]  # at word a, in the direction of word b
    p = F.softmax(logits[0], -1)
    return (p[:, None] * p * (along.T - along) / 2).sum(1)[None]


def averaged(estimator: Estimator, copies: int) -> Estimator:
    """The mean of ``copies`` independent estimates: the same bias, a ``copies``-th of the variance."""
    def mean(objective: Objective, logits: Tensor, temperature: float = 1.0, rng: Rng = None) -> Tensor:
        return estimator(objective, logits.expand(copies, *logits.shape), temperature, rng).mean()
    return mean


def sweep(objective: Objective, logits: Tensor, temperatures: Sequence[float], draws: int,
          seed: int) -> pd.DataFrame:
    """``bias_and_variance`` per estimator and τ (the index's levels): ReinMax from τ = 1 on, REINFORCE at 1.

    Estimates are n means (5 to 50, of a hundred samples each if that fits), counted in "draws".
    "relative_variance" is that of a single sample, known to about ± √(2/(n - 1)) of itself.
    """
    means = max(5, min(50, draws // 100))
    copies, reports = max(1, draws // means), {}
    for name, t in itertools.product(STYLES, temperatures):
        if t == 1 or name != "reinforce" and (t > 1 or name != "reinmax"):
            rng = randomness.generator(seed, "sweep", name, t)
            reports[name, t] = bias_and_variance(averaged(ESTIMATORS[name], copies), objective, logits,
                                                 temperature=t, draws=means, rng=rng)
            reports[name, t]["relative_variance"] *= copies
    return pd.DataFrame(list(reports.values()), pd.MultiIndex.from_tuples(reports, names=["estimator", "τ"]))


def read_caption(model: Any, tokenizer: Any, example: Example, max_context: int) -> tuple[Tensor, Tensor]:
    """A response caption's tokens (C,) and the logits (C, V) for them, under teacher forcing (Eq. 2).

    Raises ValueError for a context with a photo, which takes a perceptron, and for a response without one.
    """
    if example.response.photo is None or any(turn.photo for turn in example.context):
        raise ValueError(f"dialogue {example.dialogue_id}, turn {example.index}: "
                         "a photo is needed in the response and none in the context")
    formatter = PromptFormatter(tokenizer, 1, max_context)
    context, _ = formatter.context(example.context, example.response.speaker)
    response, is_caption = formatter.response(example.response)
    with torch.no_grad():
        logits = model(torch.tensor([context + response])).logits[0]  # (T, V)
    at = torch.tensor(is_caption).nonzero().squeeze(1)  # (C,)
    return torch.tensor(response)[at], logits[at + len(context) - 1].float()  # logits at t - 1 are for t


def words(tokenizer: Any, ids: Tensor) -> list[str]:
    """Token ids (C,) one by one as text; white space as ␣."""
    return [tokenizer.decode([i]).strip() or "␣" for i in ids.tolist()]


def slopes_of_sampled_words(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """How y of each sampled word changes with its own logit, y(1 - y)/τ: (C, V) and noise (K, C, V) to (K,
    C).

    It is at most 1/(4τ). As τ goes to 0, its mean goes to (1 - Σ p²)/2.
    """
    free = logits.expand_as(noise).clone().requires_grad_()
    y = softmax_with_temperature(free, temperature, noise)
    ids = y.detach().argmax(-1, keepdim=True)  # (K, C, 1)
    return torch.autograd.grad(y.gather(-1, ids).sum(), free)[0].gather(-1, ids).squeeze(-1)


def to_plane(points: Tensor) -> np.ndarray:
    """Mixtures of three words (…, 3) as points (…, 2) of a triangle of side 1: words left, right, above."""
    return (points @ torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]]).to(points)).numpy()


def _triangle(ax: Axes, problem: PaintProblem, title: str) -> None:
    corners = to_plane(torch.eye(3))
    ax.plot(*corners[[0, 1, 2, 0]].T, color="black", linewidth=1)
    for word, (x, y), colour in zip(problem.words, corners, problem.hexes, strict=True):
        ax.plot(x, y, "o", color=colour, markersize=11, markeredgecolor="black", zorder=3)
        ax.text(x, y + (0.07 if y else -0.14), word, ha="center", fontsize=9)
    ax.set(xlim=(-0.15, 1.15), ylim=(-0.2, 1.05), aspect="equal")
    ax.set_title(title, fontsize=10)
    ax.axis("off")


def choice_figure(problem: PaintProblem, logits: Tensor, note: str) -> Figure:
    """Left, distributions over three words, coloured by argmax; right, the loss as the first logit
    changes."""
    figure = Figure(9.5, 3.6, note)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    _triangle(left, problem, "Where argmax takes which word")
    one_hot, p = torch.eye(3), F.softmax(logits[0], -1).float()
    for i, colour in enumerate(problem.hexes):
        edges = [(one_hot[i] + one_hot[j]) / 2 for j in range(3) if j != i]
        region = torch.stack([one_hot[i], edges[0], one_hot.mean(0), edges[1]])
        left.fill(*to_plane(region).T, color=colour, alpha=0.3, linewidth=0)
    arrow = {"arrowstyle": "->", "linestyle": ":"}
    left.annotate("", to_plane(one_hot[p.argmax()]), to_plane(p), arrowprops=arrow)
    left.plot(*to_plane(p), "k*", markersize=11, zorder=4)
    left.text(*to_plane(p) + (0, 0.05), "softmax(z)", fontsize=8, ha="center")
    first, losses = torch.linspace(-4, 4, 801, dtype=torch.float64), problem.losses()
    rows = torch.cat([first[:, None], logits[:, 1:].expand(801, -1)], 1)  # (801, V)
    right.plot(first, losses[rows.argmax(-1)], color=VERMILLION, label="loss of the likeliest word (argmax)")
    right.plot(first, F.softmax(rows, -1) @ losses, color=BLUE, linestyle="--",
               label="expected loss of a word sampled from softmax(z)")
    right.axvline(float(logits[0, 0]), color="black", linewidth=0.8, linestyle=":")
    style_axes(right, "A step, and what we can differentiate instead",
               f"logit of “{problem.words[0]}” (dotted: where it is)", "loss of the picture")
    right.legend(frameon=False, fontsize=8)
    return figure


def simplex_figure(problem: PaintProblem, logits: Tensor, temperatures: Sequence[float], noise: Tensor,
                   note: str) -> Figure:
    """Eq. 5 at each temperature for the same noise (K, 1, 3): one dot per sample, coloured by its largest
    word."""
    figure = Figure(2.6 * len(temperatures), 3, note)
    for ax, temperature in zip(figure.subplots(1, len(temperatures)), temperatures, strict=True):
        y = softmax_with_temperature(logits, temperature, noise)[:, 0]  # (K, 3)
        _triangle(ax, problem, f"τ = {temperature:g}")
        ax.scatter(*to_plane(y).T, s=7, c=[problem.hexes[i] for i in y.argmax(-1)], alpha=0.6, lw=0, zorder=2)
    return figure


def tangent_figure(problem: PaintProblem, temperatures: Sequence[float], note: str) -> Figure:
    """Two words: the loss of the one that leads, noise included, and the slope that autograd reports."""
    figure = Figure(10, 2.9, note)
    at, step = torch.linspace(-4, 4, 33, dtype=torch.float64), problem.losses()[[1, 0]]
    for ax, temperature in zip(figure.subplots(1, len(temperatures), sharey=True), temperatures, strict=True):
        lead = at.clone().requires_grad_()
        rows = torch.stack([lead, torch.zeros_like(lead), torch.full_like(lead, -1e4)], -1)[:, None]
        values = problem(straight_through(softmax_with_temperature(rows, temperature)))  # (33,)
        slopes, = torch.autograd.grad(values.sum(), lead)
        ax.plot([-4, 0, 0, 4], step.repeat_interleave(2), color=GREY, lw=1, label="loss of the chosen word")
        width = 0.1 / (1 + (slopes / 5) ** 2).sqrt()  # about equally long however steep
        ends = torch.stack([values - slopes * width, values + slopes * width]).detach()
        ax.plot(torch.stack([at - width, at + width]), ends, color=VERMILLION, lw=2,
                label=["slope reported by autograd"] + [None] * (len(at) - 1))
        numbers = f"steepest {float(slopes.abs().max()):.2g}; at a lead of 2, {float(slopes[24]):.2g}"
        style_axes(ax, f"τ = {temperature:g}\n{numbers}",
                   f"lead of “{problem.words[0]}” over “{problem.words[1]}”", "loss of the picture")
    ax.legend(frameon=False, fontsize=8)
    return figure


class Panel(NamedTuple):
    """A chart of ``lines``: x is the index, a column is a line, named as in the legend; ``errors`` are
    standard errors of the same shape, ``level`` a labelled horizontal line, ``log`` names the logarithmic
    axes."""

    title: str
    x: str
    y: str
    lines: pd.DataFrame
    errors: pd.DataFrame | None = None
    log: str = ""
    level: tuple[str, float] | None = None


def panels_figure(panels: Sequence[Panel], note: str, height: float = 3.4, markers: bool = True) -> Figure:
    """Panels in one row with one legend. Lines named as in STYLES keep colour and marker, dashed if ", τ = …"
    follows."""
    figure, legend = Figure(4 * len(panels) + 3, height, note), dict[str, Any]()
    styles = {label: (colour, marker) for colour, marker, label in STYLES.values()}
    spare = itertools.cycle(zip((BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY), "osD^v*", strict=True))
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        ax.set(**{f"{axis}scale": "log" for axis in panel.log})
        for label, line in panel.lines.items():
            name, _, temperature = str(label).partition(", τ = ")
            colour, marker = styles[name] = styles.get(name) or next(spare)
            errors = None if panel.errors is None else panel.errors[label]
            legend[str(label)] = ax.errorbar(
                line.index, line, errors, color=colour, marker=marker if markers else "", markersize=5,
                linestyle="-" if temperature in ("", "1") else "--")
        if panel.level:
            legend[panel.level[0]] = ax.axhline(panel.level[1], color="black", linewidth=1, linestyle=":")
        style_axes(ax, panel.title, panel.x, panel.y)
    ax.legend(legend.values(), legend, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def sweep_panel(reports: pd.DataFrame, key: str, title: str, y: str, **options: Any) -> Panel:
    """One column of a ``sweep`` against τ; what is exactly 0 is left out of a logarithmic chart."""
    labels = {name: label for name, (_, _, label) in STYLES.items() if name in reports.index}
    lines, errors = (reports[column].unstack("estimator")[list(labels)].rename(columns=labels)
                     for column in (key, "standard_error"))
    if options.setdefault("log", "x") == "xy":
        lines = lines.where(lines > 1e-9).dropna(axis="columns", how="all")
    return Panel(title, "temperature τ", y, lines, errors if key == "relative_bias" else None, **options)


def slope_map(slopes: pd.DataFrame, note: str) -> Figure:
    """Slopes of one sample's words (columns) per temperature (rows), in powers of ten; below 1e-6 is
    black."""
    figure = Figure(9, 0.32 * len(slopes) + 1.5, note)
    ax = sns.heatmap(slopes.clip(lower=1e-6), norm=LogNorm(1e-6, 30), cmap="inferno", ax=figure.subplots(),
                     cbar_kws={"label": "slope (log)"})
    ax.set(xlabel="", ylabel="temperature τ")
    ax.set_title("Slope of each sampled word, y(1 - y)/τ, for one noise sample", fontsize=10, loc="left")
    ax.tick_params("x", rotation=30)
    ax.tick_params("y", rotation=0)
    return figure
