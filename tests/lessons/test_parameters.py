"""A misspelt parameter and one out of range stop every notebook with one sentence that names it."""

import math
import re
from pathlib import Path

import nbformat
import papermill
import pytest

from e2e_lib import config as configuration
from e2e_lib.lessons import parameters
from e2e_lib.lessons.parameters import (
    ParameterError,
    check_parameters,
    flag,
    injected_names,
    listed,
    number,
    text,
    whole,
)

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("[0-9]*.ipynb"))
COMMON = {"profile": "smoke", "seeds": [0], "overrides": []}


# -------------------------------------------------------------------------------------------------------- the function

@pytest.mark.parametrize(("rule", "good", "bad"), [
    (whole(1, 100), [1, 100], [0, 101, 1.0, True, "1", None, [1], math.nan]),
    (number(0.5, 2), [0.5, 1, 2], [0.4999, 2.1, math.nan, math.inf, "1", True, None, [1]]),
    (flag(), [True, False], [0, 1, None, "True", [True]]),
    (text(), ["a", " a "], ["", " \n", None, 1, ["a"]]),
    (listed(whole(0, 9)), [[3], [1, 1]], [[], [10], [1, "2"], 3, (1, 2), None, "12"]),
    (listed(number(0, 9), 2, different=True), [[1, 0.5]], [[1], [1, 1], [1, 2, 3], [1, math.nan]]),
    (listed(number(0, 9), including=1), [[1], [3, 1.0]], [[2], []]),
])
def test_a_rule_holds_for_what_it_says_and_for_nothing_else(rule, good, bad):
    assert all(rule.holds(value) is True for value in good)
    assert not any(rule.holds(value) for value in bad)


def test_sound_parameters_give_the_configuration():
    config = check_parameters(COMMON | {"overrides": ["inference.temperature=0.5"], "chats": 3}, chats=whole(1, 9))
    assert config == configuration.load("smoke", ["inference.temperature=0.5"])


@pytest.mark.parametrize(("changed", "says"), [
    ({"chats": 0}, "parameter 'chats' = 0 is not allowed: expected a whole number from 1 to 9$"),
    ({"seeds": 3}, r"parameter 'seeds' = 3 is not allowed: expected a list of one or more, each a whole number from 0 to [\d,]+, all different$"),
    ({"seeds": [0, -1]}, r"parameter 'seeds' = \[0, -1\] is not allowed"),
    ({"profile": "maxi"}, "'profile'.*did you mean 'mini'"),
    ({"overrides": "inference.temperature=1"}, "parameter 'overrides' = .*expected a list of texts"),
    ({"overrides": ["inference.temperatur=1"]}, "'overrides'.*did you mean 'inference.temperature'"),
    ({"overrides": ["inference.temperature=99"]}, "'overrides'.*inference.temperature = '99' is not allowed"),
    ({"In": ["seeds = [0]", "# Parameters\nsedes = 3\n", "check"]}, "parameter 'sedes' is unknown; did you mean 'seeds'.*: profile, seeds, overrides, chats$"),
    ({"In": ["# Parameters\nseeds = 3\n"], "seeds": 3}, r"expected a list of .*\(papermill takes one as -y 'seeds: \[…\]'\)$"),
])
def test_the_message_names_the_parameter_and_says_what_is_expected(changed, says):
    with pytest.raises(ParameterError, match=says) as caught:
        check_parameters(COMMON | {"chats": 3} | changed, chats=whole(1, 9))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_parameter_that_is_gone_is_named():
    with pytest.raises(ParameterError, match="parameter 'seeds' is not set"):
        check_parameters({"profile": "smoke", "overrides": []})


def test_the_last_cell_that_papermill_added_counts():
    cells = ["# Parameters\nsedes = 3\n", "x = 1", "# Parameters\nseeds = [1]\nprofile = \"mini\"\n", "# a comment\ny = 2"]
    assert injected_names(cells) == ["seeds", "profile"] and injected_names(["x = 1"]) == injected_names([]) == []


# ------------------------------------------------------------------------------------------------------- the notebooks

class Parts:
    """A notebook's cell of parameters and the cell after it, run without a kernel."""

    def __init__(self, path):
        self.names = papermill.inspect_notebook(str(path))
        cells = nbformat.read(path, as_version=4).cells
        at = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
        self.given, self.checked = cells[at].source, cells[at + 1].source

    def run(self, **changed):
        space = {"In": ["", self.given]}
        exec(self.given, space)
        exec(self.checked, space | changed)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def parts(request):
    return Parts(request.param)


def test_the_cell_after_the_parameters_checks_all_of_them(parts, monkeypatch):
    rules = {}
    monkeypatch.setattr(parameters, "check_parameters", lambda notebook, **own: rules.update(own))
    parts.run()
    assert parameters.COMMON.keys() | rules.keys() == parts.names.keys()
    for name, rule in rules.items():  # each range stands beside the meaning, too
        for low, high in re.findall(r"from ([\d,.-]+) to ([\d,.]+\d)", rule.expected):
            whole_range = f"from {low}" if high == f"{configuration.MAX_SEED:,}" else f"from {low} to {high}"
            assert whole_range in parts.names[name]["help"], name


def test_its_own_values_are_sound(parts):
    parts.run()


def test_a_misspelt_parameter_stops_it(parts):
    for name in parts.names:
        misspelt = name[:-2] + name[-1]
        with pytest.raises(ParameterError, match=f"parameter {misspelt!r} is unknown; did you mean {name!r}"):
            parts.run(In=["", parts.given, f"# Parameters\n{misspelt} = 1\n"])


def test_a_value_out_of_range_stops_it(parts):
    for name in parts.names:
        for value in (None, -10.5, 2**70, "", [None], [-(10**9)]):
            with pytest.raises(ParameterError, match=f"'{name}'"):
                parts.run(**{name: value})


@pytest.mark.parametrize(("given", "says"), [
    ({"sedes": 3}, "ParameterError: parameter 'sedes' is unknown; did you mean 'seeds'"),
    ({"draws": 10}, "ParameterError: parameter 'draws' = 10 is not allowed: expected a whole number from 1,000 to 100,000"),
])
def test_through_papermill_the_message_is_all_that_is_shown(tmp_path, given, says):
    with pytest.raises(papermill.PapermillExecutionError) as stopped:
        papermill.execute_notebook(str(NOTEBOOKS[2]), str(tmp_path / "out.ipynb"), given, kernel_name="python3", progress_bar=False)
    assert stopped.value.ename == "ParameterError" and len(stopped.value.traceback) == 1
    assert stopped.value.traceback[0].startswith(says)
