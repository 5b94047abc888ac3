"""The list of mutants fits the code: it must not rot where code changes. `make mutants` runs them."""

import runpy
from pathlib import Path

import pytest

RUN = runpy.run_path(str(Path(__file__).with_name("run.py")))
Mutant, ROOMS = RUN["Mutant"], RUN["ROOMS"]


def test_every_mutant_still_fits_the_code():
    mutants = RUN["read_mutants"]()
    assert {mutant.room for mutant in mutants} == set(ROOMS) and len(mutants) >= 98
    assert len(set(mutants)) == len({(mutant.file, mutant.old, mutant.new) for mutant in mutants}) == len(mutants)
    problems = [f"{mutant.file}: {mutant.why}: {problem}" for mutant in mutants if (problem := mutant.problem())]
    assert not problems, "\n".join(["mutants to be written again, or left out:", *problems])


@pytest.mark.parametrize("change, problem", [
    ({}, ""), ({"old": "x"}, "'old' occurs 2 times"), ({"old": "z"}, "'old' occurs 0 times"), ({"file": "absent.py"}, "no such file"),
    ({"new": "x +- 1"}, ""), ({"new": "x +"}, "'new' does not parse: invalid syntax"), ({"new": "x  + 1"}, "'new' is the same"),
    ({"tests": "test.py absent.py::test_x"}, "no such tests: absent.py test_x"), ({"tests": "test.py::test_g"}, "no such tests: test.py test_g"),
])
def test_what_is_wrong_with_a_mutant_is_said(tmp_path: Path, change, problem):
    (tmp_path / "code.py").write_text("def f(x):\n    return x + 1\n")
    (tmp_path / "test.py").write_text("def test_f():\n    pass\n")
    entry = {"file": "code.py", "old": "x + 1", "new": "x - 1", "why": "wrong", "tests": "test.py::test_f"}
    assert Mutant(**entry | change).problem(tmp_path).startswith(problem) and bool(problem) == bool(Mutant(**entry | change).problem(tmp_path))
