"""Table 1: counts of turns, runs and photos against independent counts."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_lib.data.dialogue import DataError, Dialogue, SharedPhoto, Turn
from e2e_lib.data.statistics import table_1

SAMPLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "photochat_sample"


def dialogue(script: str, name: str = "d") -> Dialogue:
    """A dialogue from a script: ``0`` and ``1`` speak; ``a`` and ``b`` are the same two sharing photos."""
    turns = [Turn("01".index(c), "hi") if c in "01"
             else Turn("ab".index(c), "look", (SharedPhoto(f"{name}{i}", "a kite"),))
             for i, c in enumerate(script)]
    return Dialogue(name, tuple(turns))


def table(dialogues, utterances, runs, images, distinct_images):
    return {"dialogues": dialogues, "utterances": utterances, "consecutive_utterances": runs,
            "utterances_per_dialogue": runs / dialogues, "images": images, "distinct_images": distinct_images,
            "images_per_dialogue": images / dialogues}


def test_table_1_equals_a_count_by_hand():
    # 0 0 | 1 | (photo of 0, with text) | 1 1 | 0: without the photo turn the 1s on both sides are one run
    assert table_1([dialogue("001a110")]) == table(1, 6, 3, 1, 1)


def test_a_turn_with_several_photos_counts_each_of_them():
    several = Turn(1, "these", tuple(SharedPhoto(name, "a kite") for name in "pqp"))
    assert table_1([Dialogue("d", (Turn(0, "hi"), several, Turn(0, "oh")))]) == table(1, 2, 1, 3, 2)


def test_photo_shared_twice_is_one_distinct_image():
    twice = [Dialogue(str(k), (Turn(0, "", (SharedPhoto("p", "a kite"),)), Turn(1, "nice"))) for k in range(2)]
    assert table_1(twice) == table(2, 2, 2, 2, 1)


@given(st.lists(st.text("01ab", min_size=1, max_size=12), min_size=1, max_size=6))
def test_table_1_agrees_with_a_count_over_strings(scripts):
    row = table_1([dialogue(script, f"d{i}-") for i, script in enumerate(scripts)])
    spoken = [re.sub("[ab]", "", script) for script in scripts]
    runs = len("".join(re.sub(r"(.)\1*", "x", text) for text in spoken))
    images = len(re.sub("[01]", "", "".join(scripts)))
    assert row == table(len(scripts), len("".join(spoken)), runs, images, images)


def test_empty_split_raises():
    with pytest.raises(DataError, match="empty split"):
        table_1([])


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the PhotoChat sample is not beside this repository")
def test_photochat_sample_equals_a_count_by_hand():
    raw = json.loads((SAMPLE / "dev_00_first9.json").read_text())
    dialogues = []
    for row in raw:
        photo = SharedPhoto(row["photo_url"], row["photo_description"])
        turns = [Turn(turn["user_id"], turn["message"], (photo,) if turn["share_photo"] else ())
                 for turn in row["dialogue"]]
        dialogues.append(Dialogue(str(row["dialogue_id"]), tuple(turns)))
    runs = [11, 6, 13, 10, 12, 8, 3, 8, 11]
    assert [table_1([d])["consecutive_utterances"] for d in dialogues] == runs
    row = table_1(dialogues)
    assert (row["utterances"], row["images"], row["distinct_images"]) == (107, 9, 9)
    assert row["utterances_per_dialogue"] == pytest.approx(82 / 9)  # the paper's whole dev split: 9.05
