"""Figures of ``results/<profile>/``: differences, FID, propagation, variants, gradients; all of a profile."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns

from e2e_lib.corpora import DATA
from e2e_lib.data.photos import PhotoStore
from e2e_lib.report import faults_figures, minichat_figures, photos, plots, tables, training_curves
from e2e_lib.report.panels import interval_panels
from e2e_lib.report.plots import ESTIMATOR_STYLES, MAP_STYLES, STYLES, Figure, footer, style_axes, style_of
from e2e_lib.repro import files
from e2e_lib.repro.results import RESULTS, ResultsError, load_json, read_runs
from e2e_lib.repro.run_files import RUNS, read_answers, read_logs, seed_folder

FIGURES = Path("figures")
ALIGNED = "end_to_end_aligned"
SCORES = ("scene_accuracy", "fid", "caption_bleu")


def differences_figure(comparison: Mapping[str, Any], metrics: Sequence[str] = (), lines: int = 2) -> Figure:
    """Of ``comparison.json`` or ``ablation_differences.json``: differences with their intervals.

    All ``metrics`` by default, in ``lines`` rows of panels; grey where ``tables.differences`` calls neither
    better. Metrics that nothing was compared in are left out.
    """
    pairs, higher, known = comparison["pairs"], comparison["higher_is_better"], tables.metrics_of(comparison)
    compared = list(dict.fromkeys(pair["metric"] for pair in pairs))
    metrics = [metric for metric in metrics or compared if metric in compared]
    frame = tables.differences(comparison).rename(columns={"difference": "value"}).assign(
        label=[f"{style_of(pair['system'])[0]} − {style_of(pair['than'])[0]}" for pair in pairs],
        by_seed=[pair["by_seed"] for pair in pairs], colour=[style_of(pair["system"])[1] for pair in pairs])
    frame.loc[frame.better == "neither", "colour"] = plots.GREY
    units = ["worse ← → better" if higher[metric] else "better ← → worse" for metric in metrics]
    note = tables.comparison_footer(comparison) + (
        f" · ticks: single seeds · grey: neither is better, p ≥ {tables.LEVEL} (Holm)")
    figure = interval_panels(frame, [known[metric].label for metric in metrics], note, lines, units)
    for ax in figure.axes[:len(metrics)]:
        ax.axvline(0, color="black", linewidth=0.8)
    return figure


def variants_figure(ablations: Mapping[str, Any], metrics: Sequence[str] = SCORES) -> Figure:
    """Of ``ablations.json``: mean and standard deviation over seeds for each variant, a panel per metric."""
    known, frame = tables.metrics_of(ablations), tables.scores(ablations, metrics)
    shown = [known[key] for key in metrics if key in known]
    sd, styles = frame.sd.fillna(0), frame.system.map(style_of)
    frame = frame.assign(value=frame["mean"], low=frame["mean"] - sd, high=frame["mean"] + sd,
                         label=styles.str[0], colour=styles.str[1])
    note = tables.summary_footer(ablations) + " · bars: sd over seeds"
    return interval_panels(frame, [metric.label for metric in shown], note, 1,
                           [f"{metric.better} is better" for metric in shown])


def _bands(frame: pd.DataFrame, note: str, title: str, x: str, y: str) -> Figure:
    """A line per ``label`` in its ``colour``, of x and mean, with a band from ``low`` to ``high``."""
    figure = Figure(7, 3.8, note)
    ax = figure.subplots()
    for (label, colour), group in frame.groupby(["label", "colour"], sort=False):
        line = "--" if colour == "black" else "-"
        ax.plot(group.x, group["mean"], marker="o", color=colour, linestyle=line, label=label)
        ax.fill_between(group.x, group.low, group.high, color=colour, alpha=0.12, linewidth=0)
    style_axes(ax, title, x, y)
    ax.set_ylim(0)
    ax.legend(frameon=False, fontsize=8)
    return figure


def fid_frame(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """Of ``comparison.json``: N (x), mean FID over random subsets of N, and one sd around it."""
    frame = pd.DataFrame([{"label": STYLES[system][0], "colour": STYLES[system][1], **row}
                          for system, rows in comparison["fid_by_number"].items() for row in rows])
    return frame.assign(x=frame.n, low=frame["mean"] - frame["std"], high=frame["mean"] + frame["std"])


def fid_figure(comparison: Mapping[str, Any]) -> Figure:
    """FID of the same photos by how many of them are scored, of the first seed: by how much it is too high
    for being measured on so few (see ``experiments.comparison.fid_by_number``)."""
    earlier, sides = tables.intervals_note(comparison), "the same test answers on both sides"
    if "draws" in comparison:  # version 1
        sides = "drawn apart on either side, so that a perfect copy would not have FID* 0"
    n = f"as on the axis, 20 random subsets each, {sides}; bands: sd, less where subsets overlap more"
    note = " · ".join(filter(None, [footer(comparison["profile"], comparison["seeds"][:1], n), earlier]))
    return _bands(fid_frame(comparison), note, "FID* falls with the number of photos that are scored",
                  "N photos on either side", "FID*, lower is better")


def propagation_frame(propagation: Mapping[str, Any]) -> pd.DataFrame:
    """Of ``propagation.json``: share of wrong words (x), mean scene accuracy and its 95 % interval.

    Systems whose numbers are all the same, since one part draws for them, are one line."""
    rows, shares, lines = [], propagation["arguments"]["shares"], dict[str, list[str]]()
    for name, entry in propagation["systems"].items():
        lines.setdefault(repr(entry["accuracy"]), []).append(name)
    for names in lines.values():
        styles = [STYLES.get(name, ("named by the caption itself", "black")) for name in names]
        label = " = ".join(label for label, _ in styles)
        points = zip(shares, propagation["systems"][names[0]]["accuracy"], strict=True)
        rows += [{"label": label, "colour": styles[0][1], "x": x, **accuracy} for x, accuracy in points]
    return pd.DataFrame(rows)


def propagation_figure(propagation: Mapping[str, Any]) -> Figure:
    """Scene accuracy against the share of wrong words, and what the captions still name."""
    n = f"{propagation['photos']} test photos; bands: 95 % over their dialogues, of these seeds"
    note = " · ".join(filter(None, [footer(propagation["profile"], propagation["arguments"]["seeds"], n),
                                    tables.intervals_note(propagation)]))
    return _bands(propagation_frame(propagation), note, "Wrong words make wrong photos",
                  "share of the caption's words replaced", "thing, colour and place right")


def gradient_frame(gradients: Mapping[str, Any], key: str) -> pd.DataFrame:
    """Of ``gradients.json``: a quantity's mean and sd over captions, by map, estimator and temperature."""
    rows = [(MAP_STYLES[row["mapping"]][0], ESTIMATOR_STYLES[row["estimator"]][0], row["temperature"],
             row[key]["mean"], row[key]["std"]) for row in gradients["rows"]]
    return pd.DataFrame(rows, columns=["map", "estimator", "temperature", "mean", "sd"])


def estimators_figure(gradients: Mapping[str, Any], key: str, title: str, log: bool = False) -> Figure:
    """The ``gradient_frame`` as a heat map of its means (or their logarithms): maps by estimators."""
    frame, form = gradient_frame(gradients, key), ".3g" if log else ".2f"
    frame["column"] = [f"{estimator.replace(' ', chr(10), 1)}\nτ = {temperature:g}" for estimator, temperature
                       in zip(frame.estimator, frame.temperature, strict=True)]
    frame["text"] = frame["mean"].map(f"{{:{form}}}".format) + "\n± " + frame.sd.map(f"{{:{form}}}".format)
    frame["colour"] = np.log10(frame["mean"].where(frame["mean"] > 0)) if log else frame["mean"]
    wide = frame.pivot(index="map", columns="column", values=["colour", "text"])
    rows, columns, arguments = frame["map"].unique(), frame.column.unique(), gradients["arguments"]
    values, texts = wide["colour"].loc[rows, columns].astype(float), wide["text"].loc[rows, columns]
    n = f"{arguments['captions']} captions, {arguments['draws']:,} samples each; mean ± sd over captions"
    note = footer(arguments["settings"]["profile"], [arguments["seed"]], n)
    figure = Figure(10, 1.3 + 0.45 * len(values), note)
    ax = figure.subplots()
    limit = 1.4 * (values.abs().max(axis=None) or 1)  # the palette's ends are too dark to tell apart
    plots.heat_map(ax, values, title, texts.fillna(""), vmin=-limit, vmax=limit)
    ax.tick_params(labelsize=8, rotation=0)
    return figure


def one_word_frame(record: Mapping[str, Any]) -> pd.DataFrame:
    """Of ``one_word.json``: how the image loss changes with each word (columns), exactly and as each map has
    it (rows)."""
    rows = {"exact: put it there": record["exact"]}
    for name, values in record["said"].items():
        count = record["numbers"][name]
        rows[f"{MAP_STYLES[name][0]}: {count:,} number{'s' * (count > 1)}"] = values
    return pd.DataFrame(rows, record["words"]).T


def one_word_title(record: Mapping[str, Any]) -> str:
    """What the figure of ``one_word.json`` shows, as far as it shows it."""
    def named(name: str) -> str:
        best = [word for word, value in zip(record["words"], record["said"][name], strict=True)
                if value <= min(record["said"][name]) + 1e-9]
        return f"“{best[0]}”" if len(best) == 1 else "no word"
    true, best = record["true"], named("aligned")
    return ("One number gets through Eq. 10, and all other words look alike; of all colours the aligned map "
            f"would put {best}{', the right one' if best == f'“{true}”' else f' (right: “{true}”)'}")


def one_word_figure(record: Mapping[str, Any], photo: Any, note: str) -> Figure:
    """The photo (None: not there), and what each map lets it say of any other word in the wrong one's place:
    each row is scaled to its largest number. The written word is framed, the true one is starred."""
    frame = one_word_frame(record)
    figure = Figure(10, 1.9 + 0.3 * len(frame), note)
    figure.suptitle(plots.escape_mathtext(one_word_title(record), 118), fontsize=10, x=0.01, ha="left")
    left, right = figure.subplots(1, 2, width_ratios=(1, 4.2))
    if photo is None:
        plots.annotate_empty(left, "the photo is not in this corpus")
    else:
        left.imshow(np.asarray(photo), interpolation="nearest")
    left.set_title("the photo shared", fontsize=9)
    left.axis("off")
    scaled = frame.div(frame.abs().max(axis=1), axis=0).fillna(0)
    scaled.columns = [f"{word} ★" if word == record["true"] else word for word in frame]
    texts = scaled.map(lambda value: "0" if abs(value) < 0.005 else f"{value:+.2f}")
    image = plots.heat_map(right, scaled, f"“{record['caption']}”: another word than “{record['written']}”?",
                           texts, vmin=-1.4, vmax=1.4)
    right.axhline(1, color="black", linewidth=1)
    right.tick_params("x", rotation=0)
    at = record["words"].index(record["written"])
    right.axvspan(at, at + 1, fill=False, linewidth=3)
    figure.colorbar(image, ax=right, label="← better   worse →", ticks=[-1, 0, 1],
                    boundaries=np.linspace(-1, 1, 101))
    return figure


def replacements_figure(rows: Sequence[Mapping[str, Any]], note: str) -> Figure:
    """Of ``replacements.json``: the change of the image loss that the gradient predicts for another word, and
    the exact one, in the caption's own units. A line through the cloud has the least squares."""
    frame = pd.DataFrame(rows)
    figure = Figure(7, 3.9, note)
    ax = figure.subplots()
    sns.regplot(frame, x="predicted", y="exact", ax=ax, ci=None, scatter_kws={"s": 12, "alpha": 0.5},
                color=plots.BLUE, line_kws={"color": plots.ORANGE})
    ax.margins(x=0.05)
    ax.autoscale()
    ax.axhline(0, color="black", linewidth=0.8)
    ax.axvline(0, color="black", linewidth=0.8)
    agree = float(np.mean(np.sign(frame.predicted) == np.sign(frame.exact)))
    style_axes(ax, f"One word replaced at a time: correlation {frame.predicted.corr(frame.exact):.2f}, the "
               f"same sign in {agree:.0%}", "change of the image loss, first order (aligned map)",
               "exact change")
    return figure


def measured_figures(profile: str, corpus: Path, root: Path = RESULTS) -> dict[str, Figure]:
    """By file name, the figures of experiments that a profile need not have: of ``one_word.json`` and of
    ``faults.json``, where they are there. Raises ResultsError if one is damaged."""
    figures: dict[str, Figure] = {}
    if (path := root / profile / "one_word.json").is_file():
        record = load_json(path)
        note = footer(profile, [record["arguments"]["seed"]],
                      f"1 dev caption, {record['arguments']['noises']} noises")
        store, photo_id = PhotoStore(corpus / "photos"), record["photo_id"]
        photo = store.load(photo_id) if store.path(photo_id).is_file() else None
        figures["one_number"] = one_word_figure(record, photo, note)
    if (path := root / profile / "faults.json").is_file():
        runs = read_runs(profile, root, "faults")
        figures["picture_corrects"] = faults_figures.correction_figure(load_json(path), runs)
    return figures


def draw_all(profile: str, seeds: Sequence[int], *, runs: Path = RUNS, data: Path = DATA,
             out: Path = FIGURES) -> list[Path]:
    """Draws every figure of a profile's runs into ``out``/<profile>, as PNG and PDF; returns the files.

    The end-to-end system's, and beside it the aligned one's where they are there. The corpus is that of the
    first seed. Raises ResultsError where a run or its answers are missing.
    """
    if not seeds:
        raise ResultsError("no seeds were given; figures need at least one trained run")
    logs, answers = read_logs(profile, seeds, runs), {"end_to_end": read_answers(profile, seeds, runs)}
    if all((seed_folder(runs, profile, ALIGNED, seed) / "answers").is_dir() for seed in seeds):
        answers[ALIGNED] = read_answers(profile, seeds, runs, ALIGNED)
    corpus = photos.corpus_of(profile, seeds[0], runs, data)
    figures = {name: training_curves.curves(name, logs, profile) for name in training_curves.PANELS}
    if any(row.get("scenes") for rows in answers["end_to_end"].values() for row in rows):
        figures["scene_accuracy"] = minichat_figures.scene_bars(answers, profile)
        figures["errors"] = minichat_figures.causes_figure(answers, profile)
    first = {system: rows[seeds[0]] for system, rows in answers.items()}
    figures["gallery"] = photos.gallery(first, corpus, profile, seeds[0], count=8)
    figures["gallery_over_epochs"] = photos.gallery_over_epochs(profile, seeds[0], corpus, runs)
    figures |= measured_figures(profile, corpus)
    return [files.write_bytes(out / profile / f"{name}.{kind}", figure.to_bytes(kind))
            for name, figure in figures.items() for kind in ("png", "pdf")]
