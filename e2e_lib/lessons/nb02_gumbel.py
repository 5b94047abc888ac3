"""The problems and figures of notebook 02, on the straight-through Gumbel-softmax (section 2.4.1, Eq. 4-7).

Axes: K samples, C caption positions, V words. The estimators are those of ``bridge.estimators``. Where the
words of ``PaintProblem`` are shown, their colours mean the words and nothing else.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from torch import Tensor
from torch.nn import functional as F

from e2e_lib.bridge.estimators import ESTIMATORS, Estimator, Objective, Rng, bias_and_variance
from e2e_lib.bridge.gumbel import softmax_with_temperature, straight_through
from e2e_lib.lessons.claims import confirm, observe
from e2e_lib.report import plots
from e2e_lib.repro import randomness


def observe_bias(claim: str, report: Mapping[str, Any], expected: float) -> None:
    """``observe`` whether a relative bias is as expected, within four standard errors."""
    bias, error = report["relative_bias"], report["standard_error"]
    numbers = f"bias {bias:.3f} ± {error:.3f}, expected {expected:.3f}"
    observe(claim, abs(bias - expected) < 4 * error + 1e-9, numbers)


@dataclass(frozen=True)
class PaintProblem:
    """A caption lacks its colour word; a picture in that word's colour is compared with the photo's colour.

    An objective of ``bridge.estimators``: vectors (…, 1, V) over the words to the mean of |colour -
    photo|^``exponent`` over red, green and blue, (…), in percent. A mixture paints a mixture of colours.
    """

    exponent: float = 2.0
    words: tuple[str, ...] = ("orange", "pink", "blue")
    hexes: tuple[str, ...] = (plots.ORANGE, plots.PURPLE, plots.BLUE)
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
        """The loss between the second word and the third (index 0 to 1), and lines with its end slopes."""
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
    for name, t in itertools.product(plots.ESTIMATOR_STYLES, temperatures):
        if t == 1 or name != "reinforce" and (t > 1 or name != "reinmax"):
            rng = randomness.generator(seed, "sweep", name, t)
            reports[name, t] = bias_and_variance(averaged(ESTIMATORS[name], copies), objective, logits,
                                                 temperature=t, draws=means, rng=rng)
            reports[name, t]["relative_variance"] *= copies
    return pd.DataFrame(list(reports.values()), pd.MultiIndex.from_tuples(reports, names=["estimator", "τ"]))


def words(tokenizer: Any, ids: Tensor) -> list[str]:
    """Token ids (C,) one by one as text; white space as ␣."""
    return [tokenizer.decode([i]).strip() or "␣" for i in ids.tolist()]


def slopes_of_sampled_words(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """How y of each sampled word changes with its logit, y(1 - y)/τ: (C, V), noise (K, C, V) to (K, C).

    It is at most 1/(4τ). As τ goes to 0, its mean goes to (1 - Σ p²)/2.
    """
    free = logits.expand_as(noise).clone().requires_grad_()
    y, ids = softmax_with_temperature(free, temperature, noise).max(-1, keepdim=True)  # each (K, C, 1)
    return torch.autograd.grad(y.sum(), free)[0].gather(-1, ids).squeeze(-1)


def check_choice(choose: Callable[[Tensor, Tensor, float], Tensor], logits: Tensor, draws: int,
                 seed: int) -> None:
    """Confirms that a reader's Eq. 4-7, of logits (…, V), uniform numbers (…, V) and τ, are the library's.

    Raises AssertionError where the words differ, are not whole, or their gradient is another one.
    """
    rng = randomness.generator(seed, "choice")
    words, whole, slopes = list[float](), list[float](), list[float]()
    for temperature in (1.0, 0.3):
        u, weights = torch.rand((2, draws, *logits.shape), dtype=logits.dtype, generator=rng).clamp(1e-9)
        free, own = (logits.expand_as(u).clone().requires_grad_() for _ in range(2))  # each (K, …, V)
        ours = straight_through(softmax_with_temperature(free, temperature, -(-u.log()).log()))
        theirs = choose(own, u, temperature)
        words.append(float((theirs.argmax(-1) == ours.argmax(-1)).double().mean()))
        whole.append(float((theirs - ours).detach().abs().amax()))
        gradient, = torch.autograd.grad((ours * weights).sum(), free)
        found, = torch.autograd.grad((theirs * weights).sum(), own) if theirs.requires_grad else (free * 0,)
        slopes.append(float((found - gradient).detach().abs().amax()))
    confirm("forward, your words are those of the library's (Eq. 4, 6)", min(words) == 1,
            f"{min(words):.1%} of {draws:,} samples at two temperatures")
    confirm("and nothing but words, no mixtures (Eq. 7)", max(whole) < 1e-9, f"at most {max(whole):.0e} off")
    confirm("backward, your gradient is that of y (Eq. 5, 7)", max(slopes) < 1e-9,
            f"at most {max(slopes):.0e} off")


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


def choice_figure(problem: PaintProblem, logits: Tensor, note: str) -> plots.Figure:
    """Left, distributions over three words, coloured by argmax; right, the loss by the first logit."""
    figure = plots.Figure(9.5, 3.6, note)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    _triangle(left, problem, "Where argmax takes which word")
    one_hot, p = torch.eye(3), F.softmax(logits[0], -1).float()
    for i, colour in enumerate(problem.hexes):
        edges = [(one_hot[i] + one_hot[j]) / 2 for j in range(3) if j != i]
        region = torch.stack([one_hot[i], edges[0], one_hot.mean(0), edges[1]])
        left.fill(*to_plane(region).T, color=colour, alpha=0.3, linewidth=0)
    path = to_plane(torch.stack([p, one_hot[p.argmax()]]))
    left.plot(*path.T, "k*:", markersize=11, markevery=[0], zorder=4)
    left.text(*path[0] + (0, 0.05), "softmax(z)", fontsize=8, ha="center")
    first, losses = torch.linspace(-4, 4, 801, dtype=torch.float64), problem.losses()  # (801,), (V,)
    rows = torch.cat([first[:, None], logits[:, 1:].expand(801, -1)], 1)  # (801, V)
    right.plot(first, losses[rows.argmax(-1)], color=plots.BLACK, label="loss of the likeliest word")
    right.plot(first, F.softmax(rows, -1) @ losses, "--", color=plots.GREY,
               label="expected loss of a word sampled from softmax(z)")
    right.axvline(float(logits[0, 0]), color="black", linewidth=0.8, linestyle=":")
    plots.style_axes(right, "A step, and what we can differentiate instead",
                     f"logit of “{problem.words[0]}” (dotted: where it is)", "loss of the picture")
    right.legend(frameon=False, fontsize=8)
    return figure


def simplex_figure(problem: PaintProblem, logits: Tensor, temperatures: Sequence[float], noise: Tensor,
                   note: str) -> plots.Figure:
    """Eq. 5 at each temperature for the same noise (K, 1, 3): a dot per sample, coloured by largest word."""
    figure = plots.Figure(2.6 * len(temperatures), 3, note)
    axes = figure.subplots(1, len(temperatures), squeeze=False)[0]
    for ax, temperature in zip(axes, temperatures, strict=True):
        y = softmax_with_temperature(logits, temperature, noise)[:, 0]  # (K, 3)
        _triangle(ax, problem, f"τ = {temperature:g}")
        ax.scatter(*to_plane(y).T, s=7, c=[problem.hexes[i] for i in y.argmax(-1)], alpha=0.6, lw=0, zorder=2)
    return figure


def temperature_slider(problem: PaintProblem, logits: Tensor, temperatures: Sequence[float], noise: Tensor,
                       note: str) -> Any:
    """A slider over the temperatures with the ``simplex_figure`` of the one chosen, for a running notebook.

    A cell before it must have called ``panel.extension(inline=True)``.
    """
    import panel as pn  # which takes long to import, and whoever only reads does without

    slider = pn.widgets.DiscreteSlider(label="temperature τ", options=sorted(temperatures), value=1)

    @cache
    def drawn(temperature: float) -> tuple[bytes, str]:
        figure = simplex_figure(problem, logits, (temperature,), noise, note)
        return figure.to_bytes("png"), figure.alternative_text()

    def png(temperature: float) -> bytes:
        return drawn(temperature)[0]

    def text(temperature: float) -> str:
        return drawn(temperature)[1]
    picture = pn.pane.PNG(pn.bind(png, slider), alt_text=pn.bind(text, slider), width=300)
    return pn.Column(slider, picture)


def reported_slopes(problem: PaintProblem, temperature: float,
                    leads: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Two words, noise included in the lead of the first: the loss of the chosen one, and the slope that
    autograd reports through Eq. 7, both (L,) for L leads."""
    lead = torch.tensor(leads, dtype=torch.float64).requires_grad_()  # (L,)
    rows = torch.stack([lead, torch.zeros_like(lead), torch.full_like(lead, -1e4)], -1)[:, None]  # (L, 1, 3)
    values = problem(straight_through(softmax_with_temperature(rows, temperature)))
    return values.detach(), torch.autograd.grad(values.sum(), lead)[0]


def tangent_figure(problem: PaintProblem, temperatures: Sequence[float], note: str) -> plots.Figure:
    """Two words: the loss of the one that leads, noise included, and the slope that autograd reports."""
    figure = plots.Figure(10, 2.9, note)
    at = torch.linspace(-4, 4, 33, dtype=torch.float64)
    for ax, temperature in zip(figure.subplots(1, len(temperatures), sharey=True), temperatures, strict=True):
        values, slopes = reported_slopes(problem, temperature, at.tolist())
        ax.step(at, values, where="post", color=plots.GREY, lw=1, label="loss of the chosen word")
        width = 0.1 / (1 + (slopes / 5) ** 2).sqrt()  # about equally long however steep
        ends = torch.stack([values - slopes * width, values + slopes * width])  # (2, 33)
        lines = ax.plot(torch.stack([at - width, at + width]), ends, color=plots.BLACK, lw=2)
        lines[0].set_label("slope reported by autograd")
        numbers = f"steepest {float(slopes.abs().max()):.2g}; at a lead of 2, {float(slopes[24]):.2g}"
        plots.style_axes(ax, f"τ = {temperature:g}\n{numbers}",
                         f"lead of “{problem.words[0]}” over “{problem.words[1]}”", "loss of the picture")
    ax.legend(frameon=False, fontsize=8)
    return figure


class Panel(NamedTuple):
    """A chart with a line per column of ``lines``, against the index; ``errors`` are standard errors of the
    same shape, ``level`` is a labelled horizontal line, ``log`` names the logarithmic axes."""

    title: str
    x: str
    y: str
    lines: pd.DataFrame
    errors: pd.DataFrame | None = None
    log: str = ""
    level: tuple[str, float] | None = None


def panels_figure(panels: Sequence[Panel], note: str, markers: bool = True) -> plots.Figure:
    """Panels in one row. Estimators have their own colour and marker; dashed if ", τ = …" follows. Other
    lines are black and grey, since the words of the lesson are colours."""
    figure = plots.Figure(4 * len(panels) + 3, 3.4, note)
    styles = {label: (colour, marker, "-") for label, colour, marker in plots.ESTIMATOR_STYLES.values()}
    spare = itertools.cycle(((plots.BLACK, "o", "-"), (plots.GREY, "^", "--"), (plots.GREY, "s", ":"),
                             (plots.BLACK, "v", "-.")))
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        ax.set(**{f"{axis}scale": "log" for axis in panel.log})
        for label, line in panel.lines.items():
            name, _, temperature = str(label).partition(", τ = ")
            colour, marker, line_style = styles[name] = styles.get(name) or next(spare)
            errors = None if panel.errors is None else panel.errors[label]
            ax.errorbar(line.index, line, errors, color=colour, marker=marker if markers else "",
                        markersize=5, label=label,
                        linestyle=line_style if temperature in ("", "1") else "--")
        if panel.level:
            ax.axhline(panel.level[1], color="black", linewidth=1, linestyle=":", label=panel.level[0])
        plots.style_axes(ax, panel.title, panel.x, panel.y)
    plots.legend_on_the_right(figure)
    return figure


def sweep_panel(reports: pd.DataFrame, key: str, title: str, y: str, **options: Any) -> Panel:
    """One column of a ``sweep`` against τ; what is exactly 0 is left out of a logarithmic chart."""
    labels = {name: label for name, (label, _, _) in plots.ESTIMATOR_STYLES.items() if name in reports.index}
    wide = reports.unstack("estimator").rename(columns=labels)
    lines, errors = (wide[column][list(labels.values())] for column in (key, "standard_error"))
    if options.setdefault("log", "x") == "xy":
        lines = lines.where(lines > 1e-9).dropna(axis="columns", how="all")
    return Panel(title, "temperature τ", y, lines, errors if key == "relative_bias" else None, **options)


def slope_map(slopes: pd.DataFrame, note: str) -> plots.Figure:
    """Slopes of one sample's words (columns) per temperature (rows), in powers of ten from 1e-6 (black)."""
    figure = plots.Figure(9, 0.32 * len(slopes) + 1.5, note)
    ax, title = figure.subplots(), "Slope of each sampled word, y(1 - y)/τ, for one noise sample"
    image = plots.heat_map(ax, slopes.clip(lower=1e-6), title, norm=LogNorm(1e-6, 30), cmap="inferno")
    figure.colorbar(image, ax=ax, label="slope (log)")
    ax.set_ylabel("temperature τ")
    return figure
