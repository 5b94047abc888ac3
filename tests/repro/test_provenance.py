import getpass
import hashlib
import json
import os
import re
import resource
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
from e2e_lib.repro.provenance import ResourceMonitor, fingerprint, git_state, provenance_record


@dataclass(frozen=True)
class Train:
    lr: float = 5e-5
    folder: Path = Path("runs/a")
    elsewhere: str = "/somewhere/private/weights"


@dataclass(frozen=True)
class Config:
    profile: str = "smoke"
    train: Train = Train()
    sizes: tuple[int, ...] = (1, 2)


def test_a_stamp_holds_what_made_the_result_and_survives_json(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"rows")
    made = provenance_record(Config(), seeds={"train": 3}, data={"train": tmp_path / "train.jsonl"}, weights={"unet": "ab" * 32})
    assert json.loads(json.dumps(made)) == made
    assert made["config"] == {"profile": "smoke", "sizes": [1, 2],
                              "train": {"lr": 5e-5, "folder": "runs/a", "elsewhere": "weights"}}
    assert made["seeds"] == {"train": 3}
    assert made["data"] == {"train": hashlib.sha256(b"rows").hexdigest()} and made["weights"] == {"unet": "ab" * 32}
    assert made["versions"]["python"] == ".".join(map(str, sys.version_info[:3])) and made["versions"]["numpy"] == np.__version__
    assert set(provenance.LIBRARIES) < set(made["versions"])
    assert made["platform"]["cpu_count"] == os.cpu_count() and made["platform"]["device"]
    assert abs(datetime.fromisoformat(made["time"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert datetime.fromisoformat(made["time"]).utcoffset() == timedelta(0)


def test_a_stamp_names_no_person_computer_or_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = provenance_record(Config(train=Train(folder=tmp_path / "runs" / "b", elsewhere=str(Path.home() / "private"))), seeds=[1])
    assert made["config"]["train"]["folder"] == "runs/b" and made["config"]["train"]["elsewhere"] == "private"

    def strings(value):
        if isinstance(value, dict):
            return [s for item in value.items() for part in item for s in strings(part)]
        return [s for item in value for s in strings(item)] if isinstance(value, list) else [str(value)]

    for text in strings(made):
        assert not os.path.isabs(text) and text not in (socket.gethostname(), getpass.getuser())


def test_a_config_that_is_no_dataclass_and_a_missing_file_are_errors(tmp_path):
    with pytest.raises(TypeError, match="dataclass object, found dict"):
        provenance_record({"lr": 1}, seeds=1)
    with pytest.raises(FileNotFoundError, match="gone: no such file"):
        provenance_record(Config(), seeds=1, data={"train": tmp_path / "gone"})


def test_a_folders_fingerprint_follows_names_and_contents_only(tmp_path):
    def folder(name: str, **contents: str) -> str:
        for file, text in contents.items():
            (tmp_path / name / "sub").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "sub" / file).write_text(text)
        return fingerprint(tmp_path / name)

    assert folder("one", a="1", b="2") == folder("two", b="2", a="1")
    assert len({folder("one"), folder("three", a="1", b="3"), folder("four", a="1", c="2"), folder("five", a="2", b="1")}) == 4


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


def test_measure_sees_time_and_memory():
    with ResourceMonitor() as measure:
        time.sleep(0.05)
        early = measure.as_dict()
        block = np.ones(40_000_000, dtype=np.uint8)
    done = measure.as_dict()
    time.sleep(0.02)
    assert measure.as_dict() == done
    assert done["wall_seconds"] >= early["wall_seconds"] >= 0.05
    assert done["peak_memory_bytes"] > block.nbytes


def test_measure_counts_a_finished_child():
    script = "import sys; block = b'1' * int(sys.argv[1]); print(len(block))"
    with ResourceMonitor() as measure:
        subprocess.run([sys.executable, "-S", "-c", script, str(400_000_000)], check=True, capture_output=True)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert measure.peak_memory_bytes > 400_000_000 + 0.9 * own
