"""From examples to tensors: the tokens of a chat are its text, no more and no less, and a batch holds its examples."""

import copy
import itertools
import re
from types import SimpleNamespace

import hub_checkpoints
import hypothesis
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from e2e_lib.data.collate import IGNORED, IMAGE_END, IMAGE_START, IMAGE_TOKEN, Collator, PromptFormatter
from e2e_lib.data.dialogue import Dialogue, SharedPhoto, Turn, clean_text
from e2e_lib.data.examples import Example, by_dialogue, examples_of
from e2e_lib.data.photos import PhotoStore
from e2e_lib.models.language import attention_inputs, load_language

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
    context = (Turn(0, "did you find it?"), Turn(1, "yes, look!", (CAT,)), Turn(0, "nice! where was that?"))
    ids, kept, _ = formatter.context(context, answering=1)
    assert kept == list(context)
    assert decode(tokenizer, ids) == (
        f"<s>User: did you find it?\nAssistant: yes, look!{IMAGE_START}{IMAGE_TOKEN * 4}{IMAGE_END}\n"
        "User: nice! where was that?\nAssistant:")
    swapped = formatter.context(context, answering=0).ids
    assert decode(tokenizer, swapped).startswith("<s>Assistant: did you find it?\nUser: yes")


def test_with_photos_as_captions_a_photo_is_its_caption(tokenizer):
    formatter = PromptFormatter(tokenizer, 1, 192, photos_as_captions=True)
    ids, kept, _ = formatter.context((Turn(0, "", (CAT,)),), answering=1)
    assert decode(tokenizer, ids) == f"<s>User:{IMAGE_START}{CAT.caption}{IMAGE_END}\nAssistant:"
    assert formatter.image_token_id not in ids and kept == [Turn(0, "", (CAT,))]
    marked, *_ = formatter.context((Turn(0, "", (SharedPhoto("p", IMAGE_TOKEN),)),), answering=1)
    assert formatter.image_token_id not in marked  # a caption is plain text, too


@pytest.mark.parametrize("turn", [Turn(1, "it was fun"), Turn(1, "", (CAT,)), Turn(1, "look at this:", (CAT,))])
def test_a_response_comes_back_from_its_tokens(formatter, tokenizer, turn):
    ids, caption_index, *_ = formatter.response(turn)
    photo = f"{IMAGE_START}{turn.photos[0].caption}{IMAGE_END}" if turn.photos else ""
    assert decode(tokenizer, ids) == f"{turn.text}{photo}</s>" and ids.count(tokenizer.eos_token_id) == 1
    caption = [i for i, number in zip(ids, caption_index, strict=True) if number == 0]
    assert tokenizer.decode(caption) == (turn.photos[0].caption if turn.photos else "")
    assert not {formatter.image_start_id, formatter.image_end_id} & set(caption)


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=40, deadline=None)
def test_words_outside_the_training_data_survive_the_tokens(formatter, tokenizer, text):
    text = clean_text(text.replace("▁", ""))
    if not any(marker in text for marker in ("<", "[")):
        assert tokenizer.decode(formatter.response(Turn(0, text))[0][:-1]) == text


@pytest.mark.parametrize("text", [f"what is {IMAGE_TOKEN}?", f"{IMAGE_START} hm {IMAGE_END}", "</s>", "<s><pad>"])
def test_markers_typed_by_a_person_are_plain_text(formatter, tokenizer, text):
    assert not set(tokenizer.all_special_ids) & set(formatter.tokenize(text))
    assert "".join(tokenizer.decode(formatter.tokenize(text)).split()) == "".join(text.split())


@pytest.mark.parametrize("max_context", [192, 60, 30])
def test_the_oldest_turns_are_dropped_first_and_whole(tokenizer, max_context):
    turns = tuple(Turn(i % 2, f"this is number {i}", (CAT,) if i == 3 else ()) for i in range(7))
    ids, kept, cut = PromptFormatter(tokenizer, 4, max_context).context(turns, answering=1)
    unlimited = PromptFormatter(tokenizer, 4, 10_000)
    assert kept == list(turns[len(turns) - len(kept):])  # the latest ones, without a gap
    assert len(kept) == 7 if max_context == 192 else 1 <= len(kept) < 7
    assert len(ids) <= max_context and cut == len(unlimited.context(turns, answering=1).ids) - len(ids)
    if len(kept) < 7:  # one turn more would not have fitted
        assert len(unlimited.context(turns[len(turns) - len(kept) - 1:], answering=1)[0]) > max_context
    assert ids == unlimited.context(kept, answering=1)[0]


@pytest.mark.parametrize("max_context", range(24, 60))
@pytest.mark.parametrize("photos_as_captions", [False, True])
def test_a_message_longer_than_the_context_loses_its_oldest_words(tokenizer, max_context, photos_as_captions):
    turns = (Turn(1, "hi"), Turn(0, "We flew a red kite. " * 20 + "Was it big?"))
    unlimited = PromptFormatter(tokenizer, 4, 10_000, photos_as_captions)
    whole, role, cue = unlimited.context(turns[1:], 1).ids, unlimited.tokenize("User:"), unlimited.tokenize("Assistant:")
    ids, kept, cut = PromptFormatter(tokenizer, 4, max_context, photos_as_captions).context(turns, 1)
    assert kept == [turns[1]] and len(ids) == max_context
    assert ids == [tokenizer.bos_token_id, *role, *whole[len(whole) - max_context + 1 + len(role):]]
    assert decode(tokenizer, ids).endswith("Was it big?\nAssistant:") and ids[-len(cue):] == cue
    assert cut == len(unlimited.context(turns, 1).ids) - max_context


@given(words=st.integers(0, 60), captions=st.lists(st.integers(1, 60), max_size=12), max_context=st.integers(14, 90), captioned=st.booleans(),
       before=st.integers(0, 3), answering=st.integers(0, 1))
@pytest.mark.fuzz
def test_a_context_is_never_longer_than_allowed_and_cuts_no_photo_in_two(
        tokenizer, words, captions, max_context, captioned, before, answering):
    photos = tuple(SharedPhoto(f"p{i}", " ".join(["cat"] * length)) for i, length in enumerate(captions))
    turns = [Turn(i % 2, "hello " * 5, photos[:1]) for i in range(before)] + [Turn(0, "red " * words, photos)]
    formatter, unlimited = (PromptFormatter(tokenizer, 4, limit, captioned) for limit in (max_context, 10_000))
    ids, kept, cut = formatter.context(turns, answering)
    whole = unlimited.context(turns, answering).ids
    assert len(ids) <= max_context and cut == len(whole) - len(ids) and (cut > 0) == (len(whole) > max_context)
    shown = [photo for turn in kept for photo in turn.photos]
    assert [ids.count(i) for i in (formatter.image_start_id, formatter.image_end_id)] == [len(shown)] * 2
    parts = decode(tokenizer, ids).split(IMAGE_START)
    assert [part.split(IMAGE_END)[0] for part in parts[1:]] == [
        photo.caption if captioned else IMAGE_TOKEN * 4 for photo in shown]
    last, left = kept[-1], parts[max(0, len(parts) - len(kept[-1].photos) - 1)]
    assert last.photos == photos[len(photos) - len(last.photos):]  # the newest
    sizes = [len(formatter.photo_ids(photo)) for photo in photos]
    if len(last.photos) < len(photos):  # the others would have taken more than half of the room
        dropped = len(photos) - len(last.photos)
        around = 1 + len(formatter.cue) + len(formatter.newline) + len(formatter.tokenize("User:" if answering else "Assistant:"))
        assert sum(sizes[dropped - 1:]) > (max_context - around) // 2
    elif left.count("red") < words:  # and words go only where there is no room
        assert len(ids) == max_context


def test_a_photo_must_fit_beside_who_speaks(tokenizer):
    shortest = len(PromptFormatter(tokenizer, 40, 192).context([Turn(0, "", (CAT,))], 1).ids)
    assert len(PromptFormatter(tokenizer, 40, shortest).context([Turn(0, "What a day it was!", (CAT,))], 1).ids) == shortest
    with pytest.raises(ValueError, match=f"a photo takes 40 tokens, and a context with one {shortest} or more, but data.max_context is {shortest - 1}"):
        PromptFormatter(tokenizer, 40, shortest - 1)


def test_line_ends_within_a_turn_are_blanks(formatter, tokenizer):
    assert formatter.context([Turn(0, "a\nb\u2028c")], 1).ids == formatter.context([Turn(0, "a b c")], 1).ids
    assert formatter.context([Turn(0, "a\nb")], 1).ids.count(formatter.eos_token_ids[1]) == 1
    noisy = Turn(1, "so\n\nyes\u200b ", (SharedPhoto("p", "a\ncat\r"), SharedPhoto("q", "a dog")))
    response = formatter.response(noisy)
    assert response[:2] == formatter.response(Turn(1, "so yes", (SharedPhoto("p", "a cat"), SharedPhoto("q", "a dog"))))[:2]
    assert not set(response.ids[:-1]) & set(formatter.eos_token_ids)
    assert [photo.caption for photo in response.photos] == ["a cat", "a dog"]


@pytest.mark.parametrize(("limit", "expected", "captions", "cut"), [
    (99, "so look[IMG]a cat[/IMG][IMG]two dogs[/IMG]</s>", ["a cat", "two dogs"], 0),
    (11, "so look[IMG]a cat[/IMG][IMG]two dogs[/IMG]</s>", ["a cat", "two dogs"], 0),
    (10, "so look[IMG]a cat[/IMG][IMG]two[/IMG]</s>", ["a cat", "two"], 1),
    (9, "so look[IMG]a cat[/IMG]</s>", ["a cat"], 4), (7, "so look[IMG]a cat[/IMG]</s>", ["a cat"], 4),
    (6, "so look[IMG]a[/IMG]</s>", ["a"], 5), (5, "so look</s>", [], 8), (3, "so look</s>", [], 8), (2, "so</s>", [], 9), (1, "</s>", [], 10)])
def test_a_response_longer_than_allowed_is_cut_at_its_end(limit, expected, captions, cut):
    words = ["</s>", IMAGE_START, IMAGE_END, IMAGE_TOKEN, "<pad>", "\n", "so", "look", "a", "cat", "two", "dogs", "Assistant:", "User:"]

    class Words:
        """One token a word."""

        pad_token, eos_token_id, bos_token_id, all_special_ids = "<pad>", 0, 0, [0, 1, 2, 3, 4]
        convert_tokens_to_ids = staticmethod(words.index)

        def __call__(self, text, **_):
            return {"input_ids": [words.index(word) for word in re.split(" +", text)]}

        def decode(self, ids):
            return " ".join(words[i] for i in ids)

    formatter = PromptFormatter(Words(), 1, 99, max_response=limit)
    turn = Turn(1, "so look", (SharedPhoto("p", "a cat"), SharedPhoto("q", "two dogs")))
    ids, caption_index, photos, number = formatter.response(turn)
    assert "".join(words[i] for i in ids).replace("solook", "so look").replace("acat", "a cat").replace("twodogs", "two dogs") == expected
    assert number == cut and len(ids) <= limit and [photo.caption for photo in photos] == captions
    assert [" ".join(words[i] for i, k in zip(ids, caption_index, strict=True) if k == n) for n in range(len(captions))] == captions
    assert set(caption_index) == {-1, *range(len(captions))}


def test_each_photo_of_a_response_has_its_own_caption_in_a_batch(formatter, tokenizer, tmp_path):
    store = PhotoStore(tmp_path)
    for i in range(4):
        store.add(str(i), Image.new("RGB", (8, 8), (i, 0, 0)))
    pair, one = (SharedPhoto("1", "a cat"), SharedPhoto("2", "two red dogs")), (SharedPhoto("3", "a kite"),)
    before = (Turn(0, "these:", (SharedPhoto("0", "x"), *pair)), Turn(1, "ok"), Turn(0, "", one))
    rows = [Example("d", 1, before, turn) for turn in (Turn(1, "hm"), Turn(1, "look", pair), Turn(1, "", one))]
    batch = Collator(formatter, store)(rows)
    assert batch.target_rows.tolist() == [1, 1, 2] and batch.captions == ["a cat", "two red dogs", "a kite"]
    assert [int(photo[0, 0, 0]) for photo in batch.target_photos] == [1, 2, 3]
    assert [int(photo[0, 0, 0]) for photo in batch.photos] == [0, 1, 2, 3] * 3
    for number, row in enumerate(batch.target_rows.tolist()):
        assert (batch.caption_index == number).any(1).nonzero().flatten().tolist() == [row]
        assert tokenizer.decode(batch.input_ids[batch.caption_index == number]) == batch.captions[number]
    assert decode(tokenizer, batch.input_ids[1][batch.labels[1] != IGNORED]) == "look[IMG]a cat[/IMG][IMG]two red dogs[/IMG]</s>"
    assert (batch.input_ids == formatter.image_token_id).sum() == 3 * 4 * formatter.queries
    assert batch.context_cut == batch.response_cut == [0, 0, 0]


SAID = st.sampled_from(["hi", "look at this", "no, a red kite!", "where was it"])
SHARED = st.lists(st.sampled_from([SharedPhoto("1", "a cat"), SharedPhoto("2", "two red dogs")]), max_size=2).map(tuple)
CHATS = st.lists(st.builds(Turn, st.sampled_from([0, 1]), SAID, SHARED), min_size=2, max_size=7)


@pytest.fixture(scope="module")
def templated(tokenizer):
    """The same tokenizer with a chat template of Llama-2's kind."""
    words = copy.deepcopy(tokenizer)
    words.chat_template = hub_checkpoints.TEMPLATE
    return words


@pytest.mark.fuzz
@given(st.lists(CHATS, min_size=1, max_size=3), st.sampled_from([24, 40, 400]), st.booleans(), st.booleans())
def test_in_a_whole_dialogue_a_response_reads_and_says_what_it_does_alone(tokenizer, templated, chats, max_context, as_captions, in_template):
    """What its last token attends to, in the order of positions, is the row of the same example by itself."""
    if in_template:
        tokenizer, max_context = templated, max_context + 60
    store = SimpleNamespace(tensor=lambda name: torch.full((3, 2, 2), int(name), dtype=torch.uint8))
    formatter = PromptFormatter(tokenizer, 4, max_context, photos_as_captions=as_captions)
    collate = Collator(formatter, store)
    groups = by_dialogue([e for i, chat in enumerate(chats) for e in examples_of(Dialogue(str(i), tuple(chat)))])
    hypothesis.assume(groups)
    batch, alone = collate.dialogues(groups), [collate([example]) for group in groups for example in group]
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.labels.shape
    inputs = attention_inputs(batch)
    mask = (inputs["attention_mask"] if "position_ids" in inputs else
            torch.ones(1, *batch.labels.shape[1:] * 2, dtype=torch.bool).tril()[None] & batch.attention_mask[:, None, None].bool())
    positions = inputs.get("position_ids", torch.arange(batch.labels.shape[1]).expand(batch.labels.shape))
    ends = [(row, int(at)) for row, labels in enumerate(batch.labels) for at in (labels == tokenizer.eos_token_id).nonzero()]
    assert len(ends) == len(alone) and batch.context_cut == [one.context_cut[0] for one in alone]
    captions, photos = [], []
    for (row, at), one in zip(ends, alone, strict=True):
        seen = mask[row, 0, at].nonzero().flatten()
        assert positions[row, seen].tolist() == list(range(len(seen)))
        for name in ("input_ids", "labels"):
            assert torch.equal(getattr(batch, name)[row, seen], getattr(one, name)[0]), name
        numbers = batch.caption_index[row, seen]
        shown = [batch.captions[int(k)] if k >= 0 else "" for k in numbers]
        assert shown == [one.captions[int(k)] if k >= 0 else "" for k in one.caption_index[0]]
        for before, after in itertools.pairwise(seen.tolist()):  # and every one of these sees those before it
            assert mask[row, 0, after, before] and not mask[row, 0, before, after]
        captions += one.captions
        photos.append((row, [int(photo[0, 0, 0]) for photo in one.photos]))
    assert batch.captions == captions and len(batch.target_photos) == len(captions)
    of_rows = {row: read for row, read in photos}  # the last response of a row has read all its photos
    assert [int(photo[0, 0, 0]) for photo in batch.photos] == [photo for row in sorted(of_rows) for photo in of_rows[row]]
    assert (batch.input_ids == formatter.image_token_id).sum() == len(batch.photos) * 4
    assert all(read == of_rows[row][:len(read)] for row, read in photos)


def test_contexts_of_the_same_tokens_and_other_photos_share_no_row(tokenizer):
    """Where only the last turn fits, every photo shared alone is read as the same tokens."""
    store = SimpleNamespace(tensor=lambda name: torch.full((3, 2, 2), int(name), dtype=torch.uint8))
    turns = tuple(Turn(i % 2, "" if i % 2 == 0 else "nice", (SharedPhoto(str(i), "a cat"),) * (i % 2 == 0)) for i in range(6))
    shortest = PromptFormatter(tokenizer, 4, 400)
    room = len(shortest.context(turns[:1], 1).ids)
    rows = [e for e in examples_of(Dialogue("d", turns)) if e.response.speaker == 1]
    batch = Collator(PromptFormatter(tokenizer, 4, room), store).dialogues([rows])
    assert len(batch.input_ids) == 3 and [int(photo[0, 0, 0]) for photo in batch.photos] == [0, 2, 4]


@pytest.mark.parametrize("in_template", [False, True])
def test_a_whole_dialogue_that_fits_is_one_row_per_speaker(formatter, templated, in_template):
    formatter = PromptFormatter(templated, 4, 800) if in_template else formatter
    store = SimpleNamespace(tensor=lambda name: torch.zeros(3, 2, 2, dtype=torch.uint8))
    chat = Dialogue("d", tuple(Turn(i % 2, f"turn {i}", (CAT,) * (i == 3)) for i in range(14)))
    batch = Collator(formatter, store).dialogues(by_dialogue(examples_of(chat)))
    assert len(batch.input_ids) == 2 and len(batch.context_cut) == 13 and len(batch.photos) == 2
    alone = Collator(formatter, store)(examples_of(chat))
    assert batch.attention_mask.sum() < alone.attention_mask.sum() / 2 and len(alone.photos) == 10


def test_a_batch_counts_what_did_not_fit(tokenizer):
    store = SimpleNamespace(tensor=lambda name: torch.zeros(3, 8, 8, dtype=torch.uint8))
    formatter = PromptFormatter(tokenizer, 4, 24, max_response=6)
    rows = [Example("d", 1, (Turn(0, text * 9),), Turn(1, text * 4)) for text in ("", "red ")]
    batch = Collator(formatter, store)(rows)
    assert batch.context_cut[0] == batch.response_cut[0] == 0 and batch.response_cut[1] == formatter.response(rows[1].response).cut > 0
    assert batch.context_cut[1] == formatter.context(rows[1].context, 1).cut > 0
    assert Collator(formatter, store, answering=True)(rows).context_cut == batch.context_cut


def test_training_batches_are_padded_on_the_right(formatter, examples, tokenizer):
    rows, store = examples[0][:30], examples[1]
    batch = Collator(formatter, store)(rows)
    targets, photos = iter(batch.target_photos), iter(batch.photos)
    for i, example in enumerate(rows):
        context, kept, _ = formatter.context(example.context, example.response.speaker)
        response, caption_index, *_ = formatter.response(example.response)
        padding = batch.input_ids.shape[1] - len(context) - len(response)
        assert batch.input_ids[i].tolist() == context + response + [formatter.pad_token_id] * padding
        assert batch.attention_mask[i].tolist() == [1] * len(context + response) + [0] * padding
        assert batch.labels[i].tolist() == [IGNORED] * len(context) + response + [IGNORED] * padding
        if example.response.photos:
            row = batch.target_rows.tolist().index(i)
            numbers = [row if k == 0 else -1 for k in caption_index]
            assert batch.caption_index[i].tolist() == [-1] * len(context) + numbers + [-1] * padding
            caption = tokenizer.decode(batch.input_ids[i][batch.caption_index[i] == row])
            assert caption == example.response.photos[0].caption == batch.captions[row]
            assert torch.equal(next(targets), store.tensor(example.response.photos[0].photo_id))
        else:
            assert (batch.caption_index[i] == -1).all() and i not in batch.target_rows
        for turn in kept:
            if turn.photos:
                assert torch.equal(next(photos), store.tensor(turn.photos[0].photo_id))
    assert next(targets, None) is None and next(photos, None) is None
    assert (batch.input_ids == formatter.image_token_id).sum() == formatter.queries * len(batch.photos) > 0


def test_answering_batches_are_padded_on_the_left_and_hold_no_response(formatter, examples):
    rows, store = examples[0][:30], examples[1]
    batch = Collator(formatter, store, answering=True)(rows)
    for i, example in enumerate(rows):
        context = formatter.context(example.context, example.response.speaker).ids
        padding = batch.input_ids.shape[1] - len(context)
        assert batch.input_ids[i].tolist() == [formatter.pad_token_id] * padding + context
        assert batch.attention_mask[i].tolist() == [0] * padding + [1] * len(context)
    assert len(batch.target_rows) == 0 and batch.target_photos == batch.captions == []
    assert (batch.labels == IGNORED).all() and (batch.caption_index == -1).all()


def test_photos_of_any_size_share_a_batch(formatter, tmp_path):
    store, sizes = PhotoStore(tmp_path), {"wide": (200, 120), "square": (64, 64), "tall": (30, 90)}
    for name, size in sizes.items():
        store.add(name, Image.new("RGB", size, (9, 8, 7)))
    chat = (Turn(0, "", (SharedPhoto("wide", "a"),)), Turn(1, "", (SharedPhoto("square", "b"),)))
    batch = Collator(formatter, store)([Example("d", i, chat, Turn(0, "", (SharedPhoto(name, "c"),)))
                                        for i, name in enumerate(sizes)])
    assert [photo.shape for photo in batch.photos] == [(3, 120, 200), (3, 64, 64)] * 3
    assert [photo.shape for photo in batch.target_photos] == [(3, 120, 200), (3, 64, 64), (3, 90, 30)]


@pytest.mark.parametrize(("photos_as_captions", "expected"), [(False, ["new"]), (True, [])])
def test_photos_that_no_model_sees_are_not_loaded(tokenizer, photos_as_captions, expected):
    loads = []
    store = SimpleNamespace(tensor=lambda name: loads.append(name) or torch.zeros(3, 8, 8, dtype=torch.uint8))
    turns = (Turn(0, "", (SharedPhoto("old", "a cat"),)), Turn(1, "word " * 30), Turn(0, "", (SharedPhoto("new", "a dog"),)))
    formatter = PromptFormatter(tokenizer, 4, 24, photos_as_captions)
    batch = Collator(formatter, store, answering=True)([Example("d", 3, turns, Turn(1, ""))])
    assert loads == expected and len(batch.photos) == len(expected)
    assert (batch.input_ids == formatter.image_token_id).sum() == 4 * len(expected)


def test_a_batch_moves_to_a_device_whole(formatter, examples):
    rows, store = examples[0][:30], examples[1]
    moved = Collator(formatter, store)(rows).to("meta", non_blocking=True)
    tensors = [moved.input_ids, moved.attention_mask, moved.labels, moved.caption_index, moved.target_rows]
    assert moved.photos and moved.target_photos and moved.captions == Collator(formatter, store)(rows).captions
    assert all(tensor.device.type == "meta" for tensor in [*tensors, *moved.photos, *moved.target_photos])
    assert Collator(formatter, store, answering=True)(rows[:1]).to("meta").photos == []
