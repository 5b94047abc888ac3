"""Chats as the dialogue models learn from them: tokens, labels and batches."""

import random

import pytest
import torch
from transformers import AutoTokenizer

from e2e_lib.config import load
from e2e_lib.data.collate import IGNORED
from e2e_lib.data.minichat.chats import make_chat
from e2e_lib.data.minichat.questions import omitted_attributes
from e2e_lib.models.hub import WEIGHTS
from e2e_lib.pretraining.language import (
    captioning_example,
    make_chats,
    pad_rows,
    sample_example,
    similar_rows,
    tokenize_chat,
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS / "mini" / "language")


def test_pretraining_chats_are_not_those_of_the_corpus():
    corpus = {make_chat("train", i, 0).dialogue.turns for i in range(50)}
    assert not corpus & {chat.dialogue.turns for chat in make_chats(load("mini"), 50)}


def test_captioning_example_answers_a_photo_with_a_full_caption():
    chat = make_chat("train", 3, 1)
    example = captioning_example(chat, random.Random(0))
    photo, = example.response.photos
    assert [turn.photos[0].photo_id for turn in example.context] == [photo.photo_id] and not example.response.text
    assert omitted_attributes(chat.scenes[photo.photo_id], photo.caption) == []


def test_sampled_examples_share_a_photo_half_of_the_time():
    chat, rng = make_chat("train", 3, 1), random.Random(0)
    shares = [bool(sample_example(chat, rng).response.photos) for _ in range(400)]
    assert 0.45 < sum(shares) / 400 < 0.75


@pytest.mark.parametrize("full_captions", [0.0, 1.0])
def test_context_captions_have_no_loss_and_are_full_where_wanted(tokenizer, full_captions):
    rng, photos = random.Random(1), 0
    for i in range(80):
        chat = make_chat("train", i, 5)
        ids, labels, response_labels = tokenize_chat(chat, tokenizer, rng, 192, full_captions)
        responses = [token for token in response_labels if token != IGNORED]
        assert len(ids) == len(labels) == len(response_labels) and ids[-len(responses):] == responses
        context = tokenizer.decode(ids[:-len(responses)])
        pairs = zip(ids, labels, strict=True)
        ignored = tokenizer.decode([token for token, label in pairs if label == IGNORED])
        captions = [part.split("[/IMG]")[0] for part in context.split("[IMG]")[1:]]
        assert "".join(captions).replace(" ", "") == ignored.replace(" ", "")
        for caption in captions:
            photos += 1
            gold = caption.strip() in {photo.caption for photo in chat.dialogue.photos}
            full = any(omitted_attributes(scene, caption) == [] for scene in chat.scenes.values())
            assert full if full_captions else gold
    assert photos > 20


def test_batches_are_neighbours_padded_on_the_right():
    rows = similar_rows(list(range(100)), torch.Generator().manual_seed(0))
    assert list(rows) == list(range(rows[0], rows[0] + 32))
    assert similar_rows([1, 2, 3], torch.Generator()) == [1, 2, 3]
    batch = pad_rows([[5, 6], [7]], [[IGNORED, 6], [7]], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6], [7, IGNORED]]
