"""The script for an accelerator, at tiny size on a CPU."""

import json
import math
import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).with_name("paper_scale.py")))


def test_it_measures_joint_steps(shipped, tmp_path):
    assert SCRIPT["main"](["--out", str(tmp_path), "--tiny", "--formats", "fp16"]) == 0
    found = json.loads((tmp_path / "paper_scale.json").read_text())
    assert [run["format"] for run in found["runs"]] == ["fp16"] and found["tiny"]
    for run in found["runs"]:
        batch = run["batch"]
        assert math.isfinite(run["loss"]) and run["planned_gb"] > 0 and run["operations_per_second"] > 0
        assert batch["tokens"] > 96 and batch["context_photos"] == batch["response_photos"] == 2 and batch["caption"] > 3
        assert run["tokens_per_second"] == pytest.approx(2 * batch["tokens"] / run["seconds_per_step"])
        assert run["bridge"]["over_floor"] > 0 and run["bridge"]["logits"][0] == 2
        assert "aten::" in (tmp_path / f"profile-{run['format']}.txt").read_text()


def test_without_an_accelerator_only_the_tiny_size_runs(tmp_path, capsys):
    if SCRIPT["torch"].cuda.is_available():
        pytest.skip("an accelerator is here")
    with pytest.raises(SystemExit):
        SCRIPT["main"](["--out", str(tmp_path)])
    assert "--tiny" in capsys.readouterr().err
