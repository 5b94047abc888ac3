import errno
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError
from e2e_lib.training import checkpoints

ALL = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def trained(steps=3, seed=0):
    """A small network with tied weights after a few steps of AdamW, and its optimizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    go_on(model, optimizer, steps)
    return model, optimizer


def go_on(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((2, 3), float(step + 1))).square().sum().backward()
        optimizer.step()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def saved(tmp_path):
    model, optimizer = trained()
    return checkpoints.save(tmp_path / "latest", model.state_dict(), {"step": 3}, optimizer)


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(saved):
    weights, state = checkpoints.load(saved)
    assert state == {"step": 3} and sorted(p.name for p in saved.iterdir()) == ALL
    model, optimizer = trained(0, seed=1)
    weights, _ = checkpoints.load(saved, optimizer=optimizer)
    model.load_state_dict(weights)
    go_on(model, optimizer, 4)
    never_stopped, its_optimizer = trained()
    go_on(never_stopped, its_optimizer, 4)
    assert same(model.state_dict(), never_stopped.state_dict())
    for ours, theirs in zip(optimizer.state.values(), its_optimizer.state.values(), strict=True):
        assert same(ours, theirs)


def test_every_kind_of_tensor_comes_back(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    weights = {"float": torch.randn(3, 4), "half": torch.randn(3).half(), "bfloat": torch.randn(3).bfloat16(), "int": torch.arange(4), "scalar": torch.tensor(2.5),
               "empty": torch.zeros(0, 3), "turned": shared.T, "shared": shared, "view": shared[1]}
    checkpoints.save(tmp_path / "c", weights, {})
    found, _ = checkpoints.load(tmp_path / "c")
    assert same(found, weights) and all(found[name].dtype == weights[name].dtype for name in weights)


def test_the_same_state_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        model, optimizer = trained()
        checkpoints.save(tmp_path / name, model.state_dict(), {"step": 3}, optimizer)
    assert files.sha256_folder(tmp_path / "one") == files.sha256_folder(tmp_path / "two")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("damage", ["gone", "cut short", "flipped", "empty"])
def test_a_damaged_checkpoint_is_an_error_that_names_the_file(saved, name, damage):
    path = saved / name
    content = path.read_bytes()
    path.unlink()
    middle = len(content) // 2
    if damage != "gone":
        path.write_bytes({"cut short": content[:middle], "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1:],
                          "empty": b""}[damage])
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(saved, optimizer=trained(0)[1])
    assert str(saved) in str(caught.value) and name in str(caught.value) and "remove the folder and train again" in str(caught.value)


def test_a_missing_checkpoint_says_how_to_make_one(tmp_path):
    assert not checkpoints.exists(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path}/absent; train one with `e2e train`"):
        checkpoints.load(tmp_path / "absent")


def test_weights_alone_are_no_checkpoint_to_go_on_from(tmp_path):
    model, optimizer = trained()
    checkpoints.save(tmp_path / "best", model.state_dict(), {})
    with pytest.raises(CheckpointError, match="optimizer.safetensors"):
        checkpoints.load(tmp_path / "best", optimizer=optimizer)


FAILURES = {"safetensors says the disk is full": (checkpoints, "save_file"), "the flush fails": (files.os, "fsync"), "the rename fails": (files.os, "replace")}


@pytest.mark.parametrize("name", FAILURES)
def test_a_save_that_fails_leaves_the_old_checkpoint(saved, monkeypatch, name):
    before = files.sha256_folder(saved)
    model, optimizer = trained(5)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*FAILURES[name], full)
        with pytest.raises(files.SaveError, match="the disk is full: free some space"):
            checkpoints.save(saved, model.state_dict(), {"step": 5}, optimizer)
    assert checkpoints.exists(saved) and files.sha256_folder(saved) == before
    assert checkpoints.load(saved)[1] == {"step": 3}
    assert [p.name for p in saved.parent.iterdir()] == ["latest"]  # nothing half-written is left behind
    checkpoints.save(saved, model.state_dict(), {"step": 5}, optimizer)
    assert checkpoints.load(saved)[1] == {"step": 5}


def test_a_file_that_the_system_refuses_to_grow_leaves_the_old_checkpoint(saved):
    # No patching here: the operating system itself stops the write, in model.safetensors (80 kB), early and late.
    before = files.sha256_folder(saved)
    script = f"""
import resource, signal, torch
from e2e_lib import checkpoints, files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (60_000, 1_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        checkpoints.save({str(saved)!r}, {{"w": torch.ones(20_000)}}, {{"step": 9}})
    except files.SaveError as error:
        print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": os.getcwd()})
    said = done.stdout.splitlines()
    assert len(said) == 2 and all(line.startswith(f"refused: could not save {saved}") and "untouched" in line for line in said), done.stderr
    assert files.sha256_folder(saved) == before and [p.name for p in saved.parent.iterdir()] == ["latest"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB, where the machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(small_disk):
    folder = checkpoints.save(small_disk / "latest", {"w": torch.ones(30_000)}, {"step": 1})  # 120 kB: it fits once, not twice
    with pytest.raises(files.SaveError, match="the disk is full: free some space and run the same command again"):
        checkpoints.save(folder, {"w": torch.zeros(40_000)}, {"step": 2})
    weights, state = checkpoints.load(folder)
    assert state == {"step": 1} and torch.equal(weights["w"], torch.ones(30_000))
    assert [p.name for p in small_disk.iterdir()] == ["latest"]
    checkpoints.save(folder, {"w": torch.zeros(1_000)}, {"step": 3})  # once there is room it goes on
    assert checkpoints.load(folder)[1] == {"step": 3}


def test_a_checkpoint_cut_off_between_two_renames_is_put_back(saved):
    os.replace(saved, saved.with_name(".latest.old"))
    assert checkpoints.exists(saved) and checkpoints.load(saved)[1] == {"step": 3}
