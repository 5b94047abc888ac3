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
    clean_text,
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


texts = st.text(min_size=1, max_size=20).map(clean_text).filter(bool)
photos = st.lists(st.builds(SharedPhoto, texts, texts), min_size=1, max_size=3).map(tuple)
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


def test_a_row_has_one_photo_as_photo_and_several_as_photos():
    one, two = {"photo_id": "p", "caption": "a"}, {"photo_id": "q", "caption": "b"}
    rows = [{"speaker": 0, "text": "hi"}, {"speaker": 0, "text": "", "photo": one}, {"speaker": 1, "text": "x", "photos": [one, two]}]
    dialogue = parse_dialogue(row("d", turns=rows))
    assert [[photo.photo_id for photo in turn.photos] for turn in dialogue.turns] == [[], ["p"], ["p", "q"]]
    assert [photo.caption for photo in dialogue.photos] == ["a", "a", "b"] and to_row(dialogue) == row("d", turns=rows)
    for empty in ({"photo": None}, {"photos": None}, {"photos": []}, {"photo": None, "photos": []}):
        assert parse_dialogue(turn(**empty)) == parse_dialogue(turn())
    for alone in ({"photos": [one]}, {"photo": one, "photos": []}, {"photo": None, "photos": [one]}):
        assert parse_dialogue(turn(**alone)) == parse_dialogue(turn(photo=one))


@pytest.mark.parametrize(("written", "read"), [
    ("a\nb", "a b"), ("  a \t\r\n b\u2028c\u2029\x85d\xa0e\x0b\x1c ", "a b c d e"),
    ("a\u200bb\ufeff\u00adc\u2060", "abc"), ("\u202ea\u202c \u2066b\u2069", "a b"), ("a\x00b\x1b[0m\x7f", "ab[0m"),
    ("half \ud83d", "half \ufffd"), ("\ude00\ud83d", "\ufffd\ufffd"), ("caf\u00e9 cafe\u0301", "caf\u00e9 cafe\u0301"),
    ("\U0001f469\u200d\U0001f680 \u2764\ufe0f", "\U0001f469\u200d\U0001f680 \u2764\ufe0f"),  # an emoji of three characters
    ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),  # a Persian word
    ("a\u200db \u200d\U0001f680\u200d", "ab \U0001f680"), ("\u200b \u3164\u2800\ufeff", ""), ("", "")])
def test_text_becomes_one_line_of_visible_characters(written, read):
    assert clean_text(written) == clean_text(read) == read


@given(st.text(st.characters(), max_size=40))
def test_clean_text_is_one_line_and_is_clean(text):
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned and cleaned.splitlines() == [cleaned][:len(cleaned)] and cleaned.split() == cleaned.split(" ")[:len(cleaned)]
    cleaned.encode()


def test_turns_and_captions_are_cleaned_when_they_are_read(tmp_path):
    photo = {"photo_id": "a\n", "caption": "a\ncat\ufeff"}
    write(tmp_path / "chats.jsonl", row("first", turns=[{"speaker": 0, "text": "\u200bhi\nthere\ud83d", "photo": photo}]),
          row("second", turns=[{"speaker": 0, "text": "\u200b\n"}]), row("third", turns=[{"speaker": 0, "text": "", "photo": photo | {"caption": "\ufeff"}}]))
    (dialogue,), report = read_dialogues(tmp_path / "chats.jsonl")
    assert dialogue.turns == (Turn(0, "hi there\ufffd", (SharedPhoto("a\n", "a cat"),)),)
    assert [(problem.row, problem.field) for problem in report.problems] == [(2, "turns[0].text"), (3, "turns[0].photo.caption")]


values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-1, 2), st.floats(), st.text(st.characters(), max_size=4)), lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["dialogue_id", "turns", "speaker", "text", "photo", "photos", "photo_id", "caption"]), inner)),
    max_leaves=12)
nearly = st.fixed_dictionaries({"dialogue_id": st.just("d"), "turns": st.lists(st.fixed_dictionaries(
    {"speaker": st.sampled_from([0, 1])}, optional={"text": st.one_of(st.text(st.characters(), max_size=5), values), "photo": values, "photos": values}), max_size=3)})


@given(st.one_of(values, nearly))
@pytest.mark.fuzz
def test_any_json_is_a_dialogue_or_refused_with_where_and_why(value):
    try:
        dialogue = parse_dialogue(value, "chats.jsonl", 3)
    except DataError as error:
        assert str(error).startswith("chats.jsonl, row 3, ") and len(str(error)) < 300
    else:
        json.dumps(to_row(dialogue), ensure_ascii=False).encode()
        assert parse_dialogue(to_row(dialogue)) == dialogue and all(turn.text or turn.photos for turn in dialogue.turns)


@pytest.mark.parametrize("line", [b"[" * 100_000, b"1" * 5000, b"\xff", b"\xef\xbb\xbf", b"nan", b"\x00"])
def test_a_line_that_no_library_can_read_is_set_aside(tmp_path, line):
    read, report = read_dialogues(write(tmp_path / "train.jsonl", row("first"), line, row("last")))
    assert len(read) == 2 and [(problem.row, problem.field) for problem in report.problems] == [(2, "json")]


def test_a_file_as_editors_on_windows_write_it_is_read(tmp_path):
    (tmp_path / "train.jsonl").write_bytes("\ufeff".encode() + b"\r\n".join(json.dumps(row(name)).encode() for name in "ab") + b"\r\n")
    read, report = read_dialogues(tmp_path / "train.jsonl")
    assert [dialogue.dialogue_id for dialogue in read] == ["a", "b"] and report.problems == []


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
    "speaker that is no whole number": (turn(speaker=1.0), "turns[0].speaker", "expected 0 or 1, found 1.0"),
    "half a character in an id": (row("a\ud83d"), "dialogue_id", "expected a string, found 'a\\ud83d'"),
    "a very long value": (turn(speaker="x" * 999), "turns[0].speaker", "x…"),
    "boolean speaker": (turn(speaker=True), "turns[0].speaker", "expected 0 or 1, found True"),
    "empty turn": (turn(text="  "), "turns[0].text", "neither text nor a photo"),
    "text that is a number": (turn(text=7), "turns[0].text", "expected a string, found int"),
    "neither text nor photo": (turn(text="", photo=None, photos=[]), "turns[0].text", "neither text nor a photo"),
    "photo that is no object": (turn(photo="p"), "turns[0].photo", "expected an object, found 'p'"),
    "photos that are no list": (turn(photos={"photo_id": "p", "caption": "a"}), "turns[0].photos", "expected a list, found dict"),
    "second photo without caption": (turn(photos=[{"photo_id": "p", "caption": "a"}, {"photo_id": "q"}]),
                                     "turns[0].photos[1].caption", "found None"),
    "photo and photos": (turn(photo={"photo_id": "p", "caption": "a"}, photos=[{"photo_id": "p", "caption": "a"}]),
                         "turns[0].photos", "found both"),
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
