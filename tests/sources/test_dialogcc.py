import json
import random

import pyarrow
import pytest
from pyarrow import parquet

from e2e_lib.data.dialogue import DataError
from e2e_lib.data.statistics import table_1
from e2e_lib.sources import dialogcc, synthetic
from e2e_lib.sources.reading import SourceReport

IMAGE = {"image_url": "https://i.example.org/a/thumb/1.jpg", "caption": "a dog"}


def entry(text="hi", speaker="Kitzie", images=(), **more):
    return {"utterance": text, "speaker": speaker, "shared_image": images if images is None else list(images), **more}


def row(*entries, **changes):
    return {"dialogue_id": "wow:986", "dialogue": list(entries) or [entry()], "split": "train"} | changes


def read(tmp_path, *rows):
    path, report = tmp_path / "train.json", SourceReport()
    path.write_text(json.dumps(list(rows)))
    pairs = list(dialogcc.read(path, "train", report))
    return [dialogue for dialogue, _ in pairs], [photo for _, photos in pairs for photo in photos], report


def test_photos_stand_on_an_entry_of_their_own_or_beside_words_and_several_in_one(tmp_path):
    other = {"image_url": "http://i.example.org/b/thumb/1.jpg", "caption": "a cat", "similarity": 0.3}
    (dialogue,), photos, report = read(tmp_path, row(entry("look", images=[IMAGE, other]), entry("", images=[IMAGE]), entry("oh", "Dyani")))
    assert [(turn.speaker, turn.text, [photo.caption for photo in turn.photos]) for turn in dialogue.turns] == [
        (0, "look", ["a dog", "a cat"]), (0, "", ["a dog"]), (1, "oh", [])]
    assert len({photo.photo_id for photo in photos}) == 2 and not report.repaired  # though both end in /thumb/1.jpg
    assert table_1([dialogue])["images"] == 3 and table_1([dialogue])["distinct_images"] == 2


def test_speakers_are_told_by_name_in_order_of_appearance_and_may_repeat(tmp_path):
    (dialogue,), _, _ = read(tmp_path, row(*(entry(speaker=name) for name in ("B", "B", "A", "B"))))
    assert [turn.speaker for turn in dialogue.turns] == [0, 0, 1, 0]


@pytest.mark.parametrize("nothing", [None, []])
def test_null_and_an_empty_list_both_mean_no_photo(nothing, tmp_path):
    (dialogue,), photos, report = read(tmp_path, row(entry(images=nothing, rationale=None, description=None)))
    assert not photos and len(dialogue.turns) == 1 and not report.problems


def test_entries_out_of_order_are_put_in_order_and_counted(tmp_path):
    (dialogue,), _, report = read(tmp_path, row(*(entry(str(i), utterance_idx=i) for i in (2, 0, 1))))
    assert [turn.text for turn in dialogue.turns] == ["0", "1", "2"] and report.repaired.total() == 1


@pytest.mark.parametrize("entries, rule", [
    ([entry(""), entry()], "entry with neither"), ([entry(images=[{"image_url": "", "caption": "a"}])], "photo without an address"),
    ([entry(images=[{"image_url": "http://a", "caption": None}])], "photo without a caption")])
def test_what_is_left_out_is_counted_by_its_rule(entries, rule, tmp_path):
    dialogues, _, report = read(tmp_path, row(*entries))
    assert len(dialogues[0].turns) == 1 and [count for name, count in report.repaired.items() if name.startswith(rule)] == [1]


def test_a_photo_without_a_caption_takes_its_entrys_description(tmp_path):
    _, (photo,), _ = read(tmp_path, row(entry(images=[IMAGE | {"caption": None}], description="a puppy")))
    assert photo.caption == "a puppy"


@pytest.mark.parametrize("bad, field", [
    (row(*(entry(speaker=name) for name in "ABC")), "dialogue[].speaker"), (row(entry(speaker=None)), "dialogue[].speaker"),
    (row(dialogue=[]), "dialogue"), (row(entry("")), "dialogue"), (row(dialogue_id=""), "dialogue_id"), (row(dialogue_id=7), "dialogue_id"),
    (row(dialogue="hi"), "dialogue"), (row(entry(images=[None])), "dialogue[0].shared_image[0]"), (row(entry(4)), "dialogue[0].utterance"),
    (row(dialogue_id="first"), "dialogue_id")])
def test_a_row_that_cannot_be_used_is_named_by_its_field(bad, field, tmp_path):
    dialogues, _, report = read(tmp_path, row(dialogue_id="first"), bad)
    assert len(dialogues) == 1
    assert [(problem.row, problem.field.replace("[...]", "[0]")) for problem in report.problems] == [(2, field)]


def rows_of(count):
    return [synthetic.dialogcc_row(random.Random(i), i, "train") for i in range(count)]


def test_parquet_json_and_json_lines_give_the_same_dialogues(tmp_path):
    rows, found = rows_of(30), []
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0000.parquet")
    for path in sorted(tmp_path.iterdir()):
        report = SourceReport()
        found.append(list(dialogcc.read(path, "train", report)))
        assert report.kept == 30 and len(report.files[path.name]) == 64, path
    assert found[0] == found[1] == found[2]


def test_a_row_of_parquet_that_cannot_be_used_is_named_and_a_damaged_file_too(tmp_path):
    path, report = tmp_path / "0000.parquet", SourceReport()
    parquet.write_table(pyarrow.Table.from_pylist([{"dialogue_id": "a", "dialogue": None}]), path)
    assert not list(dialogcc.read(path, "train", report))
    assert [(problem.row, problem.field) for problem in report.problems] == [(1, "dialogue")]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="0000.parquet: not a readable Parquet file"):
        list(dialogcc.read(path, "train", SourceReport()))


def test_a_row_of_parquet_whose_text_is_not_utf_8_costs_only_itself(tmp_path):
    path, rows = tmp_path / "0000.parquet", [row(entry(f"words {i}"), dialogue_id=f"{i}") for i in range(5)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"words 2", b"words\xff2"))
    assert path.read_bytes() != content
    report = SourceReport()
    assert [dialogue.dialogue_id for dialogue, _ in dialogcc.read(path, "train", report)] == ["train/0", "train/1", "train/3", "train/4"]
    assert [(problem.row, problem.field) for problem in report.problems] == [(3, "row")] and "not UTF-8" in report.problems[0].reason
