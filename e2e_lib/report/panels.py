"""Panels of dots with bars, side by side: one row per thing that is compared, one panel per metric."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns

from e2e_lib.report.plots import Figure, annotate_empty, style_axes


def interval_panels(frame: pd.DataFrame, metrics: Sequence[str], note: str, lines: int,
                    units: Sequence[str]) -> Figure:
    """A panel per metric (its label), with a row per ``label``: a dot at ``value``, a bar from ``low`` to
    ``high``, both none where it is NaN.

    They have their ``colour``. ``by_seed`` holds single seeds' values, ticks below; ``units`` name the axes.
    A panel without any value says that it was not measured yet.
    """
    columns, rows = -(-len(metrics) // lines), frame.groupby("metric").size().max()
    figure = Figure(10, lines * (1.46 + 0.28 * rows), note)
    panels = figure.subplots(lines, columns, squeeze=False, sharey="row").ravel()
    for ax, metric, unit in zip(panels, metrics, units, strict=False):
        group = frame[frame.metric == metric].reset_index(drop=True)
        style_axes(ax, metric, unit, "")
        ax.set_yticks(group.index, group.label, fontsize=8)
        ax.set_ylim(len(group) - 0.5, -0.5)
        if group.value.isna().all():
            annotate_empty(ax, "not measured yet")
            ax.set_xticks([])
            continue
        for place, row in group.iterrows():
            reach = [[max(0, row.value - row.low)], [max(0, row.high - row.value)]]
            ax.errorbar(row.value, place, xerr=reach, marker="o", capsize=3, color=row.colour)
        if "by_seed" in group:
            seeds = group.explode("by_seed").reset_index(names="place")
            sns.scatterplot(x=seeds.by_seed.astype(float), y=seeds.place + 0.28, hue=seeds.place, marker="|",
                            palette=group.colour.to_dict(), linewidth=1, legend=False, ax=ax)
        ax.set(xlabel=unit, ylabel="")
        ax.locator_params(axis="x", nbins=4)
    for ax in panels[len(metrics):]:
        ax.axis("off")
    return figure
