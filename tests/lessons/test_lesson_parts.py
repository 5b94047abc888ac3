"""What readers can count on in every notebook, read without running them: aims, links, answers, exercises, equations, pictures."""

import re
from pathlib import Path

import nbformat
import pytest

from e2e_lib.lessons import nb02_gumbel
from e2e_lib.report import plots

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = ["00_quickstart", "01_data", "02_straight_through_gumbel", "03_vocabulary_matrix", "04_joint_training",
         "05_baselines", "06_results"]
HINT, SOLUTION = "<summary>Hint</summary>", "<summary>Solution</summary>"


@pytest.fixture(params=NAMES)
def notebook(request):
    return request.param, nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4).cells


def texts(cells):
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


def test_it_says_what_is_learnt_what_has_to_be_known_and_how_many_minutes_it_takes(notebook):
    first = notebook[1][0].source
    aims = re.search(r"\*\*What you will learn\*\*\n\n((?:- .+\n)+)", first)[1].splitlines()
    assert 3 <= len(aims) <= 4
    assert "**What you need to know.**" in first and re.search(r"\| Time \| .*minutes? to read", first)
    assert "](https://arxiv.org/abs/2408.08650)" in first


def test_the_notebooks_before_and_after_are_linked_at_both_ends(notebook):
    name, cells = notebook
    at = NAMES.index(name)
    wanted = {f"{other}.ipynb" for other in (NAMES[at - 1] if at else None, NAMES[(at + 1) % len(NAMES)]) if other}
    for text in (cells[0].source.split("**Question.**")[0], texts(cells)[-1].rpartition("---")[2]):
        assert wanted <= set(re.findall(r"\]\(([^)]+)\)", text)) and "../docs/glossary.md" in text


def test_every_prediction_is_answered_before_the_next_one_from_what_was_computed(notebook):
    waiting = None
    for cell in notebook[1]:
        if cell.cell_type == "markdown":
            for piece in re.findall(r"\*\*Predict before you (?:run|read):\*\* ([^?]*)", cell.source):
                assert waiting is None, f"not answered: {waiting}"
                waiting = piece
            assert not ("## What we found" in cell.source and waiting), f"not answered: {waiting}"
        elif "Answer." in cell.source or "trained.answer(" in cell.source:
            assert waiting and re.search(r"\{|confirm\(|trained\.answer\(", cell.source), cell.source
            waiting = None
    assert waiting is None


def exercises(cells):
    """For each exercise, in order: its text, the code that checks it, and the text after that."""
    found = []
    for i, cell in enumerate(cells):
        if cell.cell_type == "markdown" and (titles := re.findall(r"^\*\*(?:Exercise )?\d\. .*$", cell.source, re.M)):
            end = next(k for k in range(i + 1, len(cells)) if cells[k].cell_type == "markdown")
            assert len(titles) == 1 and end > i + 1, titles
            check = "\n".join(other.source for other in cells[i + 1:end])
            found.append((cell.source[cell.source.index(titles[0]):], check, cells[end].source))
    return found


def test_each_exercise_has_difficulty_minutes_a_hint_a_check_and_a_solution(notebook):
    found = exercises(notebook[1])
    assert len(found) >= 3
    assert sorted(int(re.search(r"\d", text)[0]) for text, _, _ in found) == list(range(1, len(found) + 1))
    for text, check, after in found:
        assert re.search(r"\((easy|medium|hard), \d+ minutes\)", text.splitlines()[0]), text
        assert HINT in text and SOLUTION not in text and after.startswith(f"<details>{SOLUTION}")
        assert re.search(r"\bNone\b|\[\]", check) and ("✓" in check or re.search(r"confirm|observe|check_", check))


def test_equations_are_typeset(notebook):
    page = "\n".join(texts(notebook[1]))
    assert "```text" not in page and page.count("$$") % 2 == 0
    if notebook[0].startswith("02"):
        assert [number for number in re.findall(r"\\tag{(\d+)}", page)] == ["4", "5", "6", "7"]
        proof = page[page.index("### Why exactly?"):]
        assert re.findall(r"^(\d)\. ", proof[:proof.index("##", 5)], re.M) == ["1", "2", "3", "4", "5"]


def test_every_picture_has_an_alternative_text(notebook):
    for cell in notebook[1]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                assert len(output.metadata.get("image/png", output.metadata).get("alt", "")) > 10, cell.id
            tags = re.findall(r"<img [^>]*>", "".join(data.get("text/html", "")))
            assert all(re.search(r'alt="[^"]{4,}"', tag) for tag in tags), cell.id
    assert not re.search(r"!\[\s*\]\(", "\n".join(texts(notebook[1])))


@pytest.mark.parametrize("name", ["02_straight_through_gumbel", "03_vocabulary_matrix"])
def test_the_colours_of_the_words_mean_words_alone(name):
    """Words of 02 and 03 are colours: no text names something else by its colour, and 02's lines that stand for no estimator have none."""
    page = "\n".join(texts(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells))
    colours = "orange|pink|blue|red|green|purple|yellow"
    assert not re.search(rf"\b({colours}) (line|curve|bar|dot|token|box|cell|frame)s?\b|\(({colours})\)|(most|more) ({colours})", page, re.I)


def test_lines_that_are_no_estimators_are_black_or_grey():
    figure = nb02_gumbel.panels_figure([nb02_gumbel.Panel("t", "x", "y", nb02_gumbel.PaintProblem().between_words())], "n", markers=False)
    lines = [container[0] for container in figure.axes[0].containers]
    assert {line.get_color() for line in lines} <= {plots.BLACK, plots.GREY}
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 4
