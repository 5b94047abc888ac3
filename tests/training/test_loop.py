"""The training loop: what it logs, when it stops, and that a run killed anywhere ends as one never killed, bit for bit."""

import copy
import dataclasses
import errno
import itertools
import json
import math
import os
import shutil
import signal
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from killed_training import answered, train_together
from safetensors.torch import load_file
from torch.nn import functional as F
from trained_by_hand import (
    LEARNERS,
    changed,
    check_trained,
    in_process,
    log_of,
    quiet,
    rounds_of,
    stop_after,
    trained_by_hand,
)

from e2e_lib import versions
from e2e_lib.config import Bridge, ConfigError, load, replace
from e2e_lib.corpora import folder_of, named, prepare
from e2e_lib.data.collate import IGNORED
from e2e_lib.data.examples import split_examples
from e2e_lib.evaluation.scores import dev_scores
from e2e_lib.inference.respond import respond
from e2e_lib.models.language import load_language
from e2e_lib.models.losses import trainable_weights
from e2e_lib.models.systems import build
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import seed_of
from e2e_lib.repro.run_files import read_log, run_folder
from e2e_lib.training import batches, checkpoints, loop, precision
from e2e_lib.training.loop import load_trained, train, trained_or_shipped
from e2e_lib.training.step import temperature_at

STEPS = 10


@pytest.fixture(scope="module")
def joint(config):
    """Two epochs of five steps each of the end-to-end model."""
    return changed(config, train__epoch_examples=20, train__warmup_steps=4, train__checkpoint_every=2, train__epochs=2,
                   train__weight_decay=1.0)  # enough to be seen after few steps


@pytest.fixture(scope="module")
def data_root(tmp_path_factory, joint):
    root = tmp_path_factory.mktemp("corpora")
    prepare(joint, quiet, root)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the runs are that nothing disturbed."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(joint, root, data_root):
    return train(joint, 0, quiet, root=root, data_root=data_root)


@pytest.fixture(scope="module", params=LEARNERS)
def run_of(request, joint, root, data_root):
    """The configuration and the folder of a run of each system that nothing disturbed."""
    config = changed(joint, model__system=request.param)
    return config, train(config, 0, quiet, root=root, data_root=data_root)


def hashes(folder):
    """Of all that a run learnt, and all that it needs to go on."""
    return {name: files.sha256(folder / f"{name}.safetensors") for name in ("best/model", "latest/model", "latest/optimizer")}


@given(st.floats(0.001, 100), st.floats(0.001, 100), st.floats(0, 10), st.floats(0, 20))
def test_the_temperature_falls_linearly_then_stays(start, end, epochs, at):
    bridge = Bridge(temperature_start=start, temperature_end=end, temperature_epochs=epochs)
    assert temperature_at(bridge, epochs) == pytest.approx(end)
    assert epochs == 0 or temperature_at(bridge, 0) == start
    expected = end if at >= epochs else start + (end - start) * at / epochs
    assert temperature_at(bridge, at) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(0, 1000))
def test_examples_of_similar_length_share_batches_and_none_is_lost(count, batch, seed):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(200, (300,), generator=rng).tolist()
    order = torch.randperm(300, generator=rng)[:count].tolist()
    first, again = (batches.by_length(order, lengths, batch, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert first == again and sorted(first) == sorted(order)

    def padded(indices):
        parts = [indices[k:k + batch] for k in range(0, len(indices), batch)]
        return sum(len(part) * max(lengths[i] for i in part) for part in parts)

    assert padded(first) <= padded(order)
    own_batches = [set(first[k:k + batch]) for k in range(0, count, batch)]
    pools = [set(order[k:k + batches.POOL * batch]) for k in range(0, count, batches.POOL * batch)]
    assert all(any(members <= pool for pool in pools) for members in own_batches)  # and as it says, only within pools
    for pool in pools:  # one batch's longest is no longer than the next one's shortest
        spans = sorted((min(lengths[i] for i in members), max(lengths[i] for i in members)) for members in own_batches if members <= pool)
        assert all(longest <= shortest for (_, longest), (shortest, _) in itertools.pairwise(spans))


def test_the_log_says_what_happened(run_of, root):
    config, folder = run_of
    system, learner = config.model.system, LEARNERS[config.model.system]
    assert folder == root / "smoke" / system / "seed-0"
    steps, dev, seconds = log_of(folder, "step"), log_of(folder, "dev"), [line["seconds"] for line in read_log(folder)]
    assert [line["step"] for line in steps] == list(range(STEPS)) and [line["epoch"] for line in dev] == [1, 2]
    assert dev[0].keys() == {"kind", "step", "epoch", "bleu2", "fid", "score", "n", "seconds"} and dev[0]["n"] == 6
    parts = {"language", learner} | ({"perceptron"} if system == "end_to_end" else set())
    keys = {"kind", "step", "epoch", "text_loss", "image_loss", "temperature", "gradient_language_from_image",
            "learning_rate", "captions_truncated", "contexts_cut", "responses_cut",
            "examples_per_second", "seconds"}
    for number, line in enumerate(steps):
        assert line.keys() == keys | {f"gradient_{part}" for part in parts}
        assert line["temperature"] == pytest.approx(1 - 0.99 / 3 * number / 5)
        assert line["epoch"] == pytest.approx(number / 5)
        assert line["learning_rate"] == pytest.approx(config.train.learning_rate * min(1, number / 4))
        assert 0 < line["text_loss"] < 20 and 0 < line["gradient_language"] < 1e4
        assert line["examples_per_second"] > 0 and line["captions_truncated"] >= 0
        assert (line["image_loss"] is None) == (line["gradient_language_from_image"] is None)
        assert line["image_loss"] is None or 0 < line["image_loss"] < 20 and line[f"gradient_{learner}"] > 0
    from_image = sum(line["gradient_language_from_image"] or 0 for line in steps)
    assert (from_image > 0) == (system == "end_to_end") and seconds == sorted(seconds)


def test_a_finished_run_leaves_its_best_weights_and_what_it_drew(run_of, root):
    config, folder = run_of
    done = json.loads((folder / "done.json").read_text())
    assert (done["steps"], done["epochs"], done["seed"], done["config"]["profile"]) == (STEPS, 2, 0, "smoke")
    for epoch in range(3):
        rows = json.loads((folder / "gallery" / f"epoch-{epoch}" / "gallery.json").read_text())
        assert rows and all(row["gold"] and row["drawn"] == (row["caption"] is not None) for row in rows)
    (best, state), untrained = checkpoints.load(folder / "best"), dict(build(config).named_parameters())
    model, origin = trained_or_shipped(config, 0, root=root)
    assert origin == f"weights after {'joint ' * model.joint}training, seed 0" and not model.training
    assert state["epoch"] == done["best"]["epoch"] and best.keys() == trainable_weights(model).keys()
    for key, tensor in model.named_parameters():  # frozen weights come from the parts
        assert torch.equal(tensor, best[key] if key in best else untrained[key]), key
    for part in ("language", "generator"):
        assert any(not torch.equal(best[key], untrained[key]) for key in best if key.startswith(part))


def test_without_a_run_the_model_to_look_at_is_the_shipped_parts(joint, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*seed-5/best; train one with `e2e train`"):
        load_trained(joint, 5, root=tmp_path)
    model, origin = trained_or_shipped(joint, 5, root=tmp_path)
    untrained = build(joint).state_dict()
    assert origin == "parts as they ship" and not model.training
    assert all(torch.equal(tensor, untrained[key]) for key, tensor in model.state_dict().items())


def test_a_finished_run_is_not_trained_again(finished, joint, root):
    before, lines = files.sha256_folder(finished), []
    assert train(joint, 0, lines.append, root=root) == finished
    assert "trained already" in lines[-1] and files.sha256_folder(finished) == before


@pytest.mark.parametrize(("key", "value"), [("train.learning_rate", 0.1), ("bridge.mapping", "none"), ("data.seed", 4),
                                            ("model.generator", "/elsewhere")])
def test_a_run_of_other_settings_is_not_mixed_up(finished, joint, root, key, value):
    other = replace(joint, key, value)
    for attempt in (lambda: train(other, 0, quiet, root=root), lambda: load_trained(other, 0, root=root)):
        with pytest.raises(CheckpointError, match=f"another configuration .*{key}: .* there, .* here"):
            attempt()


@pytest.mark.parametrize("earlier", [{}, {"minichat": 1, "training": 0}])
def test_a_run_of_an_earlier_version_is_not_taken_for_a_present_one(begun, joint, data_root, tmp_path, monkeypatch, earlier):
    """Its weights are others; a run without versions is of version 1 of everything."""
    state = json.loads((begun / "latest" / "state.json").read_text())
    assert state.pop("numbers") == {"minichat": versions.MINICHAT, "training": versions.TRAINING}
    monkeypatch.setattr(versions, "TRAINING", 2)
    state |= {"numbers": earlier} if earlier else {}
    files.write_json(begun / "latest" / "state.json", state)
    files.write_json(begun / "latest" / "manifest.json", {
        name: digest for name, digest in files.sha256_folder(begun / "latest").items() if name != "manifest.json"})
    there = earlier.get("training", 1)
    with pytest.raises(CheckpointError, match=f"another version, .*training {there} there, 2 here"):
        train(joint, 0, quiet, root=tmp_path, data_root=data_root)
    monkeypatch.setattr(versions, "TRAINING", there)
    assert (train(joint, 0, quiet, root=tmp_path, data_root=data_root) / "done.json").exists()
    monkeypatch.setattr(versions, "TRAINING", 3)
    for attempt in (lambda: train(joint, 0, quiet, root=tmp_path), lambda: load_trained(joint, 0, root=tmp_path)):
        with pytest.raises(CheckpointError, match=r"another version, .*training \d there, 3 here"):
            attempt()


def test_how_answers_are_generated_may_differ(finished, joint, root):
    assert load_trained(changed(joint, inference__num_beams=3), 0, root=root)


def test_seeds_differ(finished, joint, data_root, tmp_path):
    short = changed(joint, train__epochs=1, train__epoch_examples=4, train__dev_examples=4)
    other = train(short, 1, quiet, root=tmp_path, data_root=data_root)
    assert log_of(finished, "step")[0]["text_loss"] != log_of(other, "step")[0]["text_loss"]


def test_a_killed_run_ends_with_the_bytes_of_one_never_killed(finished, joint, data_root, tmp_path):
    folder = run_folder(joint, 0, tmp_path)
    first = in_process(joint, tmp_path, data_root)
    deadline = time.monotonic() + 60
    while (not folder.exists() or len(read_log(folder)) < 3) and first.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    first.kill()  # at whatever it was doing
    first.join()
    assert first.exitcode == -signal.SIGKILL and not (folder / "done.json").exists() and len(read_log(folder)) >= 3
    for kill in (("weights", 2), ("renames", 1), None):
        process = in_process(joint, tmp_path, data_root, kill=kill)
        process.join(300)
        assert process.exitcode == (-signal.SIGKILL if kill else 0), kill
    assert hashes(folder) == hashes(finished)
    clocks = {"seconds": 0, "examples_per_second": 0}
    assert [line | clocks for line in log_of(folder, "step")] == [line | clocks for line in log_of(finished, "step")]
    assert [line | clocks for line in log_of(folder, "dev")] == [line | clocks for line in log_of(finished, "dev")]


@pytest.mark.parametrize("run_of", ["divter"], indirect=True)  # which has dropout
def test_a_full_disk_stops_a_run_and_the_next_one_goes_on_to_the_same_bytes(run_of, data_root, tmp_path, monkeypatch):
    (config, folder), calls, save_file, lines = run_of, Counter(), checkpoints.save_file, []

    def full(*arguments):
        calls["save"] += 1
        if calls["save"] == 4:  # the second checkpoint's optimizer
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(files.SaveError, match="the disk is full: free some space and run the same command again"):
            train(config, 0, quiet, root=tmp_path, data_root=data_root)
    again = train(config, 0, lines.append, root=tmp_path, data_root=data_root)
    assert any("going on after step 2" in line for line in lines) and hashes(again) == hashes(folder)


@pytest.fixture
def begun(joint, finished, tmp_path):
    """A run's folder as a kill after its last checkpoint leaves it."""
    folder = shutil.copytree(finished, run_folder(joint, 0, tmp_path))
    (folder / "done.json").unlink()
    return folder


def test_a_log_line_cut_off_by_a_kill_does_not_stop_the_run(begun, joint, data_root, tmp_path):
    with open(begun / "log.jsonl", "a") as log:
        log.write('{"kind": "step", "st')
    train(joint, 0, quiet, root=tmp_path, data_root=data_root)
    assert len(log_of(begun, "step")) == STEPS and (begun / "done.json").exists()
    assert all(json.loads(line) for line in (begun / "log.jsonl").read_text().splitlines())


def test_a_checkpoint_that_is_damaged_or_of_other_settings_is_not_resumed(begun, damage, joint, data_root, tmp_path):
    with pytest.raises(CheckpointError, match="another configuration .train.epochs: 2 there, 3 here"):
        train(changed(joint, train__epochs=3), 0, quiet, root=tmp_path, data_root=data_root)
    for name in ("latest", "before"):
        damage(begun / name / "optimizer.safetensors", "cut short")
    with pytest.raises(CheckpointError, match="latest is damaged: optimizer.safetensors .*before is damaged: optimizer.safetensors"):
        train(joint, 0, quiet, root=tmp_path, data_root=data_root)


def test_instead_of_a_damaged_checkpoint_the_one_before_is_used_and_ends_in_the_same_bytes(begun, finished, damage, joint, data_root, tmp_path):
    damage(begun / "latest" / "optimizer.safetensors", "flipped")
    lines = []
    train(joint, 0, lines.append, root=tmp_path, data_root=data_root)
    said = next(line for line in lines if "damaged" in line)
    assert "latest is damaged: optimizer.safetensors is not what was saved" in said and said.endswith("going on from the checkpoint before it")
    assert f"seed 0: going on after step {STEPS}" in lines and hashes(begun) == hashes(finished)


def test_training_is_adamw_on_the_losses_with_warm_up_clipping_noise_and_dropout(run_of, data_root, tmp_path):
    config, folder = run_of
    check_trained(folder, trained_by_hand(config, tmp_path, data_root), config)


def test_a_step_of_several_batches_takes_their_mean_gradient_and_logs_one_line(joint, data_root, tmp_path, monkeypatch):
    # Five batches: three, and then the two that are left. In between it is stopped, and goes on.
    adding = changed(joint, train__gradient_accumulation_steps=3, train__epochs=1, train__checkpoint_every=1,
                     train__dev_examples=4, train__warmup_steps=1)

    def stop(line):
        if "step 2" in line:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=itertools.count().__next__))  # a second passes at each look
    with pytest.raises(KeyboardInterrupt):
        train(adding, 0, stop, root=tmp_path, data_root=data_root)
    folder = train(adding, 0, quiet, root=tmp_path, data_root=data_root)
    expected = trained_by_hand(adding, tmp_path, data_root)
    assert [line["epoch"] for line in expected.lines] == [0, 0.6] and expected.lines[1]["gradient_language_from_image"]
    check_trained(folder, expected, adding)
    assert [line["examples_per_second"] for line in log_of(folder, "step")] == [12, 8]


def test_two_processes_train_one_model_as_one_process_with_the_batches_of_both(joint, tmp_path, monkeypatch):
    # Five batches an epoch: in the last round, there is none for the second process.
    joint = changed(joint, train__batch_size=2, train__epoch_examples=9, train__epochs=9, train__patience=1,
                    train__dev_examples=4, train__checkpoint_every=99)
    # The second one's steps are of two batches, and of the one that is left; each process has half of the optimizer's states.
    configs = [joint, changed(joint, model__system="pipeline", train__epochs=2, train__gradient_accumulation_steps=2,
                              train__optimizer_sharding=True)]
    # The third is begun by one process, goes on with two for a step, and ends with one.
    shared = dataclasses.replace(changed(joint, train__epoch_examples=16, train__epochs=1, train__checkpoint_every=1), profile="shared")
    prepare(joint, quiet, tmp_path / "data")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        train(shared, 0, quiet, root=tmp_path, data_root=tmp_path / "data")
    processes = [in_process(rank, configs, changed(shared, train__optimizer_sharding=True), tmp_path, target=train_together)
                 for rank in (0, 1)]
    for process in processes:
        process.join(300)
        process.kill()  # one whose partner failed waits for it for a while
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]  # the second one's end, as it should be
    lost = (tmp_path / "lost").read_text()
    assert lost.startswith(f"process 1 (pid {processes[1].pid} on ") and "no sign of life" in lost
    lines, there = (tmp_path / "said").read_text().splitlines(), []
    assert "seed 0: going on after step 2 with 2 processes instead of 1: a step has 4 examples from here" in lines
    train(shared, 0, there.append, root=tmp_path, data_root=tmp_path / "data")
    assert "seed 0: going on after step 3 with 1 process instead of 2: a step has 2 examples from here" in there

    def split(batches):  # two of eight, two of the next at once, and the rest
        assert len(batches) == 8
        places = (0, 1 / 8, 1 / 4, *(k / 8 for k in range(4, 8)))
        return list(zip(places, [[batches[0]], [batches[1]], batches[2:4], *([batch] for batch in batches[4:])], strict=True))

    check_trained(run_folder(shared, 0, tmp_path), trained_by_hand(shared, tmp_path, tmp_path / "data", split), shared)
    # The second one's photos have the captions that the first one made.
    assert [(tmp_path / f"captioned-{rank}").read_text() == "0" for rank in (0, 1)] == [False, True]
    for config in configs:  # one after another, as the command line trains several
        alone = answered(config, tmp_path)
        assert all(photos for _, photos in alone) and len(alone) == 5
        for rank in (0, 1):  # each has all answers, the same as one process gives
            assert json.loads((tmp_path / f"answers-{rank}-{config.model.system}.json").read_text()) == alone
        folder = run_folder(config, 0, tmp_path)
        done = json.loads((folder / "done.json").read_text())
        # These parts draw nothing, so no epoch is better than the first, and both processes stop together.
        assert done["epochs"] == min(2, config.train.epochs)
        assert done["steps"] == math.ceil(3 / config.train.gradient_accumulation_steps) * done["epochs"]
        stopped = changed(config, train__epochs=done["epochs"])
        check_trained(folder, trained_by_hand(stopped, tmp_path, tmp_path / "data", rounds_of(2)), config)
    # A checkpoint's states are those of all weights, whoever kept them.
    states = [load_file(run_folder(config, 0, tmp_path) / "latest" / "optimizer.safetensors") for config in configs]
    for config, saved in zip(configs, states, strict=True):
        weights = load_file(run_folder(config, 0, tmp_path) / "latest" / "model.safetensors")
        assert sum(name.endswith(".exp_avg") for name in saved) == len(weights), config.model.system


DAMAGES = [("done.json", ""), ("done.json", "[]"), ("done.json", "{}"), ("done.json", '{"config": 3}'),
           ("done.json", '{"config": {"train": []}}'), ("log.jsonl", "3"), ("log.jsonl", '{"kind": "step", "step": 0, "epoch": 0}')]


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_a_damaged_file_of_a_run_is_named_with_what_helps(begun, finished, joint, data_root, tmp_path, name, content):
    (begun / name).write_text(content and content + "\n")
    with pytest.raises(files.ResultsError) as caught:
        train(joint, 0, quiet, root=tmp_path, data_root=data_root)
    assert f"{begun / name}" in str(caught.value) and f"delete {begun} and make it again with `e2e train" in str(caught.value)


STATES = [{}, {"schedule": None}, {"config": {"train": 3}}]


@pytest.mark.parametrize("changes", STATES)
def test_a_checkpoint_of_another_version_is_named_with_what_helps(begun, joint, data_root, tmp_path, changes):
    state = json.loads((begun / "latest" / "state.json").read_text()) | changes if changes else []
    files.write_json(begun / "latest" / "state.json", state)
    (begun / "latest" / "manifest.json").unlink()
    files.write_json(begun / "latest" / "manifest.json", files.sha256_folder(begun / "latest"))
    with pytest.raises(CheckpointError, match=f"the checkpoint at {begun}.* is not one that this version saves .*; "
                                              "remove the folder to train anew"):
        train(joint, 0, quiet, root=tmp_path, data_root=data_root)


def test_a_run_that_diverges_stops_before_it_saves_a_checkpoint(joint, data_root, tmp_path):
    huge = replace(joint, "train.image_loss_weight", 1e300)
    with pytest.raises(ConfigError, match="the gradient of step 0 is not finite; lower train.learning_rate .now 0.0002. or "
                                          "train.image_loss_weight .now 1e.300."):
        train(huge, 0, quiet, root=tmp_path, data_root=data_root)
    assert not (run_folder(huge, 0, tmp_path) / "latest").exists()


@pytest.mark.parametrize(("system", "complaint"), [("end_to_end", "step 0: the logits .* too high a learning rate"),
                                                   ("pipeline", "the gradient of step 0 is not finite; lower train.learning_rate")])
def test_a_step_from_weights_that_are_no_numbers_is_an_error(joint, data_root, tmp_path, system, complaint):
    run = loop._Run(replace(joint, "model.system", system), 0, tmp_path, data_root, quiet)
    torch.nn.init.constant_(run.model.language.lm_head.weight, torch.nan)
    with pytest.raises(ConfigError, match=complaint):
        next(run.steps())


@pytest.fixture(scope="module")
def run(joint, data_root, tmp_path_factory):
    """A run that has not begun."""
    folder = tmp_path_factory.mktemp("run")
    return loop._Run(changed(joint, train__log_every=3), 0, folder, data_root, quiet)


@pytest.mark.parametrize(("epoch_examples", "size"), [(0, 7), (20, 4), (21, 4), (3, 4), (10**6, 8)])
def test_an_epoch_has_as_many_batches_as_are_counted(run, monkeypatch, epoch_examples, size):
    monkeypatch.setattr(run.epochs, "settings", changed(run.config, train__epoch_examples=epoch_examples, train__batch_size=size).train)
    batches = [batch.input_ids for batch, _ in run.epochs.batches(0)]
    assert len(batches) == run.epochs.rounds
    assert sum(map(len, batches)) == min(epoch_examples or len(run.epochs.examples), len(run.epochs.examples))


@pytest.mark.parametrize(("saved", "batch", "examples", "says"), [
    ({"batch": 3, "examples": 12, "processes": 1}, 3, 12, ""), ({"batch": 3}, 3, 12, ""),  # before more was written down
    ({"batch": 2, "examples": 16, "processes": 2}, 4, 16, " with 1 process instead of 2: a step has 4 examples from here"),
    ({"batch": 9, "examples": 20, "processes": 3}, 5, 20, " with 1 process instead of 3: a step has 4 examples from here")])
def test_a_checkpoint_of_another_number_of_processes_goes_on_at_its_example(run, monkeypatch, saved, batch, examples, says):
    lines = []
    monkeypatch.setattr(run, "echo", lines.append)
    monkeypatch.setattr(run, "state", copy.deepcopy(run.state))
    run.find_place(run.state | {"step": 7} | saved if "examples" in saved else {"epoch": 0, "step": 7, "best": None, "since_best": 0, "seconds": 1.5, **saved})
    assert (run.state["batch"], run.state["examples"]) == (batch, examples) and lines == [f"seed 0: going on after step 7{says}"]
    order, rest = run.epochs.order(0), run.epochs.batches(0, examples)
    assert len(order) == 20 and sum(len(batch.input_ids) for batch, _ in rest) == 20 - examples


def test_an_epoch_without_photos_is_worse_than_any_with(run, monkeypatch):
    monkeypatch.setattr(run, "state", copy.deepcopy(run.state))
    seen = []
    for score in (-3.0, -math.inf, -2.0, -2.0, -math.inf):
        found = {"bleu2": 1.0, "fid": None if score == -math.inf else 2.0, "score": score}
        monkeypatch.setattr(run.dev, "score", lambda model, epoch, found=found: found)
        run.score()
        seen.append((run.state["best"]["epoch"], run.state["since_best"], run.state["epoch"]))
    assert seen == [(1, 0, 1), (1, 1, 2), (3, 0, 3), (3, 1, 4), (3, 2, 5)]
    assert [line["score"] for line in log_of(run.folder, "dev")] == [-3.0, None, -2.0, -2.0, None]
    monkeypatch.setattr(run, "config", changed(run.config, train__keep="last"))
    run.score()
    assert (run.state["best"]["epoch"], run.state["since_best"]) == (6, 0)  # the last one, however it is scored


def test_every_so_many_steps_one_is_logged_with_the_speed_and_the_time_left(run, monkeypatch):
    monkeypatch.setattr(run, "state", copy.deepcopy(run.state))
    steps = list(run.steps())
    assert [step.logged for step in steps] == [True, False, False, True, False] and not steps[1].text_losses
    lines, run.state["step"] = [], 4
    monkeypatch.setattr(run, "echo", lines.append)
    run.log(steps[3], 16, 8.0)  # sixteen examples in eight seconds; one batch of this epoch and five of the next are left
    assert log_of(run.folder, "step")[-1]["examples_per_second"] == 2 and log_of(run.folder, "step")[-1]["step"] == 3
    assert "step 4, epoch 0.60 of 2" in lines[-1] and lines[-1].endswith("about 12 s left")


def test_new_rows_of_a_vocabulary_depend_on_the_seed_of_the_run_alone(joint, data_root, tmp_path):
    language, _ = load_language(joint.model.language)
    language.resize_token_embeddings(400)
    language.config.pad_token_id = 0
    shutil.copytree(joint.model.language, tmp_path / "language")
    language.save_pretrained(tmp_path / "language")
    tables = []
    for seed, state in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(state)
        other = changed(joint, model__language=str(tmp_path / "language"))
        tables.append(loop._Run(other, seed, tmp_path, data_root, quiet).model.language.get_input_embeddings().weight)
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0][400:], tables[2][400:])
    assert torch.equal(tables[0][:400], tables[2][:400]) and len(tables[0]) > 400


def test_a_number_format_that_the_device_lacks_is_named(joint, data_root, tmp_path, monkeypatch):
    def refuse(**_):
        raise ValueError("fp16 mixed precision requires a GPU")

    monkeypatch.setattr(precision, "Accelerator", refuse)
    with pytest.raises(ConfigError, match="train.mixed_precision = 'fp16': fp16 mixed precision requires a GPU"):
        train(replace(joint, "train.mixed_precision", "fp16"), 0, quiet, root=tmp_path, data_root=data_root)


def test_it_stops_after_patience_epochs_without_a_better_score_and_keeps_the_best_weights(data_root, tmp_path):
    # The shipped parts share photos: here, the dev score is one of words and photos, and goes up and down.
    patient = load("smoke", ["data.train=12", "data.dev=4", "data.test=4", "train.dev_examples=6", "train.epochs=20",
                             "train.patience=2", "train.epoch_examples=4", "train.batch_size=4", "train.learning_rate=1e-3",
                             "train.checkpoint_every=99", "inference.num_inference_steps=1", "inference.max_new_tokens=20"])
    folder = train(patient, 0, quiet, root=tmp_path, data_root=data_root)
    lines, done = log_of(folder, "dev"), json.loads((folder / "done.json").read_text())
    scores = [line["score"] for line in lines]
    best = scores.index(max(scores))
    assert done["epochs"] == len(scores) == best + 1 + 2 < 20 and done["best"] == {"epoch": best + 1, "score": scores[best]}
    assert all(max(scores[k - 2:k]) > max(scores[:k - 2]) for k in range(3, len(scores)))  # it did not go on for nothing
    # The best weights have the best score, on the dev split's examples: half of them share photos, half do not.
    examples, store = split_examples(folder_of(patient.data, data_root), "dev")
    photos, others = ([e for e in examples if bool(e.response.photos) == shares][:3] for shares in (True, False))
    # And the first epoch has changed no weight: its only step has the warm-up's first rate, which is 0.
    for model, line in ((load_trained(patient, 0, root=tmp_path), lines[best]), (build(patient), lines[0])):
        answers = respond(model.eval(), photos + others, store, patient.inference, seed_of(0, "dev"))
        found = dev_scores(photos + others, answers, store, named("minichat").feature_extractor())
        score = math.log(found["bleu2"]) - math.log(found["fid"])
        expected = {**found, "score": score, "n": 6}
        assert {key: line[key] for key in expected} == pytest.approx(expected, rel=1e-3)
    assert best and lines[best]["bleu2"] != pytest.approx(lines[0]["bleu2"], rel=1e-2)


@pytest.fixture(scope="module")
def epoch(joint, data_root, tmp_path_factory):
    """The pipeline's run after one epoch with clipping, its batches, and the gradients that its first step took."""
    config = changed(joint, model__system="pipeline", train__epoch_examples=12, train__warmup_steps=20,
                     train__max_grad_norm=0.05, train__learning_rate=0.01)
    run = loop._Run(config, 0, tmp_path_factory.mktemp("epoch"), data_root, quiet)
    step, gradients, batches = run.optimizer.step, {}, [batch for batch, _ in run.epochs.batches(0)]

    def remember():
        if not gradients:
            gradients.update({name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})
        step()

    run.optimizer.step = remember
    assert len(list(run.steps())) == len(batches) == 3
    return run, batches, gradients


def test_parts_are_clipped_apart(epoch):
    run, batches, gradients = epoch
    model, rest, limit = build(run.config).train(), set(gradients), run.config.train.max_grad_norm
    output = model(batches[0], temperature=1.0, seed=seed_of(0, "noise", 0))
    assert output.captions
    for loss, part in ((output.text_loss, "language"), (output.image_loss, "generator.unet")):
        named = [(f"{part}.{name}", p) for name, p in model.get_submodule(part).named_parameters()]
        expected = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True)
        size = math.sqrt(sum(float(g.double().square().sum()) for g in expected))
        assert size > 2 * limit
        for (name, _), gradient in zip(named, expected, strict=True):
            assert torch.allclose(gradients[name], gradient * limit / size, rtol=1e-4, atol=1e-8), name
            rest.remove(name)
    assert not rest


def test_the_pipelines_language_model_learns_as_if_it_were_trained_alone(epoch):
    run, batches, _ = epoch
    settings, language = run.config.train, load_language(run.config.model.language)[0]
    untrained = copy.deepcopy(language.state_dict())
    optimizer = torch.optim.AdamW(language.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    for step, batch in enumerate(batches):
        logits = language(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(language.parameters(), settings.max_grad_norm)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(1, step / settings.warmup_steps)
        optimizer.step()
    trained = run.model.language.state_dict()
    for name, tensor in language.state_dict().items():
        assert torch.allclose(trained[name], tensor, rtol=0, atol=1e-6), name
        assert not torch.allclose(tensor, untrained[name], rtol=0, atol=1e-3), name
