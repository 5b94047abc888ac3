import re
import shutil
from pathlib import Path

import pytest

from e2e_lib.report import readme
from e2e_lib.repro.results import load_json

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_committed_readme_says_what_results_say(tmp_path):
    """Nobody may type a number: writing the README again changes nothing."""
    copy = tmp_path / "README.md"
    copy.write_text(README)
    readme.update(copy, root=ROOT / "results")
    assert copy.read_text() == README, "run `e2e readme`"


def test_the_committed_page_on_the_papers_scale_says_what_the_plans_say(tmp_path):
    copy = shutil.copy(ROOT / "docs" / "paper-scale.md", tmp_path)
    readme.update(copy, root=ROOT / "results")
    text = (tmp_path / "paper-scale.md").read_text()
    assert text == (ROOT / "docs" / "paper-scale.md").read_text(), "run `e2e readme`"
    assert "| paper" in text and "25,198,592" in text  # LoRA of rank 32 on q, k, v of 32 layers, and two rows of each new token
    with pytest.raises(ValueError, match="no plans"):
        readme.plans("paper", tmp_path)


def test_stale_blocks_are_replaced_and_all_else_is_kept(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("\n".join(f"before {name}\n<!-- {name}:begin -->\nstale\n<!-- {name}:end -->"
                              for name in ("ablation", "reproduce", "results", "minichat")))
    readme.update(page, root=ROOT / "results")
    text = page.read_text()
    assert "stale" not in text and text.startswith("before ablation\n<!-- ablation:begin -->\n| map")
    for name in ("ablation", "reproduce", "results", "minichat"):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        assert text.split(begin)[1].split(end)[0] == README.split(begin)[1].split(end)[0]


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


def test_every_path_the_readme_names_is_there():
    names = set(re.findall(r"\]\(((?:notebooks|figures|results|e2e_lib)/[^)]+)\)", README))
    names |= set(re.findall(r"`((?:bridge|models|data|evaluation|training|inference)/[\w/]+\.py)`", README))
    missing = [name for name in names if not (ROOT / name).exists() and not (ROOT / "e2e_lib" / name).exists()]
    assert names and not missing
