"""Answering: batches answer as single chats do, the generator decides everything, and tokens are parsed rightly."""

import dataclasses

import numpy as np
import pytest
import torch

from e2e_lib.config import SYSTEMS, Inference
from e2e_lib.data.collate import IMAGE_END, IMAGE_START, IMAGE_TOKEN, Collator
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.inference.respond import generate_texts, parse_response, respond
from e2e_lib.models.captioner import with_captions
from e2e_lib.repro.randomness import generator

GREEDY = Inference(do_sample=False, max_new_tokens=12, num_inference_steps=2)
SAMPLED = dataclasses.replace(GREEDY, do_sample=True, temperature=1.5, top_p=1.0)
BEAMS = dataclasses.replace(GREEDY, num_beams=3)


@pytest.fixture
def chats(examples):
    """Six contexts of different lengths, half of them with photos."""
    rows, store = examples
    with_photo = [e for e in rows if any(turn.photo for turn in e.context)]
    without = [e for e in rows if not any(turn.photo for turn in e.context)]
    return [pair for both in zip(with_photo[::5][:3], without[::5][:3], strict=True) for pair in both], store


@pytest.fixture(params=SYSTEMS)
def any_system(request, talkative):
    return talkative(request.param)


@pytest.fixture
def model(talkative):
    return talkative("end_to_end")


def share(model, caption, text=""):
    """Makes ``model`` answer with a photo: its generated tokens are replaced by these."""
    ids = model.formatter.response(Turn(1, text, SharedPhoto("p", caption)))[0]
    model.language.generate = lambda inputs_embeds, **_: torch.tensor([ids] * len(inputs_embeds))


def texts(model, rows, store, settings, seed=0):
    rows = with_captions(rows, model.captioner, store) if model.captioner else rows
    return generate_texts(model, rows, store, settings, generator(seed))


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_a_batch_is_answered_as_its_chats_alone(any_system, chats, settings):
    rows, store = chats
    together = texts(any_system, rows, store, settings)
    assert together == [texts(any_system, [row], store, settings)[0] for row in rows]
    assert len({(r.text, r.caption) for r in together}) > 2  # the contexts matter


@torch.no_grad()
def test_greedy_answers_are_the_likeliest_tokens_one_after_another(any_system, chats):
    rows, store = chats
    model, embed = any_system, any_system.language.get_input_embeddings()
    for row in with_captions(rows[:2], model.captioner, store) if model.captioner else rows[:2]:
        inputs, ids = model.embed_context(Collator(model.formatter, store, answering=True)([row])), []
        while len(ids) < GREEDY.max_new_tokens and not set(ids) & set(model.formatter.eos_token_ids):
            ids.append(int(model.language(inputs_embeds=inputs).logits[0, -1].argmax()))
            inputs = torch.cat([inputs, embed(torch.tensor([[ids[-1]]]))], 1)
        assert texts(model, [row], store, GREEDY)[0] == parse_response(model, torch.tensor(ids))


@pytest.mark.parametrize("system", ["pipeline", "divter"])
def test_the_captioners_captions_decide_the_answer(talkative, chats, system, monkeypatch):
    (rows, store), model = chats, talkative(system)
    first = texts(model, rows, store, GREEDY)
    monkeypatch.setattr(model.captioner, "key", "other")
    monkeypatch.setattr(model.captioner, "generate_captions", lambda photos: ["nothing at all"] * len(photos))
    second = texts(model, rows, store, GREEDY)
    photos = [any(turn.photo for turn in row.context) for row in rows]
    changed = [one != two for one, two in zip(first, second, strict=True)]
    assert any(changed) and not any(c and not photo for c, photo in zip(changed, photos, strict=True))


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED, BEAMS], ids=["greedy", "sampled", "beams"])
def test_the_same_generator_gives_the_same_answers_and_the_global_state_stays(model, chats, settings):
    rows, store = chats
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = respond(model, rows, store, settings, generator(1))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(12)
    again, other = (respond(model, rows, store, settings, generator(seed)) for seed in (1, 2))
    for one, two in zip(first, again, strict=True):
        assert (one.text, one.caption) == (two.text, two.caption) and (one.photo is None) == (two.photo is None)
        assert one.photo is None or torch.equal(one.photo, two.photo)
    assert ([r.text for r in other] != [r.text for r in first]) == (settings is SAMPLED)


def test_shared_photos_are_drawn_from_their_captions(any_system, chats):
    (rows, store), model, rng, calls = chats, any_system, generator(3), []
    share(model, "two red cars", text="look")
    settings = dataclasses.replace(GREEDY, batch_size=2)
    answers = respond(model, rows[:3], store, settings, rng, progress=lambda *call: calls.append(call))
    assert [(r.text, r.caption) for r in answers] == [("look", "two red cars")] * 3
    assert calls == [("written", 2, 3), ("written", 3, 3), ("drawn", 2, 3), ("drawn", 3, 3)]
    rng = generator(3)
    for _ in range(2):  # one seed for each of the two batches of texts
        torch.randint(2**62, (1,), generator=rng)
    scale = GREEDY.guidance_scale
    expected = torch.cat([model.generator.draw(["two red cars"] * n, rng, num_inference_steps=2, guidance_scale=scale)
                          for n in (2, 1)])
    assert torch.equal(torch.stack([r.photo for r in answers]), expected)
    image = answers[0].image
    assert np.array_equal(np.array(image), expected[0].permute(1, 2, 0).numpy()) and image.size == (64, 64)


@pytest.mark.parametrize(("tokens", "text", "caption"), [
    ("it was fun</s>", "it was fun", None),
    ("it was fun", "it was fun", None),
    (f"look! {IMAGE_START} a red cat {IMAGE_END}</s>", "look!", "a red cat"),
    (f"{IMAGE_START} a red cat {IMAGE_END}</s>", "", "a red cat"),
    (f"look! {IMAGE_START} a red cat", "look!", "a red cat"),  # left open
    (f"look! {IMAGE_START} {IMAGE_END}</s>", "look!", None),  # an empty caption
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
def test_generated_tokens_become_text_and_caption(systems, tokens, text, caption):
    ids = systems["end_to_end"].tokenizer(tokens, add_special_tokens=False)["input_ids"]
    answer = parse_response(systems["end_to_end"], torch.tensor(ids))
    assert (answer.text, answer.caption, answer.photo) == (text, caption, None)
