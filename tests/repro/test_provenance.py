import getpass
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from e2e_lib.repro import provenance
from e2e_lib.repro.provenance import ResourceMonitor, clock, git_state, provenance_record


@dataclass(frozen=True)
class Train:
    lr: float = 5e-5
    folder: str = "runs/a"
    elsewhere: str = "/somewhere/private/weights"


@dataclass(frozen=True)
class Config:
    profile: str = "smoke"
    train: Train = Train()


def test_a_record_holds_all_that_decides_a_result_and_survives_json(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"rows")
    record = provenance_record(Config(), seeds={"train": 3}, data={"train": tmp_path / "train.jsonl"}, weights={"unet": "ab" * 32})
    assert json.loads(json.dumps(record)) == record
    assert record["config"] == {"profile": "smoke", "train": {"lr": 5e-5, "folder": "runs/a", "elsewhere": "weights"}}
    assert record["seeds"] == {"train": 3}
    assert record["data"] == {"train": hashlib.sha256(b"rows").hexdigest()} and record["weights"] == {"unet": "ab" * 32}
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3])) and record["versions"]["numpy"] == np.__version__
    assert set(provenance.LIBRARIES) < set(record["versions"])
    assert record["platform"]["cpu_count"] == os.cpu_count() and record["platform"]["device"]
    assert abs(datetime.fromisoformat(record["time"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert datetime.fromisoformat(record["time"]).utcoffset() == timedelta(0)


def test_a_record_names_no_person_computer_or_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = provenance_record(Config(train=Train(folder=str(tmp_path / "runs" / "b"), elsewhere=str(Path.home() / "private"))), seeds=[1])
    assert record["config"]["train"]["folder"] == "runs/b" and record["config"]["train"]["elsewhere"] == "private"

    def strings(value):
        if isinstance(value, dict):
            return [s for item in value.items() for part in item for s in strings(part)]
        return [s for item in value for s in strings(item)] if isinstance(value, list) else [str(value)]

    for text in strings(record):
        assert not os.path.isabs(text) and text not in (socket.gethostname(), getpass.getuser())


def test_a_file_to_hash_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        provenance_record(Config(), seeds=[1], data={"train": tmp_path / "gone"})


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    if not shutil.which("git"):
        pytest.skip("git is not installed")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())
    return tmp_path, git("rev-parse", "HEAD")


def test_git_state_of_a_checkout(checkout):
    folder, commit = checkout
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert git_state() == {"commit": commit, "dirty": False}
    (folder / "results").mkdir()
    (folder / "results" / "run.json").write_text("{}")
    assert git_state()["dirty"] is False
    (folder / "code.py").write_text("2")
    assert git_state() == {"commit": commit, "dirty": True}


def test_git_state_outside_a_checkout_is_none(checkout, monkeypatch):
    none = {"commit": None, "dirty": None}
    below = checkout[0] / "venv" / "site-packages"
    below.mkdir(parents=True)
    for root in (below, checkout[0] / "missing"):
        monkeypatch.setattr(provenance, "ROOT", root.resolve())
        assert git_state() == none
    monkeypatch.setattr(provenance, "ROOT", checkout[0].resolve())
    monkeypatch.setenv("PATH", "")
    assert git_state() == none


def test_the_monitor_sees_time_memory_and_finished_children():
    script = "import sys; block = b'1' * int(sys.argv[1]); print(len(block))"
    with ResourceMonitor() as cost:
        time.sleep(0.05)
        block = np.ones(40_000_000, dtype=np.uint8)
        subprocess.run([sys.executable, "-S", "-c", script, str(400_000_000)], check=True, capture_output=True)
    assert cost.as_dict() == {"wall_seconds": round(cost.wall_seconds, 3), "peak_memory_bytes": cost.peak_memory_bytes}
    assert cost.wall_seconds >= 0.05 and cost.peak_memory_bytes > 400_000_000 + block.nbytes


def test_durations_are_shown_in_minutes_or_hours():
    assert [clock(s) for s in (0, 12.4, 59.6, 61, 3599, 3600, 7325)] == ["0:00", "0:12", "1:00", "1:01", "59:59", "1:00:00", "2:02:05"]
