"""Slides: which cells are shown, and where a slide begins, as nbconvert writes the page."""

import copy
import re
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from traitlets.config import Config

from e2e_lib.lessons.slides import SlideTypes, slide_type

ROOT = Path(__file__).resolve().parents[2]


def code(source, *outputs):
    return new_code_cell(source, outputs=list(outputs))


def shown(kind, value):
    return new_output("execute_result", {kind: value}, execution_count=1, metadata={kind: {"alt": "A <figure>"}})


CELLS = [
    (new_markdown_cell("# The title"), "slide"), (code("x = 1"), "skip"), (new_markdown_cell("## A section\n\n**Predict …**"), "slide"),
    (code("figure", shown("image/png", "iVBORw0KGgo=")), "subslide"), (code("answer", shown("text/markdown", "**Answer.** Blue.")), "fragment"),
    (code("table", shown("text/markdown", "| a |\n|---|\n| 1 |")), "subslide"), (code("chat", shown("text/html", "<p>chat</p>")), "subslide"),
    (code("print(1)", new_output("stream", name="stdout", text="printed")), "fragment"), (new_markdown_cell("### Part"), "subslide"),
    (new_markdown_cell("**Exercise 1.** secret"), "skip"), (new_markdown_cell("<details><summary>Solution</summary>\n\nsecret</details>"), "skip"),
    (new_markdown_cell("## Exercises\n\n**1.**"), "skip"), (code("check", new_output("stream", name="stdout", text="late")), "skip")]


def notebook():
    return new_notebook(cells=[copy.deepcopy(cell) for cell, _ in CELLS])


def test_each_kind_of_cell_has_its_slide_type_and_what_was_chosen_stays():
    made, _ = SlideTypes().preprocess(notebook(), {})
    assert [cell.metadata["slideshow"]["slide_type"] for cell in made.cells] == [kind for _, kind in CELLS]
    marked = notebook()
    marked.cells[1].metadata["slideshow"] = {"slide_type": "notes"}
    assert SlideTypes().preprocess(marked, {})[0].cells[1].metadata["slideshow"] == {"slide_type": "notes"}


def test_nbconvert_writes_them_as_slides():
    settings = Config({"SlidesExporter": {"preprocessors": ["e2e_lib.lessons.slides.SlideTypes"], "exclude_input": True}})
    page, _ = SlidesExporter(config=settings).from_notebook_node(notebook())
    body = page[page.index('<div class="slides">'):]
    assert 'alt="A &lt;figure&gt;"' in body and "No description" not in body
    assert len(re.findall(r"<section><section>", body)) == 2 and body.count("<section>") == 2 + 2 + 4
    assert all(text in body for text in ("The title", "Blue.", "printed", "chat"))
    assert not any(text in body for text in ("secret", "late", "x = 1"))


def test_the_lessons_slides_have_every_section_and_no_exercise():
    for name in ("02_straight_through_gumbel", "03_vocabulary_matrix"):
        cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
        end = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Exercises"))
        sections = [cell for cell in cells[:end] if cell.cell_type == "markdown" and cell.source.startswith("## ")]
        assert len(sections) >= 5 and {slide_type(cell) for cell in sections} == {"slide"}
