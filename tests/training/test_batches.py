"""What an epoch is made of: whole dialogues or responses, whose, in batches that other processes may make."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_lib.config import ConfigError, Train, replace
from e2e_lib.corpora import prepare
from e2e_lib.data.collate import Collator
from e2e_lib.data.dialogue import DataError
from e2e_lib.data.photo_input import PhotoError
from e2e_lib.repro import files
from e2e_lib.training.batches import batch_loader, own_batches, sound, training_examples
from e2e_lib.training.loop import train


@pytest.fixture(scope="module")
def short(config):
    """One epoch of five steps over whole dialogues, with a checkpoint after every second."""
    for key, value in {"epochs": 1, "epoch_examples": 20, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 2,
                       "dev_examples": 4, "examples": "dialogues"}.items():
        config = replace(config, f"train.{key}", value)
    return config


@pytest.fixture(scope="module")
def data_root(tmp_path_factory, short):
    root = tmp_path_factory.mktemp("corpora")
    prepare(short, print, root)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory, short, data_root):
    return train(short, 0, print, root=tmp_path_factory.mktemp("runs"), data_root=data_root)


def hashes(folder):
    return {name: files.sha256(folder / f"{name}.safetensors") for name in ("best/model", "latest/model", "latest/optimizer")}


def test_other_processes_read_all_that_is_trained_on_and_change_no_byte(short, finished, data_root, tmp_path, monkeypatch):
    """Also where the run was stopped in the middle of an epoch."""
    make, parent, taken, save = Collator.dialogues, os.getpid(), [], files.atomic_folder

    def elsewhere(self, groups):
        assert os.getpid() != parent
        return make(self, groups)

    def interrupted(folder):
        taken.append(folder.name)
        if taken.count("latest") == 2:  # after four of five steps
            raise KeyboardInterrupt
        return save(folder)

    monkeypatch.setattr(Collator, "dialogues", elsewhere)
    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(replace(short, "data.workers", 2), 0, print, root=tmp_path, data_root=data_root)
    lines = []
    again = train(replace(short, "data.workers", 1), 0, lines.append, root=tmp_path, data_root=data_root)
    assert any("going on after step 2" in line for line in lines) and hashes(again) == hashes(finished)


def test_examples_are_responses_or_all_that_one_speaker_answers(examples):
    rows, _ = examples
    by_form = {form: {who: training_examples(rows, Train(examples=form, speakers=who)) for who in ("all", "first", "second")}
               for form in ("responses", "dialogues")}
    for form, groups in by_form.items():
        assert sorted(map(id, sum(groups["all"], []))) == sorted(map(id, rows)), form
        assert len(groups["first"]) + len(groups["second"]) == len(groups["all"])
        assert all(e.response.speaker == e.context[0].speaker for group in groups["first"] for e in group)
        assert all(e.response.speaker != e.context[0].speaker for group in groups["second"] for e in group)
    assert all(len(group) == 1 for group in by_form["responses"]["all"])
    for group in by_form["dialogues"]["all"]:
        assert len({(e.dialogue_id, e.response.speaker) for e in group}) == 1
        assert [e.index for e in group] == sorted(e.index for e in group)
    assert max(map(len, by_form["dialogues"]["all"])) > 2


def test_where_nobody_answers_as_asked_it_is_said(examples):
    mine = [e for e in examples[0] if e.response.speaker != e.context[0].speaker]
    with pytest.raises(ConfigError, match="train.speakers = 'first': no dialogue has a response of that one"):
        training_examples(mine, Train(speakers="first"))


def collator_that(do):
    """Two batches, of which the second's photos ``do`` something else."""
    return SimpleNamespace(dialogues=lambda groups: "a batch" if groups[0] == "first" else do())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(1, 5), st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), max_size=4), st.integers(1, 5))
def test_all_processes_together_train_on_every_example_once_whatever_their_number(count, size, earlier, last):
    """Also where some rounds were done by other numbers of processes before."""
    order, done, taken = list(range(count)), 0, []
    for processes, rounds in (*earlier, (last, 99)):
        shares = [own_batches(order[done:], size, processes, own)[:rounds] for own in range(processes)]
        assert len({len(share) for share in shares}) == 1  # all take part in every round
        for members in zip(*shares, strict=True):
            assert members[0][1] and all(batch for batch, _ in members)  # the first always has one of its own
            taken += [i for batch, counts in members if counts for i in batch]
            done = min(count, done + size * processes)
        assert done == len(taken)
    assert taken == order


def refuse():
    raise PhotoError("photo 'p'", "file is truncated")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_cannot_be_read_is_named_whoever_reads_it(workers):
    batches = sound(batch_loader(["first", "second"], [[0], [1]], collator_that(refuse), workers))
    assert next(batches) == "a batch"
    with pytest.raises(DataError, match="^photo 'p': file is truncated$"):
        next(batches)


def test_a_process_that_dies_is_said_to():
    kill = collator_that(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ConfigError, match="a process that reads data died.*data.workers lower"):
        list(sound(batch_loader(["first", "second"], [[0], [1]], kill, 1)))


def test_another_error_is_not_hidden():
    def broken():
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(sound(batch_loader(["second"], [[0]], collator_that(broken), 0)))
    assert torch.utils.data.get_worker_info() is None
