"""How two that were compared stand to each other, of the "pairs" in a file of differences."""

from collections.abc import Mapping, Sequence
from typing import Any

from e2e_lib.report.tables import LEVEL

Rows = Sequence[Mapping[str, Any]]


def between(pairs: Rows, higher: Mapping[str, bool], one: str, other: str,
            metric: str) -> dict[str, Any] | None:
    """``one`` minus ``other`` in a metric, whichever way round they were compared: "difference", "low",
    "high", "p_corrected", and "better", the one that is ahead with a p-value below 0.05 after correction, or
    None. ``higher``: of which metrics more is better. None where the two were not compared in it."""
    for row in pairs:
        if row["metric"] == metric and {row["system"], row["than"]} == {one, other}:
            sign = 1 if row["system"] == one else -1
            low, high = sorted((sign * row["low"], sign * row["high"]))
            ahead = one if sign * row["difference"] * (1 if higher[metric] else -1) > 0 else other
            p = row["p_corrected"]
            return {"difference": sign * row["difference"], "low": low, "high": high, "p_corrected": p,
                    "better": ahead if p < LEVEL else None}
    return None


def in_condition(rows: Rows, condition: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows, or pairs, of ``faults.json`` that are of one condition."""
    return [row for row in rows if all(row[key] == value for key, value in condition.items())]
