"""Notebook 06's answers and tables that are not among those of ``report``: the best means, other terms."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from e2e_lib.report import findings, minichat_figures, plots, tables
from e2e_lib.report.plots import Markdown

BEST_OF = ("bleu1", "rougeL", "is", "fid", "scene_accuracy", "details")
ALIGNED = tables.SYSTEMS["end_to_end_aligned"]
TERMS_SHOWN = ("scene accuracy", "FID*", "BLEU-2", "detail questions")


def best_means(summary: Mapping[str, Any]) -> Markdown:
    """Which system has the best mean in each metric of BEST_OF, of what ``results.summarise`` returns."""
    known, best = tables.metrics_of(summary), []
    for metric in (name for name in BEST_OF if name in known):
        means = {name: scores[metric]["mean"] for name, scores in summary["systems"].items()
                 if scores.get(metric, {}).get("mean") is not None}
        if means:
            choose = max if known[metric].better == "higher" else min
            system = choose(means, key=lambda name: means[name])
            best.append(f"{findings.label(known[metric])}: {tables.system_label(system)}")
    return Markdown(f"**Answer.** The best means: {'; '.join(best)}. Whether that is more than chance comes "
                    "below.")


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


def terms_in_words(terms: Mapping[str, Any]) -> Markdown:
    """On which terms the aligned system is ahead of the pipeline in scene accuracy, and of its control."""
    def stands(one: str, other: str) -> str:
        found = findings.relation(terms["pairs"], terms["higher_is_better"], one, other, "scene_accuracy")
        return found or "not compared with"

    said = [f"with {label}, it is {stands(f'end_to_end_aligned.{term}', f'pipeline.{term}')} the pipeline"
            for term, label in tables.TERMS.items() if tables.of_term(terms, term)["systems"].keys()
            >= {"end_to_end_aligned", "pipeline"}]
    if tables.of_term(terms, "control")["systems"]:
        control = stands("end_to_end_aligned.control", "end_to_end_aligned")
        said.append(f"the control with shuffled words is {control} it")
    return Markdown(f"**Answer.** In scene accuracy: {'; '.join(said)}.")


def kept_differences(differences: Mapping[str, Any]) -> Markdown:
    """How many differences hold after correction, and which."""
    rows = tables.differences(differences)
    rows = rows[rows.better != "neither"]
    said = "; ".join(f"{one} {'ahead of' if better == one else 'behind'} {than} in {metric}" for one, than,
                     metric, better in zip(rows.system, rows.than, rows.metric, rows.better, strict=True))
    return Markdown(f"**Answer.** After correction, {len(rows)} of {len(differences['pairs'])} differences "
                    f"hold{': ' * bool(said)}{said}.")


def held_out_table(answers: Mapping[str, Any], profile: str, seeds: Sequence[int]) -> Markdown:
    """Scene accuracy on triples met in training and on those held out, a mean over seeds, by system."""
    columns, photos = {}, 0
    for name, rows in answers.items():
        verdicts = minichat_figures.verdicts({name: rows}).dropna(subset="cause")  # thing, colour, place
        by_seed = verdicts.groupby(["triple", "seed"], sort=False).right.mean()
        columns[tables.SYSTEMS[name]] = by_seed.groupby("triple", sort=False).mean()
        photos = len(verdicts) // (3 * len(seeds))
    frame = pd.DataFrame(columns).rename_axis("scene accuracy on triples").reset_index()
    return plots.markdown(frame, plots.footer(profile, seeds, f"{photos:,} test photos per seed"))
