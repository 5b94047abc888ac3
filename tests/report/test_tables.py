import io
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from e2e_lib.experiments.ablation import VARIANTS
from e2e_lib.report import tables
from e2e_lib.repro.results import METRICS, ResultsError, published

RESULTS = Path(__file__).resolve().parents[2] / "results"
NASTY = r"a_b & 50% of #1, $x$ {y} ~z ^2 \n <p> ± – −3"


def score(mean, std=0.5, n=3):
    return {"mean": mean, "std": std, "n": n}


def summary(**systems):
    return {"profile": "mini", "systems": systems, "test": {"examples": 1234, "gold_photos": 56}}


FULL = {key: score(value) for key, value in {"bleu1": 31.256, "bleu2": 9.0, "rougeL": 30.0, "is": 11.0, "fid": 0.2064, "kid": 0.1}.items()}


def pair(metric, low, high, system="end_to_end", than="pipeline", p=0.02):
    return {"system": system, "than": than, "metric": metric, "difference": (low + high) / 2, "low": low, "high": high, "p": p / 2, "p_corrected": p}


def comparison(*pairs, seeds=(0, 1, 2)):
    return {"profile": "mini", "seeds": list(seeds), "draws": 2000, "dialogues": 300, "examples": 3546, "pairs": list(pairs),
            "higher_is_better": {"bleu1": True, "fid": False, "details": True}}


def read_back(frame):
    return pd.read_csv(io.StringIO(frame.to_csv(index=False)))


# Scores


def test_systems_stand_in_the_papers_order_whether_or_not_they_ran():
    table = tables.main_table(summary(end_to_end=FULL, divter={"bleu1": score(1.5, None, 1)}))
    assert list(table) == ["system", "BLEU-1", "BLEU-2", "ROUGE-L", "IS*", "FID*"]
    assert table.to_numpy().tolist() == [
        ["Divter", "1.500", "–", "–", "–", "–"],
        ["Pipeline", "missing", "missing", "missing", "missing", "missing"],
        ["End-to-end", "31.26 ± 0.50", "9.00 ± 0.50", "30.00 ± 0.50", "11.00 ± 0.50", "0.206 ± 0.500"]]


def test_the_papers_table_2_has_the_same_systems_and_metrics():
    paper = published(2, RESULTS)
    assert list(tables.SYSTEMS) == [row["system"] for row in paper["rows"] if row["dataset"] == "DialogCC"]
    assert list(tables.MAIN) == [key for key in paper["columns"] if key not in ("dataset", "label", "is_std")]


def test_further_scores_are_not_the_main_ones():
    table = tables.further_table(summary(pipeline={"scene_accuracy": score(0.5), "details": score(0.25), "bleu1": score(3.0)}))
    assert list(table) == ["system", "scene accuracy", METRICS["details"][0], "intent F1", "caption BLEU-2, cumulative"]
    assert table.to_numpy().tolist()[1] == ["Pipeline", "0.500 ± 0.500", "0.250 ± 0.500", "–", "–"]
    assert not set(tables.MAIN) & set(tables.FURTHER)


def test_a_system_that_nobody_expected_is_shown_too():
    found = summary(retrieval={"bleu1": score(3.0)})
    assert tables.main_table(found)["system"].tolist() == ["Divter", "Pipeline", "End-to-end", "retrieval"]


def test_every_number_of_the_committed_summaries_comes_back_from_csv():
    for name, metrics, kind in (("summary", tables.MAIN, "system"), ("summary", tables.FURTHER, "system"), ("ablations", tables.ABLATION, "variant")):
        found = json.loads((RESULTS / "mini" / f"{name}.json").read_text())
        names = tables.SYSTEMS if kind == "system" else {variant: variant for variant in VARIANTS}
        frame = read_back(tables.score_numbers(found, names, metrics, kind)).set_index(kind)
        assert found["systems"].keys() <= names.keys() and list(frame.index) == list(names.values())
        for key, label in names.items():
            entries = found["systems"].get(key)
            assert frame.loc[label, "seeds"] == (entries["bleu1"]["n"] if entries else 0)
            for metric in metrics:
                row = frame.loc[label, [METRICS[metric][0], f"{METRICS[metric][0]} sd"]].tolist()
                if entries and metric in entries:
                    assert row == [entries[metric]["mean"], entries[metric]["std"]]
                else:
                    assert pd.isna(row).all()


def test_csv_is_nothing_but_a_header_and_numbers():
    frame = tables.score_numbers(summary(end_to_end={"bleu1": score(1.5, None, 1)}), tables.SYSTEMS, ("bleu1",))
    assert frame.to_csv(index=False).splitlines() == ["system,seeds,BLEU-1,BLEU-1 sd", "Divter,0,,", "Pipeline,0,,", "End-to-end,1,1.5,"]


def test_ablation_has_every_variant_under_its_own_name():
    found = summary(none=FULL, some_other=FULL, **{"temperature_0.01": FULL})
    table = tables.ablation_table(found).set_index("variant")
    assert list(table.index) == [*VARIANTS, "some_other"]
    assert list(table) == ["scene accuracy", "FID*", "caption BLEU-2, cumulative", "BLEU-2", "ROUGE-L"]
    assert table.loc["temperature_0.01", "FID*"] == "0.206 ± 0.500" and table.loc["temperature_0.01", "scene accuracy"] == "–"
    assert (table.loc["sentence"] == "missing").all()


def test_by_metric_has_the_systems_that_ran_in_the_papers_order():
    table = tables.by_metric(summary(end_to_end=FULL, divter={}, retrieval={}))
    assert list(table) == ["metric", "Divter", "End-to-end", "retrieval"]
    assert table["metric"].tolist() == [name for name, *_ in METRICS.values()]
    assert table.set_index("metric").loc["FID*"].tolist() == ["–", "0.206 ± 0.500", "–"]


@pytest.mark.parametrize("counts, said", [((3, 3, 3), "over 3 seeds;"), ((1,), "over 1 seed;"), ((3, 1, 2), "over 1 to 3 seeds;")])
def test_the_note_counts_seeds_and_test_items(counts, said):
    note = tables.note(summary(**{f"s{i}": {"bleu1": score(1.0, None, n)} for i, n in enumerate(counts)}))
    assert said in note and "profile mini" in note and "N: 1,234 examples, 56 gold photos" in note


def test_the_legend_explains_only_what_is_there():
    assert tables.legend(tables.main_table(summary(**dict.fromkeys(tables.SYSTEMS, FULL)))) == tables.LEGEND["*"]
    assert tables.legend(tables.further_table(summary())) == tables.LEGEND["missing"]


# The paper's own


def test_the_papers_numbers_are_as_printed_and_apart_from_ours():
    paper = published(2, RESULTS)
    table, numbers = tables.published_table(paper), read_back(tables.published_numbers(paper))
    assert list(table) == ["dataset", "model", "BLEU-1", "BLEU-2", "ROUGE-L", "IS", "FID"] and len(table) == 7
    assert table.to_numpy().tolist()[3] == ["PhotoChat", "end-to-end", "12.08", "2.94", "11.00", "14.47 ± 0.94", "75.88"]
    assert numbers.iloc[3].tolist() == ["PhotoChat", "end-to-end", 12.08, 2.94, 11.0, 14.47, 0.94, 75.88]
    ours = tables.main_table(summary(end_to_end=FULL))
    assert not {"IS", "FID"} & set(ours) and not {"IS*", "FID*"} & set(table)


def test_numbers_that_the_paper_does_not_give():
    paper = {"columns": {"label": "model", "n": "N", "is": "IS", "is_std": "±"}, "rows": [{"label": "a", "n": None, "is": 3.5, "is_std": None}]}
    assert tables.published_table(paper).to_numpy().tolist() == [["a", "–", "3.5"]]
    assert read_back(tables.published_numbers(paper)).isna().iloc[0].tolist() == [False, True, False, True]


# Differences


@pytest.mark.parametrize("metric, low, high, favoured", [
    ("bleu1", 0.5, 1.5, "End-to-end"), ("bleu1", -1.5, -0.5, "Pipeline"), ("bleu1", -0.5, 0.5, "neither"), ("bleu1", 0.0, 0.5, "neither"),
    ("bleu1", -0.5, 0.0, "neither"), ("fid", 0.5, 1.5, "Pipeline"), ("fid", -1.5, -0.5, "End-to-end"), ("fid", -0.5, 0.5, "neither")])
def test_who_is_favoured_depends_on_which_way_is_better(metric, low, high, favoured):
    assert tables.differences_table(comparison(pair(metric, low, high)))["in favour of"].tolist() == [favoured]


def test_differences_are_signed_with_their_interval():
    made = comparison(pair("bleu1", 0.5, 1.5), pair("details", -0.25, 0.125, "divter", "end_to_end", p=0.0004))
    assert tables.differences_table(made).to_numpy().tolist() == [
        ["End-to-end", "Pipeline", "BLEU-1", "+1.000", "[+0.500, +1.500]", "0.020", "End-to-end"],
        ["Divter", "End-to-end", METRICS["details"][0], "−0.062", "[−0.250, +0.125]", "< 0.001", "neither"]]
    numbers = read_back(tables.differences_numbers(made))
    assert numbers.iloc[1].tolist() == ["Divter", "End-to-end", METRICS["details"][0], -0.0625, -0.25, 0.125, 0.0002, 0.0004, "neither"]


def test_nothing_to_compare_is_an_empty_table():
    table = tables.differences_table(comparison())
    assert table.empty and rows_of(tables.latex(table, "nothing", "tab:none"))[1:] == []


# Writing


def rows_of(source):
    """The rows of a LaTeX table as texts, its escapes undone; fails where LaTeX would, or where more than booktabs were needed."""
    assert source.isascii()
    body = re.sub(r"^%.*\n", "", source)
    commands = set(re.findall(r"\\([a-zA-Z]+)", body))
    assert commands <= {"begin", "end", "centering", "small", "setlength", "tabcolsep", "caption", "label", "toprule", "midrule", "bottomrule",
                        "pm", "textbackslash", "textasciitilde", "textasciicircum"}
    assert re.findall(r"\\(begin|end){(\w+)}", body) == [("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table")]
    bare = re.sub(r"\\.", "", body, flags=re.S)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
    sides, inside = re.search(r"\\begin{tabular}{(.*)}\n\\toprule\n(.*)\\bottomrule\n\\end{tabular}", body, re.S).groups()
    rows = [re.split(r"(?<!\\) ?& ?", line.removesuffix(r" \\")) for line in inside.splitlines() if line != r"\midrule"]
    assert {len(row) for row in rows} == {len(re.sub(r"p{\w+}", "p", sides))}
    plain = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"$\pm$": "±", "$-$": "−", "$<$": "<", "$>$": ">", "--": "–"}
    undo = re.compile("|".join([*map(re.escape, plain), r"\\[&%$#_{}]", r"[&%$#_{}\\~^<>]"]))
    for escape in undo.findall(inside.replace(r" \\", "").replace(r"\midrule", "")):
        assert escape in plain or len(escape) == 2 or escape == "&", f"{escape} is not escaped"
    return [[undo.sub(lambda found: plain.get(found[0], found[0][-1]), text) for text in row] for row in rows]


def test_latex_says_what_was_put_in():
    table = pd.DataFrame([[NASTY, "1.0 ± 0.5"], ["short", NASTY]], columns=["system", NASTY])
    assert rows_of(tables.latex(table, NASTY, "tab:nasty")) == [["system", NASTY], *table.to_numpy().tolist()]


def test_latex_breaks_long_words_and_aligns_numbers_to_the_right():
    table = pd.DataFrame([["x" * 31, "Divter", "1.0"]], columns=["model", "system", "BLEU-1"])
    assert r"\begin{tabular}{p{10em}lr}" in tables.latex(table, "", "tab:x")


def test_markdown_keeps_the_digits():
    page = tables.markdown(pd.DataFrame([["Divter", "11.00"], ["Pipeline", "missing"]], columns=["system", "ROUGE-L"]), "Said below.")
    lines = page.splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:4])] == [
        ["system", "ROUGE-L"], ["Divter", "11.00"], ["Pipeline", "missing"]]
    assert re.fullmatch(r"\|:-+\|-+:\|", lines[1]) and lines[4:] == ["", "Said below."]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "mini").mkdir()
    shutil.copytree(RESULTS / "published", tmp_path / "published")
    made = {"summary": summary(end_to_end=FULL), "ablations": summary(none=FULL), "comparison": comparison(pair("bleu1", 0.5, 1.5), pair("fid", -1, 1)),
            "ablation_differences": comparison({**pair("fid", -1, 1), "system": "span", "than": "none"})}
    for name, content in made.items():
        (tmp_path / "mini" / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_all_tables_are_written_three_times_over_with_the_same_content(root):
    lines = []
    paths = tables.write_tables("mini", root, lines.append)
    names = ["main", "further", "published", "differences", "ablation_differences", "ablations"]
    assert [path.relative_to(root).as_posix() for path in paths] == [f"mini/tables/{name}.{kind}" for name in names for kind in ("csv", "md", "tex")]
    assert lines == []
    for name in names:
        comma, page, source = ((root / "mini" / "tables" / f"{name}.{kind}").read_text() for kind in ("csv", "md", "tex"))
        listed = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")]
        assert rows_of(source) == listed
        assert comma.isascii() and len(pd.read_csv(io.StringIO(comma))) == len(listed) - 1
        assert rf"\label{{tab:mini-{name}}}" in source and source.count(r"\caption{") == 1
        said = page.splitlines()[-1]
        if name == "published":
            assert "arXiv 2408.08650" in said and "do not compare" in said and "three seeds" in said
        else:
            assert "rofile mini" in said and "N: " in said and "seeds" in said and ("±" in said or "ntervals" in said)
        assert ("missing: no run of it yet." in said) == (name in ("main", "further", "ablations"))
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in tables.write_tables("mini", root, lines.append)] == before


def test_tables_without_results_are_left_out_and_named(root):
    (root / "mini" / "comparison.json").unlink()
    (root / "published" / "table2.json").unlink()
    lines = []
    paths = tables.write_tables("mini", root, lines.append)
    assert {path.stem for path in paths} == {"main", "further", "ablation_differences", "ablations"} == {path.stem for path in (root / "mini" / "tables").iterdir()}
    assert len(lines) == 2 and "'published'" in lines[0] and "'differences'" in lines[1] and "comparison.json is not there yet" in lines[1]


def test_damaged_results_are_an_error(root):
    (root / "mini" / "summary.json").write_text("{")
    with pytest.raises(ResultsError, match="summary.json"):
        tables.write_tables("mini", root, print)
