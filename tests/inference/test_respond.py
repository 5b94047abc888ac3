"""Answering: batches answer as single chats do, the generator decides everything, and tokens are parsed rightly."""

import dataclasses

import numpy as np
import pytest
import torch

from e2e_lib.config import SYSTEMS, Inference
from e2e_lib.data.collate import IMAGE_END, IMAGE_START, IMAGE_TOKEN, Collator
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Response
from e2e_lib.inference import respond as respond_module
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
    with_photo = [e for e in rows if any(turn.photos for turn in e.context)]
    without = [e for e in rows if not any(turn.photos for turn in e.context)]
    return [pair for both in zip(with_photo[::5][:3], without[::5][:3], strict=True) for pair in both], store


@pytest.fixture(params=SYSTEMS)
def any_system(request, talkative):
    return talkative(request.param)


@pytest.fixture
def model(talkative):
    return talkative("end_to_end")


def share(model, caption, text=""):
    """Makes ``model`` answer with a photo: its generated tokens are replaced by these."""
    ids = model.formatter.response(Turn(1, text, (SharedPhoto("p", caption),)))[0]
    model.language.generate = lambda inputs_embeds, **_: torch.tensor([ids] * len(inputs_embeds))


def texts(model, rows, store, settings, seed=0):
    rows = with_captions(rows, model.captioner, store) if model.captioner else rows
    return generate_texts(model, rows, store, settings, generator(seed))


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_a_batch_is_answered_as_its_chats_alone(any_system, chats, settings):
    rows, store = chats
    together = texts(any_system, rows, store, settings)
    assert together == [texts(any_system, [row], store, settings)[0] for row in rows]
    assert len({(r.text, *r.captions) for r in together}) > 2  # the contexts matter


@torch.no_grad()
def test_greedy_answers_are_the_likeliest_tokens_one_after_another(any_system, chats):
    rows, store = chats
    model, embed = any_system, any_system.language.get_input_embeddings()
    for row in with_captions(rows[:2], model.captioner, store) if model.captioner else rows[:2]:
        inputs, ids = model.embed_context(Collator(model.formatter, store, answering=True)([row])), []
        while len(ids) < GREEDY.max_new_tokens and not set(ids) & set(model.formatter.eos_token_ids):
            ids.append(int(model.language(inputs_embeds=inputs).logits[0, -1].argmax()))
            inputs = torch.cat([inputs, embed(torch.tensor([[ids[-1]]]))], 1)
        (answer,), expected = texts(model, [row], store, GREEDY), parse_response(model, torch.tensor(ids))
        assert (answer.text, answer.captions) == (expected.text, expected.captions)


@pytest.mark.parametrize("system", ["pipeline", "divter"])
def test_the_captioners_captions_decide_the_answer(talkative, chats, system, monkeypatch):
    (rows, store), model = chats, talkative(system)
    first = [(r.text, r.captions) for r in respond(model, rows, store, GREEDY, 0)]
    monkeypatch.setattr(model.captioner, "key", "other")
    monkeypatch.setattr(model.captioner, "generate_captions", lambda photos: ["nothing at all"] * len(photos))
    second = [(r.text, r.captions) for r in respond(model, rows, store, GREEDY, 0)]
    photos = [any(turn.photos for turn in row.context) for row in rows]
    changed = [one != two for one, two in zip(first, second, strict=True)]
    assert any(changed) and not any(c and not photo for c, photo in zip(changed, photos, strict=True))


def test_answers_come_in_the_order_of_the_examples_each_with_its_own_photos(model, chats, monkeypatch):
    rows, store = chats
    alone = [respond(model, [row], store, GREEDY, 0)[0].text for row in rows]
    lengths = [sum(len(turn.text) for turn in row.context) for row in rows]
    assert len(set(alone)) > 2 and lengths != sorted(lengths)
    parse = respond_module.parse_response

    def with_captions_of_its_own(system, ids):
        """As many photos as the answer has letters, modulo 3."""
        answer = parse(system, ids)
        return Response(answer.text, [f"{answer.text} {k}" for k in range(len(answer.text) % 3)])

    def draw(texts, rng, **_):
        return torch.stack([torch.full((3, 2, 2), sum(map(ord, text)) % 256, dtype=torch.uint8) for text in texts])

    monkeypatch.setattr(respond_module, "parse_response", with_captions_of_its_own)
    monkeypatch.setattr(model.generator, "draw", draw)
    answers = respond(model, rows, store, dataclasses.replace(GREEDY, batch_size=2), 0)
    assert [answer.text for answer in answers] == alone and len({len(answer.photos) for answer in answers}) > 1
    for answer in answers:
        assert answer.captions == [f"{answer.text} {k}" for k in range(len(answer.text) % 3)]
        assert [int(photo[0, 0, 0]) for photo in answer.photos] == [int(draw([text], None)[0, 0, 0, 0]) for text in answer.captions]


def test_a_low_temperature_gives_the_likeliest_words_and_a_high_one_others(model, chats):
    rows, store = chats
    greedy, cold, hot = ([r.text for r in texts(model, rows, store, dataclasses.replace(GREEDY, **sampling))] for sampling in (
        {}, {"do_sample": True, "temperature": 1e-3, "top_p": 1.0}, {"do_sample": True, "temperature": 50.0, "top_p": 1.0}))
    assert cold == greedy and all(one != other for one, other in zip(hot, greedy, strict=True))
    assert [r.text for r in texts(model, rows, store, SAMPLED)] not in (greedy, hot)


def test_words_are_sampled_from_the_nucleus_and_from_nothing_less(model, chats):
    rows, store = chats
    greedy = texts(model, rows, store, GREEDY)
    wild = dataclasses.replace(SAMPLED, temperature=5.0, max_new_tokens=1)
    assert texts(model, rows, store, dataclasses.replace(wild, top_p=1e-3, max_new_tokens=GREEDY.max_new_tokens)) == greedy
    assert len({r.text for r in texts(model, [rows[0]] * 40, store, wild)}) > 10


def test_beams_find_what_the_greedy_search_does_not_and_never_sample(model, chats):
    rows, store = chats
    assert texts(model, rows, store, BEAMS) != texts(model, rows, store, GREEDY)
    wild = dataclasses.replace(BEAMS, do_sample=True, temperature=50.0)
    assert texts(model, rows, store, wild) == texts(model, rows, store, wild, seed=1) == texts(model, rows, store, BEAMS)


def test_an_answer_ends_where_the_next_turn_would_begin(model, chats):
    (rows, store), written, generate = chats, [], model.language.generate
    newline, pad = model.formatter.newline[-1], model.formatter.pad_token_id
    with torch.no_grad():
        model.language.get_input_embeddings().weight[newline] *= 20  # so that it is written now and then
    model.language.generate = lambda **how: written.append(generate(**how)) or written[-1]
    texts(model, rows * 5, store, SAMPLED)
    ended = [row[row.index(newline) + 1:] for row in written[0].tolist() if newline in row]
    assert len(ended) > 3 and any(ended) and all(i == pad for rest in ended for i in rest)


@pytest.mark.parametrize("system", SYSTEMS)
def test_answers_are_given_without_dropout(talkative, chats, system):
    (rows, store), model = chats, talkative(system)
    for module in model.language.modules():  # GPT-2's are modules, Llama's a number
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
        elif hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = 0.9
    expected = [r.text for r in respond(model.eval(), rows[:3], store, GREEDY, 1)]
    assert [r.text for r in texts(model.train(), rows[:3], store, GREEDY)] != expected
    assert [r.text for r in respond(model.train(), rows[:3], store, GREEDY, 2)] == expected
    assert not model.training


def test_an_answer_says_how_much_of_the_context_was_not_read(model, chats):
    (row, *_), store = chats
    long = dataclasses.replace(row, context=(*row.context, Turn(0, "We flew a red kite. " * 60)))
    cut = model.formatter.context(long.context, long.response.speaker).cut
    assert [r.context_tokens_cut for r in respond(model, [row, long], store, GREEDY, 0)] == [0, cut] and cut > 200


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED, BEAMS], ids=["greedy", "sampled", "beams"])
def test_the_same_generator_gives_the_same_answers_and_the_global_state_stays(model, chats, settings):
    rows, store = chats
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = respond(model, rows, store, settings, 1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(12)
    again, other = (respond(model, rows, store, settings, seed) for seed in (1, 2))
    for one, two in zip(first, again, strict=True):
        assert (one.text, one.captions) == (two.text, two.captions) and len(one.photos) == len(two.photos) == len(one.captions)
        assert all(torch.equal(*pair) for pair in zip(one.photos, two.photos, strict=True))
    assert ([r.text for r in other] != [r.text for r in first]) == (settings is SAMPLED)


def test_shared_photos_are_drawn_from_their_captions(any_system, chats):
    (rows, store), model, calls = chats, any_system, []
    share(model, "two red cars", text="look")
    settings = dataclasses.replace(GREEDY, batch_size=2)
    answers = respond(model, rows[:3], store, settings, 3, progress=lambda *call: calls.append(call))
    assert [(r.text, r.captions) for r in answers] == [("look", ["two red cars"])] * 3
    assert calls == [("written", 2, 3), ("written", 3, 3), ("drawn", 2, 3), ("drawn", 3, 3)]
    expected = torch.cat([model.generator.draw(["two red cars"], generator(3, "photo", i, 0), num_inference_steps=2,
                                               guidance_scale=GREEDY.guidance_scale) for i in range(3)])
    drawn = torch.stack([photo for r in answers for photo in r.photos])
    assert (drawn.int() - expected.int()).abs().max() <= 1  # alone or two at a time
    image, = answers[0].images
    expected = drawn
    assert np.array_equal(np.array(image), expected[0].permute(1, 2, 0).numpy()) and image.size == (64, 64)


@pytest.mark.parametrize(("tokens", "text", "captions"), [
    ("it was fun</s>", "it was fun", []),
    ("it was fun", "it was fun", []),
    (f"look! {IMAGE_START} a red cat {IMAGE_END}</s>", "look!", ["a red cat"]),
    (f"{IMAGE_START} a red cat {IMAGE_END}</s>", "", ["a red cat"]),
    (f"look! {IMAGE_START} a red cat", "look!", ["a red cat"]),  # left open
    (f"look! {IMAGE_START} {IMAGE_END}</s>", "look!", []),  # an empty caption
    (f"look! {IMAGE_START}", "look!", []),
    (f"look! {IMAGE_START} a red cat {IMAGE_END} nice, no?</s>", "look! nice, no?", ["a red cat"]),
    (f"{IMAGE_START} a cat {IMAGE_END} and {IMAGE_START} a dog {IMAGE_END}</s>", "and", ["a cat", "a dog"]),
    (f"here {IMAGE_START} a cat {IMAGE_END} and {IMAGE_START} {IMAGE_END} so {IMAGE_START} a dog", "here and so", ["a cat", "a dog"]),
    (f"{IMAGE_START} a cat {IMAGE_END} {IMAGE_START} a cat {IMAGE_END}</s>", "", ["a cat", "a cat"]),
    (f"well {IMAGE_END} then</s>", "well then", []),
    (f"well {IMAGE_END} then {IMAGE_START} a cat {IMAGE_END}</s>", "well then", ["a cat"]),
    (f"{IMAGE_START} a {IMAGE_START} cat {IMAGE_END}</s>", "", ["a cat"]),
    (f"a {IMAGE_TOKEN} b</s>", "a b", []),
    ("<s> hello <unk> you</s>", "hello you", []),
    ("</s>", "", []),
    ("</s><pad><pad>", "", []),
])
def test_generated_tokens_become_text_and_captions(systems, tokens, text, captions):
    ids = systems["end_to_end"].tokenizer(tokens, add_special_tokens=False)["input_ids"]
    answer = parse_response(systems["end_to_end"], torch.tensor(ids))
    assert (answer.text, answer.captions, answer.photos) == (text, captions, [])


def test_marks_that_are_spelled_out_as_words_are_no_photo(systems):
    model = systems["end_to_end"]
    answer = parse_response(model, torch.tensor(model.formatter.tokenize(f"a {IMAGE_START} is a mark, {IMAGE_END} too")))
    assert answer.captions == [] and "".join(answer.text.split()) == f"a{IMAGE_START}isamark,{IMAGE_END}too"
