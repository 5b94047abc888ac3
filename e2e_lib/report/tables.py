"""The tables of results, written from ``results/`` as CSV, Markdown and LaTeX: ours in the layout of the paper's Table 2, our further scores,
the paper's own, the differences between systems and the ablation.

Every table has two forms. What people read has texts for cells: "19.16 ± 0.91" (mean ± sample standard deviation over seeds, the latter
left out for a single run), "missing" where a system has no run, "–" where a system that ran lacks a score. The CSV has the numbers as they
are, the standard deviation in a column of its own, nothing where there is none. Ours and the paper's never share a table.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from e2e_lib.repro import files
from e2e_lib.repro.results import METRICS, RESULTS, load_json, outdated, tested

SYSTEMS = {"divter": "Divter", "pipeline": "Pipeline", "end_to_end": "End-to-end"}  # the paper's order and names
MAIN = ("bleu1", "bleu2", "rougeL", "is", "fid")
FURTHER = ("scene_accuracy", "details", "intent_f1", "caption_bleu")
ABLATION = ("scene_accuracy", "fid", "caption_bleu", "bleu2", "rougeL")

LEFT = ("system", "than", "metric", "in favour of", "variant", "dataset", "model")  # columns of words; all others are aligned to the right
LEGEND = {"missing": "missing: no run of it yet.", "–": "–: not every run has this score.",
          "*": "A star: with the features of MiniChat's scene reader, not Inception's."}  # what stands in a table, and what it means
LATEX = str.maketrans({"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", **{c: f"\\{c}" for c in "&%$#_{}"},
                       "<": "$<$", ">": "$>$", "±": r"$\pm$", "−": "$-$", "–": "--"})


# --------------------------------------------------------------------------------------------------------------- scores

def cell(entry: Mapping[str, Any] | None) -> str:
    """A score of a summary, ``{"mean", "std", …}``, as "mean ± sd": three decimals below 2, two from there on. "–" for None."""
    if entry is None:
        return "–"
    digits = 3 if abs(entry["mean"]) < 2 else 2
    return f"{entry['mean']:.{digits}f}" + ("" if entry["std"] is None else f" ± {entry['std']:.{digits}f}")


def _rows(found: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, str]:
    """Key and name of every row: those named, whether or not they ran, then those that only ran."""
    return {**named, **{key: key for key in found["systems"] if key not in named}}


def score_table(found: Mapping[str, Any], named: Mapping[str, str], metrics: Iterable[str], kind: str = "system") -> pd.DataFrame:
    """``metrics`` (keys of ``results.METRICS``) of what ``results.summarise`` found, as texts: a row a system, its name in column ``kind``."""
    rows = [[name, *(cell(found["systems"][key].get(metric)) if key in found["systems"] else "missing" for metric in metrics)]
            for key, name in _rows(found, named).items()]
    return pd.DataFrame(rows, columns=[kind, *(METRICS[metric][0] for metric in metrics)])


def score_numbers(found: Mapping[str, Any], named: Mapping[str, str], metrics: Iterable[str], kind: str = "system") -> pd.DataFrame:
    """The same as numbers: a column of means and one of standard deviations a metric, None where there is none, and how many seeds ran."""
    rows = []
    for key, name in _rows(found, named).items():
        scores = found["systems"].get(key, {})
        row: dict[str, Any] = {kind: name, "seeds": max((entry["n"] for entry in scores.values()), default=0)}
        for metric in metrics:
            entry = scores.get(metric, {})
            row |= {METRICS[metric][0]: entry.get("mean"), f"{METRICS[metric][0]} sd": entry.get("std")}
        rows.append(row)
    return pd.DataFrame(rows)


def main_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Our scores in the layout of the paper's Table 2: column "system" and one for each of its metrics, all texts."""
    return score_table(summary, SYSTEMS, MAIN)


def further_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The scores that the paper does not have, for the same systems in the same order, all texts."""
    return score_table(summary, SYSTEMS, FURTHER)


def by_metric(summary: Mapping[str, Any]) -> pd.DataFrame:
    """All metrics of the systems that ran, as texts: column "metric", then a column a system, the paper's first."""
    ran = {key: name for key, name in SYSTEMS.items() if key in summary["systems"]}
    return score_table(summary, ran, METRICS).set_index("system").T.rename_axis(index="metric", columns=None).reset_index()


def _variants() -> dict[str, str]:
    from e2e_lib.experiments.ablation import VARIANTS
    return {name: name for name in VARIANTS}


def ablation_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Of ``ablations.json``: column "variant" and one a metric, all texts; every variant of ``ablation.VARIANTS`` in its order."""
    return score_table(found, _variants(), ABLATION, "variant")


def note(found: Mapping[str, Any]) -> str:
    """How the scores of a summary came about: "Mean ± standard deviation over 3 seeds; profile mini; N: 3,546 examples, …"."""
    counts = sorted({entry["n"] for scores in found["systems"].values() for entry in scores.values()}) or [0]
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return f"Mean ± standard deviation over {seeds} seed{'s' * (counts != [1])}; profile {found['profile']}; N: {tested(found)}.{outdated(found)}"


def legend(table: pd.DataFrame) -> str:
    """What the marks in a table of texts mean, of those that it has: "missing", "–" and the star."""
    texts = [*table, *table.to_numpy().ravel()]
    return " ".join(meaning for mark, meaning in LEGEND.items() if any(mark in text for text in texts))


# ------------------------------------------------------------------------------------------------------- the paper's own

def _printed(row: Mapping[str, Any], key: str) -> str:
    value, spread = row.get(key), row.get(f"{key}_std")
    if isinstance(value, float):
        return (str(value) if f"{key}_std" in row else f"{value:.2f}") + (f" ± {spread}" if spread is not None else "")
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else value


def published_table(published: Mapping[str, Any]) -> pd.DataFrame:
    """The paper's Table 1 or 2, as ``results.published`` reads it: its columns, all texts, with its own digits and its own ±."""
    columns = {key: heading for key, heading in published["columns"].items() if not key.endswith("_std")}
    return pd.DataFrame([[_printed(row, key) for key in columns] for row in published["rows"]], columns=list(columns.values()))


def published_numbers(published: Mapping[str, Any]) -> pd.DataFrame:
    """The same as numbers, what stands behind a ± in a column of its own."""
    columns = published["columns"]
    headings = [f"{columns[key.removesuffix('_std')]} sd" if key.endswith("_std") else heading for key, heading in columns.items()]
    return pd.DataFrame([[row.get(key) for key in columns] for row in published["rows"]], columns=headings)


# ---------------------------------------------------------------------------------------------------------- differences

def differences_numbers(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """A row a pair of systems and metric of ``comparison.json``: "system" minus "than", the bounds of its 95 % interval, p as it is and
    corrected, and "in favour of" which of the two the interval excludes zero, or "neither"."""
    rows = []
    for pair in comparison["pairs"]:
        one, other = (SYSTEMS.get(pair[side], pair[side]) for side in ("system", "than"))
        above = pair["low"] > 0
        favoured = (one if above == comparison["higher_is_better"][pair["metric"]] else other) if above or pair["high"] < 0 else "neither"
        rows.append([one, other, METRICS[pair["metric"]][0], *(pair[key] for key in ("difference", "low", "high", "p", "p_corrected")), favoured])
    return pd.DataFrame(rows, columns=["system", "than", "metric", "difference", "low", "high", "p", "p (Holm)", "in favour of"])


def differences_table(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """The same as texts, the interval in one column and the corrected p-value alone."""
    def signed(value: float) -> str:
        return f"{value:+.3f}".replace("-", "−")

    found = differences_numbers(comparison)
    return pd.DataFrame({
        **found[["system", "than", "metric"]], "difference": found["difference"].map(signed),
        "95 % interval": [f"[{signed(low)}, {signed(high)}]" for low, high in zip(found["low"], found["high"], strict=True)],
        "p (Holm)": ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in found["p (Holm)"]], "in favour of": found["in favour of"]})


def _differences_note(comparison: Mapping[str, Any]) -> str:
    seeds = comparison["seeds"]
    return (f"Profile {comparison['profile']}; means over seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; "
            f"N: {comparison['examples']:,} answers in {comparison['dialogues']:,} dialogues. Intervals and two-sided p-values: "
            f"{comparison['draws']:,} paired bootstrap draws of dialogues; the p-values are corrected by Holm for all "
            f"{len(comparison['pairs'])} rows, the intervals are not. In favour of: whom an interval without zero favours, else neither.")


# --------------------------------------------------------------------------------------------------------------- writing

def markdown(table: pd.DataFrame, caption: str) -> str:
    """A table of texts as Markdown, the caption below."""
    sides = ["left" if column in LEFT else "right" for column in table]
    return f"{table.to_markdown(index=False, disable_numparse=True, colalign=sides)}\n\n{caption}\n"


def latex(table: pd.DataFrame, caption: str, label: str) -> str:
    """A table of texts as a LaTeX float that needs the package booktabs alone. It fits a page with margins of an inch: small, close columns,
    and those with texts of more than 30 characters set in lines of 10 em."""
    sides = "".join("p{10em}" if any(len(text) > 30 for text in table[column]) else "l" if column in LEFT else "r" for column in table)
    escaped = table.map(lambda text: text.translate(LATEX)).rename(columns=lambda text: text.translate(LATEX))
    float_ = escaped.style.hide(axis="index").to_latex(hrules=True, position_float="centering", column_format=sides,
                                                       caption=caption.translate(LATEX), label=label)
    return "% \\usepackage{booktabs}\n" + float_.replace("\\centering", "\\centering\\small\\setlength{\\tabcolsep}{4pt}", 1)


@dataclass(frozen=True)
class Table:
    """One table of a profile: the JSON below ``results/`` that it is made of, its two forms, and the two parts of its caption."""

    source: str
    shown: Callable[[Mapping[str, Any]], pd.DataFrame]
    numbers: Callable[[Mapping[str, Any]], pd.DataFrame]
    title: str
    note: Callable[[Mapping[str, Any]], str]


TABLES = {
    "main": Table("{profile}/summary.json", main_table, lambda found: score_numbers(found, SYSTEMS, MAIN),
                  "Our scores, in the layout of the paper's Table 2, whose own numbers are of other data and do not compare. "
                  "Of FID* less is better, of all else more.", note),
    "further": Table("{profile}/summary.json", further_table, lambda found: score_numbers(found, SYSTEMS, FURTHER),
                     "Our scores beyond the paper's; of all, more is better. Caption BLEU is from 0 to 100, the others from 0 to 1.", note),
    "published": Table("published/table2.json", published_table, published_numbers,
                       "The paper's own Table 2: other data, models and features than any profile here, so that ours do not compare. "
                       "± stands where the paper has it; N: the test splits of its Table 1.",
                       lambda published: f"{published['source']}: {published['caption']}"),
    "differences": Table("{profile}/comparison.json", differences_table, differences_numbers,
                         "Differences between the systems, the first one's score minus the second one's.", _differences_note),
    "ablation_differences": Table("{profile}/ablation_differences.json", differences_table, differences_numbers,
                                  "Differences between variants of joint training: maps and estimators beside no gradient from the image, other "
                                  "ingredients beside the paper's way.", _differences_note),
    "ablations": Table("{profile}/ablations.json", ablation_table, lambda found: score_numbers(found, _variants(), ABLATION, "variant"),
                       "Joint training with each vocabulary map, estimator and ingredient; sentence is the paper's way (Eq. 10), "
                       "none has no gradient from the image. Of FID* less is better, of all else more.", note),
}


def write_tables(profile: str, root: Path | str = RESULTS, echo: Callable[[str], None] = print) -> list[Path]:
    """Writes ``results/<profile>/tables/<name>.csv``, ``.md`` and ``.tex`` for every table whose JSON is there, says which is left out, and
    returns the files written. Raises ResultsError for damaged JSON and files.SaveError."""
    root, written = Path(root), []
    for name, table in TABLES.items():
        source = root / table.source.format(profile=profile)
        if not source.is_file():
            echo(f"table {name!r} is left out: {source} is not there yet")
            continue
        found = load_json(source)
        shown = table.shown(found)
        caption = f"{table.title} {table.note(found)} {legend(shown)}".strip()
        for kind, text in (("csv", table.numbers(found).to_csv(index=False)), ("md", markdown(shown, caption)),
                           ("tex", latex(shown, caption, f"tab:{profile}-{name}"))):
            written.append(files.write_text(root / profile / "tables" / f"{name}.{kind}", text))
    return written
