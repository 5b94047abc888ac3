"""Intervals and p-values against what theory says and against counts by hand."""

import numpy as np
import pytest

from e2e_lib.evaluation import bootstrap


def test_whole_dialogues_are_drawn():
    ids = ["b", "a", "b", "c"]
    weights = bootstrap.resamplings(ids, 200, np.random.default_rng(0))
    assert weights.shape == (200, 4) and (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all() and (weights == 0).any() and (weights > 1).any()
    assert weights.mean(0) == pytest.approx(np.ones(4), abs=0.2)


def test_the_interval_of_a_mean_is_the_normal_one():
    rng = np.random.default_rng(3)
    values = rng.normal(0.5, 0.2, 2000)
    weights = bootstrap.resamplings([str(i) for i in range(2000)], 1000, rng)
    assert (weights @ values / 2000).std() == pytest.approx(0.2 / 2000**0.5, rel=0.15)
    row = bootstrap.mean_interval(values, rng.integers(2000, size=(1000, 2000)))
    assert row["mean"] == pytest.approx(values.mean())
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * 0.2 / 2000**0.5, rel=0.15)


def test_a_difference_by_hand():
    one, other = np.array([[3.0, 1, 2, 3, 9], [1.0, 1, 2, 3, 9]]), np.array([[1.0, 2, 2, 2, 2], [1.0, 2, 2, 2, 2]])
    row = bootstrap.paired_difference(one, other)
    assert row["difference"] == 1 and row["by_seed"] == [2, 0]
    assert (row["low"], row["high"]) == tuple(np.quantile([-1, 0, 1, 7], (0.025, 0.975)))
    assert row["p"] == 2 * (2 + 1) / (4 + 1) or row["p"] == 1.0  # two of four draws are at most 0: capped at 1


def test_a_sure_difference_has_the_smallest_p_and_none_has_1():
    one, other = np.full((1, 501), 2.0), np.ones((1, 501))
    assert bootstrap.paired_difference(one, other)["p"] == pytest.approx(2 / 501)
    assert bootstrap.paired_difference(one, one) == {"difference": 0, "by_seed": [0], "low": 0, "high": 0, "p": 1}


def test_draws_with_nothing_to_score_are_left_out():
    scores = np.array([[1.0, np.nan, 3.0]])
    assert bootstrap.paired_difference(scores, np.zeros((1, 3)))["low"] == 3
    assert bootstrap.paired_difference(np.array([[np.nan, 1.0]]), np.zeros((1, 2))) is None


def test_holm_is_as_worked_by_hand():
    assert bootstrap.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert bootstrap.holm([0.9, 0.5]) == [1.0, 1.0] and bootstrap.holm([]) == []
