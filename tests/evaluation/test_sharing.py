import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_lib.evaluation.sharing import intent_scores, sharing_counts


def scores_of(pairs):
    return intent_scores(np.sum([sharing_counts(*pair) for pair in pairs], axis=0))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_intent_equals_naive_counts(pairs):
    scores = scores_of(pairs)
    right, needless, missed = (pairs.count(case) for case in [(True, True), (True, False), (False, True)])
    precision = right / (right + needless) if right + needless else 0
    recall = right / (right + missed) if right + missed else 0
    assert scores["intent_precision"] == pytest.approx(precision)
    assert scores["intent_recall"] == pytest.approx(recall)
    # the harmonic mean, not the code's formula in counts
    assert scores["intent_f1"] == pytest.approx(2 * precision * recall / (precision + recall) if right else 0)


@pytest.mark.parametrize("shares, due, expected", [
    ([True, True, False, True], [True, False, True, True], (2 / 3, 2 / 3, 2 / 3)),
    ([False, False], [True, False], (0, 0, 0)),
    ([True, False], [False, False], (0, 0, 0)),
    ([False], [False], (0, 0, 0)),
    ([True], [True], (1, 1, 1)),
])
def test_intent_by_hand(shares, due, expected):
    assert tuple(scores_of(zip(shares, due, strict=True)).values()) == pytest.approx(expected)
