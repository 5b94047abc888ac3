"""MiniChat's own scores, by hand; and the classifier's reading of its photos."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_lib.data.dialogue import DataError
from e2e_lib.data.examples import Response, examples_of, load_split
from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.evaluation.minichat import CORE_ATTRIBUTES, MiniChatScores, scene_values, wrong_attributes
from e2e_lib.evaluation.scores import METRICS

RED_CAR = {"thing": "car", "colour": "red", "place": "beach", "number": 1, "size": "big", "time": "day"}


@pytest.fixture(scope="module")
def own(corpus):
    return MiniChatScores(corpus)


@pytest.fixture(scope="module")
def every(corpus):
    dialogues, store, _ = load_split(corpus, "train")
    return [example for dialogue in dialogues for example in examples_of(dialogue)], store


def test_wrong_attributes_by_hand():
    drawn = RED_CAR | {"colour": "blue", "time": "night"}
    assert wrong_attributes({"gold": RED_CAR, "drawn": drawn}) == ["colour"]
    assert wrong_attributes({"gold": RED_CAR, "drawn": drawn}, ["time", "thing"]) == ["time"]
    assert wrong_attributes({"gold": RED_CAR, "drawn": None}) == list(CORE_ATTRIBUTES)  # no photo: all are wrong


def test_scene_values_by_hand():
    found = scene_values({"gold": RED_CAR, "drawn": RED_CAR | {"place": "snow", "number": 3}})
    assert found == {"scene_accuracy": pytest.approx(2 / 3), "scene_thing": 1, "scene_colour": 1, "scene_place": 0,
                     "scene_number": 0, "scene_size": 1, "scene_time": 1}
    assert set(scene_values({"gold": RED_CAR, "drawn": None}).values()) == {0}


scenes = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in ATTRIBUTES.items()})


@given(scenes, scenes)
def test_scene_accuracy_is_the_share_of_core_attributes(drawn, gold):
    marks = [drawn[name] == gold[name] for name in ("thing", "colour", "place")]
    assert scene_values({"gold": gold, "drawn": drawn})["scene_accuracy"] == pytest.approx(sum(marks) / 3)


def test_gold_photos_that_their_context_determines_are_annotated(own, every, shipped, config):
    examples, store = every
    responses = [Response("", "x", store.tensor(e.response.photo.photo_id)) if e.response.photo and i % 2 else Response("hi")
                 for i, e in enumerate(examples)]
    rows = own.annotate(examples, responses)
    assert json.loads(json.dumps(rows)) == rows and len(rows) == len(examples)
    for example, response, row in zip(examples, responses, rows, strict=True):
        photo, scene = example.response.photo, row["scene"]
        assert (scene is None) == (photo is None or photo.photo_id in own.open_photos)
        if scene:
            assert scene["photo_id"] == photo.photo_id and scene["gold"]["thing"] == own.scenes[photo.photo_id].thing
            assert (scene["drawn"] is None) == (response.photo is None)
            assert set(scene["gold"]) == set(ATTRIBUTES) and set(scene["drawn"] or ATTRIBUTES) == set(ATTRIBUTES)
    due = [row for row in rows if row["scene"]]
    counts = own.counts([*rows, {"attribute": "size"}])
    assert counts["scene_n"] == counts["n"]["scenes"] == len(due) > 0
    assert counts["scene_missing"] == sum(row["scene"]["drawn"] is None for row in due)
    assert (counts["details_n"], counts["details_size_n"], counts["details_time_n"]) == (1, 1, 0)


def test_questions_are_scored_by_their_true_answer(own, every):
    questions = own.questions(every[0])
    assert questions and all(example in every[0] for example, _ in questions)
    for example, question in questions:
        row = {**question, "text": example.response.text}  # the gold reply is right
        name = f"details_{question['attribute']}"
        assert own.values(row)["details"] == own.values(row)[name] == 1
        assert own.values(row | {"text": "I would not know."})["details"] == 0
        assert math.isnan(own.values(row)["scene_accuracy"])
    assert math.isnan(own.values({"scene": None, "text": "hello"})["details"])


def test_what_is_shown_of_it(own):
    assert list(own.metrics) == ["scene_accuracy", "details"] and not set(own.metrics) & set(METRICS)
    assert set(own.metrics) <= set(own.values({"text": ""}))


def test_a_folder_without_scenes_is_refused(tmp_path):
    with pytest.raises(DataError, match="scenes.jsonl: no such file"):
        MiniChatScores(tmp_path)
