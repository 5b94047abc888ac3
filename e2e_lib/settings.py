"""What a setting is: a dataclass field with its meaning, what is allowed, and the error for what is not."""

import difflib
from collections.abc import Iterable
from dataclasses import Field, field
from typing import Any

MAX_COUNT = 10**9  # no number of steps, tokens or examples is larger; the libraries count in 64 bits


class ConfigError(ValueError):
    """A setting is unknown or out of range; the message names it, the value and what is allowed."""


def setting(default: Any, meaning: str, *, low: float | None = None, high: float | None = None,
            choices: tuple[Any, ...] | None = None) -> Any:
    """A dataclass field with its meaning and its allowed values (both bounds included)."""
    high = MAX_COUNT if type(default) is int and high is None else high
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "choices": choices})


def allowed(f: Field[Any]) -> str:
    """The values that a setting may have, in words."""
    rules = f.metadata
    kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[type(f.default)]
    if rules["choices"]:
        return "one of " + ", ".join(map(str, rules["choices"]))
    low, high = (f"{bound:g}" if isinstance(bound, float) else bound
                 for bound in (rules["low"], rules["high"]))
    if low is not None and high is not None:
        return f"{kind} from {low} to {high}"
    return kind + (f" of at least {low}" if low is not None else "")


def checked(key: str, f: Field[Any], value: Any) -> Any:
    """``value`` in the setting's type. Raises ConfigError where it is not allowed."""
    complaint = ConfigError(f"{key} = {value!r} is not allowed: expected {allowed(f)}")
    kind: Any = type(f.default)
    if kind is bool:
        if str(value).lower() not in ("true", "false"):
            raise complaint
        return str(value).lower() == "true"
    # Text comes from the command line; from Python, 2.5 or True for a whole number is a mistake.
    accepted = {int: (int, str), float: (int, float, str), str: (str,)}[kind]
    if not isinstance(value, accepted) or isinstance(value, bool) or value == "" != f.default:
        raise complaint
    try:
        typed = kind(value)
    except (ValueError, OverflowError):  # "many"; a whole number that no float holds
        raise complaint from None
    low, high, choices = (f.metadata[rule] for rule in ("low", "high", "choices"))
    # `not (a <= b)` instead of `a > b`, so that nan is refused too.
    if (choices and typed not in choices
            or low is not None and not typed >= low or high is not None and not typed <= high
            or kind is float and typed in (float("inf"), float("-inf"))):
        raise complaint
    return typed


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.4) -> str:
    """"; did you mean 'mini'?" with the known name closest to a misspelt one, "" where none is close."""
    names = list(known)
    close = difflib.get_close_matches(word, names, 1, cutoff)
    if not close:  # a right name under a wrong section is the other common slip
        close = [n for n in names if n.partition(".")[2] == word.rpartition(".")[2]][:1]
    return f"; did you mean {close[0]!r}?" if close else ""
