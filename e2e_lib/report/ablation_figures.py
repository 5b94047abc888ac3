"""The ablation's tables and figures, from the JSON files that `e2e ablate` writes into ``results/<profile>/``: notebook 03's last part."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from e2e_lib.lessons.nb02_gumbel import STYLES
from e2e_lib.lessons.nb03_vocabulary import MAPS, heat
from e2e_lib.report.plots import PURPLE, Figure, Markdown, escape_mathtext, style_axes, table
from e2e_lib.repro.results import METRICS, RESULTS, load_json, outdated, spread, tested, verdict

SCORES = ("scene_accuracy", "fid", "caption_bleu")


def measured(profile: str, name: str, root: Path = RESULTS) -> dict[str, Any]:
    """The content of ``results/<profile>/<name>``, empty if it is not there. Raises ResultsError for a damaged file."""
    path = root / profile / name
    return load_json(path) if path.is_file() else {}


def missing(profile: str, name: str, command: str) -> Markdown:
    return Markdown(f"`results/{profile}/{name}` is not there yet; `{command}` makes it.")


def cost_table(benchmarks: Mapping[str, Any]) -> Markdown:
    """What the bridge costs at the paper's size, from the benchmarks' file."""
    found = next((row for row in benchmarks.get("measured", ()) if row["benchmark"] == "bridge"), None)
    if found is None:
        return Markdown("What this costs at the paper's size has not been measured here yet; `e2e bench` does it.")
    sizes = ", ".join(f"{key} = {value:,}" for key, value in found["sizes"].items() if isinstance(value, int))
    rows = [[MAPS[name][0], f"{row['speedup_vs_sparse']:.0f} times", f"{row['total_speedup_vs_sparse']:.0f} times",
             f"{row['over_floor']:.2f} times"] for name, row in found["maps"].items()]
    listed = table(["map", "the transfer faster than torch.sparse", "with the softmax, in all", "seconds, beside the Gumbel-softmax alone"], rows)
    return Markdown(f"{listed}\n\n{sizes}; device {found['device']}; N: medians of up to {found['rounds']} rounds")


def estimators_figure(found: Mapping[str, Any], key: str, title: str, log: bool = False) -> Figure:
    """One quantity of ``gradients.json`` for each map (rows) and estimator (columns), coloured by its size (by its logarithm, if ``log``)."""
    named = {name: label.partition(" (")[0].replace(" ", "\n", 1) for name, (_, _, label) in STYLES.items()}
    entries = {(row["mapping"], f"{named[row['estimator']]}\nτ = {row['temperature']:g}"): row[key] for row in found["rows"]}
    names, columns = (list(dict.fromkeys(place[i] for place in entries)) for i in (0, 1))
    values = torch.full((len(names), len(columns)), torch.nan)
    texts = [[""] * len(columns) for _ in names]
    for (name, column), entry in entries.items():
        i, j = names.index(name), columns.index(column)
        values[i, j] = entry["mean"] if not log else math.log10(entry["mean"]) if entry["mean"] > 0 else torch.nan
        texts[i][j] = spread(entry, ".3g" if log else ".2f").replace(" ±", "\n±")
    asked = found["asked"]
    figure = Figure(10, 1.3 + 0.45 * len(names), f"profile {asked['settings']['profile']} · N = {asked['captions']} captions, {asked['draws']:,} draws "
                  f"each; mean ± sd over captions · seed {asked['seed']}")
    ax = figure.subplots()
    heat(ax, values, [MAPS[name][0] for name in names], columns, texts, float(values.nan_to_num(0).abs().max()) or 1)
    ax.set_xticks(range(len(columns)), columns, rotation=0, ha="center", rotation_mode="default", fontsize=8)
    ax.set_title(escape_mathtext(title), fontsize=10, loc="left")
    return figure


def named(variant: str) -> tuple[str, str]:
    """A variant's label and colour."""
    label = variant.replace("_", " ") + " (Eq. 10)" * (variant == "sentence")
    return label, MAPS.get(variant, MAPS.get(variant.partition("_")[0], ("", PURPLE)))[1]


def variants_figure(found: Mapping[str, Any], metrics: Sequence[str] = SCORES) -> Figure:
    """What joint training with each variant reached: mean and standard deviation over seeds, a panel a metric."""
    first = ["none", *MAPS]
    systems = sorted(found["systems"], key=lambda name: (first.index(name) if name in first else len(first), name))
    seeds = sorted({entry["n"] for scores in found["systems"].values() for entry in scores.values()})
    note = f"profile {found['profile']} · N = {tested(found)} · bars: sd over {', '.join(map(str, seeds))} seed(s)" + \
        " · trained from earlier parts than now ship" * bool(outdated(found))
    figure = Figure(10, 1.5 + 0.28 * len(systems), note)
    for ax, metric in zip(figure.subplots(1, len(metrics), sharey=True), metrics, strict=True):
        for place, system in enumerate(systems):
            if entry := found["systems"][system].get(metric):
                ax.errorbar(entry["mean"], place, xerr=entry["std"] or 0, marker="o", capsize=3, color=named(system)[1])
        name, better, _ = METRICS[metric]
        style_axes(ax, name, f"{better} is better", "")
        ax.set_yticks(range(len(systems)), [named(system)[0] for system in systems])
    figure.axes[0].invert_yaxis()
    return figure


def gradient_verdicts(found: Mapping[str, Any]) -> Markdown:
    """Of ``gradients.json``: the maps' cosines beside Eq. 10's, all with the paper's estimator, and for each map the other estimators'; ± is
    1.96 standard errors over captions."""
    def cosine(row: Mapping[str, Any]) -> dict[str, float]:
        return {"mean": row["cosine"]["mean"], "std": 1.96 * row["cosine"]["std"] / math.sqrt(row["n"])}

    by_map = {row["mapping"]: cosine(row) for row in found["rows"] if (row["estimator"], row["temperature"]) == ("gumbel", 1)}
    lines = [verdict("cosine of each map (gumbel, τ = 1)", by_map, "sentence")]
    for name in by_map:
        of_map = {f"{row['estimator']}, τ = {row['temperature']:g}": cosine(row) for row in found["rows"] if row["mapping"] == name}
        lines.append(verdict(f"cosine of each estimator (map {name})", of_map, "gumbel, τ = 1"))
    return Markdown("\n".join(f"- {line}" for line in lines))


def said(found: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    """One difference: whose, in which direction, how large."""
    better = (pair["difference"] > 0) == found["higher_is_better"][pair["metric"]]
    numbers = f"({pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}], corrected p {pair['p_corrected']:.2g})"
    return f"{named(pair['system'])[0]} {'better' if better else 'worse'} {numbers.replace('-', '−')}"


def gradient_line(found: Mapping[str, Any]) -> str:
    """Of ``ablation_differences.json``: which differences hold after correction between training with a gradient from the photo to the words
    and the same training without."""
    pairs = [pair for pair in found["pairs"] if pair["than"].endswith("none") and not pair["system"].endswith("none")]
    sure = [f"{METRICS[pair['metric']][0]}, {said(found, pair)}" for pair in pairs if pair["p_corrected"] < 0.05]
    return (f"A gradient from the photo to the words, by whatever map, estimator and weight: of {len(pairs)} differences from the same "
            f"training without it, **{len(sure)}** hold{'s' * (len(sure) == 1)} after correction for all {len(found['pairs'])}"
            f"{': ' * bool(sure)}{'; '.join(sure)}.")


def difference_lines(found: Mapping[str, Any], variants: Sequence[str] = ()) -> list[str]:
    """Of ``ablation_differences.json``: for each metric and what is compared with, which variants (all by default) have a 95 % interval that
    excludes zero, in which direction, and what is left of it after correcting for all rows; last, in how many such groups none has."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for pair in found["pairs"]:
        if not variants or pair["system"] in variants:
            groups.setdefault((pair["than"], pair["metric"]), []).append(pair)
    lines, silent = [], 0
    for (than, metric), pairs in groups.items():
        if told := "; ".join(said(found, pair) for pair in pairs if pair["low"] > 0 or pair["high"] < 0):
            lines.append(f"{METRICS[metric][0]}, {len(pairs)} beside *{named(than)[0]}*: {told}.")
        else:
            silent += 1
    return [*lines, f"In {silent} of {len(groups)} groups, every interval holds zero."]
