"""A checkpoint is whole or absent, whatever fails while it is written, and gives back every bit."""

import errno
import multiprocessing
import os
import re
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from e2e_lib.models.losses import trainable_weights
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError
from e2e_lib.training import checkpoints

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def trained(steps=3, seed=0):
    """A small network after a few steps of AdamW, and its optimizer."""
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


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(saved):
    assert sorted(p.name for p in saved.iterdir()) == FILES
    model, optimizer = trained(0, seed=1)
    optimizer.param_groups[0]["lr"] = 99.0  # a schedule's rate comes back, too
    weights, state = checkpoints.load(saved, optimizer=optimizer)
    assert state == {"step": 3} and optimizer.param_groups[0]["lr"] == 0.01
    model.load_state_dict(weights)
    go_on(model, optimizer, 4)
    never_stopped, its_optimizer = trained()
    go_on(never_stopped, its_optimizer, 4)
    assert same(model.state_dict(), never_stopped.state_dict())
    for ours, theirs in zip(optimizer.state.values(), its_optimizer.state.values(), strict=True):
        assert same(ours, theirs)


def test_every_kind_of_tensor_comes_back(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    weights = {"float": torch.randn(3, 4), "half": torch.randn(3).half(), "bfloat": torch.randn(3).bfloat16(),
               "int": torch.arange(4), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "turned": shared.T,
               "shared": shared, "view": shared[1]}
    checkpoints.save(tmp_path / "c", weights, {})
    loaded, _ = checkpoints.load(tmp_path / "c")
    assert same(loaded, weights) and all(loaded[name].dtype == weights[name].dtype for name in weights)


def test_states_in_dictionaries_that_share_tables_come_back(tmp_path):
    """As those of AdamW with 8 bits: a dictionary for each weight, with a table that all of them have."""
    model, table = nn.Linear(3, 4), torch.arange(8.0)

    def optimizer(*values):
        made = torch.optim.SGD(model.parameters(), 0.1)
        for parameter, value in zip(model.parameters(), values, strict=False):
            made.state[parameter] = {"step": torch.tensor(3.0), "quantized": {"table": table, "states": torch.full((5,), value, dtype=torch.uint8)}}
        return made

    checkpoints.save(tmp_path / "latest", model.state_dict(), {}, optimizer(7, 9))
    checkpoints.load(tmp_path / "latest", optimizer=(loaded := optimizer()))
    states = [loaded.state[parameter] for parameter in model.parameters()]
    assert [state["quantized"]["states"].tolist() for state in states] == [[7] * 5, [9] * 5]
    assert all(torch.equal(state["quantized"]["table"], table) and state["step"] == 3 for state in states)


def test_the_same_state_gives_the_same_bytes(saved, tmp_path):
    model, optimizer = trained()
    checkpoints.save(tmp_path / "two", model.state_dict(), {"step": 3}, optimizer)
    assert files.sha256_folder(saved) == files.sha256_folder(tmp_path / "two")


def test_weights_that_do_not_fit_the_model_are_refused(new_model):
    model = new_model()
    weights = {name: tensor.clone() + 1 for name, tensor in trainable_weights(model).items()}
    checkpoints.load_weights(model, weights, Path("here"))
    assert same(trainable_weights(model), weights)
    name, tensor = weights.popitem()
    size, fits = re.escape(str(tuple(tensor.shape))), "the checkpoint at here does not fit the model: "
    with pytest.raises(CheckpointError, match=f"{fits}1 tensors differ, {name} first .none there, {size} here.; remove"):
        checkpoints.load_weights(model, weights, Path("here"))
    with pytest.raises(CheckpointError, match="2 tensors"):
        checkpoints.load_weights(model, {**weights, "other": tensor}, Path("here"))
    with pytest.raises(CheckpointError, match=f"{fits}1 tensors differ, {name} first .*1.* there, {size} here.; remove"):
        checkpoints.load_weights(model, {**weights, name: torch.zeros(1)}, Path("here"))


def sealed(folder):
    """The folder with a manifest of what is in it now."""
    (folder / "manifest.json").unlink()
    files.write_json(folder / "manifest.json", files.sha256_folder(folder))
    return folder


@pytest.mark.parametrize(("changed", "complaint"), [
    ({"state.json": "[]"}, "state.json: expected an object, found list"), ({"state.json": "3"}, "state.json: expected an object"),
    ({"state.json": "{"}, "state.json|Expecting"), ({"state.json": None}, "manifest.json does not name state.json"),
    ({"model.safetensors": None}, "manifest.json does not name model.safetensors"), ({"optimizer.safetensors": {"odd": torch.ones(1)}}, "")])
def test_a_folder_that_is_whole_but_no_checkpoint_is_named(saved, changed, complaint):
    for name, content in changed.items():
        (saved / name).unlink()
        if isinstance(content, dict):
            save_file(content, saved / name)
        elif content is not None:
            (saved / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"the checkpoint at {saved} is not one that this version saves .*{complaint}.*; remove"):
        checkpoints.load(sealed(saved), optimizer=trained(0)[1])


def test_the_state_of_a_checkpoint_has_the_shape_that_is_asked_for(saved):
    assert checkpoints.load(saved, shape={"step": int})[1] == {"step": 3}
    with pytest.raises(CheckpointError, match="state.json, field 'config': expected an object, found NoneType"):
        checkpoints.load(saved, shape={"config": {}})


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["gone", "cut short", "flipped", "empty"])
def test_a_damaged_checkpoint_is_an_error_that_names_the_file(saved, damage, name, how):
    damage(saved / name, how)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(saved, optimizer=trained(0)[1])
    assert all(part in str(caught.value) for part in (str(saved), name, "remove the folder and train again"))


def test_a_missing_checkpoint_or_optimizer_is_an_error_that_says_what_to_do(tmp_path):
    assert not checkpoints.exists(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path}/absent; train one with `e2e train`"):
        checkpoints.load(tmp_path / "absent")
    model, optimizer = trained()
    checkpoints.save(tmp_path / "best", model.state_dict(), {})
    with pytest.raises(CheckpointError, match="optimizer.safetensors is missing; remove the folder"):
        checkpoints.load(tmp_path / "best", optimizer=optimizer)


def test_a_checkpoint_cut_off_between_two_renames_is_put_back(saved):
    os.replace(saved, saved.with_name(".latest.old"))
    assert checkpoints.exists(saved) and checkpoints.load(saved)[1] == {"step": 3}


FAILURES = {"safetensors says the disk is full": (checkpoints, "save_file"), "the flush fails": (files.os, "fsync"),
            "the rename fails": (files.os, "replace")}


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
    assert [p.name for p in saved.parent.iterdir()] == ["latest"]  # nothing half-written is left behind
    checkpoints.save(saved, model.state_dict(), {"step": 5}, optimizer)
    assert checkpoints.load(saved)[1] == {"step": 5}


def save_within(limits, folder, errors):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            checkpoints.save(folder, {"w": torch.ones(20_000)}, {"step": 9})
        except files.SaveError as error:
            errors.send(str(error))
    errors.close()


def test_a_file_that_the_system_refuses_to_grow_leaves_the_old_checkpoint(saved):
    # No patching here: the operating system itself stops the write, late and early in model.safetensors (80 kB).
    before, (ours, theirs) = files.sha256_folder(saved), multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=save_within, args=((60_000, 1_000), saved, theirs))
    process.start()
    process.join(60)
    errors = [ours.recv() for _ in range(2) if ours.poll()]
    assert process.exitcode == 0 and len(errors) == 2
    assert all(error.startswith(f"could not save {saved}") and "untouched" in error for error in errors)
    assert files.sha256_folder(saved) == before and [p.name for p in saved.parent.iterdir()] == ["latest"]
