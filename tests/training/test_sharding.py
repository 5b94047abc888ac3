"""Full sharding: two processes that hold half of everything each train, answer and save as one that holds all of it."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from killed_training import always_photos
from PIL import Image
from sharded_training import train_in_shares
from trained_by_hand import (
    changed,
    check_trained,
    in_process,
    log_of,
    quiet,
    rounds_of,
    stop_after,
    trained_by_hand,
)

from e2e_lib.config import ConfigError, Train
from e2e_lib.corpora import prepare
from e2e_lib.data.examples import split_examples
from e2e_lib.models.systems import build
from e2e_lib.repro.run_files import run_folder
from e2e_lib.training import checkpoints
from e2e_lib.training.dev import DevSet
from e2e_lib.training.loop import train
from e2e_lib.training.precision import new_optimizer


def test_two_processes_with_a_share_of_all_weights_train_answer_and_save_as_one(config, tmp_path, monkeypatch):
    # Five batches: in the first epoch, a step of two rounds, and one of a round that has no batch for the second process.
    begun = changed(config, train__full_sharding=True, train__batch_size=2, train__epoch_examples=9, train__epochs=2,
                    train__gradient_accumulation_steps=2, train__checkpointing=True, train__warmup_steps=0, train__weight_decay=1.0,
                    train__checkpoint_every=99, train__dev_examples=5, inference__batch_size=2)
    # Four batches: one process takes the first one.
    ended = dataclasses.replace(changed(begun, train__epoch_examples=8, train__epochs=1, train__gradient_accumulation_steps=1,
                                        train__checkpoint_every=1, train__dev_examples=4), profile="ended")
    data = tmp_path / "data"
    prepare(begun, quiet, data)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        train(ended, 0, quiet, root=tmp_path, data_root=data)
    processes = [in_process(rank, begun, ended, tmp_path, target=train_in_shares) for rank in (0, 1)]
    for process in processes:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    for rank in (0, 1):  # and what was gathered has been let go
        (weights, whole), (states, all_states) = json.loads((tmp_path / f"held-{rank}").read_text())
        assert weights == pytest.approx(whole / 2, rel=0.05) and states == 2 * weights and all_states == 2 * whole

    folder, model = run_folder(begun, 0, tmp_path), build(begun)
    weights, _ = checkpoints.load(folder / "latest")
    checkpoints.load_weights(model, weights, folder)
    dev, store = split_examples(prepare(begun, quiet, data), "dev")
    with always_photos():
        expected = DevSet(begun, 0, dev, store, tmp_path / "gallery").score(model, 1)
    assert expected["fid"] > 0
    line, = log_of(folder, "dev")
    assert {key: line[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    own = tmp_path / "gallery" / "epoch-1"
    assert (own / "gallery.json").read_bytes() == (folder / "gallery" / "epoch-1" / "gallery.json").read_bytes()
    for path in own.glob("*.png"):
        drawn, there = (np.asarray(Image.open(place)).astype(int) for place in (path, folder / "gallery" / "epoch-1" / path.name))
        assert np.abs(drawn - there).max() <= 1

    train(begun, 0, quiet, root=tmp_path, data_root=data)  # one process ends what two have begun
    epochs = iter((rounds_of(2), rounds_of(1)))
    check_trained(folder, trained_by_hand(begun, tmp_path, data, lambda batches: next(epochs)(batches)), begun)
    # In the second step, parts that had no loss stayed as they were, though AdamW had seen their gradients.
    assert [line["image_loss"] is not None for line in log_of(folder, "step")][:2] == [True, False]

    def split(batches):
        return [(0, batches[:1]), (0, batches[1:3]), (1 / 2, batches[3:])]

    check_trained(run_folder(ended, 0, tmp_path), trained_by_hand(ended, tmp_path, data, split), ended)


def test_what_cannot_be_shared_out_is_named(config):
    for settings, complaint in ((Train(optimizer="adamw8bit", full_sharding=True),
                                 "train.full_sharding = true shares out the states of adamw, and not of adamw8bit"),
                                (Train(optimizer_sharding=True, full_sharding=True), "leave train.optimizer_sharding false")):
        with pytest.raises(ConfigError, match=complaint):
            new_optimizer([], settings, torch.device("cpu"), processes=2)
    with pytest.raises(ConfigError, match="model.language_lora = 4 little of it does: set train.optimizer_sharding=true instead"):
        build(changed(config, train__full_sharding=True, model__language_lora=4))
