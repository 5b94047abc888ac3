"""The parameters of a notebook, checked before anything else runs: the names that were given, and all values.

The cell after a notebook's parameters calls ``check_parameters`` with what its own parameters may be.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2e_lib import config as configuration


class ParameterError(ValueError):
    """A notebook's parameter is misspelt or out of range; the message names it and says what is expected."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: the message, which says all there is to know."""
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Allowed:
    """What a parameter may be: in words, and whether a value is such."""

    expected: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Allowed:
    """Whole numbers, both bounds included."""
    return Allowed(f"a whole number from {low:,} to {high:,}", lambda x: type(x) is int and low <= x <= high)


def number(low: float, high: float) -> Allowed:
    """Numbers, both bounds included."""
    return Allowed(f"a number from {low:,} to {high:,}",
                   lambda x: type(x) in (int, float) and low <= x <= high)


def flag() -> Allowed:
    """True and False."""
    return Allowed("True or False", lambda x: type(x) is bool)


def text() -> Allowed:
    """Texts with at least one character that is not white space."""
    return Allowed("a text", lambda x: isinstance(x, str) and bool(x.strip()))


def listed(each: Allowed, count: int = 0, *, different: bool = False, including: Any = None) -> Allowed:
    """Lists of ``count`` items (0: one or more), if asked all ``different`` and ``including`` that one."""
    expected = (f"a list of {count or 'one or more'}, each {each.expected}" + ", all different" * different
                + f", one of them {including}" * (including is not None))

    def holds(items: Any) -> bool:
        return (isinstance(items, list) and len(items) >= 1 and len(items) in (count or len(items),)
                and all(map(each.holds, items)) and not (different and len(set(items)) < len(items))
                and (including is None or including in items))
    return Allowed(expected, holds)


COMMON = {"profile": text(), "seeds": listed(whole(0, configuration.MAX_SEED), different=True),
          "overrides": Allowed("a list of texts such as ['inference.temperature=0.5']",
                               lambda x: isinstance(x, list) and all(isinstance(item, str) for item in x))}


def check_parameters(notebook: Mapping[str, Any], **own: Allowed) -> configuration.Config:
    """The configuration of a notebook's profile and overrides, if all of its parameters are sound.

    ``notebook`` is its ``globals()``, ``own`` what it has beyond profile, seeds and overrides. Raises
    ParameterError for a name given to papermill that is none of them, a value that is not allowed, an unknown
    profile, and an override that is no setting or out of range.
    """
    allowed, given = COMMON | own, injected_names(notebook.get("In", []))
    for name in given:
        if name not in allowed:
            raise ParameterError(f"parameter {name!r} is unknown{configuration.did_you_mean(name, allowed)}; "
                                 f"this notebook has: {', '.join(allowed)}")
    for name, rule in allowed.items():
        if name not in notebook:
            raise ParameterError(f"parameter {name!r} is not set: expected {rule.expected}")
        if not rule.holds(notebook[name]):
            is_list = name in given and rule.expected.startswith("a list")
            hint = f" (papermill takes one as -y '{name}: […]')" if is_list else ""
            raise ParameterError(f"parameter {name!r} = {notebook[name]!r:.100} is not allowed: "
                                 f"expected {rule.expected}{hint}")
    try:
        return configuration.load(notebook["profile"], notebook["overrides"])
    except configuration.ConfigError as error:
        raise ParameterError(f"parameters 'profile' and 'overrides': {error}") from None


def injected_names(cells: Sequence[str]) -> list[str]:
    """The names set by the last cell that papermill added to a notebook, of all ``cells`` that have run."""
    source = next((cell for cell in reversed(cells) if cell.startswith("# Parameters")), "")
    assigned = [node.targets[0] for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [target.id for target in assigned if isinstance(target, ast.Name)]
