"""Slides of a notebook for nbconvert (``make slides``): which cell begins a slide, and which is left out.

A cell whose metadata names a slide type (JupyterLab's property inspector sets it) keeps it. All others get
theirs from what they are, so that a notebook needs no marks, and runs of it lose none.
"""

import html
from typing import Any

from nbconvert.preprocessors import Preprocessor


class SlideTypes(Preprocessor):  # type: ignore[misc]
    """Gives each cell its ``slideshow.slide_type``: a "slide" comes to the right, a "subslide" below, a
    "fragment" appears at a key, "skip" is not shown."""

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        is_lesson = True
        for cell in nb.cells:
            is_lesson = is_lesson and not cell.source.startswith("## Exercises")
            kind = slide_type(cell) if is_lesson else "skip"
            cell.metadata.setdefault("slideshow", {}).setdefault("slide_type", kind)
            for output in cell.get("outputs", []):
                _keep_alternative_text(output)
        return nb, resources


def _keep_alternative_text(output: Any) -> None:
    """Makes a picture's alternative text part of the page, which nbconvert's template leaves out."""
    text = output.get("metadata", {}).get("image/png", {}).get("alt")
    if text and "image/png" in output.data:
        output.data = {"text/html": f'<img alt="{html.escape(text)}" style="max-height:75vh" '
                                    f'src="data:image/png;base64,{output.data["image/png"]}">'}


def slide_type(cell: Any) -> str:
    """The slide type of a cell. Sections are slides; texts, figures and tables stand below them. What was
    printed, and answers to predictions, appear after what they are about. Exercises and code are not shown.
    """
    if cell.cell_type == "markdown":
        return ("slide" if cell.source.startswith(("# ", "## ")) else
                "skip" if cell.source.startswith(("**Exercise", "<details>")) else "subslide")
    kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
    if any(kind in ("image/png", "text/html") for kind in kinds):
        return "subslide"
    if "text/markdown" in kinds:
        is_answer = any("**Answer.**" in _markdown(output) for output in cell.outputs)
        return "fragment" if is_answer else "subslide"
    return "fragment" if cell.outputs else "skip"


def _markdown(output: Any) -> str:
    return str(output.get("data", {}).get("text/markdown", ""))
