"""Dialogues on disk: what is sound reads back equal, what is not is set aside by name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_lib.data.dialogue import (
    DataError,
    Dialogue,
    SharedPhoto,
    Turn,
    parse_dialogue,
    read_dialogues,
    to_row,
    write_dialogues,
)


def row(identifier, **changes):
    turns = [{"speaker": 0, "text": "hi"},
             {"speaker": 1, "text": "", "photo": {"photo_id": "p", "caption": "a cat"}}]
    return {"dialogue_id": identifier, "turns": turns, **changes}


def turn(**fields):
    return row("x", turns=[{"speaker": 0, "text": "hi", **fields}])


def write(path, *lines):
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


texts = st.text(min_size=1, max_size=20).filter(str.strip).filter(
    lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
photos = st.builds(SharedPhoto, texts, texts)
speakers = st.sampled_from([0, 1])
turns = st.one_of(st.builds(Turn, speakers, texts),
                  st.builds(Turn, speakers, st.one_of(st.just(""), texts), photos))
dialogues = st.builds(Dialogue, texts, st.lists(turns, min_size=1, max_size=5).map(tuple))


@given(st.lists(dialogues, min_size=1, max_size=5, unique_by=lambda d: d.dialogue_id))
@settings(max_examples=15, deadline=None)
def test_written_dialogues_read_back_equal(tmp_path_factory, written):
    path = write_dialogues(tmp_path_factory.mktemp("dialogues") / "train.jsonl", written)
    read, report = read_dialogues(path)
    assert read == written and report.kept == len(written) and report.problems == []
    assert [parse_dialogue(to_row(d)) for d in written] == written


BAD = {
    "unreadable JSON": (b'{"dialogue_id": "x", "turns": [', "json", "not readable JSON"),
    "not UTF-8": (b'{"dialogue_id": "\xff\xfe"}', "json", "not readable JSON"),
    "not an object": (["x"], "dialogue", "expected an object, found list"),
    "no id": (row(None), "dialogue_id", "expected a string, found None"),
    "empty id": (row(""), "dialogue_id", "expected a string"),
    "no turns": (row("x", turns=[]), "turns", "the dialogue has no turns"),
    "turns missing": ({"dialogue_id": "x"}, "turns", "expected a list, found NoneType"),
    "turn that is no object": (row("x", turns=["hi"]), "turns[0]", "expected an object, found str"),
    "third speaker": (turn(speaker=2), "turns[0].speaker", "expected 0 or 1, found 2"),
    "boolean speaker": (turn(speaker=True), "turns[0].speaker", "expected 0 or 1, found True"),
    "empty turn": (turn(text="  "), "turns[0].text", "neither text nor a photo"),
    "text that is a number": (turn(text=7), "turns[0].text", "expected a string, found int"),
    "photo turn without photo": (turn(photo=None), "turns[0].photo", "photo turn without a photo"),
    "empty caption": (turn(photo={"photo_id": "p", "caption": " "}), "turns[0].photo.caption",
                      "not empty, found ' '"),
    "no caption": (turn(photo={"photo_id": "p"}), "turns[0].photo.caption", "found None"),
    "no photo id": (turn(photo={"caption": "a cat"}), "turns[0].photo.photo_id", "found None"),
    "duplicate id": (row("first"), "dialogue_id", "'first' stands in row 1 already"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_row_is_set_aside_and_named_without_losing_others(tmp_path, name):
    bad, field, reason = BAD[name]
    read, report = read_dialogues(write(tmp_path / "train.jsonl", row("first"), bad, row("last")))
    assert [d.dialogue_id for d in read] == ["first", "last"] and report.kept == 2
    problem, = report.problems
    assert (problem.file, problem.row, problem.field) == ("train.jsonl", 2, field)
    assert reason in problem.reason
    assert "2 kept, 1 set aside" in str(report) and f"train.jsonl, row 2, {field}" in str(report)


def test_every_bad_row_is_counted(tmp_path):
    rows = [bad for bad, _, _ in BAD.values()]
    _, report = read_dialogues(write(tmp_path / "train.jsonl", row("first"), *rows))
    assert report.kept == 1 and [p.row for p in report.problems] == list(range(2, len(rows) + 2))
    assert str(report).startswith(f"1 kept, {len(rows)} set aside")


def test_empty_lines_are_skipped(tmp_path):
    read, report = read_dialogues(write(tmp_path / "train.jsonl", row("first"), b"", b"   ", row("last")))
    assert len(read) == 2 and report.problems == [] and str(report) == "2 kept, none set aside"


def test_file_without_sound_dialogue_raises_and_says_why(tmp_path):
    with pytest.raises(DataError, match=r"no dialogue could be read; .*1 set aside.*row 1, json"):
        read_dialogues(write(tmp_path / "train.jsonl", b"nonsense"))
    with pytest.raises(DataError, match="no such file; `e2e data`"):
        read_dialogues(tmp_path / "absent.jsonl")


def test_bad_record_names_file_row_and_field():
    with pytest.raises(DataError, match=r"chats.jsonl, row 7, turns\[0\].speaker: expected 0 or 1, found 5"):
        parse_dialogue(row("x", turns=[{"speaker": 5, "text": "hi"}]), "chats.jsonl", 7)
