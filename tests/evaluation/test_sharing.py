import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.evaluation.sharing import intent_scores, scene_accuracy

RED_CAR = {"thing": "car", "colour": "red", "place": "beach", "number": 1, "size": "big", "time": "day"}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_intent_equals_naive_counts(pairs):
    scores = intent_scores(*zip(*pairs, strict=True))
    right, needless, missed = (pairs.count(case) for case in [(True, True), (True, False), (False, True)])
    precision = right / (right + needless) if right + needless else 0
    recall = right / (right + missed) if right + missed else 0
    assert scores["intent_precision"] == pytest.approx(precision)
    assert scores["intent_recall"] == pytest.approx(recall)
    # the harmonic mean, not the code's formula in counts
    assert scores["intent_f1"] == pytest.approx(2 * precision * recall / (precision + recall) if right else 0)


@pytest.mark.parametrize("predicted, gold, expected", [
    ([True, True, False, True], [True, False, True, True], (2 / 3, 2 / 3, 2 / 3)),
    ([False, False], [True, False], (0, 0, 0)),
    ([True, False], [False, False], (0, 0, 0)),
    ([False], [False], (0, 0, 0)),
    ([True], [True], (1, 1, 1)),
])
def test_intent_by_hand(predicted, gold, expected):
    assert tuple(intent_scores(predicted, gold).values()) == pytest.approx(expected)


@pytest.mark.parametrize("predicted, gold", [([True], [True, False]), ([], [])])
def test_intent_names_both_lengths(predicted, gold):
    with pytest.raises(ValueError, match=f"{len(predicted)} predictions and {len(gold)} gold"):
        intent_scores(predicted, gold)


def test_scene_accuracy_by_hand():
    drawn = [RED_CAR, RED_CAR | {"colour": "blue", "time": "night"}, None, RED_CAR | {"thing": "boat", "place": "snow", "number": 3}]
    assert scene_accuracy(drawn, [RED_CAR] * 4, ATTRIBUTES) == pytest.approx({
        "scene_thing": 2 / 4, "scene_colour": 2 / 4, "scene_place": 2 / 4, "scene_number": 2 / 4, "scene_size": 3 / 4, "scene_time": 2 / 4,
        "scene_accuracy": 6 / 12, "scene_n": 4, "scene_missing": 1,
    })


scenes = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in ATTRIBUTES.items()})


@given(st.lists(st.tuples(st.none() | scenes, scenes), min_size=1))
def test_scene_accuracy_equals_a_count_over_photos_and_core_attributes(pairs):
    drawn, gold = zip(*pairs, strict=True)
    scores = scene_accuracy(drawn, gold)
    marks = [d is not None and d[name] == g[name] for d, g in pairs for name in ("thing", "colour", "place")]
    assert scores["scene_accuracy"] == pytest.approx(sum(marks) / len(marks))
    assert scores["scene_missing"] == drawn.count(None)


def test_a_photo_that_was_not_drawn_is_wrong_in_everything():
    one = scene_accuracy([RED_CAR, None], [RED_CAR, RED_CAR])
    assert {value for name, value in one.items() if name not in ("scene_n", "scene_missing")} == {0.5}


def test_only_the_attributes_asked_for_are_scored():
    scores = scene_accuracy([RED_CAR], [RED_CAR], ("thing", "colour", "place"))
    assert set(scores) == {"scene_accuracy", "scene_thing", "scene_colour", "scene_place", "scene_n", "scene_missing"}


def test_scene_accuracy_names_what_is_wrong():
    with pytest.raises(ValueError, match="2 drawn and 1 gold"):
        scene_accuracy([None, None], [RED_CAR])
    with pytest.raises(ValueError, match="0 drawn and 0 gold"):
        scene_accuracy([], [])
    with pytest.raises(ValueError, match=r"drawn\[1\].*'thing': 'car'"):
        scene_accuracy([RED_CAR, {"thing": "car"}], [RED_CAR, RED_CAR])
    with pytest.raises(ValueError, match=r"gold\[0\].*None"):
        scene_accuracy([RED_CAR], [None])
    with pytest.raises(ValueError, match="place missing from thing, colour"):
        scene_accuracy([RED_CAR], [RED_CAR], ["thing", "colour"])
