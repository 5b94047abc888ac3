"""What every numbered notebook promises its readers, checked without running it."""

from pathlib import Path

import nbformat
import papermill
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_notebooks_are_found():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"0{number}" for number in range(7)]


def test_it_is_valid_and_names_its_kernel(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_it_opens_with_a_question_and_its_costs(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    rows = ("**Question.**", "| Paper |", "| Time |", "| Needs |", "| Loads |", "| Trains |", "| Hardware |")
    assert all(row in first.source for row in rows)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_parameters_are_literals_that_papermill_knows(path):
    parameters = papermill.inspect_notebook(str(path))
    assert {"profile", "seeds", "overrides"} <= parameters.keys()
    assert parameters["profile"]["default"] == '"mini"' and parameters["seeds"]["default"] == "[0, 1, 2]"
    assert all(parameter["help"] for parameter in parameters.values())


def test_cells_are_short(notebook):
    assert max(len(cell.source.splitlines()) for cell in code(notebook)) <= 12


def test_it_asks_for_predictions_and_ends_with_findings_and_exercises(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert text.count("**Predict before you ") >= 3
    assert "## What we found" in text and "## Exercises" in text and text.count("<details>") >= 2


def test_its_outputs_are_clean(notebook):
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    page = nbformat.writes(notebook)
    assert not any(text in page for text in ("it/s]", "/home/", "site-packages"))


def test_it_ends_with_versions(notebook):
    assert "provenance.LIBRARIES" in code(notebook)[-1].source and notebook.cells[-1].cell_type == "code"
