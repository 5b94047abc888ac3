"""From dialogues to examples: every turn answers those before it, and damaged photos are set aside and counted."""

import math
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_lib.data.dialogue import DataError, Dialogue, SharedPhoto, Turn
from e2e_lib.data.examples import Response, examples_of, load_split, merge_turns, subsample
from e2e_lib.data.photos import PhotoStore, to_tensor

CAT = SharedPhoto("p1", "a black cat at the beach")
TURNS = st.builds(Turn, st.sampled_from([0, 1]), st.sampled_from(["a", "b c", "d"]), st.sampled_from([(), (), (CAT,), (CAT, CAT)]))


def test_one_speakers_utterances_become_one_turn():
    turns = [Turn(0, "hi"), Turn(0, "how are you?"), Turn(1, "fine"), Turn(0, "good"), Turn(0, "really")]
    assert merge_turns(turns) == [Turn(0, "hi how are you?"), Turn(1, "fine"), Turn(0, "good really")]


def test_a_turn_with_a_photo_is_not_merged():
    announced, shared, after = Turn(0, "here, I took a picture"), Turn(0, "", (CAT,)), Turn(0, "nice, no?")
    assert merge_turns([announced, shared, after]) == [announced, shared, after]
    assert merge_turns([Turn(0, "a", (CAT,)), Turn(0, "b", (CAT, CAT))]) == [Turn(0, "a", (CAT,)), Turn(0, "b", (CAT, CAT))]


@given(st.lists(TURNS, max_size=8))
@settings(max_examples=60, deadline=None)
def test_merging_keeps_every_word_and_photo_and_is_complete_after_one_pass(turns):
    merged = merge_turns(turns)
    assert " ".join(t.text for t in merged) == " ".join(t.text for t in turns)
    assert [t.photos for t in merged if t.photos] == [t.photos for t in turns if t.photos]
    assert merge_turns(merged) == merged
    for before, after in zip(merged, merged[1:], strict=False):
        assert before.speaker != after.speaker or before.photos or after.photos


def test_every_turn_but_the_first_is_a_response_to_all_before_it():
    dialogue = Dialogue("d", (Turn(0, "hi"), Turn(1, "look"), Turn(1, "", (CAT,)), Turn(0, "cute")))
    examples = examples_of(dialogue)
    assert [e.response for e in examples] == list(dialogue.turns[1:])
    assert [e.context for e in examples] == [dialogue.turns[:i] for i in (1, 2, 3)]
    assert [(e.dialogue_id, e.index) for e in examples] == [("d", 1), ("d", 2), ("d", 3)]
    assert examples_of(Dialogue("d", (Turn(0, "hi"),))) == []


@given(st.integers(0, 60), st.integers(1, 40))
def test_a_subsample_is_evenly_spaced(size, count):
    rows = list(range(size))
    kept = subsample(rows, count)
    assert len(kept) == min(size, count) and kept == sorted(set(kept)) and kept[:1] == rows[:1]
    gaps = {later - earlier for earlier, later in zip(kept, kept[1:], strict=False)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    assert not kept or size - kept[-1] <= math.ceil(size / len(kept))  # from the beginning to the end


def test_a_responses_image_is_its_photo(examples):
    rows, store = examples
    image = store.load(next(e.response.photos[0].photo_id for e in rows if e.response.photos))
    assert Response("hi").images == []
    images = Response("hi", ["a cat", "again"], [to_tensor(image)] * 2).images
    assert [one.tobytes() for one in images] == [image.tobytes()] * 2


@pytest.fixture
def copy(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.mark.parametrize("how", ["cut short", "flipped", "gone", "text"])
def test_a_dialogue_with_a_damaged_photo_is_set_aside_and_counted(copy, damage, how):
    whole, store, report = load_split(copy, "train")
    assert len(whole) == report.kept == 12 and report.problems == []
    unlucky = whole[2]
    damage(store.path(unlucky.photos[0].photo_id), how)
    kept, _, report = load_split(copy, "train")
    assert kept == [d for d in whole if d != unlucky] and report.kept == 11
    problem, = report.problems
    assert problem.field == "photo" and "11 kept, 1 set aside (1 for photo)" in str(report)
    assert unlucky.dialogue_id in problem.reason and unlucky.photos[0].photo_id in problem.reason


def test_a_problem_names_the_row_in_the_file(copy):
    lines = (copy / "train.jsonl").read_bytes().splitlines()
    (copy / "train.jsonl").write_bytes(b"\n".join([b"nonsense", *lines]) + b"\n")
    dialogues, _ = load_split(copy, "train")[:2]
    PhotoStore(copy / "photos").path(dialogues[0].photos[0].photo_id).unlink()
    _, _, report = load_split(copy, "train")
    assert [problem.row for problem in report.problems] == [1, 2]  # the missing photo is of the second line


def test_a_missing_split_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match="no such file; `e2e data`"):
        load_split(tmp_path, "train")
