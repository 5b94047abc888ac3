"""Intervals and p-values over test dialogues, by leaving dialogues out (for section 3.2).

Whole dialogues are left out, since responses of one dialogue are not independent, and the same ones for all
that is compared, so that what is hard for all cancels out. An interval is to hold, 19 times in 20, the value
that is expected of other test sets with as many dialogues, answered by the same trained models: it says
nothing of other training seeds. Percentiles of a bootstrap do not do that for FID and IS, which change when
photos repeat. Axes: E examples, D dialogues (or groups of them, where there are more than ``MOST``), S seeds.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MOST = 300  # groups of dialogues that are left out in turn, so that work is bounded
Z = NormalDist().inv_cdf(0.975)  # of 95 % intervals


def left_out(dialogue_ids: Sequence[str]) -> Array:
    """What ``interval`` needs the scores of: how often each example counts (1 + 2 D, E) in the test set as it
    is, then without each dialogue, then without each dialogue and the next one, in a random order of them."""
    names, numbers = np.unique(np.asarray(dialogue_ids), return_inverse=True)
    count = min(len(names), MOST)
    group = np.random.default_rng(0).permutation(len(names)) % count  # of each dialogue
    one = (np.arange(count)[:, None] != group[numbers]).astype(np.float64)  # (D, E)
    return np.vstack([np.ones((1, len(numbers))), one, one * np.roll(one, -1, axis=0)])


def interval(scores: Array) -> dict[str, float] | None:
    """The bounds "low" and "high" of a score's 95 % interval, and the two-sided "p" of its being 0, which is
    below 0.05 if and only if 0 is outside; ``scores`` (1 + 2 D,) are those of the sets of ``left_out``.

    Student's interval with the jackknife's variance, less what that counts twice where scores are not linear
    (Efron and Stein, The Annals of Statistics 1981). None if the test set, or the test set without
    one dialogue, has no score (nan): one dialogue alone has no spread.
    """
    count = len(scores) // 2
    whole, one, two = scores[0], scores[1:1 + count], scores[1 + count:]
    if count < 2 or not np.isfinite(scores[:1 + count]).all():
        return None
    first = (count - 1) / count * np.square(one - one.mean()).sum()
    curved = count * whole - (count - 1) * (one + np.roll(one, -1)) + (count - 2) * two
    second = curved[np.isfinite(two)].var() / 2 if np.isfinite(two).any() else 0.0
    error = math.sqrt(max(first - second, second))
    freedom = max(1, int((~np.isclose(one, whole, 1e-9, 1e-12)).sum()) - 1)  # of those that change anything
    # Student's t as a normal deviate and back (Wallace, The Annals of Mathematical Statistics 1959).
    ratio = (8 * freedom + 3) / (8 * freedom + 1)
    reach = error * math.sqrt(freedom * math.expm1((Z * ratio) ** 2 / freedom))
    t = abs(whole) / error if error else math.inf if whole else 0.0
    z = math.sqrt(freedom * math.log1p(t * t / freedom)) / ratio
    return {"low": float(whole - reach), "high": float(whole + reach), "p": math.erfc(z / math.sqrt(2))}


def paired_difference(one: Array, other: Array) -> dict[str, Any] | None:
    """``one`` minus ``other``: scores (S, 1 + 2 D) of S seeds, each of the sets of ``left_out``.

    "difference": of the means over seeds, with its ``interval``; "by_seed": of each seed. None if it has no
    interval."""
    differences = one - other
    found = interval(differences.mean(0))
    return found and {"difference": float(differences.mean(0)[0]), "by_seed": differences[:, 0].tolist(),
                      **found}


def mean_interval(values: Array, dialogue_ids: Sequence[str]) -> dict[str, float]:
    """The "mean" of values (N,), with the bounds of its ``interval`` over the N values' dialogues: the mean
    itself where there is only one."""
    weights = left_out(dialogue_ids)
    counts = weights.sum(1)
    mean = float(values.mean())
    found = interval(np.where(counts > 0, weights @ values / np.maximum(counts, 1), np.nan))
    return {"mean": mean, "low": found["low"] if found else mean, "high": found["high"] if found else mean}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the chance of at least one false claim among all of them stays below the level."""
    p, order = np.array(p_values), np.argsort(p_values)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(1, (len(p) - np.arange(len(p))) * p[order]))
    return corrected.tolist()
