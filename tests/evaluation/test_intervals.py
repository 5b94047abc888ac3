"""Intervals and p-values against theory, against counts by hand, and how often they hold what they should."""

import numpy as np
import pytest
from scipy import stats

from e2e_lib.evaluation import intervals


def means_of(values, dialogue_ids):
    """The scores of all sets of ``left_out`` for a score that is a mean."""
    weights = intervals.left_out(dialogue_ids)
    return weights @ values / weights.sum(1)


def test_whole_dialogues_are_left_out_alone_and_two_together():
    ids = ["b", "a", "b", "c"]
    weights = intervals.left_out(ids)
    one, two = weights[1:4], weights[4:]
    assert weights.shape == (7, 4) and (weights[0] == 1).all()
    assert sorted(map(tuple, one)) == [(0, 1, 0, 1), (1, 0, 1, 1), (1, 1, 1, 0)]
    assert (two == one * np.roll(one, -1, axis=0)).all() and sorted(two.sum(1)) == [1, 1, 2]


def test_many_dialogues_are_left_out_in_groups_of_the_same_size(monkeypatch):
    monkeypatch.setattr(intervals, "MOST", 10)
    one = intervals.left_out([str(i // 2) for i in range(50)])[1:11]
    assert one.shape == (10, 50) and sorted((one == 0).sum(1)) == [4] * 5 + [6] * 5
    assert ((one == 0).sum(0) == 1).all() and (one[:, ::2] == one[:, 1::2]).all()


@pytest.mark.parametrize("n", [5, 12, 300])
def test_the_interval_and_the_p_value_of_a_mean_are_students(n):
    values = np.random.default_rng(n).normal(0.3, 1, n)
    found = intervals.interval(means_of(values, [str(i) for i in range(n)]))
    theirs = stats.ttest_1samp(values, 0)
    low, high = theirs.confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=0.01)
    assert found["p"] == pytest.approx(theirs.pvalue, rel=0.02)


def test_a_mean_has_its_interval_over_dialogues_not_over_values():
    values = np.random.default_rng(0).normal(size=40)
    alone = intervals.mean_interval(values, [str(i) for i in range(40)])
    repeated = intervals.mean_interval(values.repeat(3), [str(i) for i in range(40) for _ in range(3)])
    assert repeated == pytest.approx(alone) and alone["mean"] == pytest.approx(values.mean())
    assert alone["low"] < alone["mean"] < alone["high"]
    assert intervals.mean_interval(np.array([0.2, 0.4]), ["a", "a"]) == pytest.approx({"mean": 0.3, "low": 0.3, "high": 0.3})


def test_the_variance_of_a_distance_is_not_counted_twice():
    """Of the squared length of a mean of 0 (20 numbers) the plain jackknife's variance is about twice too large."""
    values = np.random.default_rng(0).normal(size=(200, 60, 20))
    sets = [np.square(intervals.left_out([str(i) for i in range(60)]) @ of_set) for of_set in values]
    distances = [(rows / (60 - np.repeat([0, 1, 2], [1, 60, 60])[:, None])**2).sum(1) for rows in sets]
    found = [intervals.interval(scores) for scores in distances]
    ours = np.mean([((row["high"] - row["low"]) / 2 / stats.t.ppf(0.975, 59))**2 for row in found])
    plain = np.mean([59 / 60 * np.square(scores[1:61] - scores[1:61].mean()).sum() for scores in distances])
    true = 2 * 20 / 60**2  # of chi-squared
    assert plain > 1.8 * true and 0.8 * true < ours < 1.5 * true


def test_dialogues_that_change_nothing_give_no_confidence():
    """Four dialogues have a value, 96 have none: the interval is that of four, not of a hundred."""
    values = np.concatenate([[0.1, 0.5, 0.4, 0.9], np.full(96, np.nan)])
    due = ~np.isnan(values)
    weights = intervals.left_out([str(i) for i in range(100)])[:, due]
    found = intervals.interval(weights @ values[due] / weights.sum(1))
    theirs = stats.ttest_1samp(values[due], 0).confidence_interval()
    assert found["high"] - found["low"] >= 0.95 * (theirs.high - theirs.low)


def test_an_interval_excludes_0_exactly_where_p_is_below_5_percent():
    rng, sides = np.random.default_rng(1), set()
    for mean in np.linspace(0, 1, 60):
        found = intervals.interval(means_of(rng.normal(mean, 1, 20), [str(i) for i in range(20)]))
        outside = not found["low"] <= 0 <= found["high"]
        assert outside == (found["p"] < 0.05)
        sides.add(outside)
    assert sides == {True, False}


def test_a_difference_is_that_of_the_means_over_seeds():
    one, other = np.random.default_rng(2).normal(size=(2, 3, 1 + 2 * 8))
    found = intervals.paired_difference(one, other)
    assert found["difference"] == pytest.approx(one[:, 0].mean() - other[:, 0].mean())
    assert found["by_seed"] == pytest.approx(one[:, 0] - other[:, 0])
    assert (found["low"] + found["high"]) / 2 == pytest.approx(found["difference"])


def test_equal_scores_have_no_difference_and_a_sure_one_has_p_0():
    one, other = np.full((2, 21), 2.0), np.ones((2, 21))
    assert intervals.paired_difference(one, one) == {"difference": 0, "by_seed": [0, 0], "low": 0, "high": 0, "p": 1}
    assert intervals.paired_difference(one, other) == {"difference": 1, "by_seed": [1, 1], "low": 1, "high": 1, "p": 0}


def test_what_a_single_dialogue_decides_has_no_interval():
    scores = np.arange(1.0, 8)
    assert intervals.interval(scores)
    for place in (0, 2):
        assert intervals.interval(np.where(np.arange(7) == place, np.nan, scores)) is None
    assert intervals.interval(np.array([1.0, np.nan, np.nan])) is None  # one dialogue
    two = np.array([0.5, 0.2, 0.8, np.nan, np.nan])  # without both of two dialogues nothing is left
    assert intervals.interval(two)["low"] < 0.5 < intervals.interval(two)["high"]


def test_holm_is_as_worked_by_hand():
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert intervals.holm([0.9, 0.5]) == [1.0, 1.0] and intervals.holm([]) == []


# How often intervals hold the expected difference: simulated systems of which each dialogue has one to three answers.
DIALOGUES, SETS = 60, 600
QUALITY = {"one": 0.8, "like one": 0.8, "unlike": 0.55}  # the share of answers with what the gold one has


def fid(drawn, gold, weights):
    """FID of photos with two features (N, 2) under weights (K, N): the trace of a square root of 2 x 2 in closed form."""
    sides = []
    for x in (drawn, gold):
        n = weights.sum(1)
        mean = weights @ x / n[:, None]
        products = (weights @ (x[:, :, None] * x[:, None]).reshape(len(x), 4)).reshape(-1, 2, 2)
        sides.append((mean, (products - n[:, None, None] * mean[:, :, None] * mean[:, None]) / (n - 1)[:, None, None]))
    (m1, c1), (m2, c2) = sides
    product = c1 @ c2
    root = np.sqrt(np.trace(product, axis1=1, axis2=2) + 2 * np.sqrt(np.maximum(np.linalg.det(product), 0)))
    return ((m1 - m2)**2).sum(1) + np.trace(c1 + c2, axis1=1, axis2=2) - 2 * root


def inception_score(p, weights):
    """Of classes' probabilities (N, C), of which the first and the second half are two splits."""
    scores = []
    for split in np.array_split(np.arange(len(p)), 2):
        w = weights[:, split] / weights[:, split].sum(1, keepdims=True)
        mean = w @ p[split]
        scores.append(np.exp(w @ (p[split] * np.log(p[split])).sum(1) - (mean * np.log(mean)).sum(1)))
    return np.mean(scores, 0)


def bleu(matches, ours, theirs, weights):
    lengths = weights @ ours
    return 100 * np.exp(np.minimum(0, 1 - weights @ theirs / lengths)) * (weights @ matches) / lengths


def simulated_scores(rng):
    """Each system's scores of a test set, under the weights of ``left_out``."""
    dialogue = np.repeat(np.arange(DIALOGUES), rng.integers(1, 4, DIALOGUES))
    weights, n = intervals.left_out([f"{i:03d}" for i in dialogue]), len(dialogue)
    scene = rng.integers(0, 3, n)  # three kinds of photos
    hard, offset = rng.normal(0, 0.1, DIALOGUES)[dialogue], rng.normal(0, 0.3, (DIALOGUES, 2))[dialogue]
    centres, theirs = np.array([[0, 0], [2, 0], [0, 2]]), rng.integers(3, 9, n)
    gold, scores = centres[scene] + offset + rng.normal(0, 0.4, (n, 2)), {}
    for name, quality in QUALITY.items():
        right = rng.random(n) < quality + hard
        drawn = centres[np.where(right, scene, 0)] + offset + rng.normal(0, 0.4, (n, 2))
        p = np.exp(-((drawn[:, None] - centres)**2).sum(-1))
        ours = np.maximum(1, theirs + rng.integers(-2, 2, n))
        scores[name] = {"mean": weights @ right / weights.sum(1), "FID": fid(drawn, gold, weights),
                        "IS": inception_score(p / p.sum(1, keepdims=True), weights),
                        "BLEU": bleu(rng.binomial(np.minimum(ours, theirs), quality), ours, theirs, weights)}
    return scores


def test_intervals_of_every_kind_of_score_hold_the_expected_difference_in_95_of_100_test_sets():
    rng = np.random.default_rng(0)
    sets = [simulated_scores(rng) for _ in range(SETS)]
    coverage = {}
    for metric in ("mean", "BLEU", "FID", "IS"):
        for than in ("like one", "unlike"):
            rows = [intervals.paired_difference(scores["one"][metric][None], scores[than][metric][None]) for scores in sets]
            expected = 0 if than == "like one" else np.mean([row["difference"] for row in rows])
            assert than == "like one" or abs(expected) > 3 * np.std([row["difference"] for row in rows]) / SETS**0.5
            coverage[metric, than] = np.mean([row["low"] <= expected <= row["high"] for row in rows])
    assert all(0.91 <= share <= 0.99 for share in coverage.values()), coverage
