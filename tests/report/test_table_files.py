"""The files of tables: three forms with the same rows, made of the results alone."""

import html
import io
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from e2e_lib.report import table_files
from e2e_lib.repro.results import ResultsError

RESULTS = Path(__file__).resolve().parents[2] / "results"
NASTY = r"a_b & 50% of #1, $x$ {y} ~z ^2 \n <p> ± – −3"


def score(mean, std=0.5, n=3):
    return {"mean": mean, "std": std, "n": n}


def cells_of(source):
    """The rows of a LaTeX table as texts, its escapes undone; fails where more than booktabs were needed."""
    assert source.isascii()
    sides, inside = re.search(r"\\begin{tabular}{(.*)}\n\\toprule\n(.*)\\bottomrule\n\\end{tabular}", source, re.S).groups()
    rows = [re.split(r"(?<!\\) ?& ?", line.removesuffix(r" \\")) for line in inside.splitlines() if line != r"\midrule"]
    assert {len(row) for row in rows} == {len(re.sub(r"p{\w+}", "p", sides))}
    marks = {"\\textbackslash ": "\\", "\\textasciitilde ": "~", "\\textasciicircum ": "^", "$\\pm$": "±", "$-$": "−", "$<$": "<",
             "$>$": ">", "--": "–", "$\\cdot$": "·"}
    undo = re.compile("|".join([*map(re.escape, marks), r"\\[&%$#_{}]"]))
    return [[undo.sub(lambda mark: marks.get(mark[0], mark[0][-1]), text) for text in row] for row in rows]


def test_latex_escapes_breaks_long_texts_and_aligns_numbers():
    table = pd.DataFrame([[NASTY, "1.0 ± 0.5", "Divter"], ["short", "−2", "x"]], columns=[NASTY, "IS", "system"])
    source = table_files.latex(table, "caption", "tab:nasty")
    assert cells_of(source) == [list(table), *table.to_numpy().tolist()] and r"\begin{tabular}{p{10em}rl}" in source


def test_all_committed_tables_are_what_results_say(tmp_path):
    """Three forms with the same rows; and writing them anew, from results/ alone, changes nothing."""
    for name in ("summary", "comparison", "ablation_differences", "ablations", "terms", "faults"):
        (tmp_path / "mini").mkdir(exist_ok=True)
        shutil.copy(RESULTS / "mini" / f"{name}.json", tmp_path / "mini")
    for name in ("published", "mini/runs", "mini/ablations"):
        shutil.copytree(RESULTS / name, tmp_path / name)
    lines = []
    paths = table_files.write_tables("mini", tmp_path, lines.append)
    assert [path.name for path in paths] == [f"{name}.{kind}" for name in table_files.TABLES for kind in ("csv", "md", "tex")]
    assert lines == []
    for comma, page, source in zip(paths[::3], paths[1::3], paths[2::3], strict=True):
        rows = [[html.unescape(cell.strip()) for cell in line.strip("|").split("|")] for line in page.read_text().splitlines()
                if line.startswith("| ")]
        assert cells_of(source.read_text()) == rows
        assert len(pd.read_csv(io.StringIO(comma.read_text()))) == len(rows) - 1
        for path in (comma, page, source):
            assert path.read_text() == (RESULTS / path.relative_to(tmp_path)).read_text(), f"write {path.name} again"


def test_tables_without_results_are_named_and_damaged_ones_an_error(tmp_path):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "ablations.json").write_text(json.dumps({
        "profile": "mini", "systems": {"none": {"fid": score(0.25)}}, "test": {"examples": 1234},
        "runs": ["none-seed0.json"]}))
    lines = []
    assert {path.stem for path in table_files.write_tables("mini", tmp_path, lines.append)} == {"ablations"}
    assert len(lines) == 8 and "'main'" in lines[0] and "summary.json is not there yet" in lines[0]
    (tmp_path / "mini" / "summary.json").write_text("{")
    with pytest.raises(ResultsError, match=r"summary\.json"):
        table_files.write_tables("mini", tmp_path, print)


def test_the_experiment_has_a_row_per_condition_and_map():
    def row(mapping, caption, mean):
        return {"kind": "random", "rate": 0.6, "start": "adapted", "caption_source": caption, "mapping": mapping,
                "seeds": [0, 1, 2], "scores": {"caption_accuracy": score(mean, 0.01), "fid": score(0.5, 0.1)}}

    record = {"profile": "mini", "seeds": [0, 1, 2], "test": {"scenes": 389}, "pairs": [], "higher_is_better": {},
              "rows": [row("none", "gold", 0.5), row("aligned", "gold", 0.8), row("aligned", "predicted", 0.7)]}
    numbers, texts, note = table_files.forms("faults", record)
    assert texts["map"].tolist() == ["none", "aligned", "aligned"] and "389 scenes" in note
    assert texts["caption accuracy"].tolist() == ["0.500 ± 0.010", "0.800 ± 0.010", "0.700 ± 0.010"]
    assert texts["caption"].tolist() == ["gold", "gold", "predicted"] and set(texts["BLEU-2"]) == {"–"}
    own = numbers[numbers.caption == "predicted"]
    assert own["caption accuracy"].item() == 0.7 and own["caption accuracy sd"].item() == 0.01 and own.seeds.item() == 3
