"""The numbers of a corpus: each split's, and all of them together, against counts by hand."""

import pytest

from e2e_lib.data.dialogue import DataError, Dialogue, SharedPhoto, Turn, write_dialogues
from e2e_lib.data.photo_index import PhotoIndex, PhotoRow
from e2e_lib.sources.stats import TOTAL, statistics


def dialogue(name, *photo_ids):
    shared = [Turn(0, "", (SharedPhoto(photo_id, "a kite"),)) for photo_id in photo_ids]
    return Dialogue(name, (Turn(0, "hi"), *shared, Turn(0, "look"), Turn(1, "oh")))


@pytest.fixture
def folder(tmp_path):
    """Photo "both" is of two splits, "drawn" was drawn though its address failed, "gone" failed."""
    write_dialogues(tmp_path / "train.jsonl", [dialogue("a", "real", "both"), dialogue("b", "drawn"), dialogue("c", "gone"), dialogue("d")])
    write_dialogues(tmp_path / "test.jsonl", [dialogue("e", "both"), dialogue("f", "real", "real")])
    with open(tmp_path / "test.jsonl", "a") as file:
        file.write("{}\n")
    with PhotoIndex(tmp_path / "photos") as index:
        for row in (PhotoRow("http://r", "real", "ok", file="r"), PhotoRow("http://b", "both", "ok", file="b"), PhotoRow("http://d", "drawn", "missing"),
                    PhotoRow("photo:drawn", "drawn", "drawn", file="d"), PhotoRow("http://g", "gone", "missing")):
            index.put(row)
    return tmp_path


def test_the_total_has_the_sums_and_each_distinct_photo_once(folder):
    name, made = statistics(folder)
    assert name == "" and list(made) == ["train", "test", TOTAL]
    counted = [[made[split][key] for split in made] for key in ("dialogues", "utterances", "consecutive_utterances", "images", "distinct_images")]
    assert counted == [[4, 2, 6], [12, 6, 18], [8, 4, 12], [4, 3, 7], [4, 2, 4]]
    assert made[TOTAL]["utterances_per_dialogue"] == 2 and made[TOTAL]["images_per_dialogue"] == 7 / 6
    assert made["train"]["photos"] == {"fetched": 2, "drawn": 1, "not fetched": 1} == made[TOTAL]["photos"]
    assert made["test"]["set_aside"] == {"dialogue_id": 1} == made[TOTAL]["set_aside"] and made["train"]["set_aside"] == {}


def test_only_real_photos_leave_out_dialogues_whose_photos_were_drawn_or_are_not_there(folder):
    made = statistics(folder, real_only=True)[1]
    assert [(made[split]["kept"], made[split]["left_out"], made[split]["photos"]["drawn"]) for split in made] == [(2, 2, 0), (2, 0, 0), (4, 2, 0)]
    write_dialogues(folder / "test.jsonl", [dialogue("e", "gone")])
    with pytest.raises(DataError, match="test.jsonl: no dialogue has all its photos; `e2e data photos"):
        statistics(folder, real_only=True)


def test_without_an_index_nothing_is_said_of_photos(folder):
    (folder / "photos" / "index.sqlite").unlink()
    assert all(row["photos"] == {} for row in statistics(folder)[1].values())
