"""Paired bootstrap over dialogues: intervals and corrected p-values of differences (for section 3.2).

Whole dialogues are drawn with replacement, since responses of one dialogue are not independent, and the same
ones for all that is compared, so that what is hard for all cancels out. Axes: E examples, K draws, S seeds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVELS = (0.025, 0.975)  # of 95 % intervals


def resamplings(dialogue_ids: Sequence[str], draws: int, rng: np.random.Generator) -> Array:
    """How often each example counts in each draw (K, E), whole dialogues drawn with replacement."""
    names, numbers = np.unique(np.asarray(dialogue_ids), return_inverse=True)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)  # (K, dialogues)
    return counts[:, numbers].astype(np.float64)  # (K, E)


def paired_difference(one: Array, other: Array) -> dict[str, Any] | None:
    """``one`` minus ``other``: scores (S, 1 + K) of S seeds, of the test set as it is, then of each draw.

    "difference": of the means over seeds, with its 95 % interval over draws, "low" to "high", and two-sided
    "p"; "by_seed": of each seed. Draws without a score (nan) are left out; None if the test set has none."""
    whole, *draws = (one - other).mean(0)
    finite = np.array(draws)[np.isfinite(draws)]
    if not np.isfinite(whole) or not len(finite):
        return None
    low, high = np.quantile(finite, LEVELS)
    tail = min((finite <= 0).sum(), (finite >= 0).sum())
    return {"difference": float(whole), "by_seed": (one - other)[:, 0].tolist(), "low": float(low),
            "high": float(high), "p": float(min(1.0, 2 * (tail + 1) / (len(finite) + 1)))}


def mean_interval(values: Array, draws: NDArray[np.int64]) -> dict[str, float]:
    """The mean of values (N,) and the bounds of its 95 % interval over ``draws`` (K, N) of their indices."""
    low, high = np.quantile(values[draws].mean(1), LEVELS)
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the chance of at least one false claim among all of them stays below the level."""
    p, order = np.array(p_values), np.argsort(p_values)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(1, (len(p) - np.arange(len(p))) * p[order]))
    return corrected.tolist()
