import json
import re
from pathlib import Path

import pytest

from e2e_lib.report import readme
from e2e_lib.repro import results

ROOT = Path(__file__).parents[2]


def make_results(root: Path) -> None:
    summary = {"profile": "mini", "systems": {"end_to_end": {"bleu1": {"mean": 31.256, "std": 0.5, "n": 3}, "scene_accuracy": {"mean": 0.8, "std": None, "n": 3}}},
               "test": {"examples": 1234}}
    run = {"transcript": ["== stage 1 of 9: data", "  end_to_end BLEU-1 12.345", "All done in 1:00"], "cpu_count": 2, "device": "a processor", "wall_seconds": 600.0, "peak_memory_bytes": 2_500_000_000}
    (root / "mini").mkdir(parents=True)
    (root / "mini" / "summary.json").write_text(json.dumps(summary))
    (root / "mini" / "reproduce.json").write_text(json.dumps(run))
    score = {"mean": 0.9123, "std": 0.01, "n": 3}
    ablations = {"systems": {"none": {"scene_accuracy": score, "fid": score}, "sentence": {"caption_bleu": score}, "span_reinmax": {"fid": score}}, "test": {"examples": 988}}
    gradients = {"captions": [{}, {}], "asked": {"seed": 0}, "rows": [
        {"mapping": "sentence", "estimator": "gumbel", "temperature": 1.0, "cosine": {"mean": -0.25, "std": 0.5}},
        {"mapping": "sentence", "estimator": "gumbel", "temperature": 0.1, "cosine": {"mean": 0.75, "std": 0.5}}]}
    steps = {"rows": [{"mapping": name, "over_none": ratio, "std": 0.02} for name, ratio in (("none", 1.0), ("sentence", 1.05))],
             "asked": {"rounds": 15}, "threads": 2}
    compared = {"draws": 5000, "dialogues": 300, "higher_is_better": {"fid": False}, "pairs": [
        {"system": "span", "than": "none", "metric": "fid", "difference": -0.5, "low": -0.6, "high": -0.4, "p_corrected": 0.04}]}
    for name, content in (("ablations", ablations), ("gradients", gradients), ("steps", steps), ("ablation_differences", compared)):
        (root / "mini" / f"{name}.json").write_text(json.dumps(content))


def test_numbers_come_from_results_with_spread_and_n(tmp_path: Path) -> None:
    make_results(tmp_path)
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- reproduce:begin -->\nstale\n<!-- reproduce:end -->\nb\n<!-- results:begin -->\nstale\n<!-- results:end -->\nc\n<!-- ablation:begin --><!-- ablation:end -->")
    readme.update(page, root=tmp_path)
    text = page.read_text()
    assert "| metric | End-to-end |\n|---|---|\n| BLEU-1 | 31.26 ± 0.50 |" in text and "| scene accuracy | 0.800 |" in text
    assert "1,234 examples" in text and "3 seeds" in text and "10.0 minutes" in text and "2.5 GB" in text and "stale" not in text
    assert "== stage 1 of 9: data\nAll done in 1:00\n" in text and "12.345" not in text  # scores are those of the table
    assert "| FID* | – |" in text  # a missing score is shown as missing
    assert "| none | – | 0.912 ± 0.010 | 0.912 ± 0.010 | – | 1.000 ± 0.020 |" in text
    assert "| sentence (Eq. 10, the default) | -0.250 ± 0.500 | – | – | 0.912 ± 0.010 | 1.050 ± 0.020 |" in text and "988 examples" in text
    assert "5,000 paired bootstrap draws of 300" in text and "- FID*, 1 beside *none*: span better (−0.500 [−0.600, −0.400], corrected p 0.04)." in text
    before = text
    readme.update(page, root=tmp_path)
    assert page.read_text() == before


def test_differences_are_told_by_whom_they_favour() -> None:
    def pair(than: str, metric: str, low: float, high: float) -> dict:
        return {"system": "end_to_end", "than": than, "metric": metric, "difference": (low + high) / 2, "low": low, "high": high, "p": 0.5, "p_corrected": 1.0}

    found = {"profile": "mini", "draws": 2000, "dialogues": 300, "higher_is_better": {"bleu1": True, "fid": False, "is": True},
             "pairs": [pair("pipeline", "bleu1", 0.1, 0.2), pair("pipeline", "fid", -0.2, -0.1), pair("pipeline", "is", -1, 1), pair("divter", "bleu1", -2, -1)]}
    said = readme.differences(found)
    assert "- End-to-end beside Pipeline: End-to-end in BLEU-1, FID*; neither in IS*\n- End-to-end beside Divter: Divter in BLEU-1" in said
    assert "2,000 paired bootstrap draws of 300 test dialogues" in said


def test_missing_marker_is_an_error(tmp_path: Path) -> None:
    make_results(tmp_path)
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(ValueError, match="markers"):
        readme.update(tmp_path / "README.md", root=tmp_path)


def test_the_committed_readme_says_what_results_say(tmp_path: Path) -> None:
    """Nobody may type a number: writing the README again changes nothing."""
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    readme.update(copy, root=ROOT / "results")
    assert copy.read_text() == (ROOT / "README.md").read_text(), "run `e2e readme`"


def test_every_path_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    names = set(re.findall(r"\]\(((?:notebooks|figures|results)/[^)]+)\)", text)) | set(re.findall(r"`((?:bridge|models|data|evaluation)/\w+\.py)`", text))
    missing = [name for name in names if not (ROOT / name).exists() and not (ROOT / "e2e_lib" / name).exists()]
    assert names and not missing


def test_published_tables_hold_the_papers_numbers() -> None:
    rows = results.published(2, ROOT / "results")["rows"]
    ours = [row for row in rows if row["system"] == "end_to_end" and row["dataset"] == "PhotoChat"]
    assert ours and ours[0]["bleu1"] == 12.08 and ours[0]["fid"] == 75.88
