import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from e2e_lib.repro.notebooks import NotebookError, NotebookFailed, _clock, _prepare, _remaining, publish, run_notebooks

PARAMETERS = "PROFILE = 'mini'  # which size\nLIMITS = [\n    1,\n    2,\n]\nLOG = ''"


def make(folder: Path, name: str, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    """A notebook with a title, a cell of parameters unless None, and ``cells``; its cell ids follow from their places."""
    made = [new_markdown_cell(f"# {name}")]
    if parameters is not None:
        made.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    made += [new_code_cell(cell) for cell in cells]
    for i, cell in enumerate(made):
        cell.id = f"cell-{i}"
    folder.mkdir(parents=True, exist_ok=True)
    kernelspec = {"name": "python3", "display_name": "My Python", "language": "python"}
    nbformat.write(new_notebook(cells=made, metadata={"kernelspec": kernelspec}), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


class Runner:
    """Runs throwaway notebooks that each append their name to one log."""

    def __init__(self, folder: Path) -> None:
        self.source, self.output, self.log = folder / "notebooks", folder / "out", folder / "log"
        self.lines: list[str] = []

    def __call__(self, *names: str, timeout_s: int = 120, **options):
        self.lines.clear()
        parameters = options.pop("parameters", {"PROFILE": "smoke", "LOG": str(self.log)})
        return run_notebooks(names, profile="smoke", parameters=parameters, timeout_s=timeout_s, source=self.source,
                             output=self.output, echo=self.lines.append, **options)

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
    outcomes = run("01_data", "02_train", inputs={"code": "1"})
    assert [(o.name, o.skipped) for o in outcomes] == [("01_data", False), ("02_train", False)] and run.ran() == ["01_data", "02_train"]
    assert printed(run.output / "01_data.ipynb") == "smoke [1, 2] notebooks\n" and printed(outcomes[1].executed) == "a fresh kernel\n"
    patterns = [r"notebook 1 of 2: 01_data \(elapsed 0:00\)", r"notebook 1 of 2: 01_data done in \d:\d\d",
                r"notebook 2 of 2: 02_train \(elapsed \d:\d\d, about \d:\d\d remaining\)", r"notebook 2 of 2: 02_train done in \d:\d\d"]
    assert len(run.lines) == 4 and all(re.fullmatch(p, line) for p, line in zip(patterns, run.lines, strict=True))

    again = run("01_data", "02_train", inputs={"code": "1"})
    assert run.ran() == [] and run.lines == [f"notebook {i} of 2: {n} already done, skipped" for i, n in ((1, "01_data"), (2, "02_train"))]
    assert [(o.name, o.skipped) for o in again] == [("01_data", True), ("02_train", True)]

    run.make("02_train", "print('changed')")
    run("01_data", "02_train", inputs={"code": "1"})
    assert run.ran() == ["02_train"] and printed(outcomes[1].executed) == "changed\n"
    outcomes[0].executed.write_text(outcomes[0].executed.read_text() + " ")  # an edited copy is made again, and so is what follows
    run("01_data", "02_train", inputs={"code": "1"})
    assert run.ran() == ["01_data", "02_train"]


def test_what_a_notebook_depends_on(run):
    path = run.make("01_data", "print(1)")

    def depends_on(parameters: dict | None = None, inputs: dict | None = None) -> str:
        return _prepare("01_data", run.source, run.output, parameters or {"PROFILE": "smoke"}, inputs or {}).depends_on

    first = depends_on()
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].update(execution_count=3, outputs=[new_output("stream", text="1\n")])
    notebook.metadata.papermill = {"duration": 1}
    nbformat.write(notebook, path)
    assert depends_on() == first
    both = {"PROFILE": "smoke", "LOG": "x"}
    assert depends_on(both, {"b": "2", "a": "1"}) == depends_on(dict(reversed(both.items())), {"a": "1", "b": "2"})
    run.make("01_data", "print(2)")
    others = [depends_on(), depends_on(both), depends_on({"PROFILE": "mini"})]
    others += [depends_on(inputs={"code": "1"}), depends_on(inputs={"code": "2"})]
    assert len({first, *others}) == 6


def test_a_failing_cell_is_shown_and_the_next_run_goes_on_from_there(run):
    run.make("01_data")
    run.make("02_train", "step = 3", "def learn(step):\n    return 1 / (step - 3)\nlearn(step)")
    run.make("06_results")
    names = ("01_data", "02_train", "06_results")
    with pytest.raises(NotebookFailed) as failed:
        run(*names)
    error = failed.value
    assert (error.name, error.cell, error.ename, error.evalue) == ("02_train", 5, "ZeroDivisionError", "division by zero")
    message = str(error)
    assert "notebook 02_train failed in cell 5" in message and "def learn(step):" in message and "\x1b" not in message
    assert "return 1 / (step - 3)" in error.traceback and len(error.traceback.splitlines()) <= 12
    assert error.partial.name == "02_train.failed.ipynb" and error.partial.is_file()
    assert sorted(p.name for p in run.output.glob("*.ipynb")) == ["01_data.ipynb", "02_train.failed.ipynb"]
    run.ran()
    run.make("02_train")
    outcomes = run(*names)
    assert run.ran() == ["02_train", "06_results"] and [o.skipped for o in outcomes] == [True, False, False]
    assert not error.partial.exists()


@pytest.mark.parametrize(("cell", "ename", "evalue"), [
    ("import os; os._exit(1)", "DeadKernelError", "kernel died"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "DeadKernelError", "kernel died"),
    ("import time; time.sleep(600)", "CellTimeoutError", "did not finish within its 3 s"),
    ("raise SystemExit", "SystemExit", "ended the notebook before its last cell"),
])
def test_a_kernel_that_dies_hangs_or_leaves_is_an_error(run, cell, ename, evalue):
    run.make("04_joint", cell, "print('never')")
    with pytest.raises(NotebookFailed, match=evalue) as failed:
        run("04_joint", timeout_s=3 if "sleep" in cell else 120)
    assert (failed.value.cell, failed.value.source, failed.value.ename) == (4, cell, ename)
    assert not (run.output / "04_joint.ipynb").exists() and not (run.output / "04_joint.done.json").exists()


def test_mistakes_are_told_before_anything_runs(run):
    run.make("01_data")
    make(run.source, "02_untagged", "x = 1", parameters=None)
    (run.source / "03_broken.ipynb").write_text("{")
    for name, message in [("05_gone", r"05_gone\.ipynb: no such notebook; there are: 01_data, 02_untagged, 03_broken"),
                          ("02_untagged", r"02_untagged\.ipynb: no cell is tagged 'parameters'"),
                          ("03_broken", r"03_broken\.ipynb: not a readable notebook")]:
        with pytest.raises(NotebookError, match=message):
            run("01_data", name)
    with pytest.raises(NotebookError, match=r"01_data\.ipynb: unknown parameter 'STEP' \(value 5\); .* has: PROFILE, LIMITS, LOG"):
        run("01_data", parameters={"PROFILE": "smoke", "STEP": 5})
    with pytest.raises(NotebookError, match="plain values"):
        run("01_data", parameters={"PROFILE": object()})
    with pytest.raises(NotebookError, match="at least 1 second"):
        run("01_data", timeout_s=0)
    assert run.ran() == [] and not run.output.exists() and run.lines == []


def test_publishing_two_like_runs_gives_the_same_bytes(run, tmp_path):
    cells = ["import sys, warnings; warnings.warn('old')", "print('a', flush=True)\nprint('b', file=sys.stderr, flush=True)\nprint('c')",
             "", "import ipywidgets; ipywidgets.IntSlider(3, description='steps')", "1 + 1"]
    run.make("01_data", *cells)
    pages = []
    for k in range(2):
        [outcome] = run("01_data", fresh=True)
        pages.append(publish(outcome.executed, tmp_path / f"published{k}.ipynb").read_bytes())
    assert run.ran() == ["01_data"] * 2 and pages[0] == pages[1]
    notebook = nbformat.reads(pages[0].decode(), as_version=4)
    nbformat.validate(notebook)
    assert [cell.source for cell in notebook.cells][1:2] + [cell.source for cell in notebook.cells][3:] == [PARAMETERS, *cells]
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 1, 2, 3, 4, None, 5, 6]
    assert [(o.name, o.text) for o in notebook.cells[4].outputs] == [("stdout", "a\nc\n")] and notebook.cells[3].outputs == []
    assert notebook.cells[7].outputs[0].execution_count == 6 and notebook.cells[7].outputs[0].data["text/plain"] == "2"
    assert notebook.cells[1].metadata == {"tags": ["parameters"]} and notebook.cells[2].metadata == {}
    assert notebook.metadata.kernelspec == {"name": "python3", "display_name": "Python 3", "language": "python"}
    assert "version" not in notebook.metadata.language_info and "papermill" not in notebook.metadata
    shown = notebook.cells[6].outputs[0].data["application/vnd.jupyter.widget-view+json"]["model_id"]
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    assert state[shown]["state"]["value"] == 3
    assert state[state[shown]["state"]["layout"].removeprefix("IPY_MODEL_")]["model_name"] == "LayoutModel"


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


def test_clock_and_time_remaining():
    assert [_clock(s) for s in (0, 12.4, 59.6, 61, 3599, 3600, 7325)] == ["0:00", "0:12", "1:00", "1:01", "59:59", "1:00:00", "2:02:05"]
    assert _remaining([10, 20, 5], []) == 35 and _remaining([None, 20], []) is None
    assert _remaining([None, 20], [2, 4]) == 23
