"""Damaged files, for both corpora: each fault is a row of its own, and what stands beside it is read."""

import json
import random
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from e2e_lib.data.dialogue import DataError
from e2e_lib.sources import synthetic
from e2e_lib.sources.build import READERS
from e2e_lib.sources.reading import SourceReport

ROWS = [synthetic.photochat_row(random.Random(i), i) for i in range(9)]


def read(path, name="photochat"):
    report = SourceReport()
    return [dialogue for dialogue, _ in READERS[name](path, "test", report)], report


def kept_and_at_fault(tmp_path, content):
    path = tmp_path / "test.json"
    path.write_bytes(content)
    dialogues, report = read(path)
    assert len(dialogues) == report.kept and report.set_aside == ({"json": len(report.problems)} if report.problems else {})
    return report.kept, [problem.row for problem in report.problems]


def array(*rows):
    return b"[" + b",".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"]"


@pytest.mark.parametrize("damage", [
    lambda row: row.replace(b"message", b"mess\xff", 1).replace(b'"mess\xff"', b'"message\xff"', 1), lambda row: row.replace(b'"dialogue_id": 6', b'"dialogue_id": NaN'),
    lambda row: row.replace(b'"message": "', b'"message": "\\ud83d', 1)])
def test_a_row_that_is_no_json_costs_only_itself(damage, tmp_path):
    bad = damage(json.dumps(ROWS[6]).encode())
    lines = b"\r\n".join(bad if i == 6 else json.dumps(row).encode() for i, row in enumerate(ROWS))
    assert kept_and_at_fault(tmp_path, lines) == (8, [7])
    kept, rows = kept_and_at_fault(tmp_path, array(*ROWS[:6], bad, *ROWS[7:]))
    assert (kept, rows) in ((8, [7]), (6, [7]))  # an array whose structure is damaged is read up to there


@pytest.mark.parametrize("content, kept, rows", [
    (array(*ROWS), 9, []), (b"\xef\xbb\xbf\r\n " + array(*ROWS), 9, []), (array(), 0, []),
    (array(*ROWS)[:-1], 9, [10]), (array(*ROWS)[:-30], 8, [9]), (array(*ROWS) + b"x", 9, [10]),
    (array(*ROWS)[:-1] + b",]", 9, [10]), (array(*ROWS[:2], b"[" * 100_000), 2, [3])])
def test_an_array_is_read_as_far_as_it_is_sound(content, kept, rows, tmp_path):
    assert kept_and_at_fault(tmp_path, content) == (kept, rows)


def test_of_two_equal_keys_the_last_counts(tmp_path):
    row = json.dumps(ROWS[0])[:-1] + ', "dialogue_id": 77}'
    path = tmp_path / "test.json"
    path.write_text(row)
    assert [dialogue.dialogue_id for dialogue in read(path)[0]] == ["test/77"]


def test_a_line_too_deep_to_read_costs_only_itself(tmp_path):
    lines = [json.dumps(ROWS[0]).encode(), b'{"dialogue": ' + b"[" * 100_000, json.dumps(ROWS[1]).encode()]
    assert kept_and_at_fault(tmp_path, b"\n".join(lines)) == (2, [2])


@pytest.mark.parametrize("content", [b"", b"  ", b"<html>", b"null", b"7"])
def test_a_file_that_is_no_json_at_all_is_named(content, tmp_path):
    (tmp_path / "test.json").write_bytes(content)
    with pytest.raises(DataError, match="test.json: .*fetch it again"):
        read(tmp_path / "test.json")


def test_a_sound_row_after_many_that_are_no_json_is_read(tmp_path):
    lines = [b"{"] * 30 + [json.dumps(ROWS[0]).encode()]
    assert kept_and_at_fault(tmp_path, b"\n".join(lines)) == (1, [*range(1, 31)])


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match="absent.json: cannot be read"):
        read(tmp_path / "absent.json")


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6)


def places(value, path=()):
    """Every place in a JSON value, as keys to follow."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def check_read(path, name):
    """Reading either names the file, or gives sound dialogues and problems that name a row and a field."""
    try:
        dialogues, report = read(path, name)
    except DataError as error:
        assert path.name in str(error)
        return
    assert report.kept == len(dialogues) == len({dialogue.dialogue_id for dialogue in dialogues})
    for dialogue in dialogues:
        assert dialogue.turns and all(turn.text or turn.photos for turn in dialogue.turns)
        assert all(turn.speaker in (0, 1) and "\n" not in turn.text for turn in dialogue.turns)
        assert all(photo.photo_id and photo.caption for photo in dialogue.photos)
    for problem in report.problems:
        assert problem.file == path.name and problem.row >= 1 and problem.field and problem.reason


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


MAKERS = {"photochat": lambda rng: synthetic.photochat_row(rng, 3), "dialogcc": lambda rng: synthetic.dialogcc_row(rng, 3, "test")}


@pytest.mark.fuzz
@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
def test_any_value_in_any_place_is_read_or_named(name, folder, data):
    row = MAKERS[name](random.Random(data.draw(st.integers(0, 50))))
    changed = replaced(row, data.draw(st.sampled_from(list(places(row)))), data.draw(VALUES))
    Path(folder / "test.json").write_text(json.dumps([row | {"dialogue_id": "other"}, changed]))
    check_read(folder / "test.json", name)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
def test_any_damage_to_bytes_is_read_around_or_named(name, folder, data):
    rng = random.Random(data.draw(st.integers(0, 50)))
    rows = [MAKERS[name](rng) | {"dialogue_id": f"{i}"} for i in range(3)]
    as_lines = data.draw(st.booleans())
    content = bytearray("\n".join(map(json.dumps, rows)).encode() if as_lines else json.dumps(rows).encode())
    start = data.draw(st.integers(0, len(content)))
    content[start:start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=6))
    (folder / "test.json").write_bytes(content[:data.draw(st.integers(len(content) // 2, len(content)))])
    check_read(folder / "test.json", name)


def write_parquet(path, rows, compression="snappy"):
    """Writes rows, or says that Parquet has no type for what they hold."""
    try:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression=compression)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
        return False
    return True


@pytest.mark.fuzz
@given(data=st.data())
def test_any_value_in_any_place_of_parquet_is_read_or_named(folder, data):
    row = MAKERS["dialogcc"](random.Random(data.draw(st.integers(0, 50))))
    changed = replaced(row, data.draw(st.sampled_from(list(places(row))[1:])), data.draw(VALUES))
    others = [row | {"dialogue_id": "other"}] if data.draw(st.booleans()) else []
    if write_parquet(folder / "test.parquet", [*others, changed]) or write_parquet(folder / "test.parquet", [changed]):
        check_read(folder / "test.parquet", "dialogcc")


@pytest.mark.fuzz
@given(data=st.data())
def test_any_damage_to_the_bytes_of_parquet_is_read_around_or_named(folder, data):
    rng, path = random.Random(data.draw(st.integers(0, 50))), folder / "test.parquet"
    rows = [MAKERS["dialogcc"](rng) | {"dialogue_id": f"{i}"} for i in range(3)]
    assert write_parquet(path, rows, data.draw(st.sampled_from(("none", "snappy"))))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[:data.draw(st.sampled_from((len(content), len(content), len(content), rng.randrange(len(content)))))])
    check_read(path, "dialogcc")
