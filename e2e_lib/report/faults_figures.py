"""Can the picture correct the words? ``results/<profile>/faults.json`` in figures, tables and one sentence.

A condition says how captions are wrong ("kind", "rate"), what training begins from ("start") and which
caption is drawn ("caption_source"), as ``experiments.faults`` has it. What is not measured yet is said in its
place.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from e2e_lib.report import plots, tables
from e2e_lib.report.pairs import between, in_condition
from e2e_lib.report.panels import interval_panels
from e2e_lib.report.plots import MAP_STYLES, Figure, Markdown, footer, style_axes
from e2e_lib.repro import results

Condition = Mapping[str, Any]
MAIN: Condition = {"kind": "random", "rate": 0.6, "start": "adapted", "caption_source": "gold"}
KINDS: dict[str, Condition] = {
    "each colour called the next one": {**MAIN, "kind": "systematic"},
    "one word left out": {**MAIN, "kind": "vague"},
    "another photo's caption": {**MAIN, "kind": "other_photo"}}
OWN: dict[str, Condition] = {"training draws its own captions": {**MAIN, "caption_source": "predicted"},
                             "from clean parts": {**MAIN, "start": "clean"}}
RANDOM = "wrong words at random"
CONDITIONS: dict[str, Condition] = {
    RANDOM: MAIN, **KINDS, **OWN,
    **{f"{RANDOM}, rate {rate:g}": {**MAIN, "rate": rate} for rate in (0.0, 0.2, 0.4, 0.8)}}
LABELS = {"before": ("before: adapted to the captions", plots.GREY),
          "none": ("no gradient from the photo", plots.PURPLE),
          **{name: MAP_STYLES[name] for name in ("sentence", "static_piece", "span", "aligned")},
          "aligned_shuffled": ("control: aligned, shuffled words", plots.GREY),
          "aligned_random": ("control: another shuffle per batch", plots.GREY)}
CORE = ("none", "sentence", "aligned", "aligned_shuffled")
# What the aligned map is compared with.
RIVALS = {"none": "no gradient", "sentence": "Eq. 10", "aligned_shuffled": "the control"}
SCORES = ("caption_accuracy", "scene_accuracy")
WORDS = ("thing", "colour", "place")

CORRECTS = "The picture corrects the words"
# In its place, where what was before is measured and the aligned map is not ahead of it.
KEEPS = "The picture keeps right words that would otherwise be lost"
# What the aligned map's differences from its rivals mean; the first that fits.
OUTCOMES: tuple[tuple[set[str], str], ...] = (
    ({"none", "sentence", "aligned_shuffled"}, CORRECTS),
    ({"none", "aligned_shuffled"}, f"{CORRECTS}, and Eq. 10 is not behind"),
    ({"none", "sentence"}, "The aligned map helps, but so does its control: nothing is learnt about words"),
    ({"none"}, "Any gradient helps: the control and Eq. 10 do as well"),
    (set(), "The picture does not correct the words here"))


def score_frame(record: Mapping[str, Any], metric: str, condition: Condition,
                runs: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """A row per map of LABELS in a condition: mapping, label, colour, value, low and high (mean and standard
    deviation over seeds, NaN where it was not measured), seeds, and by_seed, their scores in ``runs``, those
    of ``results/<profile>/faults``, None for one that is not among them."""
    measured = {row["mapping"]: row for row in in_condition(record["rows"], condition)
                if metric in row["scores"]}
    scores = {(run["system"], run["seed"]): run["metrics"].get(metric) for run in runs}
    rows = []
    for mapping, (label, colour) in LABELS.items():
        row = measured.get(mapping, {"label": "", "seeds": [],
                                     "scores": {metric: {"mean": np.nan, "std": None}}})
        mean, sd = row["scores"][metric]["mean"], row["scores"][metric]["std"] or 0.0
        by_seed = [scores.get((row["label"], seed)) for seed in row["seeds"]]
        rows.append((mapping, label, colour, mean, mean - sd, mean + sd, by_seed, row["seeds"]))
    return pd.DataFrame(rows, columns="mapping label colour value low high by_seed seeds".split())


def difference(record: Mapping[str, Any], condition: Condition, one: str, other: str,
               metric: str) -> dict[str, Any] | None:
    """Map ``one`` minus ``other`` in a condition, as ``pairs.between`` has it, and whether it is "ahead"."""
    row = between(in_condition(record["pairs"], condition), record["higher_is_better"], one, other, metric)
    return row and {**row, "ahead": row["better"] == one}


def outcome(record: Mapping[str, Any], condition: Condition, metric: str = "caption_accuracy") -> str | None:
    """The one of OUTCOMES that the aligned map's differences have, with KEEPS for CORRECTS where it is not
    ahead of what was before; None where a difference from a rival is not measured yet."""
    found = {rival: difference(record, condition, "aligned", rival, metric) for rival in RIVALS}
    if not all(found.values()):
        return None
    behind = {rival for rival, row in found.items() if row and row["ahead"]}
    sentence = next(sentence for needed, sentence in OUTCOMES if needed <= behind)
    before = difference(record, condition, "aligned", "before", metric)
    return sentence if not before or before["ahead"] else sentence.replace(CORRECTS, KEEPS)


def answer(record: Mapping[str, Any], condition: Condition, metric: str = "caption_accuracy") -> Markdown:
    """The outcome of a condition in one line, with the scores and the differences that decide it."""
    sentence = outcome(record, condition, metric)
    if sentence is None:
        return Markdown("*Not measured yet in this condition: `e2e ablate --variants faults` goes on where "
                        "it was stopped.*")
    means = score_frame(record, metric, condition).set_index("mapping")
    scores = ", ".join(f"{name} {means.value[mapping]:.3f}" for mapping, name in
                       {"none": "no gradient", "sentence": "Eq. 10", "aligned_shuffled": "control",
                        "aligned": "**aligned"}.items())
    ahead = "; ".join(f"{name} {_text(difference(record, condition, 'aligned', rival, metric))}"
                      for rival, name in RIVALS.items())
    seeds = ", ".join(map(str, means.seeds["aligned"]))
    label = tables.metrics_of(record)[metric].label
    return Markdown(f"**{sentence}.** {label[0].upper()}{label[1:]}: {scores}** (seeds {seeds}). The aligned "
                    f"map minus {ahead}.")


def outcomes(record: Mapping[str, Any], conditions: Mapping[str, Condition]) -> Markdown:
    """The outcome of each condition by its name, with the caption accuracies that it compares, in one line.
    """
    found = []
    for name, condition in conditions.items():
        means = {row["mapping"]: row["scores"]["caption_accuracy"]["mean"]
                 for row in in_condition(record["rows"], condition)}
        values = ", ".join(f"{'aligned' if mapping == 'aligned' else RIVALS[mapping]} {means[mapping]:.3f}"
                           for mapping in ("aligned", *RIVALS) if mapping in means)
        sentence = outcome(record, condition)
        found.append(f"*{name}*: **{sentence or 'not measured yet'}**" + f" ({values})" * bool(sentence))
    return Markdown("; ".join(found) + ".")


def _text(row: Mapping[str, Any] | None) -> str:
    """A difference, its interval and its corrected p-value; ✓ where the first one is ahead, ✗ where it is
    behind."""
    if row is None:
        return "–"
    p = "p < 0.001" if row["p_corrected"] < 0.001 else f"p = {row['p_corrected']:.3f}"
    mark = " ✓" if row["ahead"] else " ✗" if row["better"] else ""
    numbers = "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format_map(row).replace("-", "−")
    return f"{numbers}, {p}{mark}"


def differences_table(record: Mapping[str, Any], cases: Mapping[str, tuple[Condition, str]]) -> Markdown:
    """The aligned map minus each rival, a row per case: a condition and a metric."""
    rows = [[name, *(_text(difference(record, condition, "aligned", rival, metric)) for rival in RIVALS)]
            for name, (condition, metric) in cases.items()]
    frame = pd.DataFrame(rows, columns=["", *(f"aligned minus {name}" for name in RIVALS.values())])
    return plots.markdown(frame, f"{note(record)} · 95 % intervals over test dialogues, of these seeds; ✓: "
                          f"ahead, ✗: behind, with p < {tables.LEVEL} (Holm, all differences together)")


def conditions_figure(record: Mapping[str, Any], conditions: Mapping[str, Condition], title: str,
                      metrics: Sequence[str] = ("caption_accuracy",),
                      runs: Sequence[Mapping[str, Any]] = (), maps: Sequence[str] = tuple(LABELS)) -> Figure:
    """A panel per condition and metric: every map's mean and standard deviation, ticks for single seeds; the
    dotted line is training without a gradient from the photo."""
    known, frames, units = tables.metrics_of(record), [], []
    for name, condition in conditions.items():
        for metric in metrics:
            panel = name if len(metrics) == 1 else known[metric].label
            frame = score_frame(record, metric, condition, runs)
            frames.append(frame[frame.mapping.isin(maps)].assign(metric=panel))
            units.append(f"{known[metric].label}, {known[metric].better} is better")
    labels, together = [frame.metric.iloc[0] for frame in frames], pd.concat(frames)
    text = f"{note(record, together)} · bars: sd over seeds; ticks: single seeds; dotted: no gradient"
    figure = interval_panels(together, labels, text, 1, units)
    figure.suptitle(plots.escape_mathtext(title, 110), fontsize=11, x=0.01, ha="left")
    for ax, frame in zip(figure.axes, frames, strict=True):
        ax.axvline(frame.set_index("mapping").value["none"], color=plots.PURPLE, linestyle=":", zorder=0)
    return figure


def words_table(record: Mapping[str, Any], condition: Condition) -> Markdown:
    """A row per map: the share of captions that name the thing, the colour and the place right, how much the
    drawn photos differ from each other and from the gold ones, and the thing that is named too often."""
    known = tables.metrics_of(record)
    rows = {row["mapping"]: row for row in in_condition(record["rows"], condition)}
    table = [{"training goes on with": LABELS[mapping][0],
              **{word: _score(row, f"caption_{word}") for word in WORDS},
              **{known[metric].label: _score(row, metric) for metric in ("is", "fid")},
              "named too often": _too_often(row)}
             for mapping, row in ((name, rows[name]) for name in LABELS if name in rows)]
    return plots.markdown(pd.DataFrame(table), f"{note(record)} · means ± sd over seeds")


def _score(row: Mapping[str, Any], metric: str) -> str:
    entry = row["scores"].get(metric, {"mean": None, "std": None})
    return tables.mean_and_sd(entry["mean"], entry["std"])


def _too_often(row: Mapping[str, Any]) -> str:
    """The thing whose share in captions is furthest above that in photos: "lantern (19%; shown 8%)"."""
    things = row["things"]
    if not things:
        return "–"
    most = max(things, key=lambda name: things[name]["named"] - things[name]["shown"])
    return f"{most} ({things[most]['named']:.0%}; shown {things[most]['shown']:.0%})"


def words_in_words(record: Mapping[str, Any], condition: Condition) -> str:
    """What the aligned map's captions name right more often than Eq. 10's and what less, and which thing too
    often."""
    rows = {row["mapping"]: row for row in in_condition(record["rows"], condition)}
    if not {"aligned", "sentence"} <= rows.keys():
        return "Not measured yet."
    means = {word: [rows[name]["scores"][f"caption_{word}"]["mean"] for name in ("aligned", "sentence")]
             for word in WORDS}
    said = ", ".join(f"{word} {ours:.3f} ({theirs:.3f})" for word, (ours, theirs) in means.items())
    fewer = [f"{word}s" for word, (ours, theirs) in means.items() if ours < theirs]
    behind = f" It names fewer {' and '.join(fewer)} right." if fewer else ""
    often = {name: _too_often(rows[name]) for name in ("aligned", "none") if name in rows}
    return (f"Right with the aligned map (with Eq. 10): {said}.{behind} Named too often: "
            + "; ".join(f"{thing}, {LABELS[name][0]}" for name, thing in often.items()) + ".")


def headline(record: Mapping[str, Any]) -> str:
    """What the main condition showed, for the head of a figure."""
    sentence = outcome(record, MAIN)
    if sentence is None:
        return "Can the picture correct the words? Not measured yet"
    values = score_frame(record, "caption_accuracy", MAIN).set_index("mapping").value
    return (f"{sentence}: {values['aligned']:.0%} right with the aligned map, {values['none']:.0%} without a "
            f"gradient, {values['sentence']:.0%} with Eq. 10, {values['aligned_shuffled']:.0%} with the "
            "control")


def correction_figure(record: Mapping[str, Any], runs: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """Caption and scene accuracy of every map where 60 % of the words that name something are wrong."""
    return conditions_figure(record, {RANDOM: MAIN}, headline(record), SCORES, runs)


def rates_figure(record: Mapping[str, Any]) -> Figure:
    """Caption and scene accuracy by the rate of wrong words, a line per map of CORE with its standard
    deviation; dotted: the share of right words in the captions that were learnt from."""
    known, rates = tables.metrics_of(record), (0.0, 0.2, 0.4, 0.6, 0.8)
    frames = {metric: pd.concat([score_frame(record, metric, {**MAIN, "rate": rate}).assign(rate=rate)
                                 for rate in rates]) for metric in SCORES}
    figure = Figure(9.5, 3.7, f"{note(record, frames[SCORES[0]])} · bars: sd over seeds; dotted: share of "
                    "right words in the training captions")
    for ax, (metric, frame) in zip(figure.subplots(1, 2), frames.items(), strict=True):
        for mapping in CORE:
            line = frame[(frame.mapping == mapping) & frame.value.notna()]
            ax.errorbar(line.rate, line.value, line.high - line.value, marker="o", capsize=3,
                        color=LABELS[mapping][1], label=LABELS[mapping][0])
        ax.plot(rates, [1 - rate for rate in rates], color="black", linestyle=":", linewidth=1)
        label = known[metric].label
        style_axes(ax, label[0].upper() + label[1:], "rate of wrong words in the training captions", label)
        if frame.value.isna().all():
            plots.annotate_empty(ax, "not measured yet")
    plots.legend_on_the_right(figure)
    return figure


def note(record: Mapping[str, Any], frame: pd.DataFrame | None = None) -> str:
    """Profile, N and seeds, those of a frame's rows by default all, and whether earlier code made them."""
    seeds = record["seeds"] if frame is None else sorted({seed for row in frame.seeds for seed in row})
    n = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in record.get("test", {}).items())
    fewer = {tuple(row) for row in (frame.seeds if frame is not None else ()) if row} - {tuple(seeds)}
    parts = [footer(record["profile"], seeds, n or "test answers"), results.version_note(record),
             *(f"in some conditions only {', '.join(map(str, row))}" for row in sorted(fewer))]
    return " · ".join(filter(None, parts))
