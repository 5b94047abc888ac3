"""Notebook 06's answers and tables that are not among those of ``report``: what was predicted, and what came.

Each answer is a sentence that follows the numbers of ``results/``, or of the runs' answers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from e2e_lib.report import findings, minichat_figures, plots, results_figures, tables
from e2e_lib.report.plots import Markdown

BEST_OF = ("bleu1", "rougeL", "is", "fid", "scene_accuracy", "details")
ALIGNED = tables.SYSTEMS["end_to_end_aligned"]
TERMS_SHOWN = ("scene accuracy", "FID*", "BLEU-2", "detail questions")
UNSAID = ("number", "size", "time")  # what a chat need not mention


def best_means(summary: Mapping[str, Any]) -> str:
    """Which system has the best mean in each metric of BEST_OF, of what ``results.summarise`` returns."""
    known, best = tables.metrics_of(summary), []
    for metric in (name for name in BEST_OF if name in known):
        means = {name: scores[metric]["mean"] for name, scores in summary["systems"].items()
                 if scores.get(metric, {}).get("mean") is not None}
        if means:
            choose = max if known[metric].better == "higher" else min
            system = choose(means, key=lambda name: means[name])
            best.append(f"{findings.label(known[metric])}: {tables.system_label(system)}")
    return f"The best means: {'; '.join(best)}. Whether that is more than chance comes below."


def how_they_stand(comparison: Mapping[str, Any], one: str, other: str) -> str:
    """In which metrics ``one`` is ahead of ``other``, behind it, or not told apart from it."""
    known, name = tables.metrics_of(comparison), tables.SYSTEMS[other]
    groups = findings.standing(comparison, one, {other: name}, list(comparison["higher_is_better"]))
    said = [f"{relation} {name} in {findings.listed([findings.label(known[key]) for key in metrics])}"
            for (relation,), metrics in groups.items()]
    return f"{tables.SYSTEMS[one]} is {'; '.join(said) or f'not compared with {name}'}."


def with_gold_captions(gold_fid: Mapping[str, Any]) -> str:
    """By how much FID changes when a system draws gold captions in place of its own, of ``gold_fid.json``."""
    frame = pd.DataFrame({tables.SYSTEMS[name]: {key: pd.Series(fids[key], dtype=float).mean()
                                                 for key in ("from_own", "from_gold")}
                          for name, fids in gold_fid["systems"].items()}).dropna(axis=1)
    means = {str(name): (column.from_own, column.from_gold) for name, column in frame.items()}
    if not means:
        return "FID\\* cannot be computed for so few photos."
    most = max(means, key=lambda name: means[name][0] - means[name][1])
    said = ", ".join(f"from {own:.3f} to {gold:.3f} ({name})" for name, (own, gold) in means.items())
    return f"With gold captions FID\\* goes {said}; it falls most for {most}."


def slopes_in_words(propagation: Mapping[str, Any]) -> str:
    """Whether the end-to-end model's line is flatter than the pipeline's, of ``propagation.json``."""
    slopes = {name: propagation["systems"][name]["slope"]
              for name in ("end_to_end", "pipeline") if name in propagation["systems"]}
    said = " and ".join(f"{tables.SYSTEMS[name]} {row['mean']:z.3f} [{row['low']:z.3f}, {row['high']:z.3f}]"
                        for name, row in slopes.items())
    if len(slopes) < 2:
        return f"The slope: {said}."
    ours, theirs = slopes["end_to_end"], slopes["pipeline"]
    verdict = "No: what is drawn from a given caption is the generator's matter alone"
    if ours["low"] > theirs["high"]:
        verdict = "Yes"
    return f"{verdict}. The slopes: {said}."


def beyond_seeds(ablations: Mapping[str, Any]) -> str:
    """Which variants differ from ``none`` by more than both standard deviations over seeds, and in what."""
    known, systems, found = tables.metrics_of(ablations), ablations["systems"], []
    for name in systems:
        apart = [findings.label(known[key]) for key in results_figures.SCORES
                 if key in known and _apart(systems[name].get(key), systems.get("none", {}).get(key))]
        if apart:
            found.append(f"{name.replace('_', ' ')} ({', '.join(apart)})")
    return f"By more than both standard deviations over seeds: {'; '.join(found) or 'none of them'}."


def _apart(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    if not one or not other or None in (one["mean"], other["mean"]):
        return False
    return bool(abs(one["mean"] - other["mean"]) > max(one["std"] or 0, other["std"] or 0))


def with_aligned(frame: pd.DataFrame) -> pd.DataFrame:
    """Of ``tables.differences``: the rows with the aligned system, and of baselines on terms of their own."""
    told_more = frame.system.str.endswith(tables.TERMS["told_more"])
    return frame[frame.system.str.startswith(ALIGNED) | frame.than.str.startswith(ALIGNED) | told_more]


def scores_on_terms(terms: Mapping[str, Any]) -> Markdown:
    """Of ``terms.json``: a table of scores for each of ``tables.TERMS`` that was measured."""
    parts = []
    for term, label in tables.TERMS.items():
        if (chosen := tables.of_term(terms, term))["systems"]:
            scores = tables.score_table(tables.scores(chosen, tables.COLUMNS["terms"]))
            parts.append(f"**{label[0].upper()}{label[1:]}**\n\n{plots.markdown(scores)}")
    return Markdown("\n\n".join([*parts, tables.summary_footer(terms)]))


def differences_on_terms(terms: Mapping[str, Any]) -> Markdown:
    """Of ``terms.json``: the differences ``with_aligned`` in the metrics of TERMS_SHOWN."""
    rows = with_aligned(tables.differences(terms))
    rows = rows[rows.metric.isin(TERMS_SHOWN)]
    return plots.markdown(tables.difference_table(rows), tables.comparison_footer(terms))


def terms_in_words(terms: Mapping[str, Any]) -> str:
    """How the aligned system stands in scene accuracy to the pipeline and the paper's map on each of the
    terms, and to its control."""
    ours = "end_to_end_aligned"

    def stands(one: str, other: str) -> str:
        found = findings.relation(terms["pairs"], terms["higher_is_better"], one, other, "scene_accuracy")
        return found or "not compared with"

    said = [f"with {label}, the aligned map is {stands(f'{ours}.{term}', f'pipeline.{beside}')} the pipeline "
            f"and {stands(f'{ours}.{term}', f'end_to_end.{beside}')} the paper's map"
            for term, label in tables.TERMS.items()
            if f"{ours}.{term}" in terms["systems"]
            and f"pipeline.{(beside := 'clean' if term.startswith('clean') else term)}" in terms["systems"]]
    if tables.of_term(terms, "control")["systems"]:
        control = stands(f"{ours}.control", ours)
        said.append(f"the control with shuffled words is {control} it")
    return f"In scene accuracy: {'; '.join(said)}."


def behind_on_terms(terms: Mapping[str, Any]) -> Markdown:
    """Of ``terms.json``: where the aligned system is behind by more than chance, in IS and the metrics of
    TERMS_SHOWN."""
    rows = with_aligned(tables.differences(terms))
    behind = rows[(rows.better != "neither") & ~rows.better.str.startswith(ALIGNED)
                  & rows.metric.isin([*TERMS_SHOWN, "IS*"])]
    if behind.empty:
        return Markdown("Nowhere.")
    return plots.markdown(tables.difference_table(behind), tables.comparison_footer(terms))


def better_settings(tuning: Mapping[str, Any]) -> str:
    """Which system has other settings with a better scene accuracy and a better FID on dev than its own."""
    found = []
    for system, label in tables.SYSTEMS.items():
        rows = [row for row in tuning["rows"] if row["system"] == system]
        if not rows or rows[0]["settings"]:  # its own were not run
            continue
        scores = [[row["scores"][key]["mean"] for key in ("scene_accuracy", "fid")] for row in rows]
        better = [(row, accuracy, fid) for row, (accuracy, fid) in zip(rows[1:], scores[1:], strict=True)
                  if accuracy > scores[0][0] and fid < scores[0][1]]
        own = "{:.3f}; {:.3f}".format(*scores[0])
        found += [f"{label} with {tables.settings_label(row['settings'])} ({accuracy:.3f}; {fid:.3f}, "
                  f"instead of {own})" for row, accuracy, fid in better]
    return ("Better than its own settings in both scene accuracy and FID\\*: "
            f"{', '.join(found) or 'none'}. These are single training runs: small differences are chance.")


def kept_differences(differences: Mapping[str, Any]) -> str:
    """How many differences hold after correction, and which."""
    rows = tables.differences(differences)
    rows = rows[rows.better != "neither"]
    said = "; ".join(f"{one} {'ahead of' if better == one else 'behind'} {than} in {metric}" for one, than,
                     metric, better in zip(rows.system, rows.than, rows.metric, rows.better, strict=True))
    return (f"After correction, {len(rows)} of {len(differences['pairs'])} differences "
            f"hold{': ' * bool(said)}{said}.")


def held_out(answers: Mapping[str, Any]) -> pd.DataFrame:
    """Scene accuracy on triples met in training and on those held out (rows), a mean over seeds, by system.
    ``answers`` by system and seed."""
    columns = {}
    for name, rows in answers.items():
        verdicts = minichat_figures.verdicts({name: rows}).dropna(subset="cause")  # thing, colour, place
        by_seed = verdicts.groupby(["triple", "seed"], sort=False).right.mean()
        columns[tables.SYSTEMS[name]] = by_seed.groupby("triple", sort=False).mean()
    return pd.DataFrame(columns)


def _gold_scenes(answers: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the test photos show of which it is known, once each."""
    of_seed = next(iter(next(iter(answers.values())).values()))
    return [scene["gold"] for row in of_seed for scene in row.get("scenes", ())]


def held_out_table(answers: Mapping[str, Any], profile: str, seeds: Sequence[int]) -> Markdown:
    """``held_out`` as a table."""
    frame = held_out(answers).rename_axis("scene accuracy on triples").reset_index()
    n = f"{len(_gold_scenes(answers)):,} test photos per seed"
    return plots.markdown(frame, plots.footer(profile, seeds, n))


def held_out_in_words(answers: Mapping[str, Any]) -> str:
    """By how much each system falls on held-out triples, and what a guess reaches where nothing was said."""
    frame, scenes = held_out(answers), _gold_scenes(answers)
    falls = [f"from {column['met in training']:.3f} to {column['held out']:.3f} ({name})"
             for name, column in frame.items() if {"met in training", "held out"} <= {*column.dropna().index}]
    guesses = {name: max(Counter(scene[name] for scene in scenes).values()) / len(scenes) for name in UNSAID}
    said = ", ".join(f"{name} {share:.0%}" for name, share in guesses.items())
    return (f"On held-out triples scene accuracy goes {', '.join(falls) or 'nowhere: there are none here'}. "
            f"Where a chat does not say it, always the most frequent value is the best guess: {said}.")


def longer_replies(benchmarks: Mapping[str, Any]) -> str:
    """How much longer the pipeline's replies take than the end-to-end model's, of ``benchmarks.json``.
    Raises ResultsError where they were not measured."""
    systems = tables.benchmark(benchmarks, "systems")["systems"]
    theirs, ours = (systems[name]["reply_seconds"] for name in ("pipeline", "end_to_end"))
    said = "; ".join(f"{case}: {theirs[case] / ours[case]:.2f} times" for case in theirs if case in ours)
    return f"The pipeline's time compared with the end-to-end model's. {said}."
