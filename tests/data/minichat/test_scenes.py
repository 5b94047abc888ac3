"""Photos show their scenes: other values give other pixels where they should, and nothing else does."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene, draw_scene, render_photos

SCENE = Scene("kite", "red", "beach", 2, "small", "night")


def test_scene_refuses_unknown_values():
    with pytest.raises(ValueError, match="scene colour: 'grey' is not one of red, orange"):
        dataclasses.replace(SCENE, colour="grey")


def test_labels_index_the_attribute_values():
    assert [values[i] for values, i in zip(ATTRIBUTES.values(), SCENE.labels, strict=True)] == [
        "kite", "red", "beach", 2, "small", "night"]
    assert (SCENE.triple, SCENE.noun) == (("kite", "red", "beach"), "kites")
    assert SCENE.details == ("number", "time")
    assert Scene("kite", "red", "beach").details == ("size", "time")


def test_same_scene_and_seed_give_the_same_pixels():
    assert draw_scene(SCENE, 3).tobytes() == draw_scene(SCENE, 3).tobytes() != draw_scene(SCENE, 4).tobytes()
    assert draw_scene(SCENE, 3, 96).size == (96, 96) and draw_scene(SCENE, 3).mode == "RGB"


def test_pixels_are_those_of_minichat_version_1():
    photos = [draw_scene(Scene(thing, colour, place, number, size, time), 0).tobytes()
              for thing in ATTRIBUTES["thing"]
              for colour, place, number, size, time in (("red", "city", 1, "big", "night"),
                                                        ("white", "garden", 3, "small", "evening"))]
    digest = hashlib.sha256(b"".join(photos)).hexdigest()
    assert digest == "8b0fd0107ca8c07750c5e91e9aa20a4a53cc9c14fa500fbe19ef9a8eb63be975"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_value_of_an_attribute_looks_different(name):
    scene = Scene("ball", "red", "snow")
    photos = [np.asarray(draw_scene(dataclasses.replace(scene, **{name: value}), 0), dtype=int)
              for value in ATTRIBUTES[name]]
    differences = [np.abs(a - b).mean() for i, a in enumerate(photos) for b in photos[:i]]
    assert min(differences) > 1  # of 255


def test_render_photos_stacks_the_drawings():
    photos = render_photos([SCENE, Scene("mug", "blue", "forest")], [5, 6])
    assert photos.shape == (2, 3, 64, 64) and photos.dtype == torch.uint8 and photos.is_contiguous()
    assert photos[0].permute(1, 2, 0).numpy().tobytes() == draw_scene(SCENE, 5).tobytes()
