"""The training loop resumes exactly; photos and losses of the recipes are what they claim."""

import dataclasses
import itertools
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from e2e_lib.config import Pretrain, load
from e2e_lib.data.minichat.chats import HELD_OUT
from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.pretraining import fit
from e2e_lib.pretraining.fit import STEPS, Pretraining, Probes, attribute_loss, sample_photos
from e2e_lib.repro.files import CheckpointError

STAGE = "light"


def new_run(folder, steps=6):
    config = load("smoke", [f"pretrain.{STEPS[STAGE]}={steps}"])
    return Pretraining(config, folder, folder, lambda _: None)


def train(run, stop_after=None):
    """Trains a new layer on a toy loss; returns its weights."""
    layer, calls = nn.Linear(3, 1, bias=False), itertools.count(1)
    nn.init.constant_(layer.weight, 0.5)

    def loss_of(rng):
        if next(calls) == stop_after:
            raise KeyboardInterrupt
        return (layer(torch.randn(4, 3, generator=rng)) - 1).square().mean()

    run.fit(STAGE, layer, loss_of, 0.1)
    return layer.weight.detach()


def test_interrupted_stage_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    expected = train(new_run(tmp_path / "whole"))
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(new_run(tmp_path), stop_after=4)
    assert json.loads((tmp_path / STAGE / "state.json").read_text())["step"] == 3
    assert torch.equal(train(new_run(tmp_path)), expected)
    assert torch.equal(train(new_run(tmp_path), stop_after=1), expected)  # nothing is left to do


def test_stage_of_another_length_is_refused(tmp_path):
    train(new_run(tmp_path))
    with pytest.raises(CheckpointError, match="was begun with 6 steps and seed 0, not 7 and 0; remove it"):
        train(new_run(tmp_path, steps=7))


def test_every_stage_has_a_setting_and_every_setting_a_stage():
    settings = {field.name for field in dataclasses.fields(Pretrain) if field.name.endswith("_steps")}
    assert set(STEPS.values()) == settings


def test_sampled_photos_hold_out_triples_unless_every_triple():
    photos, scenes = sample_photos(150, 1, "key")
    again, _ = sample_photos(2, 1, "key")
    assert photos.shape == (150, 3, 64, 64) and photos.dtype == torch.uint8 and torch.equal(photos[:2], again)
    assert not any(scene.triple in HELD_OUT for scene in scenes)
    assert any(scene.triple in HELD_OUT for scene in sample_photos(150, 1, "key", every_triple=True)[1])


def test_probe_loss_sums_cross_entropies_of_mean_hidden_states():
    labels = torch.tensor([scene.labels for scene in sample_photos(5, 2, "key")[1]])
    probes, hidden = Probes(7), torch.randn(5, 3, 7)
    expected = sum(F.cross_entropy(probes[name](hidden.sum(1) / 3), labels[:, i])
                   for i, name in enumerate(ATTRIBUTES))
    torch.testing.assert_close(probes.loss(hidden, labels), expected)
    uniform = {name: torch.zeros(5, len(values)) for name, values in ATTRIBUTES.items()}
    expected = sum(torch.tensor(float(len(values))).log() for values in ATTRIBUTES.values())
    torch.testing.assert_close(attribute_loss(uniform, labels), expected)
