"""From dialogues to tensors: what is said stays what is said, and no more."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_lib.data.collate import IGNORED, IMAGE_END, IMAGE_START, IMAGE_TOKEN, Collator, PromptFormatter
from e2e_lib.data.dialogue import DataError, Dialogue, SharedPhoto, Turn
from e2e_lib.data.examples import Example, examples_of, load_split, merge_turns
from e2e_lib.data.photos import PhotoStore
from e2e_lib.models.language import load_language

CAT = SharedPhoto("p1", "a black cat at the beach")


def written(tokenizer, ids):
    """Tokens as text, without the space that every piece written on its own begins with."""
    return re.sub(r" ?(\n|<s>|\[/?IMG\]) ?", r"\1", tokenizer.decode(ids)).strip(" ")


@pytest.fixture(scope="module")
def tokenizer(config):
    return load_language(config.model.language)[1]


@pytest.fixture
def layout(tokenizer):
    return PromptFormatter(tokenizer, queries=4, max_context=192)


# ---------------------------------------------------------------------------------------------------------------- turns

def test_one_speakers_utterances_become_one_turn():
    turns = [Turn(0, "hi"), Turn(0, "how are you?"), Turn(1, "fine"), Turn(0, "good"), Turn(0, "really"), Turn(0, "good")]
    assert merge_turns(turns) == [Turn(0, "hi how are you?"), Turn(1, "fine"), Turn(0, "good really good")]


def test_a_shared_photo_stays_a_turn_of_its_own():
    announced, shared, after = Turn(0, "here, I took a picture"), Turn(0, "", CAT), Turn(0, "nice, no?")
    assert merge_turns([announced, shared, after]) == [announced, shared, after]
    assert merge_turns([Turn(0, "a", CAT), Turn(0, "b", CAT)]) == [Turn(0, "a", CAT), Turn(0, "b", CAT)]


@given(st.lists(st.builds(Turn, st.sampled_from([0, 1]), st.sampled_from(["a", "b c", "d"]), st.sampled_from([None, None, CAT])), max_size=8))
@settings(max_examples=60, deadline=None)
def test_merging_loses_no_word_and_no_photo_and_is_done_after_once(turns):
    merged = merge_turns(turns)
    assert " ".join(t.text for t in merged) == " ".join(t.text for t in turns)
    assert [t.photo for t in merged if t.photo] == [t.photo for t in turns if t.photo]
    assert merge_turns(merged) == merged
    for before, after in zip(merged, merged[1:], strict=False):
        assert before.speaker != after.speaker or before.photo or after.photo


def test_every_turn_but_the_first_is_a_response_to_all_before_it():
    dialogue = Dialogue("d", (Turn(0, "hi"), Turn(1, "look"), Turn(1, "", CAT), Turn(0, "cute")))
    made = examples_of(dialogue)
    assert [e.response for e in made] == list(dialogue.turns[1:])
    assert [e.context for e in made] == [dialogue.turns[:i] for i in (1, 2, 3)]
    assert [(e.dialogue_id, e.index) for e in made] == [("d", 1), ("d", 2), ("d", 3)]
    assert examples_of(Dialogue("d", (Turn(0, "hi"),))) == []


# --------------------------------------------------------------------------------------------------------------- layout

def test_a_chat_is_written_as_the_documentation_says(formatter, tokenizer):
    context = (Turn(0, "did you find it?"), Turn(1, "yes, look!", CAT), Turn(0, "nice! where was that?"))
    ids, kept = formatter.context(context, answering=1)
    slots = IMAGE_TOKEN * 4
    assert written(tokenizer, ids) == (f"<s>User: did you find it?\nAssistant: yes, look!{IMAGE_START}{slots}{IMAGE_END}\n"
                                       "User: nice! where was that?\nAssistant:")
    assert kept == list(context)
    swapped, _ = formatter.context(context, answering=0)
    assert written(tokenizer, swapped).startswith("<s>Assistant: did you find it?\nUser: yes")


def test_a_context_photo_can_be_written_as_words(tokenizer):
    formatter = PromptFormatter(tokenizer, 4, 192, caption_of=lambda photo: photo.caption.upper())
    ids, _ = formatter.context((Turn(0, "", CAT),), answering=1)
    assert written(tokenizer, ids) == f"<s>User:{IMAGE_START}A BLACK CAT AT THE BEACH{IMAGE_END}\nAssistant:" and formatter.slot not in ids


@pytest.mark.parametrize("turn", [Turn(1, "it was fun"), Turn(1, "", CAT), Turn(1, "look at this:", CAT)])
def test_a_response_comes_back_from_its_tokens(formatter, tokenizer, turn):
    ids, is_caption = formatter.response(turn)
    photo = f"{IMAGE_START}{turn.photo.caption}{IMAGE_END}" if turn.photo else ""
    assert written(tokenizer, ids) == f"{turn.text}{photo}</s>"
    assert len(is_caption) == len(ids)
    marked = [i for i, inside in zip(ids, is_caption, strict=True) if inside]
    assert tokenizer.decode(marked) == (turn.photo.caption if turn.photo else "")
    assert ids.count(tokenizer.eos_token_id) == 1 and not any(marked.count(t) for t in (formatter.start, formatter.end))


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=60, deadline=None)
def test_words_never_seen_survive_the_tokens(tokenizer, text):
    text = " ".join(text.replace("▁", "").split())
    if not any(marker in text for marker in ("<", "[")):
        ids, _ = PromptFormatter(tokenizer, 4, 192).response(Turn(0, text))
        assert tokenizer.decode(ids[:-1]) == text


@pytest.mark.parametrize("max_context", [192, 60, 30, 16])
def test_the_oldest_turns_are_dropped_first_and_whole(tokenizer, max_context):
    formatter = PromptFormatter(tokenizer, 4, max_context)
    turns = tuple(Turn(i % 2, f"this is number {i}", CAT if i == 3 else None) for i in range(7))
    ids, kept = formatter.context(turns, answering=1)
    assert kept == list(turns[len(turns) - len(kept):])  # the latest ones, without a gap
    assert len(kept) == 7 if max_context == 192 else 1 <= len(kept) < 7
    if len(kept) > 1:
        assert len(ids) <= max_context
    if len(kept) < 7:  # one turn more would not have fitted
        roomy = PromptFormatter(tokenizer, 4, 10_000)
        assert len(roomy.context(turns[len(turns) - len(kept) - 1:], answering=1)[0]) > max_context
    assert ids == PromptFormatter(tokenizer, 4, 10_000).context(kept, answering=1)[0]


def test_the_latest_turn_is_kept_however_long(tokenizer):
    turns = (Turn(0, "hi"), Turn(1, "word " * 100))
    ids, kept = PromptFormatter(tokenizer, 4, 32).context(turns, answering=0)
    assert kept == [turns[1]] and len(ids) > 32


def test_a_photo_must_fit_the_context(tokenizer):
    with pytest.raises(ValueError, match="a photo takes 40 tokens, more than data.max_context = 32"):
        PromptFormatter(tokenizer, 40, 32)


# ---------------------------------------------------------------------------------------------------------------- batches

@pytest.fixture
def chats(corpus):
    dialogues, store, _ = load_split(corpus, "train")
    return [e for d in dialogues[:4] for e in examples_of(d)], store


def test_training_batches_are_padded_on_the_right(formatter, chats, tokenizer):
    rows, store = chats
    batch = Collator(formatter, store, 64)(rows)
    targets, photos = iter(batch.target_photos), iter(batch.photos)
    for i, example in enumerate(rows):
        context, kept = formatter.context(example.context, example.response.speaker)
        answer, is_caption = formatter.response(example.response)
        padding = batch.input_ids.shape[1] - len(context) - len(answer)
        assert batch.input_ids[i].tolist() == context + answer + [formatter.pad] * padding
        assert batch.attention_mask[i].tolist() == [1] * len(context + answer) + [0] * padding
        assert batch.labels[i].tolist() == [IGNORED] * len(context) + answer + [IGNORED] * padding
        assert batch.is_caption[i].tolist() == [False] * len(context) + is_caption + [False] * padding
        said = batch.input_ids[i][batch.is_caption[i]]
        if example.response.photo:
            assert tokenizer.decode(said) == example.response.photo.caption == batch.captions[batch.target_rows.tolist().index(i)]
            assert torch.equal(next(targets), store.tensor(example.response.photo.photo_id, 64))
        else:
            assert len(said) == 0 and i not in batch.target_rows
        for turn in kept:
            if turn.photo:
                assert torch.equal(next(photos), store.tensor(turn.photo.photo_id, 64))
    assert next(targets, None) is None and next(photos, None) is None
    assert (batch.input_ids == formatter.slot).sum() == formatter.queries * len(batch.photos)


def test_answering_batches_are_padded_on_the_left_and_hold_no_response(formatter, chats):
    rows, store = chats
    batch = Collator(formatter, store, 64, answering=True)(rows)
    for i, example in enumerate(rows):
        context, _ = formatter.context(example.context, example.response.speaker)
        padding = batch.input_ids.shape[1] - len(context)
        assert batch.input_ids[i].tolist() == [formatter.pad] * padding + context
        assert batch.attention_mask[i].tolist() == [0] * padding + [1] * len(context)
    assert len(batch.target_rows) == len(batch.target_photos) == 0 and batch.captions == []
    assert (batch.labels == IGNORED).all() and not batch.is_caption.any()


def test_photos_of_dropped_turns_are_not_loaded(tokenizer):
    loads = []
    store = SimpleNamespace(tensor=lambda photo_id, size: loads.append(photo_id) or torch.zeros(3, size, size, dtype=torch.uint8))
    turns = (Turn(0, "", SharedPhoto("old", "a cat")), Turn(1, "word " * 30), Turn(0, "", SharedPhoto("new", "a dog")))
    batch = Collator(PromptFormatter(tokenizer, 4, 24), store, 8, answering=True)([Example("d", 3, turns, Turn(1, ""))])
    assert loads == ["new"] and batch.photos.shape == (1, 3, 8, 8) and (batch.input_ids == batch.input_ids.new_tensor(
        tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))).sum() == 4


def test_a_batch_moves_whole(formatter, chats):
    rows, store = chats
    batch = Collator(formatter, store, 64)(rows)
    moved = batch.to("meta", non_blocking=True)
    assert moved.captions == batch.captions
    assert all(getattr(moved, name).device.type == "meta" for name in ("input_ids", "attention_mask", "labels", "is_caption", "photos",
                                                                       "target_photos", "target_rows"))


# ------------------------------------------------------------------------------------------------------------------ files

@pytest.fixture
def copy(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.mark.parametrize("damage", ["cut short", "flipped", "gone", "text"])
def test_a_dialogue_with_a_damaged_photo_is_set_aside_and_counted(copy, damage):
    whole, store, report = load_split(copy, "train")
    assert len(whole) == report.kept == 12 and report.problems == []
    unlucky = whole[2]
    path = store.path(unlucky.photos[0].photo_id)
    content = path.read_bytes()
    damaged = {"cut short": content[:len(content) // 2], "text": b"no picture at all",
               "flipped": content[:len(content) // 2] + bytes([content[len(content) // 2] ^ 255]) + content[len(content) // 2 + 1:]}
    path.unlink()
    if damage in damaged:
        path.write_bytes(damaged[damage])
    kept, _, report = load_split(copy, "train")
    assert kept == [d for d in whole if d != unlucky] and report.kept == 11
    problem, = report.problems
    assert problem.field == "photo" and unlucky.dialogue_id in problem.reason and unlucky.photos[0].photo_id in problem.reason
    assert "11 kept, 1 set aside (1 for photo)" in str(report)


def test_a_problem_names_the_row_in_the_file(copy):
    lines = (copy / "train.jsonl").read_bytes().splitlines()
    (copy / "train.jsonl").write_bytes(b"\n".join([b"nonsense", *lines]) + b"\n")
    dialogues, _ = load_split(copy, "train")[:2]
    PhotoStore(copy / "photos").path(dialogues[0].photos[0].photo_id).unlink()
    _, _, report = load_split(copy, "train")
    assert [problem.row for problem in report.problems] == [1, 2]  # the damaged photo belongs to the file's second line


def test_a_split_that_is_not_there_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match="no such file; `e2e data`"):
        load_split(tmp_path, "train")
