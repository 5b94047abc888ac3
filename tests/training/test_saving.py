"""A run's folder: one run at a time in it, and whatever fails while it is saved, the next run ends in the same bytes."""

import builtins
import errno
import multiprocessing
import os
import random
import re
import shutil
import signal
import tempfile
import time

import pytest
import torch
from killed_training import train_in_process
from safetensors.torch import load_file
from torch import nn

from e2e_lib.config import replace
from e2e_lib.corpora import prepare
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.run_files import run_folder
from e2e_lib.training import checkpoints
from e2e_lib.training.loop import train
from e2e_lib.training.processes import ProcessError
from e2e_lib.training.saving import BEFORE, LATEST, alone_in, newest

STEPS = 3
RUNS = max(1, int(os.environ.get("E2E_KILLS", "10")) // 10)  # of real training: nine in ten fail at a write, the others are killed


def small_run(folder):
    """Trains a small network as a real run does, with a checkpoint after each step; returns what it said."""
    said = []
    with alone_in(folder), torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer, done = torch.optim.AdamW(model.parameters(), 0.1), 0
        if found := newest(folder, said.append):
            weights, state = checkpoints.load(found[0], optimizer=optimizer, hashes=found[1])
            model.load_state_dict(weights)
            done = state["step"]
        for step in range(done, STEPS):
            optimizer.zero_grad()
            model(torch.full((2, 4), float(step + 1))).square().sum().backward()
            optimizer.step()
            checkpoints.save(folder / LATEST, model.state_dict(), {"step": step + 1}, optimizer, before=folder / BEFORE)
    return said


def result(folder):
    return [(folder / LATEST / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors", "state.json")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    small_run(folder)
    return folder


WRITES = [(files.os, "replace"), (files.os, "fsync"), (files.os, "sync"), (files.os, "chmod"), (tempfile, "mkdtemp"),
          (checkpoints, "save_file"), (checkpoints.shutil, "rmtree"), (builtins, "open")]


def failing(patch, folder, call, fail):
    """Lets the ``call``-th of all writes below a folder fail as ``fail`` does; returns the list of the writes so far."""
    seen = []

    def faulty(real, name):
        def do(*given, **named):
            where = [str(thing) for thing in (*given, *named.values()) if isinstance(thing, str | os.PathLike)]
            reads = name == "open" and (len(given) < 2 or given[1][0] == "r")
            tidies = name == "rmtree" and named.get("ignore_errors")
            if not reads and not tidies and (any(str(folder) in place for place in where) or name in ("fsync", "sync")):
                seen.append(name)
                if len(seen) == call:
                    fail()
            return real(*given, **named)
        return do

    for module, name in WRITES:
        patch.setattr(module, name, faulty(getattr(module, name), name))
    return seen


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_whichever_write_fails_the_next_run_ends_in_the_same_bytes(undisturbed, tmp_path, monkeypatch):
    ended, call = False, 0
    while not ended:
        call += 1
        folder = tmp_path / str(call)
        with monkeypatch.context() as patch:
            seen = failing(patch, folder, call, full)
            try:
                small_run(folder)
                ended = True
            except files.SaveError as error:
                assert f"{folder}" in str(error) and "the disk is full: free some space" in str(error), seen[-1]
        kinds = set(seen)
        small_run(folder)
        assert result(folder) == result(undisturbed), (call, seen[-1])
        assert {p.name for p in folder.iterdir()} == {LATEST, BEFORE, ".lock"}, call  # and nothing half-written is left
    assert call > 50 and kinds == {name for _, name in WRITES}


def killed_at(folder, call):
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, folder, call, lambda: os.kill(os.getpid(), signal.SIGKILL))
        small_run(folder)


def test_at_whichever_write_of_a_later_save_it_is_killed_the_next_run_ends_in_the_same_bytes(undisturbed, tmp_path):
    """The third save has both an older checkpoint to keep and one to remove."""
    with pytest.MonkeyPatch.context() as patch:
        seen = failing(patch, tmp_path / "all", 0, full)
        small_run(tmp_path / "all")
    last = len(seen) - seen[::-1].index("mkdtemp")
    said = []
    for call in range(last - 8, len(seen) + 1):
        folder = tmp_path / str(call)
        process = multiprocessing.get_context("fork").Process(target=killed_at, args=(folder, call))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, call
        said += small_run(folder)  # a dead process's lock is none
        assert result(folder) == result(undisturbed), (call, seen[call - 1])
        assert {p.name for p in folder.iterdir()} == {LATEST, BEFORE, ".lock"}, call
    assert any("its replacement was cut off; going on from the checkpoint before it" in line for line in said)


@pytest.mark.parametrize("how", ["gone", "cut short", "flipped", "empty"])
@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(undisturbed, tmp_path, damage, name, how):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    damage(folder / LATEST / name, how)
    (line,) = small_run(folder)
    assert line.startswith(f"the checkpoint at {folder / LATEST} ") and name in line and "remove" not in line
    assert line.endswith("; going on from the checkpoint before it") and result(folder) == result(undisturbed)


def test_where_no_checkpoint_is_whole_both_are_named(undisturbed, tmp_path, damage):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    damage(folder / BEFORE / "model.safetensors", "flipped")
    assert small_run(folder) == []  # the newest one is sound
    damage(folder / LATEST / "state.json", "gone")
    with pytest.raises(CheckpointError, match="latest is damaged: state.json is missing.*before is damaged: model.safetensors is not"):
        small_run(folder)
    shutil.rmtree(folder / BEFORE)
    with pytest.raises(CheckpointError, match="latest is damaged: state.json is missing; remove the folder and train again"):
        small_run(folder)


def test_a_folder_takes_no_more_than_two_whole_checkpoints(undisturbed, tmp_path, monkeypatch):
    """While a third is written, three; which is what `e2e plan` counts."""
    size, seen, write = (sum(p.stat().st_size for p in (undisturbed / LATEST).iterdir()), [], checkpoints._write)

    def measured(folder, stem, tensors):
        write(folder, stem, tensors)
        seen.append(sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()))

    monkeypatch.setattr(checkpoints, "_write", measured)
    small_run(tmp_path / "run")
    assert 2.5 * size < max(seen) <= 3.1 * size


def hold(folder, ready):
    with alone_in(folder):
        ready.set()
        time.sleep(60)


def test_two_runs_in_one_folder_are_refused_and_a_dead_one_is_no_run(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", ready))
    other.start()
    assert ready.wait(30)
    for _ in range(2):
        with pytest.raises(ProcessError, match=f"{tmp_path}/run: process {other.pid} on .+ is training there; let it end"):
            small_run(tmp_path / "run")
    other.kill()
    other.join()
    small_run(tmp_path / "run")
    with alone_in(tmp_path / "run"), pytest.raises(ProcessError, match=f"process {os.getpid()} on"), alone_in(tmp_path / "run"):
        pass


@pytest.mark.parametrize("write", ["mkdtemp", "open"])
def test_a_read_only_disk_is_said_before_anything_is_trained(tmp_path, monkeypatch, write):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    module = dict((name, module) for module, name in WRITES)[write]
    if write == "open":
        module, write = os, "open"
    monkeypatch.setattr(module, write, read_only)
    with pytest.raises(files.SaveError, match=re.escape(f"could not save {tmp_path}/run") + ".*: the disk is mounted read-only"):
        small_run(tmp_path / "run")


def test_what_is_too_large_for_a_file_lies_in_several(tmp_path, monkeypatch, damage):
    weights = {f"layer.{k}": torch.randn(10, 10) for k in range(7)} | {"half": torch.ones(3).bfloat16()}
    weights |= {"tied": weights["layer.0"], "turned": weights["layer.1"].T}
    checkpoints.save(tmp_path / "whole", weights, {})
    monkeypatch.setattr(checkpoints, "SHARD", 1000)
    model = nn.Linear(20, 20)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    model(torch.ones(1, 20)).sum().backward()
    optimizer.step()
    folder = checkpoints.save(tmp_path / "cut", weights, {"step": 1}, optimizer)
    names = sorted(p.name for p in folder.iterdir())
    parts = [name for name in names if re.fullmatch(r"model-0000\d-of-0000\d\.safetensors", name)]
    assert len(parts) >= 4 and "model.safetensors" not in names and "optimizer.safetensors.index.json" in names
    assert all((folder / name).stat().st_size < 2000 for name in parts)
    found = [load_file(folder / name) for name in parts]
    assert sum(map(len, found)) == len(weights)  # each once
    other = torch.optim.AdamW(model.parameters(), 0.5)
    loaded, state = checkpoints.load(folder, optimizer=other)
    assert state == {"step": 1} and other.param_groups[0]["lr"] == 0.1
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)
    for one, two in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in ("exp_avg", "exp_avg_sq", "step"))
    damage(folder / parts[1], "gone")
    with pytest.raises(CheckpointError, match=f"damaged: {parts[1]} is missing"):
        checkpoints.load(folder)


@pytest.fixture(scope="module")
def short(config):
    """An epoch of three steps, with a checkpoint after each."""
    for key, value in {"epochs": 1, "epoch_examples": 9, "batch_size": 3, "warmup_steps": 1, "checkpoint_every": 1, "dev_examples": 4}.items():
        config = replace(config, f"train.{key}", value)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, short):
    root = tmp_path_factory.mktemp("finished")
    prepare(short, lambda _: None, root / "data")
    with pytest.MonkeyPatch.context() as patch:
        seen = failing(patch, root / "runs", 0, full)
        folder = train(short, 0, lambda _: None, root=root / "runs", data_root=root / "data")
    return folder, len(seen)


def test_kills_and_failing_writes_of_training_end_in_the_same_weights(short, finished, tmp_path):
    """``RUNS`` runs, each of which fails or is killed at a random moment, and many of which do so again."""
    (undisturbed, count), rng, failures, kills = finished, random.Random(0), 0, 0
    data_root = undisturbed.parents[3] / "data"
    for number in range(RUNS):
        root = tmp_path / str(number)
        killed = number % 10 == 9
        for _ in range(rng.randint(1, 1 + min(1, number))):
            if killed:
                kills += kill_somewhere(short, root, data_root, rng)
                continue
            with pytest.MonkeyPatch.context() as patch:
                failing(patch, root, rng.randint(1, count), full)
                try:
                    train(short, 0, lambda _: None, root=root, data_root=data_root)
                except files.SaveError:
                    failures += 1
        folder = train(short, 0, lambda _: None, root=root, data_root=data_root)
        for name in ("best/model", "latest/model", "latest/optimizer"):
            assert (folder / f"{name}.safetensors").read_bytes() == (undisturbed / f"{name}.safetensors").read_bytes(), (number, name)
        shutil.rmtree(root)
    assert kills >= RUNS // 10 and failures >= RUNS - RUNS // 10, (kills, failures)  # and none that came too late


def kill_somewhere(short, root, data_root, rng):
    """Training in a process of its own, killed at a random moment once it has begun to write; begun anew where it has ended
    before that. Returns how many were killed: one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["e2e_lib.training.loop"])
    process = context.Process(target=train_in_process, args=(short, root, data_root))
    process.start()
    while process.is_alive() and not run_folder(short, 0, root).exists():
        time.sleep(0.01)
    process.join(rng.uniform(0, 4))
    process.kill()
    process.join()
    if process.exitcode == 0:
        shutil.rmtree(root)
        return kill_somewhere(short, root, data_root, rng)
    assert process.exitcode == -signal.SIGKILL
    return 1
