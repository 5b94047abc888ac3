"""The folded solutions of notebooks 01 and 02 pass the checks beside them; what is there to begin with passes none.

Each cell runs with small stand-ins for what the notebook made before it.
"""

import ast
import contextlib
import io
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from torch.nn import functional as F

from e2e_lib.data.dialogue import Dialogue, SharedPhoto, Turn
from e2e_lib.experiments import polynomial
from e2e_lib.lessons import nb01_corpus, nb02_gumbel
from e2e_lib.lessons.claims import confirm, observe

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PHOTO = (SharedPhoto("1", "a red kite"),)
CHATS = [Dialogue("a", (Turn(0, "Look", PHOTO), Turn(1, "Nice!"))), Dialogue("b", (Turn(1, "Show me"), Turn(0, "", PHOTO))),
         Dialogue("c", (Turn(1, "Hi"), Turn(1, "", PHOTO), Turn(0, "", PHOTO), Turn(0, "Mine")))]
PAIRS = [(None, "a red kite"), (None, "kites"), (None, "two boats at the beach")]
WORDS, LETTERS = SimpleNamespace(tokenize=str.split), SimpleNamespace(tokenize=list)
PROBLEM, Z = nb02_gumbel.PaintProblem(), torch.tensor([[0.2, 1.0, -0.5]], dtype=torch.float64)


def mean_length(tokenizer):
    return sum(len(tokenizer.tokenize(caption)) for _, caption in PAIRS) / len(PAIRS)


def space_of(name):
    if name == "01_data":
        held_out = {("kite", "red", "beach"), ("hat", "blue", "snow")}
        return {"lesson": nb01_corpus, "Counter": Counter, "train": CHATS, "dialogues_of": {"x": CHATS}, "name": "x", "HELD_OUT": held_out,
                "triples": lambda split: [*held_out, ("kite", "red", "beach"), ("mug", "red", "city"), ("mug", "red", "city")],
                "pairs": PAIRS, "tokens_of": lambda one, caption: one.tokenize(caption), "tokenizer": WORDS, "clip": LETTERS,
                "lengths": [mean_length(WORDS), mean_length(LETTERS)]}
    return {"torch": torch, "F": F, "lesson": nb02_gumbel, "confirm": confirm, "observe": observe, "problem": PROBLEM, "z": Z, "seed": 0,
            "problems": {4: replace(PROBLEM, exponent=4)}, "polynomial": polynomial, "steps": 3,
            "ends": {("gumbel", 0.1): polynomial.polynomial("gumbel", 0.1, steps=3)[-1]},
            "caption_logits": 3 * torch.randn(12, 40, generator=torch.Generator().manual_seed(0))}


def exercises():
    """Of each exercise: the notebook, its number, the code of its check, and the solution's."""
    for name in ("01_data", "02_straight_through_gumbel"):
        cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
        for text, check, after in zip(cells, cells[1:], cells[2:], strict=False):
            title = re.search(r"^\*\*(?:Exercise )?(\d)\. ", text.source, re.M) if text.cell_type == "markdown" else None
            if title:
                solution = after.source.partition("Solution</summary>")[2].partition("</details>")[0]
                code = re.findall(r"```python\n(.*?)```", solution, re.S) or re.findall(r"`(\w+ = [^`]+)`", solution)
                yield pytest.param(name, check.source, code[0], id=f"{name}-{title[1]}")


def printed(code, space):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, space)
    return out.getvalue()


@pytest.mark.parametrize(("name", "check", "solution"), list(exercises()))
def test_the_solution_passes_and_what_is_there_to_begin_with_does_not(name, check, solution):
    space = space_of(name)
    assert printed(check, space) == ""
    exec(solution, space)
    checks = ast.Module([node for node in ast.parse(check).body if isinstance(node, ast.If)], [])
    lines = printed(compile(checks, name, "exec"), space).splitlines()
    assert lines and all(line.startswith("✓") for line in lines)


def test_all_exercises_are_found():
    assert len(list(exercises())) == 9
