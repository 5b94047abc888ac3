"""The whole thread at `smoke`: data, training, scores, figures and every notebook through papermill."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from e2e_lib import corpora
from e2e_lib.config import SYSTEMS, load
from e2e_lib.reproduce import NOTEBOOKS, compare, reproduce, score_lines

ROOT = Path(__file__).parents[1]


def test_reproduce_smoke_runs_every_notebook_and_keeps_what_is_done(monkeypatch) -> None:
    # One thread: the other tests run beside it, and two threads that wait for each other are slower than one.
    done = subprocess.run([sys.executable, "-m", "e2e_lib", "reproduce", "--profile", "smoke", "--fresh"], cwd=ROOT, capture_output=True,
                          text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in NOTEBOOKS:
        executed = nbformat.read(ROOT / "results" / "smoke" / "notebooks" / f"{name}.ipynb", as_version=4)
        code = [cell for cell in executed.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code if cell.source.strip())
        assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    summary = json.loads((ROOT / "results" / "smoke" / "summary.json").read_text())
    assert set(summary["systems"]["end_to_end"]) >= {"bleu1", "bleu2", "rougeL", "intent_f1", "caption_bleu", "scene_accuracy"}
    assert f"notebook {len(NOTEBOOKS)} of {len(NOTEBOOKS)}" in done.stdout

    before = (ROOT / "results" / "smoke" / "runs" / "end_to_end-seed0.json").read_bytes()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("e2e_lib.reproduce.results_figures.draw_all", lambda *_: None)  # drawn again, they are the same
    lines: list[str] = []
    reproduce(load("smoke"), [0], lines.append)
    again = "\n".join(lines)
    assert "trained already" in again and again.count("skipped") >= len(NOTEBOOKS)
    assert (ROOT / "results" / "smoke" / "runs" / "end_to_end-seed0.json").read_bytes() == before


def test_score_lines_show_mean_and_spread_by_system() -> None:
    summary = {"profile": "mini", "test": {"examples": 7}, "runs": ["end_to_end-seed0.json", "end_to_end-seed2.json"],
               "systems": {"end_to_end": {"bleu1": {"mean": 12.5, "std": 0.25, "n": 2}, "fid": {"mean": 2.0, "std": None, "n": 1}}}}
    lines = score_lines(summary)
    assert "BLEU-1" in lines and "12.50 ± 0.25" in lines and "2.00\n" in lines and "7 examples" in lines and "seeds 0, 2" in lines


@pytest.mark.parametrize("knows_scenes", [True, False])
def test_a_corpus_without_known_scenes_is_compared_without_what_needs_them(monkeypatch, knows_scenes) -> None:
    ran, lines = [], []
    for name in ("train", "evaluate", "comparison.compare_systems", "propagation.propagate", "propagation.gold_fid", "results.summarise",
                 "table_files.write_tables", "score_lines"):
        monkeypatch.setattr(f"e2e_lib.reproduce.{name}", lambda *_, name=name, **__: ran.append(name) or "")
    plug = corpora.Corpus(lambda *_: None, lambda: None, knows_scenes=knows_scenes)
    monkeypatch.setitem(corpora.CORPORA, "walls", plug)
    config = dataclasses.replace(load("smoke"), data=dataclasses.replace(load("smoke").data, name="walls"))
    compare(config, [0, 1], lines.append)
    assert [name for name in ran if name.startswith("propagation")] == ["propagation.propagate", "propagation.gold_fid"] * knows_scenes
    stages = [line.split(":")[0] for line in lines if line.startswith("== ")]
    assert stages == [f"== stage {number} of {len(stages)}" for number in range(1, len(stages) + 1)] and len(stages) == 1 + 2 * len(SYSTEMS) * 2 + knows_scenes
