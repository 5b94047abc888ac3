"""MiniChat's own scores, by hand; and the classifier's reading of its photos."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_lib.data.dialogue import DataError, Turn
from e2e_lib.data.examples import Response, examples_of, load_split
from e2e_lib.data.minichat.faults import named_values
from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.evaluation.minichat import CORE_ATTRIBUTES, MiniChatScores, scene_values, wrong_attributes
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
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
    named = {"thing": "car", "colour": "blue"}
    found = scene_values({"gold": RED_CAR, "drawn": RED_CAR | {"place": "snow", "number": 3}, "named": named})
    assert found == {"scene_accuracy": pytest.approx(2 / 3), "scene_thing": 1, "scene_colour": 1, "scene_place": 0,
                     "scene_number": 0, "scene_size": 1, "scene_time": 1, "caption_accuracy": pytest.approx(1 / 3),
                     "caption_thing": 1, "caption_colour": 0, "caption_place": 0}
    assert set(scene_values({"gold": RED_CAR, "drawn": None, "named": None}).values()) == {0}


scenes = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in ATTRIBUTES.items()})


@given(scenes, scenes)
def test_scene_accuracy_is_the_share_of_core_attributes(drawn, gold):
    marks = [drawn[name] == gold[name] for name in ("thing", "colour", "place")]
    assert scene_values({"gold": gold, "drawn": drawn, "named": None})["scene_accuracy"] == pytest.approx(sum(marks) / 3)


def test_gold_photos_that_their_context_determines_are_annotated(own, every, shipped, config):
    examples, store = every
    responses = [Response("", ["a red kite"], [store.tensor(e.response.photos[0].photo_id)]) if e.response.photos and i % 2 else Response("hi")
                 for i, e in enumerate(examples)]
    rows = own.annotate(examples, responses)
    assert json.loads(json.dumps(rows)) == rows and len(rows) == len(examples)
    for example, response, row in zip(examples, responses, rows, strict=True):
        due = [photo for photo in example.response.photos if photo.photo_id not in own.open_photos]
        assert len(row["scenes"]) == len(due)
        for scene, photo in zip(row["scenes"], due, strict=True):
            assert scene["photo_id"] == photo.photo_id and scene["gold"]["thing"] == own.scenes[photo.photo_id].thing
            assert (scene["drawn"] is None) == (not response.photos)
            assert scene["named"] == (named_values(response.captions[0]) if response.captions else None)
            assert set(scene["gold"]) == set(ATTRIBUTES) and set(scene["drawn"] or ATTRIBUTES) == set(ATTRIBUTES)
    due = [scene for row in rows for scene in row["scenes"]]
    counts = own.counts([*rows, {"attribute": "size"}])
    assert counts["scene_n"] == counts["n"]["scenes"] == len(due) > 0
    assert counts["scene_missing"] == sum(scene["drawn"] is None for scene in due)
    assert (counts["details_n"], counts["details_size_n"], counts["details_time_n"]) == (1, 1, 0)


def test_of_several_photos_the_first_is_judged_by_the_first_and_a_missing_one_is_all_wrong(own, every):
    examples, store = every
    photos = [photo for e in examples for photo in e.response.photos]
    known = [photo for photo in photos if photo.photo_id not in own.open_photos][:2]
    unknown = next(photo for photo in photos if photo.photo_id in own.open_photos)
    tensors = [store.tensor(photo.photo_id) for photo in (*known, unknown)]
    due = dataclasses.replace(examples[0], response=Turn(0, "", (known[0], unknown, known[1])))
    none = dataclasses.replace(examples[0], response=Turn(0, "hi"))
    drawn = {"right": [tensors[0], tensors[2], tensors[1]], "one less": [tensors[0], tensors[2]], "one more": [*tensors, tensors[0]], "none": []}
    rows = own.annotate([due] * 4 + [none], [Response("", ["x"] * len(shown), shown) for shown in (*drawn.values(), tensors)])
    assert [[scene["photo_id"] for scene in row["scenes"]] for row in rows] == [[photo.photo_id for photo in known]] * 4 + [[]]
    seen = [load_scene_classifier().predict([tensor])[0] for tensor in tensors]
    expected = [[seen[0], seen[1]], [seen[0], None], [seen[0], seen[2]], [None, None], []]
    assert [[scene["drawn"] for scene in row["scenes"]] for row in rows] == expected
    values = [own.values(row | {"text": ""}) for row in rows]
    for row, found in zip(rows[:4], values, strict=False):
        assert found["scene_accuracy"] == pytest.approx(sum(scene_values(scene)["scene_accuracy"] for scene in row["scenes"]) / 2)
    assert values[3]["scene_thing"] == 0 and math.isnan(values[4]["scene_thing"])
    counts = own.counts(rows)
    assert counts["scene_n"] == counts["n"]["scenes"] == 8 and counts["scene_missing"] == 3


def test_questions_are_scored_by_their_true_answer(own, every):
    questions = own.questions(every[0])
    assert questions and all(example in every[0] for example, _ in questions)
    for example, question in questions:
        row = {**question, "text": example.response.text}  # the gold reply is right
        name = f"details_{question['attribute']}"
        assert own.values(row)["details"] == own.values(row)[name] == 1
        assert own.values(row | {"text": "I would not know."})["details"] == 0
        assert math.isnan(own.values(row)["scene_accuracy"])
    assert math.isnan(own.values({"scenes": [], "text": "hello"})["details"])


def test_what_is_shown_of_it(own):
    assert list(own.metrics) == ["scene_accuracy", "caption_accuracy", "details"] and not set(own.metrics) & set(METRICS)
    assert set(own.metrics) <= set(own.values({"text": ""}))


def test_a_folder_without_scenes_is_refused(tmp_path):
    with pytest.raises(DataError, match="scenes.jsonl: no such file"):
        MiniChatScores(tmp_path)
