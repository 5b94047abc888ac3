import json
import os
import random
from pathlib import Path

import pytest

from e2e_lib.data.dialogue import DataError, read_dialogues
from e2e_lib.data.statistics import table_1
from e2e_lib.repro import files as repro_files
from e2e_lib.repro.files import sha256
from e2e_lib.sources import synthetic
from e2e_lib.sources.build import SPLITS, UNMET, build, find_files, kept_in
from e2e_lib.sources.stats import statistics

COUNTS = {"train": 12, "dev": 5, "test": 4}


def made(name, tmp_path, **options):
    """A built corpus of made-up files: its report, folder, and what was said."""
    lines = []
    source, out = synthetic.write(name, tmp_path / "source", COUNTS), tmp_path / "out"
    return build(name, source, out, lines.append, **options), out, lines


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["photochat", "dialogcc"])
def test_what_is_written_is_read_again_with_the_numbers_of_the_report(name, tmp_path):
    report, out, lines = made(name, tmp_path)
    ids, photos = set(), {}
    for split in SPLITS:
        dialogues, problems = read_dialogues(out / f"{split}.jsonl")
        assert not problems.problems and len(dialogues) == COUNTS[split] == report[split]["kept"]
        row = table_1(dialogues)
        assert {key: report[split][key] for key in row} == row
        ids |= {dialogue.dialogue_id for dialogue in dialogues}
        for dialogue in dialogues:
            for photo in dialogue.photos:
                photos.setdefault(photo.photo_id, (photo.caption, []))[1].append(split)
    assert len(ids) == sum(COUNTS.values())  # PhotoChat's own numbers begin anew in each split
    found = rows_of(out / "photos.jsonl")
    assert [(row["photo_id"], row["caption"], row["splits"]) for row in found] == [
        (photo_id, caption, sorted(set(splits), key=SPLITS.index)) for photo_id, (caption, splits) in photos.items()]
    assert all(row["url"].startswith("https://") for row in found)
    assert (UNMET in lines) == (name == "dialogcc")
    assert not list(out.glob(".*")) and sorted(path.name for path in out.iterdir()) == [
        "dev.jsonl", "photos.jsonl", "report.json", "test.jsonl", "train.jsonl"]


def test_the_report_names_files_by_hash_and_fields_with_types_and_shares(tmp_path):
    report, out, lines = made("photochat", tmp_path)
    assert report["dev"]["files"] == {"dev_00.json": sha256(tmp_path / "source" / "dev" / "dev_00.json")}
    assert report["dev"]["schema"]["dialogue"] == {"list": 5}
    path = tmp_path / "source" / "dev" / "dev_00.json"
    rows = json.loads(path.read_text())
    del rows[0]["photo_id"]
    rows[1]["photo_url"] = None
    path.write_text(json.dumps(rows))
    lines.clear()
    build("photochat", tmp_path / "source", out, lines.append)
    assert "  photo_id: str 80.0 %, missing 20.0 %" in lines and "  photo_url: str 80.0 %, null 20.0 %" in lines


def test_the_schema_is_said_of_what_was_not_built_from_before_and_always_kept(tmp_path):
    said = "fields seen in the first rows of each file of "
    report, out, lines = made("dialogcc", tmp_path)
    assert said + "train, dev, test:" in lines and UNMET in lines
    for options, expected in (({}, []), ({"schema": True}, [said + "train, dev, test:"])):
        lines.clear()
        assert build("dialogcc", tmp_path / "source", out, lines.append, **options) == report
        assert [line for line in lines if line.startswith(said)] == expected and (UNMET in lines) == bool(expected)
        assert json.loads((out / "report.json").read_text())["splits"]["dev"]["schema"] == report["dev"]["schema"]
    with open(tmp_path / "source" / "test.json", "a") as file:
        file.write("\n")
    lines.clear()
    build("dialogcc", tmp_path / "source", out, lines.append)
    assert [line for line in lines if line.startswith(said)] == [said + "test:"]
    (out / "report.json").write_text("[]")  # as good as none
    build("dialogcc", tmp_path / "source", out, lines.append)
    assert lines[-3].startswith("  ") and said + "train, dev, test:" in lines


def test_files_of_one_name_in_several_folders_are_all_recorded(tmp_path):
    source = synthetic.write("dialogcc", tmp_path / "source", {"train": 3})
    for name in ("a", "b"):
        (source / "train" / name).mkdir(parents=True)
        (source / "train" / name / "0000.json").write_text(json.dumps([synthetic.dialogcc_row(random.Random(name), ord(name), "train")]))
    found = build("dialogcc", source, tmp_path / "out", lambda _: None)["train"]["files"]
    assert sorted(found.values()) == sorted(map(sha256, source.rglob("*.json"))) and len(found) == 3


def contents(folder):
    return {path.name: sha256(path) for path in sorted(folder.glob("*.json*"))}


@pytest.mark.parametrize("at", range(1, 6))
def test_a_build_cut_off_between_its_moves_is_whole_for_the_next_command(at, tmp_path, monkeypatch):
    _, out, _ = made("photochat", tmp_path)
    old, calls, replace = contents(out), [], os.replace
    _, whole, _ = made("dialogcc", tmp_path / "other")
    expected = contents(whole)

    def killed(source, target):
        calls.extend([target] * (Path(source).parent.name == repro_files.READY))
        if len(calls) == at:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(repro_files.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            build("dialogcc", tmp_path / "other" / "source", out, lambda _: None)
    mixed = contents(out)
    assert at == 1 or mixed not in (old, expected)
    assert statistics(out)[0] == "dialogcc" and statistics(out)[1] == statistics(whole)[1]
    assert {name: digest for name, digest in contents(out).items() if name != "report.json"} == {
        name: digest for name, digest in expected.items() if name != "report.json"}


def test_what_an_interrupted_build_left_is_said(tmp_path):
    _, out, _ = made("photochat", tmp_path)
    assert "nothing was written" in kept_in(out)
    (out / repro_files.READY).mkdir()
    (out / "report.json").rename(out / repro_files.READY / "report.json")
    assert "written already" in kept_in(out) and (out / "report.json").is_file()


def test_splits_of_an_earlier_build_do_not_stay_beside_those_of_another(tmp_path):
    _, out, _ = made("photochat", tmp_path)
    before = contents(out)
    part = synthetic.write("photochat", tmp_path / "part", {"train": 3})
    with pytest.raises(DataError, match="out has dev.jsonl, test.jsonl of an earlier build.*delete them"):
        build("photochat", part, out, lambda _: None)
    assert contents(out) == before
    (out / "dev.jsonl").unlink()
    (out / "test.jsonl").unlink()
    assert list(build("photochat", part, out, lambda _: None)) == ["train"]


def damaged(tmp_path):
    """Made-up files whose dev split has a row at fault, with words that only it has."""
    source = synthetic.write("photochat", tmp_path / "source", COUNTS)
    path = source / "dev" / "dev_00.json"
    rows = json.loads(path.read_text())
    rows[2] |= {"photo_description": "The photo has your mom Zelda. Objects in the photo: "}
    path.write_text(json.dumps(rows))
    return source


def test_rows_at_fault_are_refused_with_place_and_nothing_written_or_counted(tmp_path):
    source, out, lines = damaged(tmp_path), tmp_path / "out", []
    with pytest.raises(DataError, match="1 rows .*nothing was written.*--skip-bad.*dev_00.json, row 3, photo_description"):
        build("photochat", source, out, lines.append)
    assert not list(out.iterdir())
    report = build("photochat", source, out, lines.append, skip_bad=True)
    assert (report["dev"]["kept"], report["dev"]["set_aside"]) == (4, {"photo_description": 1})
    assert any("Zelda" in line for line in lines)


@pytest.mark.parametrize("skip_bad", [True, False])
def test_a_redacted_report_has_nothing_that_people_wrote(skip_bad, tmp_path):
    source, out, lines = damaged(tmp_path), tmp_path / "out", []
    try:
        lines.append(json.dumps(build("photochat", source, out, lines.append, skip_bad=skip_bad, redact=True)))
    except DataError as error:
        assert not skip_bad
        lines.append(str(error))
    said = "\n".join(lines)
    assert "dev_00.json, row 3, photo_description" in said or skip_bad
    assert "Zelda" not in said and "flickr" not in said and "beach" not in said


def test_a_build_leaves_photos_that_are_there_and_the_old_files_where_it_fails(tmp_path):
    _, out, _ = made("photochat", tmp_path)
    (out / "photos").mkdir()
    (out / "photos" / "kept").write_text("photo")
    before = {path.name: sha256(path) for path in out.glob("*.json*")}
    (tmp_path / "source" / "test" / "test_00.json").write_text("[")
    with pytest.raises(DataError, match="test_00.json: no dialogue could be read.*row 1, json"):
        build("photochat", tmp_path / "source", out, lambda _: None)
    assert {path.name: sha256(path) for path in out.glob("*.json*")} == before
    made("photochat", tmp_path)
    assert (out / "photos" / "kept").read_text() == "photo"


def test_the_way_photos_count_in_runs_is_a_choice(tmp_path):
    runs = [made("photochat", tmp_path, photo_turns=rule)[0]["train"]["consecutive_utterances"]
            for rule in ("left_out", "end_runs", "in_runs")]
    assert runs[0] <= runs[1] and len(set(runs)) > 1


@pytest.mark.parametrize("files, expected", [
    (["train_00.json", "valid.json", "test.jsonl"], {"train": 1, "dev": 1, "test": 1}),
    (["default/train/0000.parquet", "default/validation/0000.parquet", "default/test/0000.parquet"], {"train": 1, "dev": 1, "test": 1}),
    (["dev/dev_00.json", "dev/dev_01.json", "README.md", "manifest.json"], {"dev": 2})])
def test_the_files_of_a_split_are_found_by_their_or_their_folders_name(files, expected, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {split: len(paths) for split, paths in find_files(tmp_path).items()} == expected


def test_mistakes_about_folders_and_names_are_explained(tmp_path):
    with pytest.raises(DataError, match="no such folder; `e2e data get`"):
        find_files(tmp_path / "absent")
    with pytest.raises(DataError, match="no file whose name"):
        find_files(tmp_path)
    with pytest.raises(DataError, match="expected one of photochat, dialogcc"):
        build("photochta", tmp_path, tmp_path / "out", print)
    synthetic.write("photochat", tmp_path, COUNTS)
    with pytest.raises(DataError, match="name a folder outside"):
        build("photochat", tmp_path, tmp_path / "out", print)
