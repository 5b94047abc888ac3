"""The training loop: what it logs, when it stops, and that a run killed anywhere ends with the bytes of one never killed."""

import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_lib.config import Bridge, load, replace
from e2e_lib.corpora import prepare
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.run_files import run_folder
from e2e_lib.training import checkpoints, loop
from e2e_lib.training.dev import dev_score
from e2e_lib.training.loop import load_trained, norm, temperature_at, train

OVERRIDES = ["data.train=12", "data.dev=4", "data.test=4", "train.dev_examples=6", "inference.num_inference_steps=2", "inference.max_new_tokens=8",
             "train.epoch_examples=20", "train.batch_size=4", "train.warmup_steps=4", "train.checkpoint_every=2", "train.epochs=2"]
STEPS = 10


def quiet(_):
    pass


@pytest.fixture(scope="module")
def config():
    """A run of two epochs of five steps each on the parts that stand in for the shipped ones."""
    return load("smoke", OVERRIDES)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory, config):
    root = tmp_path_factory.mktemp("corpora")
    prepare(config, quiet, root)
    return root


def run(config, weights, root, data_root, kill=None, seed=0):
    """Trains; ``kill`` names where the process kills itself. Also what a process of its own runs."""
    torch.set_num_threads(1)
    hub.WEIGHTS = weights
    if kill:
        prepare_to_die(*kill)
    train(config, seed, quiet, root=root, data_root=data_root)


def prepare_to_die(where, call):
    """SIGKILL in the ``call``-th checkpoint: half way into its weights, or between the two renames that put it in its place."""
    save_file, rename, calls = checkpoints.save_file, os.replace, Counter()

    def half_a_file(tensors, path):
        calls["save"] += 1
        save_file(tensors, path)
        if calls["save"] == call:
            path.write_bytes(path.read_bytes()[:1000])
            os.kill(os.getpid(), signal.SIGKILL)

    def half_a_replacement(source, target):
        if Path(source).name == "latest":
            calls["replace"] += 1
        if calls["replace"] == call and Path(target).name == "latest":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    if where == "weights":
        checkpoints.save_file = half_a_file
    else:
        files.os.replace = half_a_replacement


def in_process(*args, **kwargs):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["e2e_lib.training.loop"])  # the slow imports once for all processes
    process = context.Process(target=run, args=args, kwargs=kwargs)
    process.start()
    return process


def lines_of(folder):
    path = folder / "log.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def finished(config, weights, data_root, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("runs")
    process = in_process(config, weights, root, data_root)
    process.join(120)
    assert process.exitcode == 0
    return run_folder(config, 0, root)


# --------------------------------------------------------------------------------------------------------- closed forms

@given(st.floats(0.001, 100), st.floats(0.001, 100), st.floats(0, 10), st.floats(0, 20))
def test_the_temperature_falls_linearly_then_stays(start, end, epochs, at):
    bridge = Bridge(temperature_start=start, temperature_end=end, temperature_epochs=epochs)
    assert temperature_at(bridge, epochs) == pytest.approx(end) and (epochs == 0 or temperature_at(bridge, 0) == start)
    expected = end if at >= epochs else start + (end - start) * at / epochs
    assert temperature_at(bridge, at) == pytest.approx(expected)


def test_the_papers_temperature():
    values = [temperature_at(Bridge(), epoch) for epoch in (0, 1, 2, 3, 50)]
    assert values == pytest.approx([1.0, 0.67, 0.34, 0.01, 0.01])


def test_the_dev_score_rises_with_bleu_and_falls_with_fid():
    assert dev_score({"bleu2": 4.0, "fid": 20.0}) == pytest.approx(math.log(4 / 20))
    assert dev_score({"bleu2": 5.0, "fid": 20.0}) > dev_score({"bleu2": 4.0, "fid": 20.0}) > dev_score({"bleu2": 4.0, "fid": 21.0})
    assert dev_score({"bleu2": 4.0, "fid": None}) == -math.inf < dev_score({"bleu2": 0.0, "fid": 1e6})


def test_the_norm_is_that_of_one_long_vector():
    gradients = [torch.randn(3, 4), None, torch.randn(7).half()]
    assert norm(gradients) == pytest.approx(torch.cat([g.flatten().float() for g in gradients if g is not None]).norm().item(), rel=1e-5)
    assert norm([None]) == 0


# --------------------------------------------------------------------------------------------------------- a whole run

def test_the_log_says_what_happened(finished, config):
    lines = [json.loads(line) for line in lines_of(finished)]
    steps, dev = ([line for line in lines if line["kind"] == kind] for kind in ("step", "dev"))
    assert [line["step"] for line in steps] == list(range(STEPS)) and [line["epoch"] for line in dev] == [1, 2]
    assert [line["temperature"] for line in steps] == pytest.approx([1 - 0.99 / 3 * step / 5 for step in range(STEPS)])
    assert [line["epoch"] for line in steps] == pytest.approx([step / 5 for step in range(STEPS)])
    for line in steps:
        assert 0 < line["text_loss"] < 20 and line["examples_per_second"] > 0 and line["captions_cut"] >= 0
        assert 0 < line["gradient_language"] < 1e4 and line["gradient_perceptron"] >= 0
        assert (line["image_loss"] is None) == (line["gradient_language_from_image"] is None)
        assert line["image_loss"] is None or 0 < line["image_loss"] < 20 and line["gradient_unet"] > 0
    assert sum(line["gradient_language_from_image"] or 0 for line in steps) > 0
    assert all(later["seconds"] >= earlier["seconds"] for earlier, later in zip(lines, lines[1:], strict=False))
    assert [line["learning_rate"] for line in steps] == pytest.approx([config.train.learning_rate * min(1, step / 4) for step in range(STEPS)])


def test_a_finished_run_leaves_what_is_needed(finished, config, shipped):
    done = json.loads((finished / "done.json").read_text())
    assert (done["steps"], done["epochs"], done["seed"], done["config"]["profile"]) == (STEPS, 2, 0, "smoke")
    for epoch in range(3):
        rows = json.loads((finished / "gallery" / f"epoch-{epoch}" / "gallery.json").read_text())
        assert rows and all(row["gold"] and row["drawn"] == (row["caption"] is not None) for row in rows)
    model = load_trained(config, 0, root=finished.parents[3])
    best, state = checkpoints.load(finished / "best")
    assert state["epoch"] == done["best"]["epoch"] and not model.training
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.trained_weights().items())
    untrained = loop.build(config).trained_weights()
    assert all(not torch.equal(untrained[name], best[name]) for name in ("language.model.layers.0.self_attn.q_proj.weight",
                                                                         "perceptron.query_tokens", "generator.unet.conv_in.weight"))


def test_a_finished_run_is_not_trained_again(finished, config, shipped):
    before = files.sha256_folder(finished)
    said = []
    assert train(config, 0, said.append, root=finished.parents[3]) == finished
    assert "trained already" in said[-1] and files.sha256_folder(finished) == before


@pytest.mark.parametrize("override", ["train.learning_rate=0.1", "bridge.mapping=none", "data.seed=4", "model.generator=/elsewhere"])
def test_a_run_of_other_settings_is_not_mixed_up(finished, shipped, tmp_path, override):
    other = load("smoke", [*OVERRIDES, override])
    key = override.partition("=")[0]
    for attempt in (train, load_trained):
        arguments = (other, 0, quiet) if attempt is train else (other, 0)
        with pytest.raises(CheckpointError, match=f"another configuration .*{key}: .* there, .* here"):
            attempt(*arguments, root=finished.parents[3])


def test_how_answers_are_written_may_differ(finished, config, shipped):
    assert load_trained(replace(config, "inference.num_beams", 3), 0, root=finished.parents[3])


def test_a_run_that_was_never_made_says_so(config, shipped, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*seed-5/best; train one with `e2e train`"):
        load_trained(config, 5, root=tmp_path)


# ----------------------------------------------------------------------------------------------------- killed and resumed

def test_a_killed_run_ends_with_the_bytes_of_one_never_killed(finished, config, weights, data_root, tmp_path):
    folder = run_folder(config, 0, tmp_path)
    first = in_process(config, weights, tmp_path, data_root)
    deadline = time.monotonic() + 60
    while len(lines_of(folder)) < 3 and first.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    first.kill()  # at whatever it was doing
    first.join()
    assert first.exitcode == -signal.SIGKILL and not (folder / "done.json").exists() and len(lines_of(folder)) >= 3
    for kill in (("weights", 2), ("renames", 1), ("renames", 2), None):
        process = in_process(config, weights, tmp_path, data_root, kill=kill)
        process.join(120)
        assert process.exitcode == (-signal.SIGKILL if kill else 0), kill
    for name in ("best", "latest"):
        assert files.sha256(folder / name / "model.safetensors") == files.sha256(finished / name / "model.safetensors"), name
    assert files.sha256(folder / "latest" / "optimizer.safetensors") == files.sha256(finished / "latest" / "optimizer.safetensors")

    def story(line):
        return {key: value for key, value in json.loads(line).items() if key not in ("seconds", "examples_per_second")}

    assert [story(line) for line in lines_of(folder)] == [story(line) for line in lines_of(finished)]


def test_a_log_line_cut_off_by_a_kill_does_not_stop_the_run(finished, config, shipped, data_root, tmp_path):
    folder = begun(config, finished, tmp_path)
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"kind": "step", "st')
    train(config, 0, quiet, root=tmp_path, data_root=data_root)
    assert all(json.loads(line) for line in lines_of(folder)) and (folder / "done.json").exists()


def begun(config, finished, root):
    """A run's folder as a kill after its last checkpoint leaves it."""
    folder = run_folder(config, 0, root)
    shutil.copytree(finished, folder)
    (folder / "done.json").unlink()
    return folder


def test_a_checkpoint_of_other_settings_is_not_resumed(finished, config, shipped, data_root, tmp_path):
    begun(config, finished, tmp_path)
    with pytest.raises(CheckpointError, match="another configuration .train.epochs: 2 there, 3 here"):
        train(replace(config, "train.epochs", 3), 0, quiet, root=tmp_path, data_root=data_root)


def test_a_damaged_checkpoint_is_not_resumed(finished, config, shipped, data_root, tmp_path):
    path = begun(config, finished, tmp_path) / "latest" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged: optimizer.safetensors"):
        train(config, 0, quiet, root=tmp_path, data_root=data_root)


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(finished, config, shipped, data_root, tmp_path, monkeypatch):
    calls, save_file = Counter(), checkpoints.save_file

    def full(*arguments):
        calls["save"] += 1
        if calls["save"] == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(files.SaveError, match="the disk is full: free some space and run the same command again"):
            train(config, 0, quiet, root=tmp_path, data_root=data_root)
    folder = train(config, 0, quiet, root=tmp_path, data_root=data_root)
    for name in ("best", "latest"):
        assert files.sha256(folder / name / "model.safetensors") == files.sha256(finished / name / "model.safetensors")


# ----------------------------------------------------------------------------------------------------- stopping, adding up

def test_it_stops_after_patience_epochs_without_a_better_score(config, shipped, data_root, tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0, 3.0, 99.0])
    monkeypatch.setattr(loop, "dev_score", lambda _: next(scores))
    kept = {}

    def remember(folder, weights, state, *rest):
        kept.setdefault(folder.name, []).append((state.get("epoch"), {name: tensor.clone() for name, tensor in weights.items()}))
        return save(folder, weights, state, *rest)

    save = checkpoints.save
    monkeypatch.setattr(checkpoints, "save", remember)
    patient = replace(replace(replace(config, "train.epochs", 9), "train.patience", 2), "train.epoch_examples", 4)
    folder = train(patient, 0, quiet, root=tmp_path, data_root=data_root)
    done = json.loads((folder / "done.json").read_text())
    assert done["epochs"] == 4 and done["best"] == {"epoch": 2, "score": 3.0} and next(scores) == 99.0
    assert [epoch for epoch, _ in kept["best"]] == [1, 2]
    weights, state = checkpoints.load(folder / "best")
    assert state["epoch"] == 2 and all(torch.equal(weights[name], tensor) for name, tensor in kept["best"][1][1].items())


def test_batches_can_be_added_up_to_one_step(config, shipped, data_root, tmp_path):
    adding = replace(replace(config, "train.gradient_accumulation_steps", 3), "train.epochs", 1)
    folder = train(adding, 0, quiet, root=tmp_path, data_root=data_root)
    assert json.loads((folder / "done.json").read_text())["steps"] == 2  # five batches: three, and the two left at the epoch's end
    _, state = checkpoints.load(folder / "latest")
    assert state["step"] == 2


def test_seeds_differ_and_repeat(finished, config, shipped, data_root, tmp_path):
    other = train(replace(config, "train.epochs", 1), 1, quiet, root=tmp_path, data_root=data_root)
    first, second = (json.loads(lines_of(folder)[0]) for folder in (finished, other))
    assert first["text_loss"] != second["text_loss"]


# ------------------------------------------------------------------------------------------------------ several processes

SEVERAL = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate import PartialState
from e2e_lib.config import load
from e2e_lib.models import hub
from e2e_lib.training.loop import train
weights, root, data, overrides = json.loads(sys.argv[1])
hub.WEIGHTS = Path(weights)
import e2e_lib.training.loop as training
dev.dev_score = lambda _: next(scores)
for seed in (0, 1):
    scores = iter([3.0, 2.0, 1.0, 99.0])
    train(load("smoke", overrides), seed, lambda _: None, root=Path(root), data_root=Path(data))
state = PartialState()
(Path(root) / f"finished-{state.process_index}").write_text(f"{state.num_processes} {state.distributed_type.value}")
"""


def test_two_processes_train_one_model(weights, tmp_path):
    overrides = [o for o in OVERRIDES if "batch_size" not in o and "epochs" not in o] + ["train.batch_size=2", "train.epochs=5", "train.patience=1"]
    rate = load("smoke", overrides).train.learning_rate
    (tmp_path / "several.py").write_text(SEVERAL)
    arguments = json.dumps([str(weights), str(tmp_path), str(tmp_path / "data"), overrides])
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "several.py"), arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"})
    try:
        _, complaints = launcher.communicate(timeout=600)
    finally:
        launcher.terminate()  # not kill: it then ends the processes it started
        launcher.wait(60)
    assert launcher.returncode == 0, complaints
    # Files, because two processes' lines on one pipe can run into each other.
    assert [(tmp_path / f"finished-{rank}").read_text() for rank in (0, 1)] == ["2 MULTI_CPU"] * 2
    for seed in (0, 1):  # one after another, as the command line trains them
        folder = tmp_path / "smoke" / "end_to_end" / f"seed-{seed}"
        steps = [line for line in map(json.loads, lines_of(folder)) if line["kind"] == "step"]
        assert len(steps) == 10 and all(math.isfinite(line["text_loss"]) and math.isfinite(line["image_loss"] or 0) for line in steps)
        assert [line["learning_rate"] for line in steps[:5]] == pytest.approx([rate * min(1, step / 4) for step in range(5)])
        result = json.loads((folder / "done.json").read_text())
        assert result["epochs"] == 2 and result["steps"] == 2 * 5  # both stop early together; twenty examples an epoch, two times two at once


def test_the_model_to_look_at_is_the_trained_one_or_else_the_shipped_parts(config, tmp_path, monkeypatch):
    for joint, expected in ((True, "weights after joint training, seed 3"), (False, "weights after training, seed 3")):
        monkeypatch.setattr(loop, "load_trained", lambda config, seed, root, joint=joint: SimpleNamespace(joint=joint, made=(seed, root)))
        model, origin = loop.trained_or_shipped(config, 3, root=tmp_path)
        assert model.made == (3, tmp_path) and origin == expected
    monkeypatch.undo()
    model, origin = loop.trained_or_shipped(config, 3, root=tmp_path)
    assert not model.training and origin == "parts as they ship"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(0, 1000))
def test_examples_of_like_length_share_batches_and_none_is_lost(count, batch, seed):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(200, (300,), generator=rng).tolist()
    order = torch.randperm(300, generator=rng)[:count].tolist()
    found = loop.by_length(order, lengths, batch, rng)
    assert sorted(found) == sorted(order)

    def padded(indices):
        parts = [indices[k:k + batch] for k in range(0, len(indices), batch)]
        return sum(len(part) * max(lengths[i] for i in part) for part in parts)

    if count % batch == 0:
        assert padded(found) <= padded(order)
    again = loop.by_length(order, lengths, batch, torch.Generator().manual_seed(seed))
    assert again == loop.by_length(order, lengths, batch, torch.Generator().manual_seed(seed))
