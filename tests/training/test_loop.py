"""The training loop: what it logs, when it stops, and that a run killed anywhere ends as one never killed, bit for bit."""

import copy
import errno
import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from killed_training import train_in_process
from torch.nn import functional as F

from e2e_lib.config import Bridge, replace
from e2e_lib.corpora import prepare
from e2e_lib.data.collate import IGNORED
from e2e_lib.models.language import load_language
from e2e_lib.models.losses import trainable_weights
from e2e_lib.models.systems import build
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import generator
from e2e_lib.repro.run_files import read_log, run_folder
from e2e_lib.training import checkpoints, loop
from e2e_lib.training.loop import load_trained, norm, temperature_at, train, trained_or_shipped

STEPS = 10
LEARNERS = {"end_to_end": "unet", "pipeline": "unet", "divter": "transformer"}


def quiet(_):
    pass


def changed(config, **changes):
    """The configuration with other settings, as in ``changed(config, train__epochs=2)``."""
    for key, value in changes.items():
        config = replace(config, key.replace("__", "."), value)
    return config


@pytest.fixture(scope="module")
def joint(config):
    """Two epochs of five steps each of the end-to-end model."""
    return changed(config, train__epoch_examples=20, train__warmup_steps=4, train__checkpoint_every=2, train__epochs=2)


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


def log_of(folder, kind):
    return [line for line in read_log(folder) if line["kind"] == kind]


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


def test_the_norm_is_that_of_one_long_vector():
    gradients = [torch.randn(3, 4), None, torch.randn(7).half()]
    vector = torch.cat([g.flatten().float() for g in gradients if g is not None])
    assert norm(gradients) == pytest.approx(vector.norm().item(), rel=1e-5) and norm([None]) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(0, 1000))
def test_examples_of_similar_length_share_batches_and_none_is_lost(count, batch, seed):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(200, (300,), generator=rng).tolist()
    order = torch.randperm(300, generator=rng)[:count].tolist()
    first, again = (loop.by_length(order, lengths, batch, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert first == again and sorted(first) == sorted(order)

    def padded(indices):
        parts = [indices[k:k + batch] for k in range(0, len(indices), batch)]
        return sum(len(part) * max(lengths[i] for i in part) for part in parts)

    assert count % batch or padded(first) <= padded(order)


def test_the_log_says_what_happened(run_of, root):
    config, folder = run_of
    system, learner = config.model.system, LEARNERS[config.model.system]
    assert folder == root / "smoke" / system / "seed-0"
    steps, dev, seconds = log_of(folder, "step"), log_of(folder, "dev"), [line["seconds"] for line in read_log(folder)]
    assert [line["step"] for line in steps] == list(range(STEPS)) and [line["epoch"] for line in dev] == [1, 2]
    assert dev[0].keys() == {"kind", "step", "epoch", "bleu2", "fid", "score", "n", "seconds"} and dev[0]["n"] == 6
    parts = {"language", learner} | ({"perceptron"} if system == "end_to_end" else set())
    keys = {"kind", "step", "epoch", "text_loss", "image_loss", "temperature", "gradient_language_from_image",
            "learning_rate", "captions_truncated", "examples_per_second", "seconds"}
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


def test_how_answers_are_generated_may_differ(finished, joint, root):
    assert load_trained(changed(joint, inference__num_beams=3), 0, root=root)


def test_seeds_differ(finished, joint, data_root, tmp_path):
    short = changed(joint, train__epochs=1, train__epoch_examples=4, train__dev_examples=4)
    other = train(short, 1, quiet, root=tmp_path, data_root=data_root)
    assert log_of(finished, "step")[0]["text_loss"] != log_of(other, "step")[0]["text_loss"]


def in_process(*args, **kwargs):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["e2e_lib.training.loop"])  # the slow imports once for all processes
    process = context.Process(target=train_in_process, args=args, kwargs=kwargs)
    process.start()
    return process


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
        process.join(120)
        assert process.exitcode == (-signal.SIGKILL if kill else 0), kill
    assert hashes(folder) == hashes(finished)
    clocks = {"seconds": 0, "examples_per_second": 0}
    assert [line | clocks for line in log_of(folder, "step")] == [line | clocks for line in log_of(finished, "step")]
    assert [line | clocks for line in log_of(folder, "dev")] == [line | clocks for line in log_of(finished, "dev")]


def test_a_full_disk_stops_a_run_and_the_next_one_goes_on_to_the_same_bytes(run_of, data_root, tmp_path, monkeypatch):
    (config, folder), calls, save_file, lines = run_of, Counter(), checkpoints.save_file, []  # Divter has dropout

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
    damage(begun / "latest" / "optimizer.safetensors", "cut short")
    with pytest.raises(CheckpointError, match="damaged: optimizer.safetensors"):
        train(joint, 0, quiet, root=tmp_path, data_root=data_root)


def test_it_stops_after_patience_epochs_without_a_better_score(joint, data_root, tmp_path, monkeypatch):
    scores, save, best = iter([1.0, 3.0, 2.0, 3.0, 99.0]), checkpoints.save, {}

    def remember(folder, weights, state, *rest):
        if folder.name == "best":
            best[state["epoch"]] = {name: tensor.clone() for name, tensor in weights.items()}
        return save(folder, weights, state, *rest)

    monkeypatch.setattr("e2e_lib.training.dev.dev_score", lambda _: next(scores))
    monkeypatch.setattr(checkpoints, "save", remember)
    patient = changed(joint, train__epochs=9, train__patience=2, train__epoch_examples=4, train__dev_examples=4)
    folder = train(patient, 0, quiet, root=tmp_path, data_root=data_root)
    done = json.loads((folder / "done.json").read_text())
    assert done["epochs"] == 4 and done["best"] == {"epoch": 2, "score": 3.0} and next(scores) == 99.0
    weights, state = checkpoints.load(folder / "best")
    assert list(best) == [1, 2] and state["epoch"] == 2
    assert all(torch.equal(weights[name], tensor) for name, tensor in best[2].items())


def test_batches_can_be_added_up_to_one_step(joint, data_root, tmp_path):
    adding = changed(joint, train__gradient_accumulation_steps=3, train__epochs=1, train__dev_examples=4)
    folder = train(adding, 0, quiet, root=tmp_path, data_root=data_root)
    assert json.loads((folder / "done.json").read_text())["steps"] == 2  # five batches: three, and the last two
    assert checkpoints.load(folder / "latest")[1]["step"] == 2


@pytest.fixture(scope="module")
def epoch(joint, data_root, tmp_path_factory):
    """The pipeline's run after one epoch with clipping, its batches, and the gradients that its first step took."""
    config = changed(joint, model__system="pipeline", train__epoch_examples=12, train__warmup_steps=20,
                     train__max_grad_norm=0.05, train__learning_rate=0.01)
    run = loop._Run(config, 0, tmp_path_factory.mktemp("epoch"), data_root, quiet)
    step, gradients, batches = run.optimizer.step, {}, list(run.loader(0))

    def remember():
        if not gradients:
            gradients.update({name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})
        step()

    run.optimizer.step = remember
    assert len(list(run.steps())) == len(batches) == 3
    return run, batches, gradients


def test_the_baselines_parts_are_clipped_apart(epoch):
    run, batches, gradients = epoch
    model, rest, limit = build(run.config).train(), set(gradients), run.config.train.max_grad_norm
    output = model(batches[0], temperature=1.0, rng=generator(0, "noise", 0, 0))
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


SEVERAL = """
import pickle, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate import PartialState
from e2e_lib.models.captioner import Captioner
from e2e_lib.training import dev
from e2e_lib.training.loop import train
root = Path(sys.argv[1])
dev.dev_score = lambda _: next(scores)
generate, calls = Captioner.generate_captions, []
Captioner.generate_captions = lambda self, photos: calls.append(len(photos)) or generate(self, photos)
for config in pickle.loads((root / "configs").read_bytes()):
    scores = iter([3.0, 2.0, 1.0, 99.0])
    train(config, 0, lambda _: None, root=root, data_root=root / "data")
state = PartialState()
finished = f"{state.num_processes} {state.distributed_type.value} {len(calls) > 0}"
(root / f"finished-{state.process_index}").write_text(finished)
"""


def test_two_processes_train_one_model(joint, tmp_path):
    joint = changed(joint, train__batch_size=2, train__epochs=5, train__patience=1, train__checkpoint_every=99,
                    train__dev_examples=4)
    configs = [joint, changed(joint, model__system="pipeline")]
    (tmp_path / "configs").write_bytes(pickle.dumps(configs))
    (tmp_path / "several.py").write_text(SEVERAL)
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(tmp_path / "several.py"), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"})
    try:
        _, complaints = launcher.communicate(timeout=600)
    finally:
        launcher.terminate()  # not kill: it then ends the processes it started
        launcher.wait(60)
    assert launcher.returncode == 0, complaints
    # Files, because two processes' lines on one pipe can run into each other. Only the first ran the captioner.
    assert [(tmp_path / f"finished-{rank}").read_text() for rank in (0, 1)] == ["2 MULTI_CPU True", "2 MULTI_CPU False"]
    for config in configs:  # one after another, as the command line trains several
        folder = run_folder(config, 0, tmp_path)
        steps, done = log_of(folder, "step"), json.loads((folder / "done.json").read_text())
        assert len(steps) == 10 and all(math.isfinite(line["text_loss"] + (line["image_loss"] or 0)) for line in steps)
        rates = [config.train.learning_rate * min(1, step / 4) for step in range(5)]
        assert [line["learning_rate"] for line in steps[:5]] == pytest.approx(rates)
        # Both stop early together; an epoch is twenty examples, two for each process at once.
        assert done["epochs"] == 2 and done["steps"] == 2 * 5
