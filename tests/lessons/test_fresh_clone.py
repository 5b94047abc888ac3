"""Notebooks 05 and 06 as a fresh clone runs them: the committed results, the parts as they ship, nothing trained.

Their cells run in this process, with fewer photos and chats than by default, and what a notebook would show is made.
"""

import ast
import contextlib
import io
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"overrides": ["data.train=4", "data.dev=24", "data.test=24", "inference.num_inference_steps=2"],
         "seeds": [0], "n_photos": 8, "n_chats": 1, "n_questions": 1, "n_captions": 1}


def show(value):
    """What a notebook shows of a cell's last value."""
    for form in ("_repr_png_", "_repr_html_", "_repr_markdown_"):
        if hasattr(value, form):
            return getattr(value, form)()
    return repr(value)


def run(name):
    """The texts that a notebook's cells print and show, by cell id."""
    space, shown = {"__name__": "__main__"}, {}
    for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type != "code":
            continue
        *lines, last = ast.parse(cell.source).body
        printed, is_value = io.StringIO(), isinstance(last, ast.Expr)
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module([*lines] if is_value else [*lines, last], []), cell.id, "exec"), space)
            value = show(eval(compile(ast.Expression(last.value), cell.id, "eval"), space)) if is_value else ""
        if "parameters" in cell.metadata.get("tags", []):
            space |= {key: SMALL[key] for key in space.keys() & SMALL.keys()}
        shown[cell.id] = printed.getvalue() + str(value)
    return shown


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that looks like a clone in which nothing was trained; the current one."""
    for name in ("e2e_lib", "results", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "not_shown", "stand_in"), [
    ("05_baselines", {"05-48", "05-49", "05-49-answer"}, "05-46b"),
    ("06_results", {"6f171ff1", "83f9a514", "06-causes-answer", "06-12", "06-13", "06-13-answer", "06-18",
                    "06-20"}, "06-10"),
])
def test_a_notebook_runs_to_its_end_where_nothing_is_trained(clone, name, not_shown, stand_in):
    shown = run(name)
    sentence = "*Not shown: `runs/mini/end_to_end/seed-0/answers` is not there yet. `make reproduce` makes it ("
    assert {key for key, text in shown.items() if "Not shown" in text} == not_shown
    assert all(shown[key].startswith(sentence) for key in not_shown)
    assert "drawn now; " in shown[stand_in] and "parts as they ship" in shown[stand_in]
