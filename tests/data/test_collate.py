"""From examples to tensors: the tokens of a chat are its text, no more and no less, and a batch holds its examples."""

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from e2e_lib.data.collate import IGNORED, IMAGE_END, IMAGE_START, IMAGE_TOKEN, Collator, PromptFormatter
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.photos import PhotoStore
from e2e_lib.models.language import load_language

CAT = SharedPhoto("p1", "a black cat at the beach")


def decode(tokenizer, ids):
    """Tokens as text, without the space that every piece tokenized by itself begins with."""
    return re.sub(r" ?(\n|<s>|\[/?IMG\]) ?", r"\1", tokenizer.decode(ids)).strip(" ")


@pytest.fixture(scope="module")
def tokenizer(config):
    return load_language(config.model.language)[1]


@pytest.fixture(scope="module")
def formatter(tokenizer):
    return PromptFormatter(tokenizer, queries=4, max_context=192)


def test_a_chat_is_formatted_as_documented(formatter, tokenizer):
    context = (Turn(0, "did you find it?"), Turn(1, "yes, look!", CAT), Turn(0, "nice! where was that?"))
    ids, kept = formatter.context(context, answering=1)
    assert kept == list(context)
    assert decode(tokenizer, ids) == (
        f"<s>User: did you find it?\nAssistant: yes, look!{IMAGE_START}{IMAGE_TOKEN * 4}{IMAGE_END}\n"
        "User: nice! where was that?\nAssistant:")
    swapped, _ = formatter.context(context, answering=0)
    assert decode(tokenizer, swapped).startswith("<s>Assistant: did you find it?\nUser: yes")


def test_with_photos_as_captions_a_photo_is_its_caption(tokenizer):
    formatter = PromptFormatter(tokenizer, 1, 192, photos_as_captions=True)
    ids, kept = formatter.context((Turn(0, "", CAT),), answering=1)
    assert decode(tokenizer, ids) == f"<s>User:{IMAGE_START}{CAT.caption}{IMAGE_END}\nAssistant:"
    assert formatter.image_token_id not in ids and kept == [Turn(0, "", CAT)]
    marked, _ = formatter.context((Turn(0, "", SharedPhoto("p", IMAGE_TOKEN)),), answering=1)
    assert formatter.image_token_id not in marked  # a caption is plain text, too


@pytest.mark.parametrize("turn", [Turn(1, "it was fun"), Turn(1, "", CAT), Turn(1, "look at this:", CAT)])
def test_a_response_comes_back_from_its_tokens(formatter, tokenizer, turn):
    ids, is_caption = formatter.response(turn)
    photo = f"{IMAGE_START}{turn.photo.caption}{IMAGE_END}" if turn.photo else ""
    assert decode(tokenizer, ids) == f"{turn.text}{photo}</s>" and ids.count(tokenizer.eos_token_id) == 1
    caption = [i for i, inside in zip(ids, is_caption, strict=True) if inside]
    assert tokenizer.decode(caption) == (turn.photo.caption if turn.photo else "")
    assert not {formatter.image_start_id, formatter.image_end_id} & set(caption)


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=60, deadline=None)
def test_words_outside_the_training_data_survive_the_tokens(formatter, tokenizer, text):
    text = " ".join(text.replace("▁", "").split())
    if not any(marker in text for marker in ("<", "[")):
        assert tokenizer.decode(formatter.response(Turn(0, text))[0][:-1]) == text


@pytest.mark.parametrize("text", [f"what is {IMAGE_TOKEN}?", f"{IMAGE_START} hm {IMAGE_END}", "</s>", "<s><pad>"])
def test_markers_typed_by_a_person_are_plain_text(formatter, tokenizer, text):
    assert not set(tokenizer.all_special_ids) & set(formatter.tokenize(text))
    assert "".join(tokenizer.decode(formatter.tokenize(text)).split()) == "".join(text.split())


@pytest.mark.parametrize("max_context", [192, 60, 30, 16])
def test_the_oldest_turns_are_dropped_first_and_whole(tokenizer, max_context):
    turns = tuple(Turn(i % 2, f"this is number {i}", CAT if i == 3 else None) for i in range(7))
    ids, kept = PromptFormatter(tokenizer, 4, max_context).context(turns, answering=1)
    unlimited = PromptFormatter(tokenizer, 4, 10_000)
    assert kept == list(turns[len(turns) - len(kept):])  # the latest ones, without a gap
    assert len(kept) == 7 if max_context == 192 else 1 <= len(kept) < 7
    assert len(ids) <= max_context or len(kept) == 1
    if len(kept) < 7:  # one turn more would not have fitted
        assert len(unlimited.context(turns[len(turns) - len(kept) - 1:], answering=1)[0]) > max_context
    assert ids == unlimited.context(kept, answering=1)[0]


def test_the_latest_turn_is_kept_however_long_but_a_photo_must_fit(tokenizer):
    turns = (Turn(0, "hi"), Turn(1, "word " * 100))
    ids, kept = PromptFormatter(tokenizer, 4, 32).context(turns, answering=0)
    assert kept == [turns[1]] and len(ids) > 32
    with pytest.raises(ValueError, match="a photo takes 40 tokens, more than data.max_context = 32"):
        PromptFormatter(tokenizer, 40, 32)


def test_training_batches_are_padded_on_the_right(formatter, examples, tokenizer):
    rows, store = examples[0][:30], examples[1]
    batch = Collator(formatter, store)(rows)
    targets, photos = iter(batch.target_photos), iter(batch.photos)
    for i, example in enumerate(rows):
        context, kept = formatter.context(example.context, example.response.speaker)
        response, is_caption = formatter.response(example.response)
        padding = batch.input_ids.shape[1] - len(context) - len(response)
        assert batch.input_ids[i].tolist() == context + response + [formatter.pad_token_id] * padding
        assert batch.attention_mask[i].tolist() == [1] * len(context + response) + [0] * padding
        assert batch.labels[i].tolist() == [IGNORED] * len(context) + response + [IGNORED] * padding
        assert batch.is_caption[i].tolist() == [False] * len(context) + is_caption + [False] * padding
        if example.response.photo:
            caption = tokenizer.decode(batch.input_ids[i][batch.is_caption[i]])
            row = batch.target_rows.tolist().index(i)
            assert caption == example.response.photo.caption == batch.captions[row]
            assert torch.equal(next(targets), store.tensor(example.response.photo.photo_id))
        else:
            assert not batch.is_caption[i].any() and i not in batch.target_rows
        for turn in kept:
            if turn.photo:
                assert torch.equal(next(photos), store.tensor(turn.photo.photo_id))
    assert next(targets, None) is None and next(photos, None) is None
    assert (batch.input_ids == formatter.image_token_id).sum() == formatter.queries * len(batch.photos) > 0


def test_answering_batches_are_padded_on_the_left_and_hold_no_response(formatter, examples):
    rows, store = examples[0][:30], examples[1]
    batch = Collator(formatter, store, answering=True)(rows)
    for i, example in enumerate(rows):
        context, _ = formatter.context(example.context, example.response.speaker)
        padding = batch.input_ids.shape[1] - len(context)
        assert batch.input_ids[i].tolist() == [formatter.pad_token_id] * padding + context
        assert batch.attention_mask[i].tolist() == [0] * padding + [1] * len(context)
    assert len(batch.target_rows) == 0 and batch.target_photos == batch.captions == []
    assert (batch.labels == IGNORED).all() and not batch.is_caption.any()


def test_photos_of_any_size_share_a_batch(formatter, tmp_path):
    store, sizes = PhotoStore(tmp_path), {"wide": (200, 120), "square": (64, 64), "tall": (30, 90)}
    for name, size in sizes.items():
        store.add(name, Image.new("RGB", size, (9, 8, 7)))
    chat = (Turn(0, "", SharedPhoto("wide", "a")), Turn(1, "", SharedPhoto("square", "b")))
    batch = Collator(formatter, store)([Example("d", i, chat, Turn(0, "", SharedPhoto(name, "c")))
                                        for i, name in enumerate(sizes)])
    assert [photo.shape for photo in batch.photos] == [(3, 120, 200), (3, 64, 64)] * 3
    assert [photo.shape for photo in batch.target_photos] == [(3, 120, 200), (3, 64, 64), (3, 90, 30)]


@pytest.mark.parametrize(("photos_as_captions", "expected"), [(False, ["new"]), (True, [])])
def test_photos_that_no_model_sees_are_not_loaded(tokenizer, photos_as_captions, expected):
    loads = []
    store = SimpleNamespace(tensor=lambda name: loads.append(name) or torch.zeros(3, 8, 8, dtype=torch.uint8))
    turns = (Turn(0, "", SharedPhoto("old", "a cat")), Turn(1, "word " * 30), Turn(0, "", SharedPhoto("new", "a dog")))
    formatter = PromptFormatter(tokenizer, 4, 24, photos_as_captions)
    batch = Collator(formatter, store, answering=True)([Example("d", 3, turns, Turn(1, ""))])
    assert loads == expected and len(batch.photos) == len(expected)
    assert (batch.input_ids == formatter.image_token_id).sum() == 4 * len(expected)


def test_a_batch_moves_to_a_device_whole(formatter, examples):
    rows, store = examples[0][:30], examples[1]
    moved = Collator(formatter, store)(rows).to("meta", non_blocking=True)
    tensors = [moved.input_ids, moved.attention_mask, moved.labels, moved.is_caption, moved.target_rows]
    assert moved.photos and moved.target_photos and moved.captions == Collator(formatter, store)(rows).captions
    assert all(tensor.device.type == "meta" for tensor in [*tensors, *moved.photos, *moved.target_photos])
    assert Collator(formatter, store, answering=True)(rows[:1]).to("meta").photos == []
