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
    """Scene accuracy by attribute, for triples met in training and held out; dots are single seeds."""
    frame = verdicts(answers)
    seeds = frame.groupby(["seed", "triple", "attribute"], sort=False).right.mean().reset_index()
    n = len(frame[(frame.seed == frame.seed.min()) & (frame.attribute == CORE_ATTRIBUTES[0])])
    figure = Figure(8, 3.6, footer(profile, sorted(frame.seed.unique()), f"{n} test photos per seed"))
    ax = figure.subplots()
    style = {"x": "attribute", "y": "right", "hue": "triple", "hue_order": ["met in training", "held out"],
             "order": list(ATTRIBUTES), "ax": ax}
    sns.barplot(seeds, errorbar=None, palette=[BLUE, ORANGE], saturation=1, **style)
    sns.stripplot(seeds, dodge=True, jitter=False, palette=["black"] * 2, size=3, legend=False, **style)
    chance = [1 / len(values) for values in ATTRIBUTES.values()]
    places = pd.Series(range(len(ATTRIBUTES)))
    ax.hlines(chance, places - 0.42, places + 0.42, color=VERMILLION, label="guessing")
    ax.set_ylim(0, 1.02)
    style_axes(ax, "Is it what it should be? Photos by the scene classifier", "", "share of gold photos")
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.1))
    return figure


def causes_table(answers: Answers) -> pd.DataFrame:
    """How often thing, colour and place are right or wrong, and why: a row per system, all seeds together."""
    frame = verdicts(answers).dropna(subset="cause")
    counts = pd.crosstab(frame.system, frame.cause).reindex(columns=list(CAUSES), fill_value=0)
    counts = counts.loc[frame.system.unique()].rename_axis(columns=None)
    counts.insert(0, "verdicts (N)", counts.sum(axis=1))
    return counts.reset_index()


def causes_figure(answers: Answers, profile: str) -> Figure:
    """For every system, what share of thing, colour and place is right, and why the others are wrong."""
    frame = verdicts(answers).dropna(subset="cause")
    photos = frame[frame.attribute == CORE_ATTRIBUTES[0]].groupby("system").size().max()
    n = f"{photos:,} test photos per system, all seeds together"
    figure = Figure(9.6 if len(answers) > 1 else 8, 2.9, footer(profile, sorted(frame.seed.unique()), n))
    axes = figure.subplots(1, len(answers), sharey=True, squeeze=False).ravel()
    for ax, (system, group) in zip(axes, frame.groupby("system", sort=False), strict=True):
        shares = pd.crosstab(group.attribute, group.cause, normalize="index")
        shares = shares.reindex(index=list(CORE_ATTRIBUTES), columns=list(CAUSES), fill_value=0)
        shares.plot.barh(stacked=True, ax=ax, color=CAUSES, legend=False, width=0.8)
        ax.set_xlim(0, 1)
        style_axes(ax, str(system), "share of gold photos", "")
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
