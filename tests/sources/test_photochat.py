import json
from pathlib import Path

import pytest

from e2e_lib.data.statistics import PHOTO_TURNS, Table1
from e2e_lib.sources import photochat
from e2e_lib.sources.photochat import describe
from e2e_lib.sources.reading import RowProblem, SourceReport

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "photochat_sample"  # beside the checkout


def message(text="hi", share=False, user=0):
    return {"message": text, "share_photo": share, "user_id": user}


def row(number=161, **changes):
    """A dialogue in the newer form."""
    return {"dialogue": [message("look"), message("", True), message("nice", user=1)], "dialogue_id": number,
            "photo_description": "Objects in the photo: Boy, Man", "photo_url": "https://c1.staticflickr.com/2/1001/114_18c9_o.jpg",
            "photo_id": "validation/70fe7760569e5baa"} | changes


def read(tmp_path, *rows, captions="labels", split="test"):
    """Dialogues, their photos, and the report of a file of these rows."""
    path, report = tmp_path / "test_00.json", SourceReport()
    path.write_text(json.dumps(list(rows)))
    pairs = list(photochat.read(path, split, report, captions))
    return [dialogue for dialogue, _ in pairs], [photo for _, photos in pairs for photo in photos], report


def problems(tmp_path, *rows):
    dialogues, _, report = read(tmp_path, row(0), *rows)
    assert len(dialogues) == report.kept == 1
    return [(problem.row, problem.field) for problem in report.problems]


def table(dialogues, photo_turns="left_out"):
    counts = Table1(photo_turns)
    for dialogue in dialogues:
        counts.add(dialogue)
    return counts.row()


def test_both_versions_of_a_dialogue_give_the_same_one(tmp_path):
    """The older version has no photo_id, and one dialogue without a turn that shares its photo."""
    newer = row(dialogue=[message("look"), message("nice", user=1), message("", True)])
    older = row(dialogue=newer["dialogue"][:2])
    del older["photo_id"]
    (new,), (new_photo,), report = read(tmp_path, newer)
    assert not report.repaired
    (old,), (old_photo,), report = read(tmp_path, older)
    assert report.repaired == {"photo never shared, shared in user 0's last turn": 1}
    assert table([old]) == table([new]) and [turn.text for turn in old.turns] == [turn.text for turn in new.turns]
    assert (new_photo.photo_id, old_photo.photo_id) == ("validation/70fe7760569e5baa", "flickr/114_18c9")
    assert new.dialogue_id == "test/161"


@pytest.mark.parametrize("place, speaker", [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1)])
def test_a_photo_may_be_shared_anywhere_and_by_either(place, speaker, tmp_path):
    messages = [message("a", user=1), message("b"), message("c", user=1)]
    messages.insert(place, message("see", True, speaker))
    (dialogue,), _, report = read(tmp_path, row(dialogue=messages))
    turn = dialogue.turns[place]
    assert (turn.speaker, turn.text, len(turn.photos), len(dialogue.turns)) == (speaker, "see", 1, 4) and not report.repaired


def test_runs_of_one_speaker_stay_turns_of_their_own_and_blank_ones_are_counted(tmp_path):
    texts = ["a", "a", "  \u200b\u200b ", "a"]
    (dialogue,), _, report = read(tmp_path, row(dialogue=[*map(message, texts), message("", True)]))
    assert [turn.text for turn in dialogue.turns] == ["a", "a", "a", ""]
    assert report.repaired == {"blank message left out": 1}


@pytest.mark.parametrize("changes, field", [
    ({"dialogue": [message("", True), message("", True)]}, "share_photo"),
    ({"dialogue": [message("a", 1)]}, "dialogue[0].share_photo"), ({"dialogue": [message("a", "true")]}, "dialogue[0].share_photo"),
    ({"dialogue": [message("a"), message(user="0")]}, "dialogue[1].user_id"), ({"dialogue": [message(user=True)]}, "dialogue[0].user_id"),
    ({"dialogue": [message(user=2)]}, "dialogue[0].user_id"), ({"dialogue": [message(user=None)]}, "dialogue[0].user_id"),
    ({"dialogue": [message(None)]}, "dialogue[0].message"), ({"dialogue": None}, "dialogue"), ({"dialogue": ["hi"]}, "dialogue[0]"),
    ({"dialogue_id": None}, "dialogue_id"), ({"dialogue_id": 0}, "dialogue_id"),  # the second of this id
    ({"photo_id": 7}, "photo_id"), ({"photo_description": ""}, "photo_description"), ({"photo_description": None}, "photo_description"),
    ({"photo_description": "Objects in the photo: , "}, "photo_description")])
def test_a_row_that_cannot_be_used_is_named_by_its_field(changes, field, tmp_path):
    assert problems(tmp_path, row(**changes)) == [(2, field)]


@pytest.mark.parametrize("missing", ["dialogue", "dialogue_id", "photo_description"])
def test_a_row_without_a_field_is_named(missing, tmp_path):
    broken = row()
    del broken[missing]
    assert len(problems(tmp_path, broken)) == 1


@pytest.mark.parametrize("photo_id, url, expected", [
    (None, None, "test/161"), (None, "https://farm8.staticflickr.com/27/4/12_ab_o.jpg", "flickr/12_ab"),
    (None, "https://c3.staticflickr.com/9/7/12_ab_o.jpg", "flickr/12_ab"), ("train/4beacc71024f8b08", None, "train/4beacc71024f8b08")])
def test_a_photo_has_an_id_of_its_own_whatever_host_it_stands_on(photo_id, url, expected, tmp_path):
    _, (photo,), _ = read(tmp_path, row(photo_id=photo_id, photo_url=url))
    assert (photo.photo_id, photo.url) == (expected, url or "")


@pytest.mark.parametrize("text, labels, relation, name", [
    ("Objects in the photo: Plate, Salad", ("Plate", "Salad"), "", ""),
    ("The photo has your brother Darwin. Objects in the photo: Dress, Man", ("Dress", "Man"), "brother", "Darwin"),
    ("The photo has your friend's son Azaria. Objects in the photo: Boy", ("Boy",), "friend's son", "Azaria"),
    ("The photo has your mom Mary Ann. Objects in the photo: Human body.", ("Human body",), "mom", "Mary Ann"),
    ("Objects in the photo: 鳥, montañas, gato de pelo curto americano", ("鳥", "montañas", "gato de pelo curto americano"), "", ""),
    ("Objects in the photo: a, , b,", ("a", "b"), "", ""),
    ("Objects in the photo: " + ", ".join("abcdefghijklmn"), tuple("abcdefghijklmn"), "", ""),
    ("The photo has your niece Legacy.", (), "", ""), ("a dog", (), "", "")])
def test_a_description_is_taken_apart(text, labels, relation, name):
    photo = describe(text)
    assert (photo.labels, photo.relation, photo.name) == (labels, relation, name)
    assert photo.caption == (", ".join(labels) or text)  # one of another form is the caption itself


@pytest.mark.parametrize("captions, expected", [
    ("labels", "Boy, Man"), ("authors", "Objects in the photo: Boy, Man"),
    ("full", "The photo has your son Al. Objects in the photo: Boy, Man")])
def test_the_rule_for_captions_is_a_choice(captions, expected):
    assert describe("The photo has your son Al. Objects in the photo: Boy, Man", captions).caption == expected


def test_a_description_without_objects_is_a_fault():
    with pytest.raises(RowProblem, match="no objects"):
        describe("Objects in the photo: ")


@pytest.fixture
def sample():
    if not SAMPLE.is_dir():
        pytest.skip("the real dialogues are not in this checkout")
    found = {}
    for path in SAMPLE.iterdir():
        report = SourceReport()
        found[path.name[:4]] = [dialogue for dialogue, _ in photochat.read(path, path.name.partition("_")[0], report)]
        assert not report.problems and not report.repaired
    return found


def test_statistics_of_real_dialogues_equal_a_count_by_hand(sample):
    """490: 10 messages of which one shares; without it its speakers are 0 1 0 1 0 1 00 1, 8 runs with the photo left out."""
    one = sample["test"][0]
    assert [turn.speaker for turn in one.turns] == [0, 1, 0, 1, 0, 1, 0, 0, 0, 1] and one.turns[8].photos
    assert table([one]) == {"dialogues": 1, "utterances": 9, "consecutive_utterances": 8, "utterances_per_dialogue": 8.0,
                            "images": 1, "distinct_images": 1, "images_per_dialogue": 1.0}
    assert [table([one], rule)["consecutive_utterances"] for rule in PHOTO_TURNS] == [8, 8, 8]
    dev = table(sample["dev_"])
    # 18 + 9 + 16 + 13 + 14 + 10 + 6 + 15 + 15 messages, of which one in each shares a photo.
    assert (dev["dialogues"], dev["utterances"], dev["images"], dev["distinct_images"]) == (9, 116 - 9, 9, 9)


def test_runs_of_real_dialogues_equal_a_count_over_their_json(sample):
    rows = json.loads(next(SAMPLE.glob("dev*")).read_text())
    speakers = [[m["user_id"] for m in r["dialogue"] if not m["share_photo"]] for r in rows]
    runs = sum(1 + sum(a != b for a, b in zip(s, s[1:], strict=False)) for s in speakers)
    assert table(sample["dev_"])["consecutive_utterances"] == runs == 82
