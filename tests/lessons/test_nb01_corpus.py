"""The corpora of notebook 01 against counts made by hand and by plain loops over the files."""

import json
from collections import Counter

import pytest

from e2e_lib.data.dialogue import Dialogue, SharedPhoto, Turn, read_dialogues
from e2e_lib.data.photo_index import PhotoIndex, PhotoRow
from e2e_lib.lessons import nb01_corpus as lesson
from e2e_lib.lessons.parameters import ParameterError
from e2e_lib.repro import results
from e2e_lib.sources.build import build
from e2e_lib.sources.stats import statistics

CAT, DOG = SharedPhoto("1", "cat"), SharedPhoto("2", "dog")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sources and built folders of both corpora, by name. Not to be changed."""
    folder = tmp_path_factory.mktemp("corpora")
    sources = {name: lesson.write_source(name, folder / name) for name in lesson.FAULTS}
    for name, source in sources.items():
        build(name, source, folder / "built" / name, lambda line: None, skip_bad=True)
    return sources, {name: folder / "built" / name for name in lesson.FAULTS}


def test_the_same_files_are_written_twice(made, tmp_path):
    for name, source in made[0].items():
        again = lesson.write_source(name, tmp_path / name)
        files = sorted(path.relative_to(source) for path in source.rglob("*.json"))
        assert [(again / path).read_bytes() for path in files] == [(source / path).read_bytes() for path in files]


@pytest.mark.parametrize(("name", "fields"), [
    ("photochat", ["dialogue[2].user_id", "share_photo", "photo_description", "dialogue_id"]),
    ("dialogcc", ["dialogue[].speaker", "dialogue[1].utterance", "dialogue_id"]),
])
def test_the_broken_rows_are_set_aside_each_for_its_own_field_and_nothing_else_is(made, name, fields):
    rows = lesson.set_aside({"a corpus": made[1][name]})
    assert [(split, kept, bad) for _, split, kept, bad, _ in rows] == [
        ("train", 300, len(fields)), ("dev", 40, 0), ("test", 40, 0)]
    assert rows[0][4] == ", ".join(f"{field} (1)" for field in fields) and rows[1][4] == "–"
    assert len(read_dialogues(made[1][name] / "train.jsonl")[0]) == 300


def test_captions_of_photochat_name_what_the_server_draws(made):
    photos = lesson.photo_rows(made[1]["photochat"])
    assert len(photos) == 380 and len({row["photo_id"] for row in photos}) == 380
    for row in photos:
        scene = lesson.scene_of(row["photo_id"])
        assert row["caption"].lower() == f"{scene.thing}, {scene.place}"
    assert {"Reece", "Elle", "Azaria", "Darwin"} == {row["name"] for row in photos if row.get("name")}


def test_a_row_is_shown_up_to_its_photo_and_cut(made):
    for source in made[0].values():
        text = lesson.row_text(source, most=2)
        assert text.count("dialogue[") == 2 and max(map(len, text.splitlines())) <= 100 and "…" in text
    assert '"share_photo": true' in lesson.row_text(made[0]["photochat"], most=1)
    assert "image_url" in lesson.row_text(made[0]["dialogcc"], most=1)


def test_table_1_stands_beside_the_papers_with_differences(made):
    page = lesson.table_1({f"synthetic {lesson.NAMES[name]}": folder for name, folder in made[1].items()},
                          results.published(1))
    assert "300 (−9,986)" in page and "300 (−68,102)" in page and "10,286" in page and "68,402" in page
    ours = [line for line in page.splitlines() if "synthetic" in line and line.startswith("|")]
    assert ours and not any("ours" in line for line in page.splitlines())
    lines = (made[1]["photochat"] / "train.jsonl").read_text().splitlines()
    utterances = sum(1 for line in lines for turn in json.loads(line)["turns"] if "photo" not in turn)
    assert f"{utterances:,} (−{130459 - utterances:,})" in ours[0]
    assert "| ours" in lesson.table_1({"PhotoChat": made[1]["photochat"]}, results.published(1))


def test_a_real_corpus_is_found_by_its_report(made, tmp_path):
    assert lesson.real_corpus(str(made[1]["dialogcc"])) == {"DialogCC": made[1]["dialogcc"]}
    for name, missing in (("train.jsonl", "train.jsonl"), ("report.json", "report.json")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / ("report.json" if name == "train.jsonl" else "train.jsonl")).write_text("{}")
        with pytest.raises(ParameterError, match=f"'corpus_folder' = .*there is no {missing} in it; expected 'synthetic'"):
            lesson.real_corpus(str(folder))
    (folder / "report.json").write_text('{"corpus": "mine"}')
    assert lesson.real_corpus(str(folder)) == {"mine": folder}


def test_real_only_counts_dialogues_with_all_their_photos(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    photo = {name: {"photo_id": name, "caption": "a"} for name in "abc"}
    rows = [["a"], ["a", "b"], ["c"], []]
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"dialogue_id": str(i), "turns": [
        {"speaker": 0, "text": "x"}, *({"speaker": 1, "text": "", "photo": photo[name]} for name in names)]})
        for i, names in enumerate(rows)))
    assert lesson.real_only(folder) == {"kept": 1, "left_out": 3}  # one has no photo at all
    with PhotoIndex(folder / "photos") as index:
        for name, status in (("a", "ok"), ("b", "missing"), ("c", "drawn")):
            index.put(PhotoRow(f"http://x/{name}", name, status, file=name))
    assert lesson.real_only(folder) == {"kept": 2, "left_out": 2}
    row = statistics(folder, real_only=True)[1]["train"]
    assert (row["kept"], row["left_out"]) == (2, 2)


def dialogue(*turns):
    return Dialogue("d", tuple(Turn(*turn) for turn in turns))


CHATS = [
    dialogue((0, "Hi"), (0, "Look", (CAT,)), (1, "Nice"), (1, "", (DOG,))),  # 0 shares after own words, 1 too
    dialogue((1, "Hi"), (0, "", (CAT,)), (0, "So?")),  # after words of the partner; nobody answers
    dialogue((1, "Can I see?"), (0, "", (CAT, DOG)), (1, "", (DOG,))),  # after a question; answered by a photo alone
    dialogue((1, "", (CAT,)), (1, "x"), (0, "y")),  # first of all
    dialogue((0, "no photo"), (1, "at all?")),
]


def test_the_exercises_counts_are_those_of_hand_made_chats():
    assert lesson.answered(CHATS) == 2  # the first and the fourth
    assert lesson.shared_by_opener(CHATS) == 2  # the same two
    # The last photo of the third chat follows a turn without words of the partner.
    assert lesson.before_photos(CHATS) == Counter(shares=2, other=2, question=1, nothing=1)
    assert lesson.most_frequent("abracadabra", "bcr") == {"b", "r"} and lesson.most_frequent("abc", "x") == set()
