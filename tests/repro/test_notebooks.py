import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from e2e_lib.repro import notebooks
from e2e_lib.repro.notebooks import (
    NotebookError,
    NotebookFailed,
    _depends_on,
    _remaining,
    find_notebook,
    publish,
    read_parameters,
    run_notebooks,
)
from e2e_lib.repro.repository import enter_repository

PARAMETERS = "PROFILE = 'mini'  # which size\nLIMITS = [\n    1,\n    2,\n]\nLOG = ''"


def make(folder: Path, name: str, *cells: str) -> Path:
    """A notebook with a title, a cell of parameters and ``cells``; its cell ids follow from their places."""
    made = [new_markdown_cell(f"# {name}"), new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), *map(new_code_cell, cells)]
    for i, cell in enumerate(made):
        cell.id = f"cell-{i}"
    folder.mkdir(parents=True, exist_ok=True)
    kernelspec = {"name": "python3", "display_name": "My Python", "language": "python"}
    nbformat.write(new_notebook(cells=made, metadata={"kernelspec": kernelspec}), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


class Runner:
    """Runs throwaway notebooks that each append their name to one log."""

    def __init__(self, folder: Path) -> None:
        self.source, self.output, self.log = folder / "{x}" / "notebooks", folder / "out", folder / "log"
        self.lines: list[str] = []

    def __call__(self, *names: str, timeout_s: int = 120, **options):
        self.lines.clear()
        options = {"parameters": {"PROFILE": "smoke", "LOG": str(self.log)}, "inputs": {}, **options}
        return run_notebooks([self.source / f"{name}.ipynb" for name in names], self.output, timeout_s=timeout_s,
                             echo=self.lines.append, **options)

    def make(self, name: str, *cells: str) -> Path:
        return make(self.source, name, f"with open(LOG, 'a') as log: log.write('{name} ')", *cells)

    def ran(self) -> list[str]:
        names = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return names


@pytest.fixture
def run(tmp_path):
    return Runner(tmp_path)


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []) if output.get("name") == "stdout")


def test_notebooks_run_in_order_and_only_again_when_something_changed(run):
    run.make("01_data", "import os, sys; print(PROFILE, LIMITS, os.path.basename(os.getcwd()))")
    run.make("02_train", "print('noise', file=sys.stderr) if 'sys' in dir() else print('a fresh kernel')")
    one, two = run("01_data", "02_train", inputs={"settings": "1"})
    assert run.ran() == ["01_data", "02_train"]
    assert printed(one) == "smoke [1, 2] notebooks\n" and printed(two) == "a fresh kernel\n"
    patterns = [r"notebook 1 of 2: 01_data \(elapsed 0:00\)", r"notebook 1 of 2: 01_data done in \d:\d\d",
                r"notebook 2 of 2: 02_train \(elapsed \d:\d\d, about \d:\d\d remaining\)", r"notebook 2 of 2: 02_train done in \d:\d\d"]
    assert len(run.lines) == 4 and all(re.fullmatch(p, line) for p, line in zip(patterns, run.lines, strict=True))

    assert run("01_data", "02_train", inputs={"settings": "1"}) == [one, two] and run.ran() == []
    assert run.lines == [f"notebook {i} of 2: {n} already done, skipped" for i, n in ((1, "01_data"), (2, "02_train"))]
    run.make("02_train", "print('changed')")
    run("01_data", "02_train", inputs={"settings": "1"})
    assert run.ran() == ["02_train"] and printed(two) == "changed\n"
    one.write_text(one.read_text() + " ")  # an edited copy is made again, and so is what follows
    run("01_data", "02_train", inputs={"settings": "1"})
    assert run.ran() == ["01_data", "02_train"]


def test_a_notebook_depends_on_cells_parameters_and_inputs_but_not_on_outputs(run):
    path = run.make("01_data", "print(1)")
    first = _depends_on(path, {"PROFILE": "smoke"}, {})
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].update(execution_count=3, outputs=[new_output("stream", text="1\n")])
    notebook.metadata.papermill = {"duration": 1}
    nbformat.write(notebook, path)
    assert _depends_on(path, {"PROFILE": "smoke"}, {}) == first
    both = {"PROFILE": "smoke", "LOG": "x"}
    assert _depends_on(path, both, {"b": "2", "a": "1"}) == _depends_on(path, dict(reversed(both.items())), {"a": "1", "b": "2"})
    others = [_depends_on(path, both, {}), _depends_on(path, {"PROFILE": "mini"}, {}), _depends_on(path, {"PROFILE": "smoke"}, {"a": "1"})]
    run.make("01_data", "print(2)")
    assert len({first, *others, _depends_on(path, {"PROFILE": "smoke"}, {})}) == 5


def test_a_failing_cell_is_shown_and_the_next_run_goes_on_from_there(run):
    run.make("01_data")
    run.make("02_train", "step = 3", "def learn(step):\n    return 1 / (step - 3)\nlearn(step)")
    run.make("06_results")
    names = ("01_data", "02_train", "06_results")
    with pytest.raises(NotebookFailed) as failed:
        run(*names)
    message, partial = str(failed.value), run.output / "02_train.failed.ipynb"
    assert message.startswith("notebook 02_train failed in cell 5:\n    def learn(step):\n") and str(partial) in message
    assert "ZeroDivisionError: division by zero" in message and "\x1b" not in message and len(message.splitlines()) <= 20
    assert sorted(p.name for p in run.output.glob("*.ipynb")) == ["01_data.ipynb", "02_train.failed.ipynb"]
    run.ran()
    run.make("02_train")
    run(*names)
    assert run.ran() == ["02_train", "06_results"] and not partial.exists()


@pytest.mark.parametrize(("cell", "message"), [
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the kernel died while the cell ran"),
    ("import time; time.sleep(600)", "it did not finish within its 3 s"),
    ("raise SystemExit", "ended the notebook before its last cell"),
])
def test_a_kernel_that_dies_hangs_or_leaves_is_an_error(run, cell, message):
    run.make("04_joint", cell, "print('never')")
    with pytest.raises(NotebookFailed, match=message) as failed:
        run("04_joint", timeout_s=3 if "sleep" in cell else 120)
    assert f"notebook 04_joint failed in cell 4:\n    {cell}\n" in str(failed.value)
    assert not (run.output / "04_joint.ipynb").exists() and not (run.output / "04_joint.done.json").exists()


def test_the_right_cell_is_named_where_papermill_inserts_none(run):
    path = make(run.source, "02_train", "kites = 2", "kites / 0")
    notebook = nbformat.read(path, as_version=4)
    del notebook.metadata["kernelspec"]  # as converters write them
    nbformat.write(notebook, path)
    with pytest.raises(NotebookFailed, match=r"notebook 02_train failed in cell 4:\n    kites / 0\n"):
        run("02_train", parameters={})


def test_a_kernel_that_does_not_start_is_said_to(run, monkeypatch):
    monkeypatch.setattr(notebooks, "get_kernel_dict", lambda: {"argv": ["false"], "display_name": "Python 3", "language": "python"})
    run.make("02_train")
    with pytest.raises(NotebookFailed, match=r"notebook 02_train could not be run: the kernel did not start:\nRuntimeError: Kernel died before"):
        run("02_train")
    assert run.ran() == [] and not (run.output / "02_train.ipynb").exists()


def test_kernels_are_of_this_interpreter_and_write_nothing_beside_the_notebooks(run, tmp_path, monkeypatch):
    # Another kernel by the same name, and a temporary folder whose name is too long for the path of a socket.
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["false"], "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    (tmp_path / ("long" * 30)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 30)))
    for name in ("01_data", "02_train"):
        run.make(name, "import os, sys, ipykernel, pathlib; folder = pathlib.Path(ipykernel.get_connection_file()).parent",
                 "print(sys.executable, folder, oct(folder.stat().st_mode)[-3:], *sorted(os.listdir()))")
    words = [printed(path).split() for path in run("01_data", "02_train")]
    assert [line[0] for line in words] == [sys.executable] * 2
    assert len({line[1] for line in words}) == 2  # each run has its own folder
    assert [line[2:] for line in words] == [["700", "01_data.ipynb", "02_train.ipynb"]] * 2
    assert not [line[1] for line in words if Path(line[1]).exists()]


def test_mistakes_are_found_before_anything_runs(run):
    run.make("01_data")
    (run.source / "03_broken.ipynb").write_text("{")
    broken = nbformat.read(run.source / "01_data.ipynb", as_version=4)
    broken.cells[1].source = "PROFILE = "
    nbformat.write(broken, run.source / "04_odd.ipynb")
    with pytest.raises(NotebookError, match=r"04_odd\.ipynb: its cell with the tag 'parameters' is not Python: invalid syntax"):
        run("01_data", "04_odd")
    with pytest.raises(NotebookError, match=r"05_gone\.ipynb: no such notebook; there are: 01_data, 03_broken, 04_odd"):
        run("01_data", "05_gone")
    with pytest.raises(NotebookError, match=r"03_broken\.ipynb: not a readable notebook"):
        run("01_data", "03_broken")
    with pytest.raises(NotebookError, match=r"01_data\.ipynb: unknown parameter 'STEP' \(value 5\); .* sets: PROFILE, LIMITS, LOG"):
        run("01_data", parameters={"PROFILE": "smoke", "STEP": 5})
    with pytest.raises(NotebookError, match=r"'PROFIL' \(value 5\); did you mean 'PROFILE'\?; its cell"):
        run("01_data", parameters={"PROFIL": 5})
    with pytest.raises(NotebookError, match="values that JSON can hold"):
        run("01_data", parameters={"PROFILE": {1, 2}})
    assert run.ran() == [] and not run.output.exists() and run.lines == []


def test_publishing_two_like_runs_gives_the_same_bytes(run, tmp_path):
    cells = ["import sys, warnings; warnings.warn('old')", "print('a', flush=True)\nprint('b', file=sys.stderr, flush=True)\nprint('c')",
             "", "1 + 1"]
    run.make("01_data", *cells)
    pages = []
    for k in range(2):
        [executed] = run("01_data", fresh=True)
        pages.append(publish(executed, tmp_path / f"published{k}.ipynb").read_bytes())
    assert run.ran() == ["01_data"] * 2 and pages[0] == pages[1]
    notebook = nbformat.reads(pages[0].decode(), as_version=4)
    nbformat.validate(notebook)
    assert [cell.source for cell in notebook.cells][1:2] + [cell.source for cell in notebook.cells][3:] == [PARAMETERS, *cells]
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 1, 2, 3, 4, None, 5]
    assert [(o.name, o.text) for o in notebook.cells[4].outputs] == [("stdout", "a\nc\n")] and notebook.cells[3].outputs == []
    assert notebook.cells[6].outputs[0].execution_count == 5 and notebook.cells[6].outputs[0].data["text/plain"] == "2"
    assert notebook.cells[1].metadata == {"tags": ["parameters"]} and notebook.cells[2].metadata == {}
    assert notebook.metadata.kernelspec == {"name": "python3", "display_name": "Python 3", "language": "python"}
    assert "version" not in notebook.metadata.language_info and "papermill" not in notebook.metadata


def test_publishing_keeps_real_differences_and_refuses_what_did_not_finish(tmp_path):
    def executed(text: str, **metadata) -> Path:
        cell = new_code_cell("print(1)", id="a", execution_count=7, outputs=[new_output("stream", name="stdout", text=text)])
        nbformat.write(new_notebook(cells=[cell], metadata=metadata), tmp_path / "in.ipynb")
        return tmp_path / "in.ipynb"

    one = publish(executed("1\n", papermill={"duration": 1.5}), tmp_path / "one.ipynb").read_bytes()
    assert one == publish(executed("1\n", papermill={"duration": 2.5}), tmp_path / "two.ipynb").read_bytes()
    assert one != publish(executed("2\n"), tmp_path / "three.ipynb").read_bytes()
    assert json.loads(one)["cells"][0]["execution_count"] == 1
    with pytest.raises(NotebookError, match="did not run to its end"):
        publish(executed("1\n", papermill={"exception": True}), tmp_path / "one.ipynb")
    assert (tmp_path / "one.ipynb").read_bytes() == one


def test_time_remaining_comes_from_earlier_runs_or_from_the_average_of_this_one():
    assert _remaining([], [10, 20, 5]) == 35 and _remaining([], [None, 20]) is None
    assert _remaining([2, 4], [None, 20]) == 23


def test_notebooks_find_the_repository_from_any_folder_in_it(monkeypatch, tmp_path):
    root = Path(__file__).resolve().parents[2]
    monkeypatch.chdir(root / "tests" / "repro")
    assert enter_repository() == root == Path.cwd()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="not inside the repository"):
        enter_repository()


STEMS = ("00_quickstart", "02_straight_through_gumbel", "03_vocabulary_matrix")


@pytest.mark.parametrize("name", ["03", "3", "03_vocabulary_matrix", "vocabulary_matrix", "03_vocabulary_matrix.ipynb", "notebooks/03_vocabulary_matrix.ipynb"])
def test_a_notebook_is_meant_by_number_name_or_path(name):
    assert find_notebook(name, STEMS) == "03_vocabulary_matrix" and find_notebook("0", STEMS) == "00_quickstart"


@pytest.mark.parametrize(("name", "hint"), [("03_vocabulary", "; did you mean '03_vocabulary_matrix'?"), ("7", ""), ("09", "")])
def test_a_notebook_that_is_not_there_is_named_with_those_that_are(name, hint):
    with pytest.raises(NotebookError) as error:
        find_notebook(name, STEMS)
    assert str(error.value) == f"no notebook is called {name!r}{hint}; there are: {', '.join(STEMS)}"


@pytest.mark.parametrize(("text", "value"), [
    ("4000", 4000), ("0.5", 0.5), ("[0, 0, 2]", [0, 0, 2]), ("True", True), ("None", None), ("'3'", "3"), ("two kites", "two kites"), ("", ""),
    ("a=b", "a=b"), ("(", "("), ("true", "true")])
def test_parameters_are_literals_or_texts(text, value):
    assert read_parameters([f"draws={text}", "other = 1"]) == {"draws": value, "other": 1}


@pytest.mark.parametrize(("texts", "message"), [
    (["draws"], "parameter 'draws': expected NAME=VALUE, such as draws=4000"), (["=3"], "parameter '=3': expected NAME=VALUE"),
    (["two words=3"], "expected NAME=VALUE"), (["a=1", "a=2"], "parameter 'a' is given twice")])
def test_what_is_no_parameter_is_refused(texts, message):
    with pytest.raises(NotebookError, match=message):
        read_parameters(texts)
