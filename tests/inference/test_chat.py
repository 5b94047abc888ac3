"""A running chat is the same as answering its examples, and its photos are context of what follows."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from e2e_lib.config import SYSTEMS, Inference
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.inference.chat import ChatPartner, PhotoAlbum
from e2e_lib.inference.respond import respond
from e2e_lib.repro.randomness import generator

GREEDY = Inference(do_sample=False, max_new_tokens=12, num_inference_steps=2)
SAMPLED = dataclasses.replace(GREEDY, do_sample=True, temperature=1.5, top_p=1.0)


@pytest.fixture
def model(talkative):
    return talkative("end_to_end")


def grey(value, height=40, width=60):
    return Image.fromarray(np.full((height, width, 3), value, dtype=np.uint8))


def test_an_album_reads_like_a_store():
    album = PhotoAlbum()
    names = [album.add(grey(10)), album.add(grey(200, 16, 9).convert("L"))]
    assert len(set(names)) == 2 and list(album.images) == names
    for name, value, size in zip(names, (10, 200), ((40, 60), (16, 9)), strict=True):
        assert torch.equal(album.tensor(name), torch.full((3, *size), value, dtype=torch.uint8))
    assert album.captions("key") == {}
    album.keep_captions("key", {"photo 1": "grey"})
    assert album.captions("key") == {"photo 1": "grey"} and album.captions("other") == {}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_chat_answers_as_its_turns_would_be_answered_elsewhere(talkative, system):
    partner = ChatPartner(talkative(system), GREEDY, seed=4)
    first = partner.say("  hi there  ", grey(90))
    assert partner.turns == [Turn(0, "hi there", SharedPhoto("photo 1", "")), Turn(1, first.text, partner.turns[1].photo)]
    second = partner.say("and then?")
    assert [turn.speaker for turn in partner.turns] == [0, 1, 0, 1] and partner.turns[3].text == second.text
    example = Example("c", 3, tuple(partner.turns[:3]), Turn(1, ""))
    (expected,) = respond(partner.model, [example], partner.album, GREEDY, generator(0))
    assert (second.text, second.caption) == (expected.text, expected.caption)
    captioner = partner.model.captioner
    if captioner:  # the photo is read as its caption
        (caption,) = captioner.generate_captions([partner.album.tensor("photo 1")])
        assert partner.album.captions(captioner.key)["photo 1"] == caption


def test_the_partners_own_photo_is_context_of_what_follows(model, monkeypatch):
    partner, captions = ChatPartner(model, GREEDY), iter(["two red cars", "a boat"])
    with monkeypatch.context() as patch:
        patch.setattr(model.language, "generate", lambda inputs_embeds, **_: torch.tensor(
            [model.formatter.response(Turn(1, "look", SharedPhoto("p", next(captions))))[0]]))
        answer = partner.say("show me")
        assert partner.turns[-1] == Turn(1, "look", SharedPhoto("photo 1", "two red cars"))
        assert torch.equal(partner.album.tensor("photo 1"), answer.photo)
        partner.go_on()
    assert [turn.speaker for turn in partner.turns] == [0, 1, 1]
    assert partner.turns[-1].photo == SharedPhoto("photo 2", "a boat")
    seen, embed = [], model.embed_context
    monkeypatch.setattr(model, "embed_context", lambda batch: seen.extend(batch.photos) or embed(batch))
    partner.say("nice")  # with both photos to look at
    assert len(seen) == 2 and torch.equal(seen[0], answer.photo)


def test_the_same_seed_gives_the_same_chat(model):
    answers = [ChatPartner(model, SAMPLED, seed=seed).say("hi").text for seed in (5, 5, 6)]
    assert answers[0] == answers[1] != answers[2]


def test_saying_nothing_is_an_error(model):
    partner = ChatPartner(model, GREEDY)
    for text in ("", "   \n"):
        with pytest.raises(ValueError, match="say something: a text, a photo, or both"):
            partner.say(text)
    assert partner.turns == []
    with pytest.raises(ValueError, match="has not begun"):
        partner.go_on()
