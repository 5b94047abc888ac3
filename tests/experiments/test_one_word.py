"""What maps say about one word: the changes that they predict, against captions written and losses computed again."""

import json
import re

import pytest
import torch
from trained_runs import save_trained

from e2e_lib.bridge import aligned
from e2e_lib.data.collate import Collator
from e2e_lib.data.minichat.chats import caption_words
from e2e_lib.experiments import dense_maps, one_word, replacing_words
from e2e_lib.experiments.gradient_alignment import image_losses
from e2e_lib.models.systems import build
from e2e_lib.repro.randomness import generator
from e2e_lib.repro.results import ResultsError

CHOICES = ("in", "at", "of")  # words that even the tests' small vocabulary has as one token each


@pytest.fixture(scope="module")
def case(config, examples):
    rows, store = examples
    model = build(config).eval()
    batches = (Collator(model.formatter, store)([e]) for e in rows if e.response.photos and not e.response.text)
    batch = next(b for b in batches if one_word.with_each_word(model, b.captions[0], CHOICES))
    sides = model.tokenizer, model.generator.tokenizer
    maps = {**dense_maps.maps_of(*sides, caption_words()), **dense_maps.aligned_maps_of(*sides)}
    return model, batch, maps


def test_what_is_said_is_the_gradient_of_the_map_and_what_is_exact_is_the_loss(case):
    model, batch, maps = case
    found = one_word.what_maps_say(model, batch, maps, CHOICES, 2, generator("one"))
    caption = batch.captions[0]
    texts = [re.sub(rf"\b{found['true']}\b", word, caption, count=1) for word in found["words"]]
    assert found["caption"] == texts[found["words"].index(found["written"])] != caption
    rng = generator("one")
    torch.randint(2, (), generator=rng)  # the choice of the wrong word
    losses, gradients = image_losses(model, batch, texts, 2, rng)
    at = found["words"].index(found["written"])
    assert found["exact"] == pytest.approx((losses - losses[at]).tolist(), abs=1e-6) and found["exact"][at] == 0

    spelling = aligned.spelling(model.tokenizer, model.generator.tokenizer)
    slope = replacing_words.first_order(model, spelling, found["caption"], gradients[at])  # (C, V1), written by itself
    ids = [model.tokenizer.convert_tokens_to_ids(f"▁{word}") for word in found["words"]]
    pair = dense_maps.pair(model.tokenizer, model.generator.tokenizer, found["caption"])
    (position,) = (pair.source.input_ids == ids[at]).nonzero()[:1, 0].tolist()
    assert found["said"]["aligned"] == pytest.approx((slope[position, ids] - slope[position, ids[at]]).tolist(), abs=1e-6)


def test_a_dynamic_map_says_the_same_of_all_other_words(case):
    model, batch, maps = case
    found = one_word.what_maps_say(model, batch, maps, CHOICES, 1, generator("one"))
    absent = [k for k, word in enumerate(found["words"]) if word not in found["caption"].split()]
    for name in ("sentence", "word", "span"):
        assert len({round(found["said"][name][k], 12) for k in absent}) == 1, name
    assert found["numbers"]["sentence"] == 1


def test_a_caption_without_a_choice_has_nothing_said(case):
    model, batch, maps = case
    assert one_word.what_maps_say(model, batch, maps, ("zebra", "lion"), 1, generator(0)) is None
    assert one_word.with_each_word(model, batch.captions[0], [batch.captions[0].split()[-1], "hippopotamus"]) is None


def test_a_measurement_is_kept(config, tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    save_trained(config)
    monkeypatch.setattr(one_word, "COLOURS", CHOICES)
    lines = []
    record = json.loads(one_word.measure(config, 0, lines.append, noises=1).read_text())
    assert set(record["said"]) == set(record["numbers"]) == set(one_word.MAPS) and record["words"] == [*CHOICES]
    one_word.measure(config, 0, lines.append, noises=1)
    assert "one_word.json is there already" in lines[-1]
    monkeypatch.setattr(one_word, "COLOURS", ("zebra",))
    with pytest.raises(ResultsError, match="no dev caption names one of zebra"):
        one_word.measure(config, 0, lines.append, noises=2)
