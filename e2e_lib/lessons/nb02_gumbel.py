"""The small problems and the figures of notebook 02, on the straight-through Gumbel-softmax (section 2.4.1, Eq. 4-7).

Axes: K draws, C caption positions, V words. Whatever estimates a gradient comes from ``bridge.estimators``; here it is measured and drawn.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets  # type: ignore[import-untyped]
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from torch import Tensor
from torch.nn import functional as F

from e2e_lib.bridge.estimators import ESTIMATORS, Estimator, Objective, bias_and_variance
from e2e_lib.bridge.gumbel import softmax_with_temperature, straight_through_gumbel_softmax
from e2e_lib.data.collate import PromptFormatter
from e2e_lib.data.examples import Example
from e2e_lib.report.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Figure, escape_mathtext, style_axes
from e2e_lib.repro.randomness import generator

# Estimator: its colour, marker and name in figures.
STYLES = {
    "straight_through": (GREY, "x", "straight-through argmax"), "decoupled": (SKY, "v", "decoupled"),
    "gumbel": (VERMILLION, "o", "straight-through Gumbel (the paper)"), "gumbel_rao": (ORANGE, "s", "Gumbel-Rao"),
    "soft": (GREEN, "^", "soft"), "reinmax": (BLUE, "D", "ReinMax"), "reinforce": (PURPLE, "*", "REINFORCE, leave-one-out"),
}


def confirm(claim: str, holds: bool, found: str) -> None:
    """Prints a claim that was checked and what was found. Raises AssertionError where it does not hold."""
    assert holds, f"this should hold and does not: {claim} ({found})"
    print(f"✓ {claim}: {found}")


def confirm_bias(claim: str, report: Mapping[str, float], expected: float) -> None:
    """``confirm`` that a ``bias_and_variance`` has the expected relative bias, within four standard errors (and a hair)."""
    bias, error = report["relative_bias"], report["standard_error"]
    confirm(claim, abs(bias - expected) < 4 * error + 1e-9, f"bias {bias:.3f} ± {error:.3f}, expected {expected:.3f}")


# ------------------------------------------------------------------------------------------------------------- problems

@dataclass(frozen=True)
class PaintProblem:
    """A caption lacks its colour word. The picture is painted in the colour of what is said, and compared with the photo's colour.

    An objective as ``bridge.estimators`` takes it: vectors (…, 1, V) over the words to the mean of |colour - photo|^``exponent`` over red,
    green and blue, (…), in percent. A mixture of words paints a mixture of their colours. 2 makes it a parabola, which no picture's loss is.
    """

    exponent: float = 2.0
    words: tuple[str, ...] = ("orange", "pink", "blue")
    hexes: tuple[str, ...] = (ORANGE, PURPLE, BLUE)
    mixture: tuple[float, ...] = (0.6, 0.4, 0.0)  # the photo's colour, as a mixture of the words'

    @property
    def paints(self) -> Tensor:
        """(V, 3), from 0 to 1."""
        return torch.tensor([to_rgb(colour) for colour in self.hexes], dtype=torch.float64)

    def colour(self, vectors: Tensor) -> Tensor:
        """What is painted, (…, V) to (…, 3)."""
        return vectors @ self.paints.to(vectors)

    def swatches(self, vectors: Tensor) -> list[np.ndarray]:
        """Pictures (8, 8, 3) of one colour each, of vectors (K, V)."""
        return list((self.colour(vectors) * 255).round().to(torch.uint8)[:, None, None].expand(-1, 8, 8, 3).numpy())

    def __call__(self, vectors: Tensor) -> Tensor:
        photo = self.colour(vectors.new_tensor(self.mixture))
        return (self.colour(vectors)[..., 0, :] - photo).abs().pow(self.exponent).mean(-1) * 100

    def losses(self) -> Tensor:
        """The loss of each word, (V,)."""
        return self(torch.eye(len(self.words), dtype=torch.float64)[:, None])


def trapezoid_gradient(objective: Objective, logits: Tensor) -> Tensor:
    """What is left of the gradient if every difference f(i) - f(j) between words is replaced by the trapezoid rule, (1, V).

    The exact gradient is Σ_j p_i p_j (f(i) - f(j)) for word i; here each difference is the mean of the slopes at its two ends. It is what
    ReinMax gives in expectation, and straight-through Gumbel as τ goes to 0. For one position and an objective of one number a row.
    """
    corners = torch.eye(logits.shape[-1]).to(logits)[:, None].requires_grad_()  # (V, 1, V)
    slopes, = torch.autograd.grad(objective(corners).sum(), corners)
    along = slopes[:, 0]  # (V, V): at word a, the slope towards word b
    towards = along - along.diagonal()[:, None]
    p = F.softmax(logits[0], -1)
    return (p[:, None] * p * (towards.T - towards) / 2).sum(1)[None]


def averaged(estimator: Estimator, copies: int) -> Estimator:
    """The mean of ``copies`` independent draws of an estimator, made at once: the same bias, a ``copies``-th of the variance."""
    def mean(objective: Objective, logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        return estimator(objective, logits.expand(copies, *logits.shape), temperature, generator).mean()
    return mean


def sweep(objective: Objective, logits: Tensor, temperatures: Sequence[float], draws: int, seed: int) -> dict[str, dict[float, dict[str, float]]]:
    """``bias_and_variance`` of every estimator at every temperature it is defined for: ReinMax from 1 on, REINFORCE at 1.

    The draws come as n means (5 to 50, a hundred draws each if that fits), which is what "draws" counts. "relative_variance" is that of a
    single draw; it is known to about ± √(2/(n - 1)) of itself, and worse where single draws are rare and large.
    """
    means, found = max(5, min(50, draws // 100)), dict[str, dict[float, dict[str, float]]]()
    copies = max(1, draws // means)
    for name in STYLES:
        allowed = [t for t in temperatures if t == 1 or name != "reinforce" and (t > 1 or name != "reinmax")]
        found[name] = {t: bias_and_variance(averaged(ESTIMATORS[name], copies), objective, logits, temperature=t, draws=means,
                                            generator=generator(seed, "sweep", name, t)) for t in allowed}
        for report in found[name].values():
            report["relative_variance"] *= copies
    return found


# ------------------------------------------------------------------------------------------------------------- captions

@dataclass(frozen=True)
class Caption:
    """A caption under teacher forcing: its tokens as text, their ids (C,), and the logits (C, V) that should have written them."""

    pieces: list[str]
    ids: Tensor
    logits: Tensor


def read_caption(model: Any, tokenizer: Any, example: Example, max_context: int) -> Caption:
    """Runs the language model over context and gold response (Eq. 2) and keeps the caption's positions.

    Raises ValueError for a context with a photo, which takes a perceptron to read, and for a response without one, which has no caption.
    """
    if example.response.photo is None or any(turn.photo for turn in example.context):
        raise ValueError(f"dialogue {example.dialogue_id}, turn {example.index}: a photo is needed in the response and none in the context")
    formatter = PromptFormatter(tokenizer, 1, max_context)
    context, _ = formatter.context(example.context, example.response.speaker)
    answer, is_caption = formatter.response(example.response)
    with torch.no_grad():
        logits = model(torch.tensor([context + answer])).logits[0]  # (T, V)
    at = torch.tensor(is_caption).nonzero().squeeze(1)
    ids = torch.tensor(answer)[at]
    # The logits for the token at t are those of t - 1.
    return Caption(words(tokenizer, ids), ids, logits[at + len(context) - 1].float())


def words(tokenizer: Any, ids: Tensor) -> list[str]:
    """Token ids (C,) one by one as text; white space, which could not be seen, as ␣."""
    return [tokenizer.decode([i]).strip() or "␣" for i in ids.tolist()]


def chosen_slopes(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """How much the softmax_with_temperature probability of the chosen word changes with its own logit, y(1 - y)/τ, by autograd in the logits' precision.

    (C, V) logits and (K, C, V) noise to (K, C). It is at most 1/(4τ). As τ goes to 0, its mean goes to (1 - Σ p²)/2.
    """
    free = logits.expand_as(noise).clone().requires_grad_()
    y = softmax_with_temperature(free, temperature, noise)
    chosen = y.detach().argmax(-1, keepdim=True)
    slopes, = torch.autograd.grad(y.gather(-1, chosen).sum(), free)
    return slopes.gather(-1, chosen).squeeze(-1)


# -------------------------------------------------------------------------------------------------------------- figures

def to_plane(points: Tensor) -> np.ndarray:
    """Mixtures of three words (…, 3) as points (…, 2) of an equilateral triangle of side 1: the words left, right and above."""
    return (points @ torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]]).to(points)).numpy()


def _triangle(ax: Axes, problem: PaintProblem, title: str) -> None:
    corners = to_plane(torch.eye(3))
    ax.plot(*corners[[0, 1, 2, 0]].T, color="black", linewidth=1)
    for word, (x, y), colour, up in zip(problem.words, corners, problem.hexes, (False, False, True), strict=True):
        ax.plot(x, y, "o", color=colour, markersize=11, markeredgecolor="black", zorder=3)
        ax.text(x, y + (0.07 if up else -0.07), word, ha="center", va="bottom" if up else "top", fontsize=9)
    ax.set(xlim=(-0.15, 1.15), ylim=(-0.2, 1.05), aspect="equal")
    ax.set_title(escape_mathtext(title), fontsize=10)
    ax.axis("off")


def choice_figure(problem: PaintProblem, logits: Tensor, note: str) -> Figure:
    """Left, every distribution over three words, coloured by the word that argmax takes; right, the loss as the first word's logit moves."""
    figure = Figure(9.5, 3.6, note)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    _triangle(left, problem, "Where argmax takes which word")
    middle = torch.full((3,), 1 / 3)
    for i, colour in enumerate(problem.hexes):
        one, two = (torch.eye(3)[[i, j]].mean(0) for j in range(3) if j != i)
        left.fill(*to_plane(torch.stack([torch.eye(3)[i], one, middle, two])).T, color=colour, alpha=0.3, linewidth=0)
    here = to_plane(F.softmax(logits[0], -1).float())
    left.annotate("", to_plane(torch.eye(3)[logits[0].argmax()]), here, arrowprops={"arrowstyle": "->", "linestyle": ":"})
    left.plot(*here, "k*", markersize=11, zorder=4)
    left.text(here[0], here[1] + 0.05, "softmax(z)", fontsize=8, ha="center")
    moved = torch.linspace(-4, 4, 801, dtype=torch.float64)
    rows = logits.repeat(801, 1)
    rows[:, 0] = moved
    right.plot(moved.numpy(), problem.losses()[rows.argmax(-1)].numpy(), color=VERMILLION, label="loss of the likeliest word (argmax)")
    right.plot(moved.numpy(), (F.softmax(rows, -1) @ problem.losses()).numpy(), color=BLUE, linestyle="--",
               label="expected loss of a word drawn from softmax(z)")
    right.axvline(float(logits[0, 0]), color="black", linewidth=0.8, linestyle=":")
    style_axes(right, "A step, and what we can differentiate instead", f"logit of “{problem.words[0]}” (dotted: where it is)", "loss of the picture")
    right.legend(frameon=False, fontsize=8)
    return figure


def frequency_figure(names: Sequence[str], shares: Mapping[str, Tensor], note: str) -> Figure:
    """Bars a word: its share (V,) for each kind of noise."""
    figure = Figure(7.5, 3, note)
    ax = figure.subplots()
    for i, ((heading, values), colour) in enumerate(zip(shares.items(), (GREY, BLUE, ORANGE), strict=False)):
        bars = ax.bar(np.arange(len(names)) + (i - (len(shares) - 1) / 2) * 0.27, values.numpy(), 0.25, color=colour, label=heading)
        ax.bar_label(bars, fmt="%.3f", fontsize=7.5)
    ax.set_xticks(range(len(names)), list(names))
    style_axes(ax, "How often argmax(z + noise) takes each word", "", "share of draws")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def simplex_figure(problem: PaintProblem, logits: Tensor, temperatures: Sequence[float], noise: Tensor, note: str) -> Figure:
    """Eq. 5 for the same noise (K, 1, 3) at each temperature: a dot a draw, coloured by its largest word."""
    figure = Figure(max(3.4, 2.6 * len(temperatures)), 3, note)
    for ax, temperature in zip(np.atleast_1d(figure.subplots(1, len(temperatures))), temperatures, strict=True):
        y = softmax_with_temperature(logits, temperature, noise)[:, 0].float()
        _triangle(ax, problem, f"τ = {temperature:g}")
        ax.scatter(*to_plane(y).T, s=7, c=[problem.hexes[i] for i in y.argmax(-1).tolist()], alpha=0.6, linewidth=0, zorder=2)
    return figure


class TemperatureSlider(ipywidgets.VBox):
    """A slider for τ above the figure that ``draw`` makes of it; where no widgets can be shown, a line of text."""

    def __init__(self, draw: Callable[[float], Figure], temperatures: Sequence[float], start: float) -> None:
        slider = ipywidgets.SelectionSlider(options=[(f"{t:g}", t) for t in temperatures], value=start, description="τ", continuous_update=False)
        picture = ipywidgets.Image(value=draw(start).to_bytes("png"), format="png", width=420)
        slider.observe(lambda change: setattr(picture, "value", draw(change["new"]).to_bytes("png")), "value")
        super().__init__([slider, picture])

    def __repr__(self) -> str:
        return "A slider for the temperature: it moves in a running notebook."


def tangent_figure(problem: PaintProblem, temperatures: Sequence[float], note: str) -> Figure:
    """Two words: the loss of the chosen one as the first one's lead (logits and noise together) grows, and the slope that autograd reports."""
    figure = Figure(10, 2.9, note)
    at, step = torch.linspace(-4, 4, 33, dtype=torch.float64), problem.losses()[[1, 0]]
    for ax, temperature in zip(figure.subplots(1, len(temperatures), sharey=True), temperatures, strict=True):
        lead = at.clone().requires_grad_()
        rows = torch.stack([lead, torch.zeros_like(lead), torch.full_like(lead, -1e4)], -1)[:, None]
        values = problem(straight_through_gumbel_softmax(rows, temperature))
        slopes, = torch.autograd.grad(values.sum(), lead)
        ax.plot([-4, 0, 0, 4], step.repeat_interleave(2).numpy(), color=GREY, linewidth=1, label="loss of the chosen word")
        width = 0.1 / (1 + (slopes / 5) ** 2).sqrt()  # of about one length however steep
        ends = torch.stack([values - slopes * width, values + slopes * width]).detach()
        ax.plot(torch.stack([at - width, at + width]).numpy(), ends.numpy(), color=VERMILLION, linewidth=2,
                label=["slope reported by autograd"] + [None] * (len(at) - 1))
        style_axes(ax, f"τ = {temperature:g}\nsteepest {float(slopes.abs().max()):.2g}; at a lead of 2, {float(slopes[24]):.2g}",
               f"lead of “{problem.words[0]}” over “{problem.words[1]}”", "loss of the picture")
    ax.legend(frameon=False, fontsize=8)
    return figure


def between(problem: PaintProblem) -> dict[str, tuple[Tensor, Tensor]]:
    """The loss on the way from the second word to the third, the straight lines with its slope at either end, and the one with their mean."""
    ends = torch.eye(3, dtype=torch.float64)[1:]
    share = torch.linspace(0, 1, 51, dtype=torch.float64).requires_grad_()
    loss = problem((ends[0] + share[:, None] * (ends[1] - ends[0]))[:, None])
    slope, x = torch.autograd.grad(loss.sum(), share)[0], share.detach()
    first, last, y = float(slope[0]), float(slope[-1]), loss.detach()
    return {"loss of the mixture": (x, y), "slope at the left end": (x, y[0] + first * x), "slope at the right end": (x, y[-1] - last * (1 - x)),
            "mean of the two (trapezoid)": (x, y[0] + (first + last) / 2 * x)}


@dataclass(frozen=True)
class Panel:
    """A chart of lines: label to x, y and, if there is a third, standard errors; ``level`` is a labelled horizontal line."""

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[Any, ...]]
    logx: bool = False
    logy: bool = False
    level: tuple[str, float] | None = None


def panels_figure(panels: Sequence[Panel], note: str, height: float = 3.4, markers: bool = True) -> Figure:
    """Panels side by side, under one legend. Estimators named as in STYLES keep their colour and marker, dashed if ", τ = …" follows."""
    figure, handles = Figure(4 * len(panels) + 3, height, note), dict[str, Any]()
    styles = {label: (colour, marker) for colour, marker, label in STYLES.values()}
    spare = itertools.cycle(zip((BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY), "osD^v*", strict=True))
    for ax, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        ax.set(xscale="log" if panel.logx else "linear", yscale="log" if panel.logy else "linear")
        for label, (x, y, *errors) in panel.lines.items():
            name, _, temperature = label.partition(", τ = ")
            colour, marker = styles[name] = styles.get(name) or next(spare)
            ax.errorbar(np.asarray(x), np.asarray(y), *errors, color=colour, marker=marker if markers else "", markersize=5, label=label,
                        linestyle="--" if temperature not in ("", "1") else "-")
        if panel.level:
            ax.axhline(panel.level[1], color="black", linewidth=1, linestyle=":", label=panel.level[0])
        style_axes(ax, panel.title, panel.x, panel.y)
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True) if label not in handles}
    ax.legend(list(handles.values()), list(handles), frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def by_temperature(values: Mapping[str, Mapping[float, float]]) -> dict[str, tuple[list[float], list[float]]]:
    """Label to {τ: value}, as the lines of a Panel."""
    return {label: (list(line), list(line.values())) for label, line in values.items()}


def sweep_panel(found: Mapping[str, Mapping[float, Mapping[str, float]]], key: str, title: str, y: str, **options: Any) -> Panel:
    """One quantity of a ``sweep`` against τ; what is exactly zero (an argmax has no variance) is left out of a logarithmic chart."""
    lines = {}
    for name, by_temperature in found.items():
        kept = {t: r for t, r in by_temperature.items() if r[key] > 1e-9 or not options.get("logy")}
        errors = [[r["standard_error"] for r in kept.values()]] if key == "relative_bias" else []
        if kept:
            lines[STYLES[name][2]] = (list(kept), [r[key] for r in kept.values()], *errors)
    return Panel(title, "temperature τ", y, lines, logx=True, **options)


def caption_figure(pieces: Sequence[str], probabilities: Tensor, ids: Tensor, note: str) -> Figure:
    """How unsure the language model is at each position of a caption: perplexity, and the probability of the gold token."""
    entropy = torch.special.entr(probabilities).sum(-1)
    figure = Figure(9, 3.2, note)
    ax = figure.subplots()
    bars = ax.bar(range(len(pieces)), (entropy.exp() - 1).numpy(), 0.7, bottom=1, color=BLUE)
    ax.bar_label(bars, [f"{p:.0%}" for p in probabilities.gather(1, ids[:, None])[:, 0].tolist()], fontsize=8)
    ax.set_xticks(range(len(pieces)), list(pieces), rotation=30)
    style_axes(ax, "How many words does it hesitate between? (On the bars: probability of the gold word)", "", "perplexity, exp(entropy)")
    return figure


def slope_map(pieces: Sequence[str], temperatures: Sequence[float], slopes: Sequence[Tensor], note: str) -> Figure:
    """The slopes (C,) of one draw, a row a temperature, in powers of ten; below 1e-6 is black."""
    figure = Figure(9, 0.32 * len(temperatures) + 1.5, note)
    ax = figure.subplots()
    image = ax.imshow(torch.stack(list(slopes)).clamp_min(1e-6).numpy(), norm=LogNorm(1e-6, 30), cmap="inferno", aspect="auto")
    ax.set_xticks(range(len(pieces)), list(pieces), rotation=30)
    ax.set_yticks(range(len(temperatures)), [f"{t:g}" for t in temperatures])
    ax.set_title("Slope of each chosen word, y(1 - y)/τ, for one draw of the noise", fontsize=10, loc="left")
    ax.set_ylabel("temperature τ")
    figure.colorbar(image, ax=ax, label="slope (log)")
    return figure
