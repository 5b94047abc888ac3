"""Answering: batches answer as single chats do, generators decide everything, and what is generated is read rightly."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from e2e_lib.config import Inference
from e2e_lib.data.collate import IMAGE_END, IMAGE_START, IMAGE_TOKEN, Collator
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.inference.chat import ChatPartner, PhotoAlbum
from e2e_lib.inference.respond import Response, parse, respond, write
from e2e_lib.repro.randomness import generator

GREEDY = Inference(do_sample=False, max_new_tokens=12, num_inference_steps=2)
SAMPLED = dataclasses.replace(GREEDY, do_sample=True, temperature=1.5, top_p=1.0)
BEAMS = dataclasses.replace(GREEDY, num_beams=3)


@pytest.fixture
def talkative(model):
    """The tiny model with larger weights, so that its words depend on the context and not on rounding."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("language", "perceptron")) and parameter.ndim > 1:
                parameter.mul_(8)
    return model.eval()


@pytest.fixture
def chats(examples):
    """Six contexts of different lengths, half of them with photos."""
    rows, store = examples
    seen = [e for e in rows if any(turn.photo for turn in e.context)]
    unseen = [e for e in rows if not any(turn.photo for turn in e.context)]
    return [pair for both in zip(seen[::5][:3], unseen[::5][:3], strict=True) for pair in both], store


def share(model, caption, say=""):
    """Makes ``model`` answer with a photo: its generated tokens are replaced by these."""
    ids = model.formatter.response(Turn(1, say, SharedPhoto("p", caption)))[0]
    model.language.generate = lambda inputs_embeds, **_: torch.tensor([ids] * len(inputs_embeds))


# ---------------------------------------------------------------------------------------------------------------- writing

@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_a_batch_is_answered_as_its_chats_alone(talkative, chats, settings):
    rows, store = chats
    together = write(talkative, rows, store, settings, generator(0), 64)
    alone = [write(talkative, [row], store, settings, generator(0), 64)[0] for row in rows]
    assert [r.text for r in together] == [r.text for r in alone] and [r.caption for r in together] == [r.caption for r in alone]
    assert len({(r.text, r.caption) for r in together}) > 2  # and the contexts matter


@torch.no_grad()
def test_greedy_answers_are_the_likeliest_words_one_after_another(talkative, chats):
    rows, store = chats
    layout, embed = talkative.formatter, talkative.language.get_input_embeddings()
    for row in rows[:2]:
        batch = Collator(layout, store, 64, answering=True)([row])
        so_far, ids = talkative.read(batch), []
        for _ in range(GREEDY.max_new_tokens):
            ids.append(int(talkative.language(inputs_embeds=so_far).logits[0, -1].argmax()))
            if ids[-1] in formatter.stops:
                break
            so_far = torch.cat([so_far, embed(torch.tensor([[ids[-1]]]))], 1)
        assert write(talkative, [row], store, GREEDY, generator(0), 64)[0] == parse(talkative, torch.tensor(ids))


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED, BEAMS], ids=["greedy", "sampled", "beams"])
def test_the_same_generator_gives_the_same_answers_and_the_global_state_stays(talkative, chats, settings):
    rows, store = chats
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = respond(talkative, rows, store, settings, generator(1))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(12)
    again = respond(talkative, rows, store, settings, generator(1))
    for one, two in zip(first, again, strict=True):
        assert (one.text, one.caption) == (two.text, two.caption)
        assert (one.photo is None) == (two.photo is None) and (one.photo is None or torch.equal(one.photo, two.photo))
    other = respond(talkative, rows, store, settings, generator(2))
    assert ([r.text for r in other] != [r.text for r in first]) == (settings is SAMPLED)


def test_shared_photos_are_the_generators_drawings_of_their_captions(talkative, chats):
    rows, store = chats
    share(talkative, "two red cars", say="look")
    rng = generator(3)
    seen = []
    answers = respond(talkative, rows[:3], store, dataclasses.replace(GREEDY, batch_size=2), rng, progress=lambda *told: seen.append(told))
    assert [(r.text, r.caption) for r in answers] == [("look", "two red cars")] * 3
    assert seen == [("written", 2, 3), ("written", 3, 3), ("drawn", 2, 3), ("drawn", 3, 3)]
    rng = generator(3)
    for _ in range(2):  # one seed for each of the two batches of words
        torch.randint(2**62, (1,), generator=rng)
    expected = torch.cat([talkative.generator.draw(["two red cars"] * n, rng, num_inference_steps=2, guidance_scale=GREEDY.guidance) for n in (2, 1)])
    assert torch.equal(torch.stack([r.photo for r in answers]), expected)
    assert np.array_equal(np.array(answers[0].image), expected[0].permute(1, 2, 0).numpy()) and answers[0].image.size == (64, 64)


def test_an_answer_without_a_photo_has_no_picture():
    assert Response("hi").image is None and Response("hi").caption is None


# ---------------------------------------------------------------------------------------------------------------- reading

@pytest.mark.parametrize(("written", "text", "caption"), [
    ("it was fun</s>", "it was fun", None),
    ("it was fun", "it was fun", None),
    (f"look! {IMAGE_START} a red cat {IMAGE_END}</s>", "look!", "a red cat"),
    (f"{IMAGE_START} a red cat {IMAGE_END}</s>", "", "a red cat"),
    (f"look! {IMAGE_START} a red cat", "look!", "a red cat"),  # left open
    (f"look! {IMAGE_START} {IMAGE_END}</s>", "look!", None),  # nothing to draw
    (f"look! {IMAGE_START}", "look!", None),
    (f"look! {IMAGE_START} a red cat {IMAGE_END} nice, no?</s>", "look! nice, no?", "a red cat"),
    (f"{IMAGE_START} a cat {IMAGE_END} and {IMAGE_START} a dog {IMAGE_END}</s>", "and a dog", "a cat"),
    (f"well {IMAGE_END} then</s>", "well then", None),
    (f"well {IMAGE_END} then {IMAGE_START} a cat {IMAGE_END}</s>", "well then", "a cat"),
    (f"{IMAGE_START} a {IMAGE_START} cat {IMAGE_END}</s>", "", "a cat"),
    (f"a {IMAGE_TOKEN} b</s>", "a b", None),
    ("<s> hello <unk> you</s>", "hello you", None),
    ("</s>", "", None),
    ("</s><pad><pad>", "", None),
])
def test_generated_tokens_become_text_and_caption(model, written, text, caption):
    ids = model.tokenizer(written, add_special_tokens=False)["input_ids"]
    answer = parse(model, torch.tensor(ids))
    assert (answer.text, answer.caption, answer.photo) == (text, caption, None)


# ---------------------------------------------------------------------------------------------------------------- chatting

def picture(value):
    return Image.fromarray(np.full((40, 60, 3), value, dtype=np.uint8))


def test_an_album_reads_like_a_store():
    album = PhotoAlbum()
    names = [album.add(picture(10)), album.add(picture(200).convert("L"))]
    assert len(set(names)) == 2
    for name, value in zip(names, (10, 200), strict=True):
        assert torch.equal(album.tensor(name, 16), torch.full((3, 16, 16), value, dtype=torch.uint8))


def test_a_chat_remembers_what_was_said_and_shown(talkative, chats):
    partner = ChatPartner(talkative, GREEDY, seed=4)
    first = partner.say("  hi there  ", picture(90))
    assert partner.turns == [Turn(0, "hi there", SharedPhoto("photo 1", "")), Turn(1, first.text, partner.turns[1].photo)]
    second = partner.say("and then?")
    assert [turn.speaker for turn in partner.turns] == [0, 1, 0, 1] and partner.turns[3].text == second.text
    expected = respond(talkative, [Example("c", 3, tuple(partner.turns[:3]), Turn(1, ""))], partner.album, GREEDY, generator(0))[0]
    assert (second.text, second.caption) == (expected.text, expected.caption)


def test_a_partners_own_photo_is_context_of_what_follows(talkative):
    partner = ChatPartner(talkative, GREEDY)
    generate = talkative.language.generate
    share(talkative, "two red cars", say="look")
    answer = partner.say("show me")
    assert partner.turns[-1] == Turn(1, "look", SharedPhoto("photo 1", "two red cars"))
    assert torch.equal(partner.album.tensor("photo 1", 64), answer.photo)
    share(talkative, "a boat")
    partner.go_on()
    assert [turn.speaker for turn in partner.turns] == [0, 1, 1] and partner.turns[-1].photo == SharedPhoto("photo 2", "a boat")
    talkative.language.generate = generate
    partner.say("nice")  # with both photos to look at


def test_the_same_seed_gives_the_same_chat(talkative):
    chats = [[ChatPartner(talkative, SAMPLED, seed=seed).say("hi").text] for seed in (5, 5, 6)]
    assert chats[0] == chats[1] != chats[2]


@pytest.mark.parametrize("text", ["", "   \n"])
def test_saying_nothing_is_an_error(talkative, text):
    partner = ChatPartner(talkative, GREEDY)
    with pytest.raises(ValueError, match="say something: a text, a photo, or both"):
        partner.say(text)
    assert partner.turns == []
    with pytest.raises(ValueError, match="has not begun"):
        partner.go_on()


@pytest.mark.parametrize("text", [f"what is {IMAGE_TOKEN}?", f"{IMAGE_START} hm {IMAGE_END}", "</s>", "<s><pad>"])
def test_markers_typed_by_a_person_are_plain_text(talkative, text):
    formatter = talkative.formatter
    special = {formatter.start, formatter.end, formatter.slot, formatter.pad, talkative.tokenizer.eos_token_id, talkative.tokenizer.bos_token_id}
    assert not special & set(formatter.text(text))
    partner = ChatPartner(talkative, GREEDY)
    partner.say(text, picture(90))
