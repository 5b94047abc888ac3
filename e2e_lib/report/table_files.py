"""The tables of results as files in ``results/<profile>/tables``: CSV, Markdown, LaTeX."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from e2e_lib.report import tables
from e2e_lib.report.plots import footer, markdown, sides
from e2e_lib.repro import files
from e2e_lib.repro.results import RESULTS, load_json, version_note

LATEX = str.maketrans({"<": "$<$", ">": "$>$", "±": r"$\pm$", "−": "$-$", "–": "--", "·": r"$\cdot$"})
STAR = "*: with the features of the corpus's own extractor; without a star, with Inception's."
OVER_SEEDS = f"Mean ± standard deviation over seeds. Of FID* less is better, of all else more. {STAR}"
INTERVALS = ("95 % intervals and two-sided p-values are over test dialogues, of these training seeds: they "
             "say nothing of others. P-values are corrected by Holm for all rows; intervals are not, so one "
             "may exclude 0 where neither is better. Better: the one that is ahead, of these seeds, with "
             f"p (Holm) < {tables.LEVEL}. Seeds ahead: in how many of them the first one scores better. "
             f"{STAR}")
TABLES = {  # name: the JSON below results/ that it is made of, and its caption
    "main": ("{}/summary.json", "Our scores in the layout of the paper's Table 2, whose own numbers are of "
             f"other data and do not compare. {OVER_SEEDS}"),
    "further": ("{}/summary.json", "Our scores beyond the paper's, from 0 to 1 but for BLEU; of all, more "
                "is better. Mean ± standard deviation over seeds."),
    "published": ("published/table2.json", "The paper's own Table 2: other data, models and features than "
                  "any profile here, so that ours do not compare. N: the test splits of its Table 1."),
    "differences": ("{}/comparison.json", f"Differences between the systems. {INTERVALS}"),
    "ablation_differences": ("{}/ablation_differences.json", "Variants of joint training: maps compared "
                             "with no gradient from the image, what is varied in the aligned system with "
                             f"that system, other ingredients with the paper's way. {INTERVALS}"),
    "terms": ("{}/terms.json", "The systems on other terms: trained on right captions, with the best epoch "
              "on dev, with another word's embedding for each word (a control), or with a captioner that "
              f"tells nearly every detail. {OVER_SEEDS}"),
    "terms_differences": ("{}/terms.json", f"Differences between systems on other terms. {INTERVALS}"),
    "faults": ("{}/faults.json", "The experiment with wrong captions: the language model learns from "
               "captions that are wrong in a kind of way at a rate, from parts adapted to them or from clean "
               f"ones, and draws gold captions or its own. {OVER_SEEDS}"),
    "ablations": ("{}/ablations.json", "Joint training with each map, estimator and ingredient; sentence is "
                  f"the paper's way (Eq. 10), none has no gradient from the image. {OVER_SEEDS}"),
}


def latex(frame: pd.DataFrame, caption: str, label: str) -> str:
    """A table of texts as a LaTeX float that needs the package booktabs alone; small, to fit a page."""
    columns = ["p{10em}" if frame[name].str.len().max() > 30 else side[0]
               for name, side in zip(frame, sides(frame), strict=True)]
    style = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    page = style.to_latex(hrules=True, position_float="centering", column_format="".join(columns),
                          label=label, caption=caption).translate(LATEX)
    small = page.replace(r"\centering", r"\centering\small\setlength{\tabcolsep}{4pt}", 1)
    return f"% \\usepackage{{booktabs}}\n{small}"


def forms(name: str, content: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """The numbers and the texts of a table of ``TABLES``, and what it was measured on."""
    if name == "faults":
        frame = tables.fault_scores(content)
        n = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in content["test"].items())
        note = footer(content["profile"], content["seeds"], n)
        numbers = tables.score_numbers(frame, tables.FAULT_COLUMNS)
        return numbers, tables.fault_table(frame), " · ".join(filter(None, [note, version_note(content)]))
    if name in tables.COLUMNS:
        frame = tables.scores(content, tables.COLUMNS[name])
        return tables.score_numbers(frame), tables.score_table(frame), tables.summary_footer(content)
    if name == "published":
        note = f"{content['source']}: {content['caption']}"
        return tables.published_numbers(content), tables.published(content), note
    frame = tables.differences(content)
    return frame, tables.difference_table(frame), tables.comparison_footer(content)


def write_tables(profile: str, root: Path | str = RESULTS, echo: Callable[[str], None] = print) -> list[Path]:
    """Writes every table whose JSON is there, names the others. Raises ResultsError and files.SaveError."""
    written = []
    for name, (source, title) in TABLES.items():
        if not (path := Path(root) / source.format(profile)).is_file():
            echo(f"table {name!r} is left out: {path} is not there yet")
            continue
        numbers, texts, note = forms(name, load_json(path))
        caption = f"{title} {note}"
        for kind, text in (("csv", numbers.to_csv(index=False)), ("md", markdown(texts, caption) + "\n"),
                           ("tex", latex(texts, caption, f"tab:{profile}-{name}"))):
            written.append(files.write_text(Path(root) / profile / "tables" / f"{name}.{kind}", text))
    return written
