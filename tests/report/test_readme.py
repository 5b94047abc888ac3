import re
import shutil
from pathlib import Path

import pytest
from trained_runs import save_trained

from e2e_lib.config import load
from e2e_lib.report import readme
from e2e_lib.repro.results import load_json

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", readme.PAGES)
def test_the_committed_pages_say_what_results_say(page, tmp_path):
    """Nobody may type a number: writing a page again changes nothing."""
    copy = Path(shutil.copy(ROOT / page, tmp_path))
    readme.update(copy, root=ROOT / "results")
    assert copy.read_text() == (ROOT / page).read_text(), "run `e2e readme`"
    assert set(re.findall(r"<!-- (\w+):begin -->", copy.read_text())) == readme.BLOCKS[copy.name].keys()


def test_every_page_with_blocks_is_written_by_the_command():
    assert {Path(page).name for page in readme.PAGES} == readme.BLOCKS.keys()
    marked = [path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if ":begin -->" in path.read_text()]
    assert {str(path.relative_to(ROOT)) for path in marked} == set(readme.PAGES)


def test_the_page_on_the_papers_scale_has_its_plans(tmp_path):
    text = (ROOT / "docs" / "paper-scale.md").read_text()
    assert "| paper" in text and "25,198,592" in text  # LoRA of rank 32 on q, k, v of 32 layers, and two rows of each new token
    with pytest.raises(ValueError, match="no plans"):
        readme.plans("paper", tmp_path)


@pytest.mark.parametrize(("name", "first", "begins"), [("README.md", "results", "| metric"), ("reproducing.md", "ablation", "| map")])
def test_stale_blocks_are_replaced_and_all_else_is_kept(name, first, begins, tmp_path):
    names = [first, *(set(readme.BLOCKS[name]) - {first})]
    page = tmp_path / name
    page.write_text("\n".join(f"before {block}\n<!-- {block}:begin -->\nstale\n<!-- {block}:end -->" for block in names))
    readme.update(page, root=ROOT / "results")
    text, committed = page.read_text(), (ROOT / next(p for p in readme.PAGES if p.endswith(name))).read_text()
    assert "stale" not in text and text.startswith(f"before {first}\n<!-- {first}:begin -->\n{begins}")
    for block in names:
        begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
        assert text.split(begin)[1].split(end)[0] == committed.split(begin)[1].split(end)[0]


def test_without_a_comparison_there_are_scores_alone(tmp_path):
    (tmp_path / "mini").mkdir()
    shutil.copy(ROOT / "results" / "mini" / "summary.json", tmp_path / "mini")
    whole = readme.results_table("mini", ROOT / "results")
    assert whole.startswith(readme.results_table("mini", tmp_path)) and "End-to-end − Pipeline" in whole


def test_the_readme_names_who_is_ahead_after_correction():
    comparison = load_json(ROOT / "results" / "mini" / "comparison.json")
    block = readme.results_table("mini", ROOT / "results")
    named = [cell.strip() for line in block.splitlines() if line.startswith("| ") for cell in line.strip("|").split("|")]
    assert named.count("neither") == sum(pair["p_corrected"] >= 0.05 for pair in comparison["pairs"])
    rule = f"of these {len(comparison['seeds'])} training seeds, with p < 0.05 after Holm's correction for all {len(comparison['pairs'])}"
    assert rule in block


def test_a_missing_marker_is_an_error(tmp_path):
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(ValueError, match="markers"):
        readme.update(tmp_path / "README.md", root=ROOT / "results")


def examples():
    """The README's blocks of Python, in order."""
    return re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def test_the_example_that_trains_and_answers_runs(tmp_path, monkeypatch):
    """With a run that is done already, so that nothing is trained."""
    (code,) = [code for code in examples() if "load_trained" in code]
    assert len([line for line in code.splitlines() if line and not line.startswith(("from", "import"))]) <= 10
    monkeypatch.chdir(tmp_path)
    save_trained(load("smoke"))
    names = {}
    exec(code, names)
    assert [turn.speaker for turn in names["partner"].turns] == [0, 1] and names["partner"].turns[0].text.startswith("Can you show me")
    assert len(list(tmp_path.glob("photo-*.png"))) == len(names["answer"].photos)


def test_the_example_of_the_bridge_reaches_every_word(monkeypatch):
    (code,) = [code for code in examples() if "CaptionBridge" in code]
    monkeypatch.chdir(ROOT)
    names = {}
    exec(code, names)
    gradient = names["logits"].grad
    assert gradient.shape[-1] == len(names["writes"]) and (gradient != 0).float().mean() > 0.5
