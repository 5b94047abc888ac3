"""What every numbered notebook promises its readers, checked without running it."""

from pathlib import Path

import nbformat
import papermill
import pytest

from e2e_lib.reproduce import NOTEBOOKS

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_valid_and_names_its_kernel(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_it_opens_with_a_question_and_what_it_costs(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert all(word in first.source for word in ("**Question.**", "| Paper |", "| Time |", "| Loads |", "| Trains |", "| Hardware |"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_parameters_are_literals_that_papermill_knows(name):
    known = papermill.inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    assert {"profile", "seeds", "overrides"} <= known.keys()
    assert known["profile"]["default"] == '"mini"' and known["seeds"]["default"] == "[0, 1, 2]"
    assert all(parameter["help"] for parameter in known.values())


def test_cells_are_short_and_predictions_asked(notebook):
    assert all(len(cell.source.splitlines()) <= 12 for cell in code(notebook))
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert words.count("**Predict before you ") >= 3
    assert "## What we found" in words and "## Exercises" in words and words.count("<details>") >= 2


def test_what_it_shows_is_clean(notebook):
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    shown = nbformat.writes(notebook)
    assert "it/s]" not in shown and "/home/" not in shown and "site-packages" not in shown


def test_it_ends_with_versions(notebook):
    assert "provenance.LIBRARIES" in code(notebook)[-1].source and notebook.cells[-1].cell_type == "code"
