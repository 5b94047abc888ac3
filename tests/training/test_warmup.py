"""The projection's warm-up: nothing else learns, it goes on exactly after a kill, and what it made is checked."""

import json

import hub_checkpoints
import pytest
import torch
from safetensors.torch import load_file

from e2e_lib.config import replace
from e2e_lib.data.dialogue import DataError, SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.models.perceptron import load_perceptron
from e2e_lib.models.projection import FILE, fit_projection, load_projection, save_projection
from e2e_lib.models.systems import build
from e2e_lib.repro.files import CheckpointError
from e2e_lib.training import warmup
from e2e_lib.training.loop import load_trained, train
from e2e_lib.training.warmup import QUESTION, warm_up, warmup_examples


def quiet(_):
    pass


@pytest.fixture(scope="module")
def other(config, tmp_path_factory):
    """The tiny parts with a language model of Llama's layout, to which the perceptron does not lead."""
    llama = hub_checkpoints.save_llama(tmp_path_factory.mktemp("hub") / "llama", torch.float32)
    for key, value in {"model.language": llama, "warmup.steps": 6, "warmup.batch_size": 4, "warmup.learning_rate": 1e-2}.items():
        config = replace(config, key, str(value))
    return config


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def warm(other, data_root, tmp_path_factory):
    """A finished warm-up: its folder and what it said."""
    said = []
    return warm_up(other, 0, said.append, root=tmp_path_factory.mktemp("runs"), data_root=data_root), said


def new_run(config, data_root, folder):
    return warmup._Warmup(config, 0, folder, {}, quiet, data_root)


def test_only_the_projection_learns_and_it_does(other, data_root, tmp_path):
    run = new_run(replace(other, "warmup.steps", 30), data_root, tmp_path)
    before = {name: tensor.clone() for part in (run.language, run.perceptron) for name, tensor in part.state_dict().items()}
    batch = run.batch(1000)
    with torch.no_grad():
        first = run.loss(batch)
    run.run()
    after = {name: tensor for part in (run.language, run.perceptron) for name, tensor in part.state_dict().items()}
    assert {name for name, tensor in after.items() if not torch.equal(tensor, before[name])} == {
        "language_projection.weight", "language_projection.bias"}
    assert run.loss(batch) < first - 0.01


def test_the_same_command_gives_the_same_file_and_finds_it_done(other, warm, data_root, tmp_path):
    folder, said = warm
    assert folder.name == "projection" and any("step 6 of 6, loss" in line for line in said)
    again = warm_up(other, 0, quiet, root=tmp_path, data_root=data_root)
    assert (again / FILE).read_bytes() == (folder / FILE).read_bytes()
    lines = []
    assert warm_up(other, 0, lines.append, root=tmp_path, data_root=data_root) == again and "trained already" in lines[0]
    assert (warm_up(other, 1, quiet, root=tmp_path / "other", data_root=data_root) / FILE).read_bytes() != (folder / FILE).read_bytes()
    with pytest.raises(CheckpointError, match="warmup.steps: 6 there, 7 here.*remove the folder to train anew"):
        warm_up(replace(other, "warmup.steps", 7), 0, quiet, root=tmp_path, data_root=data_root)


@pytest.mark.parametrize("at", [1, 4, 5])
def test_a_killed_warm_up_goes_on_exactly(other, warm, data_root, tmp_path, monkeypatch, at):
    real, saved = warmup._Warmup.batch, []

    def killed(self, step):
        if step == at and not saved:
            saved.append(step)
            raise KeyboardInterrupt
        return real(self, step)

    monkeypatch.setattr(warmup, "SAVE_SECONDS", -1)
    monkeypatch.setattr(warmup._Warmup, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        warm_up(other, 0, quiet, root=tmp_path, data_root=data_root)
    with pytest.raises(CheckpointError, match="warmup.learning_rate: 0.01 there, 0.02 here"):
        warm_up(replace(other, "warmup.learning_rate", 0.02), 0, quiet, root=tmp_path, data_root=data_root)
    said = []
    folder = warm_up(other, 0, said.append, root=tmp_path, data_root=data_root)
    assert f"warm-up: going on after step {at}" in said
    assert all(torch.equal(tensor, load_file(warm[0] / FILE)[name]) for name, tensor in load_file(folder / FILE).items())
    losses = [json.loads((place / "projection.json").read_text())["losses"] for place in (folder, warm[0])]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_frozen_parts_may_be_in_half_precision(other, data_root, tmp_path):
    for key, value in {"model.frozen": "float16", "train.mixed_precision": "fp16", "model.language_lora": "2", "warmup.steps": "2"}.items():
        other = replace(other, key, value)
    run = new_run(other, data_root, tmp_path)
    start = run.projection.weight.clone()
    run.run()
    assert run.language.dtype == run.perceptron.vision_model.dtype == torch.float16 and run.projection.weight.dtype == torch.float32
    assert not torch.equal(run.projection.weight, start) and run.projection.weight.isfinite().all()


CAT, DOG = SharedPhoto("1", "a cat"), SharedPhoto("2", "a dog")


def test_it_learns_captions_and_replies_to_photos():
    announced, shared, asked = Turn(0, "look"), Turn(0, "here", (CAT, DOG)), Turn(1, "where was it?")
    rows = [Example("d", 1, (announced,), asked), Example("d", 2, (announced, asked), shared),
            Example("d", 3, (announced, asked, shared), asked), Example("d", 4, (shared,), Turn(1, "", (DOG,)))]
    captions, replies = warmup_examples(rows)[:3], warmup_examples(rows)[3:]
    assert [(e.context, e.response) for e in captions] == [
        ((Turn(1, QUESTION, (CAT,)),), Turn(0, "a cat")), ((Turn(1, QUESTION, (DOG,)),), Turn(0, "a dog")), ((Turn(0, QUESTION, (DOG,)),), Turn(1, "a dog"))]
    assert replies == [Example("d", 3, (shared,), asked)]


def test_a_corpus_without_photos_has_nothing_to_learn_from(other, data_root, tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "split_examples", lambda *_: ([Example("d", 1, (Turn(0, "a"),), Turn(1, "b"))], None))
    with pytest.raises(DataError, match="no training dialogue shares a photo"):
        warm_up(other, 0, quiet, root=tmp_path, data_root=data_root)


def test_a_projection_is_kept_own_or_new(weights, warm, tmp_path):
    perceptron = load_perceptron(str(weights / "mini" / "perceptron"))
    own = perceptron.language_projection
    assert not fit_projection(perceptron, own.out_features) and perceptron.language_projection is own
    assert fit_projection(perceptron, 64) and perceptron.language_projection.out_features == 64
    new = perceptron.language_projection
    assert fit_projection(other := load_perceptron(str(weights / "mini" / "perceptron")), 64)
    assert torch.equal(other.language_projection.weight, new.weight)  # the same at every start
    assert not fit_projection(perceptron, 64, str(warm[0]))
    assert torch.equal(perceptron.language_projection.weight, load_file(warm[0] / FILE)["weight"])


@pytest.mark.parametrize("kept", [True, False])
def test_joint_training_begins_with_it_or_says_that_a_new_one_is_random(other, warm, data_root, tmp_path, kept):
    joint = replace(replace(other, "train.epochs", 1), "train.epoch_examples", 4)
    joint = replace(joint, "model.projection", str(warm[0]) if kept else "")
    perceptron, said = build(joint).perceptron, []
    assert perceptron.projection_is_new != kept
    assert torch.equal(perceptron.language_projection.weight, load_file(warm[0] / FILE)["weight"]) == kept
    train(joint, 0, said.append, root=tmp_path, data_root=data_root)
    assert any("projection: a new one, with random numbers; `e2e warmup`" in line for line in said) != kept
    load_trained(joint, 0, root=tmp_path)


def test_a_projection_that_does_not_fit_is_named_with_what_to_do(warm, tmp_path, damage, weights):
    inner = load_perceptron(str(weights / "mini" / "perceptron")).language_projection.in_features
    with pytest.raises(CheckpointError, match=f"leads from {inner} to 64 numbers, and the perceptron and the language model here are {inner} and 72 wide: "
                                              "it was made for .*llama.*e2e warmup.*--set model.projection="):
        load_projection(str(warm[0]), inner, 72)
    with pytest.raises(CheckpointError, match="there is no folder .*none; make it with `e2e warmup`"):
        load_projection(str(tmp_path / "none"), inner, 64)
    for how in ("flipped", "gone", "cut short"):
        folder = save_projection(tmp_path / how, torch.nn.Linear(inner, 64), {"language": "l", "perceptron": "p", "steps": 1, "seed": 0})
        damage(folder / FILE, how)
        with pytest.raises(CheckpointError):
            load_projection(str(folder), inner, 64)
