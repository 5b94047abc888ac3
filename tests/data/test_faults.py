"""Captions made wrong: what changes, what stays, how often."""

import random
import re
from dataclasses import fields

import pytest

from e2e_lib.config import Data
from e2e_lib.data.examples import examples_of
from e2e_lib.data.minichat.chats import make_chat
from e2e_lib.data.minichat.faults import FAULTS, NAMED, named_values, with_faults
from e2e_lib.data.minichat.scenes import COLOURS

CHATS = [make_chat("train", index, 0) for index in range(400)]
EXAMPLES = [example for chat in CHATS for example in examples_of(chat.dialogue)]
SCENES = {photo_id: scene for chat in CHATS for photo_id, scene in chat.scenes.items()}
GOLD = {photo.photo_id: photo.caption for example in EXAMPLES for photo in example.response.photos}


def captions(kind, rate, seed=0):
    """The captions of response photos, by photo; a photo must have one caption wherever it is shared."""
    found = {}
    for example in with_faults(EXAMPLES, kind, rate, seed):
        for turn in (*example.context, example.response):
            for photo in turn.photos:
                assert found.setdefault(photo.photo_id, photo.caption) == photo.caption
    return {photo_id: found[photo_id] for photo_id in GOLD}


def test_the_setting_names_all_faults():
    choices = next(f for f in fields(Data) if f.name == "caption_faults").metadata["choices"]
    assert set(choices) == {"none", *FAULTS}


def test_captions_name_what_the_photo_shows():
    for photo_id, caption in GOLD.items():
        assert named_values(caption) == {name: getattr(SCENES[photo_id], name) for name in NAMED}


@pytest.mark.parametrize("kind", FAULTS)
def test_rate_0_changes_nothing_and_rates_are_nested(kind):
    assert captions(kind, 0.0) == GOLD
    some, most = captions(kind, 0.4), captions(kind, 0.8)
    wrong, share = {photo_id for photo_id in GOLD if some[photo_id] != GOLD[photo_id]}, 1 - 0.6**3 if kind == "random" else 0.4
    assert abs(len(wrong) / len(GOLD) - share) < 0.1
    if kind != "random":
        assert all(some[photo_id] == most[photo_id] for photo_id in wrong)
    for photo_id in wrong:  # what is wrong at one rate is wrong at a higher one
        before, less, more = (named_values(caption) for caption in (GOLD[photo_id], some[photo_id], most[photo_id]))
        assert kind == "other_photo" or all(more.get(name) == less.get(name) for name in NAMED if less.get(name) != before[name])
    assert captions(kind, 0.4) == some and captions(kind, 0.4, seed=1) != some


@pytest.mark.parametrize("kind", [*NAMED, "random", "systematic"])
def test_words_are_wrong_and_all_else_as_it_was(kind):
    for photo_id, caption in captions(kind, 1.0).items():
        before, after = named_values(GOLD[photo_id]), named_values(caption)
        wrong = [name for name in NAMED if before[name] != after[name]]
        assert wrong == {"random": [*NAMED], "systematic": ["colour"]}.get(kind, [kind])
        assert len(after) == 3
        if kind == "systematic":
            assert COLOURS.index(after["colour"]) == (COLOURS.index(before["colour"]) + 1) % len(COLOURS)
        assert not any(f" a {letter}" in f" {caption}" or f" an {other}" in f" {caption}"
                       for letter in "aeiou" for other in "bcdfghjklmnprstvwxyz")
        scene = SCENES[photo_id]
        assert re.search(rf"\b{after['colour']} {after['thing']}{'s' * (scene.number > 1)}\b", caption)


def test_vague_captions_leave_a_word_out_and_others_are_of_other_photos():
    for photo_id, caption in captions("vague", 1.0).items():
        before, after = named_values(GOLD[photo_id]), named_values(caption)
        assert len(after) == 2 and after.items() <= before.items() and "  " not in caption
    other = captions("other_photo", 1.0)
    assert set(other.values()) <= set(GOLD.values()) and all(other[i] != GOLD[i] for i in GOLD)


def test_a_caption_of_another_form_stays_as_it_is():
    for kind, (parts, fault) in FAULTS.items():
        for part in parts:
            assert not fault or fault("two people on a bench", part, random.Random(0)) == "two people on a bench", kind
