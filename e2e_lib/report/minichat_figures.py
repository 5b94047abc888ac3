"""Figures of MiniChat's scenes: which triples a split has, what is right in drawn photos, and why not."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from e2e_lib.data.minichat.chats import HELD_OUT
from e2e_lib.data.minichat.scenes import ATTRIBUTES, COLOURS, PLACES, THINGS
from e2e_lib.evaluation.minichat import CORE_ATTRIBUTES, wrong_attributes
from e2e_lib.report.plots import BLUE, ORANGE, STYLES, VERMILLION, Figure, escape_mathtext, footer, style_axes

Row = Mapping[str, Any]  # one test answer, as run_files.read_answers returns it
Answers = Mapping[str, Mapping[int, Sequence[Row]]]  # system: seed: answers
CAUSES = {"right": BLUE, "wrong words": ORANGE, "wrong drawing": VERMILLION, "no photo": "#bbbbbb"}


def cause(scene: Mapping[str, Any], captions: Sequence[str], name: str) -> str:
    """What became of one attribute of a photo that is due, a key of ``CAUSES``.

    Words are wrong where none of the answer's captions names the gold value, the drawing where one does.
    """
    if scene["drawn"] is None:
        return "no photo"
    if not wrong_attributes(scene, [name]):
        return "right"
    named = re.search(rf"\b{scene['gold'][name]}s?\b", " ".join(captions))
    return "wrong drawing" if named else "wrong words"


def verdicts(answers: Answers) -> pd.DataFrame:
    """One row per system, seed, test photo and attribute, with whether it is right.

    Columns: system, seed, triple ("met in training" or "held out"), attribute, right, and cause: a key of
    ``CAUSES`` for thing, colour and place.
    """
    rows = []
    for system, seeds in answers.items():
        scenes = [(seed, scene, row["captions"]) for seed, of_seed in seeds.items() for row in of_seed
                  for scene in row.get("scenes", ())]
        for seed, scene, captions in scenes:
            held_out = tuple(scene["gold"][name] for name in CORE_ATTRIBUTES) in HELD_OUT
            wrong = wrong_attributes(scene, tuple(ATTRIBUTES))
            rows += [(STYLES[system][0], seed, "held out" if held_out else "met in training", name,
                      name not in wrong, cause(scene, captions, name) if name in CORE_ATTRIBUTES else None)
                     for name in ATTRIBUTES]
    return pd.DataFrame(rows, columns=["system", "seed", "triple", "attribute", "right", "cause"])


def scene_bars(answers: Answers, profile: str) -> Figure:
    """Scene accuracy by attribute, for triples met in training and held out, a panel per system; dots are
    single seeds. Titles have the mean of thing, colour and place."""
    frame = verdicts(answers)
    first = frame[(frame.system == frame.system.iloc[0]) & (frame.seed == frame.seed.min())]
    n = f"{len(first) // len(ATTRIBUTES)} test photos per seed"
    systems, triples = list(frame.groupby("system", sort=False)), ["met in training", "held out"]
    figure = Figure(8 if len(systems) == 1 else 5.2 * len(systems), 3.8,
                    footer(profile, sorted(frame.seed.unique()), n))
    axes = figure.subplots(1, len(systems), sharey=True, squeeze=False).ravel()
    for ax, (system, group) in zip(axes, systems, strict=True):
        seeds = group.groupby(["seed", "triple", "attribute"], sort=False).right.mean().reset_index()
        style = {"x": "attribute", "y": "right", "order": list(ATTRIBUTES), "ax": ax,
                 "hue": "triple", "hue_order": triples}
        sns.barplot(seeds, errorbar=None, palette=[BLUE, ORANGE], saturation=1, **style)
        sns.stripplot(seeds, dodge=True, jitter=False, palette=["black"] * 2, size=3, legend=False, **style)
        chance = [1 / len(values) for values in ATTRIBUTES.values()]
        places = pd.Series(range(len(ATTRIBUTES)))
        ax.hlines(chance, places - 0.42, places + 0.42, color=VERMILLION, label="guessing")
        ax.set_ylim(0, 1.02)
        core = group.dropna(subset="cause").groupby("triple").right.mean()
        style_axes(ax, f"{system}\nthing, colour and place right: "
                   + ", ".join(f"{core[triple]:.2f} {triple}" for triple in triples if triple in core),
                   "", "share of gold photos")
        ax.get_legend().remove()
    handles = ax.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    return figure


def causes_table(answers: Answers) -> pd.DataFrame:
    """How often thing, colour and place are right or wrong, and why: a row per system, all seeds together."""
    frame = verdicts(answers).dropna(subset="cause")
    counts = pd.crosstab(frame.system, frame.cause).reindex(columns=list(CAUSES), fill_value=0)
    counts = counts.loc[frame.system.unique()].rename_axis(columns=None)
    counts.insert(0, "verdicts (N)", counts.sum(axis=1))
    return counts.reset_index()


def causes_in_words(table: pd.DataFrame) -> str:
    """Of a ``causes_table``: the shares of wrong words and of wrong drawing by system, and the largest."""
    counts = table.set_index("system")
    shares = counts[["wrong words", "wrong drawing"]].div(counts["verdicts (N)"], axis=0)
    said = [f"{kind}: " + ", ".join(f"{name} {share:.1%}" for name, share in column.items())
            + f" (most: {column.idxmax()})" for kind, column in shares.items()]
    return f"Of all verdicts, {'; '.join(said)}."


def causes_figure(answers: Answers, profile: str) -> Figure:
    """For every system, what share of thing, colour and place is right, and why the others are wrong."""
    frame = verdicts(answers).dropna(subset="cause")
    photos = frame[frame.attribute == CORE_ATTRIBUTES[0]].groupby("system").size().max()
    n = f"{photos:,} test photos per system, all seeds together"
    figure = Figure(max(8, 2.7 * len(answers)), 2.9, footer(profile, sorted(frame.seed.unique()), n))
    axes = figure.subplots(1, len(answers), sharey=True, squeeze=False).ravel()
    for ax, (system, group) in zip(axes, frame.groupby("system", sort=False), strict=True):
        shares = pd.crosstab(group.attribute, group.cause, normalize="index")
        shares = shares.reindex(index=list(CORE_ATTRIBUTES), columns=list(CAUSES), fill_value=0)
        shares.plot.barh(stacked=True, ax=ax, color=CAUSES, legend=False, width=0.8)
        ax.set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
        right = (group.cause == "right").mean()
        style_axes(ax, f"{system}: {right:.0%} right", "share of gold photos", "")
    ax.invert_yaxis()
    handles = ax.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def triple_map(triples: Sequence[tuple[str, str, str]], title: str, note: str) -> Figure:
    """How many photos show each (thing, colour, place), a panel per place; held-out triples are crossed."""
    counts = pd.Series(triples).value_counts()
    figure = Figure(10, 5.2, note)
    for ax, place in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, PLACES, strict=True):
        table = [[counts.get((thing, colour, place), 0) for thing in THINGS] for colour in COLOURS]
        sns.heatmap(pd.DataFrame(table, COLOURS, THINGS), cmap="cividis", vmin=0, vmax=counts.max(),
                    cbar=False, ax=ax)
        crossed = [(x + 0.5, y + 0.5) for x, thing in enumerate(THINGS) for y, colour in enumerate(COLOURS)
                   if (thing, colour, place) in HELD_OUT]
        for colour, width in (("black", 2.5), ("white", 1.0)):  # outlined, to be seen on any cell
            ax.plot(*zip(*crossed, strict=True), "x", color=colour, markersize=5, markeredgewidth=width)
        ax.set_title(place, fontsize=10)
        ax.tick_params(labelsize=8)
    ticks = MaxNLocator(integer=True)
    figure.colorbar(ax.collections[0], ax=figure.axes, label="photos", shrink=0.7, ticks=ticks)
    figure.suptitle(escape_mathtext(title), fontsize=11, x=0.01, ha="left")
    return figure
