"""What the shipped parts reach, and how parts are saved and measured."""

import json

import pytest
import torch
from torch import nn

from e2e_lib.config import SHIPPED, ConfigError, load
from e2e_lib.data.minichat.chats import HELD_OUT
from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.models.generator import load_generator
from e2e_lib.models.systems import build
from e2e_lib.pretraining import parts
from e2e_lib.pretraining.fit import sample_photos


def test_shipped_generator_draws_all_that_a_full_caption_says():
    accuracy = parts.drawn_accuracy(load_generator(SHIPPED), load_scene_classifier(), load("mini"), "seen",
                                    count=24, detail=1.0, names=ATTRIBUTES)
    assert min(accuracy.values()) > 0.85, accuracy  # by chance, a third of the times of day would be right


def test_shipped_model_captions_photos_it_has_not_seen():
    config, (photos, scenes) = load("mini"), sample_photos(16, 321, "unseen")
    captions = parts.caption_photos(build(config).eval(), config, photos)
    assert min(parts.caption_accuracy(captions, scenes).values()) > 0.8


def test_gold_scenes_are_seen_or_held_out():
    assert not any(parts.gold_scene("seen", i, 0).triple in HELD_OUT for i in range(50))
    assert all(parts.gold_scene("unseen", i, 0).triple in HELD_OUT for i in range(50))


def test_caption_accuracy_reads_plurals_and_counts_nothing_named_as_wrong():
    scenes = [Scene("car", "red", "beach", 2), Scene("mug", "blue", "snow"), Scene("hat", "pink", "city")]
    captions = ["Two red cars, at the beach.", "a red mug in the snow", ""]
    expected = {"thing": 2 / 3, "colour": 1 / 3, "place": 2 / 3}
    assert parts.caption_accuracy(captions, scenes) == pytest.approx(expected)


def test_manifest_names_every_file_and_refuses_too_large_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "WORK", tmp_path / "work")
    config, folder = load("smoke"), tmp_path / "parts"
    state = tmp_path / "work" / "smoke" / "stage" / "state.json"
    for path, text in ((state, '{"seconds": 12.4}'), (folder / "a" / "config.json", "{}")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    parts.write_manifest(config, folder, ("stage",), max_bytes=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["files"]) == ["a/config.json"] and manifest["bytes"] == 2
    assert manifest["seconds"] == {"stage": 12}
    with pytest.raises(ConfigError, match="the parts take 2 bytes, more than the 1 that may ship"):
        parts.write_manifest(config, folder, ("stage",), max_bytes=1)


def test_parts_are_saved_in_half_precision_and_left_as_they_are(tmp_path):
    class Part(nn.Linear):
        def save_pretrained(self, folder):
            torch.save(self.weight.detach(), folder / "weight.pt")
            (folder / "README.md").write_text("")

    part = Part(2, 2)
    parts.save_part(part, tmp_path)
    assert torch.load(tmp_path / "weight.pt").dtype == torch.float16 and part.weight.dtype == torch.float32
    assert not (tmp_path / "README.md").exists()
