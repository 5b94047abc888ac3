"""Running notebooks headlessly, in order, and publishing them.

A notebook that is finished is not run again while nothing it depends on has changed: its cells, the parameters, the
caller's ``inputs`` (hashes of code, settings and data) and the notebooks before it. What it depended on is written
beside it, as ``<name>.done.json``.
"""

import contextlib
import copy
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from e2e_lib.repro import files

KERNEL = "python3"
SOURCE = Path("notebooks")
# Under load a kernel may take long to start, or to send what a finished cell printed.
START_TIMEOUT_S = 120
OUTPUT_TIMEOUT_S = 60
# Sockets in the file system: nobody else on the machine can listen in, and no two runs can want the same port.
LOCAL_SOCKETS = Config({"KernelManager": {"transport": "ipc"}})
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class NotebookError(ValueError):
    """Notebooks were asked for that cannot be run as asked; nothing was run."""


class NotebookFailed(RuntimeError):
    """A notebook stopped at a cell. ``cell`` counts the notebook's cells from 1; what had run so far is in ``partial``."""

    def __init__(self, name: str, cell: int, source: str, ename: str, evalue: str, traceback: str, partial: Path) -> None:
        head = source.strip().splitlines()
        shown = "\n".join(f"    {line}" for line in head[:6]) + ("\n    …" if len(head) > 6 else "")
        details = f"\n{traceback}" if traceback else ""
        super().__init__(f"notebook {name} failed in cell {cell}:\n{shown}\n{ename}: {evalue}{details}\n"
                         f"What ran until then is in {partial}. Notebooks finished before it are kept; the next run goes on from here.")
        self.name, self.cell, self.source, self.partial = name, cell, source, partial
        self.ename, self.evalue, self.traceback = ename, evalue, traceback


@dataclass(frozen=True)
class Outcome:
    """One notebook that is done: its executed copy, the seconds it took, and whether it was done already."""

    name: str
    executed: Path
    seconds: float
    skipped: bool


@dataclass(frozen=True)
class _Task:
    name: str
    source: Path
    output: Path
    parameters_cell: int
    depends_on: str

    @property
    def executed(self) -> Path:
        return self.output / f"{self.name}.ipynb"

    @property
    def partial(self) -> Path:
        return self.output / f"{self.name}.failed.ipynb"

    @property
    def stamp(self) -> Path:
        return self.output / f"{self.name}.done.json"


def enter_repository() -> Path:
    """Makes the repository's root the working folder, from a notebook's own folder; returns it. Raises NotebookError outside one."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "pyproject.toml").is_file() and (folder / "e2e_lib").is_dir():
            os.chdir(folder)
            return folder
    raise NotebookError(f"{Path.cwd()}: this is not inside the repository; start Jupyter from its root or its notebooks folder")


def _tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def _read(path: Path) -> Any:
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.ipynb"))) or "none"
        raise NotebookError(f"{path}: no such notebook; there are: {there}")
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat lets out whatever its JSON and schema parsers raise
        raise NotebookError(f"{path}: not a readable notebook ({error}); restore it, for example with git") from error


def _prepare(name: str, source: Path, output: Path, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> _Task:
    """Checks one notebook without running it. Raises NotebookError."""
    path = source / f"{name}.ipynb"
    notebook = _read(path)
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in _tags(cell)]
    if not tagged:
        raise NotebookError(f"{path}: no cell is tagged 'parameters'; tag the one that sets the notebook's parameters")
    known = papermill.inspect_notebook(str(path))
    unknown = [key for key in parameters if key not in known]
    if unknown:
        raise NotebookError(f"{path}: unknown parameter {unknown[0]!r} (value {parameters[unknown[0]]!r}); "
                            f"its 'parameters' cell has: {', '.join(known) or 'none'}")
    cells = [[cell.cell_type, cell.source, _tags(cell)] for cell in notebook.cells]
    try:
        depends_on = json.dumps([cells, dict(parameters), dict(inputs)], sort_keys=True)
    except TypeError as error:
        raise NotebookError(f"{path}: parameters must be plain values that JSON can hold ({error})") from error
    return _Task(name, path, output, tagged[0], hashlib.sha256(depends_on.encode("utf-8", "surrogatepass")).hexdigest())


def _read_stamp(task: _Task) -> dict[str, Any]:
    """What was noted when the notebook was last finished; a missing or damaged note counts as none."""
    with contextlib.suppress(OSError, ValueError):
        stamp = json.loads(task.stamp.read_bytes())
        if isinstance(stamp, dict) and isinstance(stamp.get("seconds"), int | float):
            return stamp
    return {}


def _is_done(task: _Task, stamp: Mapping[str, Any]) -> bool:
    return (stamp.get("depends_on") == task.depends_on and task.executed.is_file()
            and stamp.get("executed") == files.sha256(task.executed))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _last_started(path: Path) -> int:
    """The index of the cell an executed notebook was in when it was last saved."""
    with contextlib.suppress(Exception):
        cells = nbformat.read(path, as_version=4).cells
        return max(i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time"))
    return 0


def _failure(task: _Task, temporary: Path, error: Exception, timeout_s: int) -> NotebookFailed:
    """What to tell about a notebook that did not get to its end; keeps what ran so far."""
    traceback = ""
    if isinstance(error, PapermillExecutionError):
        index, ename, evalue = error.cell_index, error.ename, error.evalue
        traceback = "\n".join(_ANSI.sub("", "\n".join(error.traceback)).splitlines()[-12:])
    else:
        index = _last_started(temporary)
        ename = type(error).__name__
        evalue = str(error)
        if isinstance(error, CellTimeoutError):
            evalue = f"the notebook did not finish within its {timeout_s} s; give it more time or a smaller profile"
        elif isinstance(error, DeadKernelError):
            evalue = "the kernel died while the cell ran; it was killed, perhaps for want of memory, or it crashed"
    # Papermill puts a cell with the given parameters after the tagged one, which the reader's notebook does not have.
    index -= index > task.parameters_cell
    cells = _read(task.source).cells
    if temporary.is_file():
        files.write_bytes(task.partial, temporary.read_bytes())
    return NotebookFailed(task.name, index + 1, cells[index].source, ename, evalue, traceback, task.partial)


def _run(task: _Task, parameters: Mapping[str, Any], timeout_s: int) -> float:
    """Runs one notebook and saves it with its stamp; returns its seconds. Raises NotebookFailed."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / f"{task.name}.ipynb"
        try:
            executed = papermill.execute_notebook(
                str(task.source), str(temporary), parameters=dict(parameters), kernel_name=KERNEL, cwd=str(task.source.parent),
                progress_bar=False, start_timeout=START_TIMEOUT_S, iopub_timeout=OUTPUT_TIMEOUT_S, config=LOCAL_SOCKETS,
                # Each cell may take what is left of the notebook's time, so that one limit holds for both.
                timeout_func=lambda _cell: max(1, round(timeout_s - (time.monotonic() - start))))
            if executed.metadata.papermill.get("exception"):  # papermill takes exit() for a regular end
                index = _last_started(temporary)
                raise PapermillExecutionError(index, None, executed.cells[index].source, "SystemExit",
                                              "the cell ended the notebook before its last cell", [])
        except Exception as error:  # papermill, nbclient and the kernel's channels each raise their own
            raise _failure(task, temporary, error, timeout_s) from error
        content = temporary.read_bytes()
    seconds = time.monotonic() - start
    files.write_bytes(task.executed, content)
    task.partial.unlink(missing_ok=True)
    files.write_json(task.stamp, {"depends_on": task.depends_on, "executed": hashlib.sha256(content).hexdigest(),
                                  "seconds": round(seconds, 3)})
    return seconds


def run_notebooks(names: Sequence[str], *, profile: str, parameters: Mapping[str, Any], timeout_s: int, source: Path | str = SOURCE,
                  output: Path | str | None = None, inputs: Mapping[str, str] | None = None, fresh: bool = False,
                  echo: Callable[[str], None] = print) -> list[Outcome]:
    """Runs ``<source>/<name>.ipynb`` for each name, in order, and returns what came of each.

    ``parameters`` are given to every notebook, which must know them all. A notebook runs in its own folder, as in
    Jupyter, and has ``timeout_s`` seconds. Executed copies go to ``output`` (``results/<profile>/notebooks``). One that is
    done and whose cells, parameters and ``inputs`` (names to hashes) are the same is skipped unless ``fresh``; once one
    has run, those after it run too, since they may read what it wrote. ``echo`` gets a progress line before and after each.

    Raises NotebookError before anything has run (no such notebook, no 'parameters' cell, an unknown parameter) and
    NotebookFailed when a cell raises, runs out of time or loses its kernel; what was finished is kept.
    """
    source, output = Path(source).resolve(), Path(output or Path("results") / profile / "notebooks")
    if timeout_s < 1:
        raise NotebookError(f"timeout_s is {timeout_s}; expected at least 1 second")
    tasks = [_prepare(name, source, output, parameters, inputs or {}) for name in names]
    stamps = {task.name: _read_stamp(task) for task in tasks}
    start, outcomes = time.monotonic(), list[Outcome]()
    for i, task in enumerate(tasks, 1):
        label, stamp = f"notebook {i} of {len(tasks)}: {task.name}", stamps[task.name]
        if not fresh and all(o.skipped for o in outcomes) and _is_done(task, stamp):
            echo(f"{label} already done, skipped")
            outcomes.append(Outcome(task.name, task.executed, stamp["seconds"], True))
            continue
        for later in tasks[i - 1:]:
            later.stamp.unlink(missing_ok=True)
        elapsed = time.monotonic() - start
        remaining = _remaining([stamps[t.name].get("seconds") for t in tasks[i - 1:]], [o.seconds for o in outcomes])
        echo(f"{label} (elapsed {_clock(elapsed)}" + (f", about {_clock(remaining)} remaining)" if remaining is not None else ")"))
        seconds = _run(task, parameters, timeout_s)
        outcomes.append(Outcome(task.name, task.executed, seconds, False))
        echo(f"{label} done in {_clock(seconds)}")
    return outcomes


def _remaining(known: Sequence[float | None], finished: Sequence[float]) -> float | None:
    """Seconds still to go: what each notebook took the last time, else what the finished ones took on average."""
    if finished:
        typical = sum(finished) / len(finished)
        return sum(typical if seconds is None else seconds for seconds in known)
    return None if any(seconds is None for seconds in known) else sum(seconds for seconds in known if seconds is not None)


def publish(executed: Path | str, target: Path | str) -> Path:
    """Copies an executed notebook to ``target`` without what changes from run to run; two like runs give the same bytes.

    Taken out: times, papermill's notes and its cell of given parameters, warnings and logs (stderr), and the Python
    version. Cells are numbered from 1, widgets in the order they are shown. Raises NotebookError if ``executed`` is
    unreadable or did not run to its end, and files.SaveError.
    """
    notebook = copy.deepcopy(_read(Path(executed)))
    if notebook.metadata.get("papermill", {}).get("exception"):
        raise NotebookError(f"{executed}: it did not run to its end; run it again before publishing it")
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in _tags(cell)]
    count = 0
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if not _tags(cell):
            cell.metadata.pop("tags", None)
        if cell.cell_type == "code":
            count += cell.execution_count is not None
            _clean_outputs(cell, count)
    language = {key: value for key, value in notebook.metadata.get("language_info", {}).items() if key != "version"}
    notebook.metadata.pop("papermill", None)
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": KERNEL}
    notebook.metadata.language_info = language or {"name": "python"}
    _rename_widgets(notebook)
    return files.write_text(target, nbformat.writes(notebook).rstrip("\n") + "\n")


def _clean_outputs(cell: Any, count: int) -> None:
    """Numbers a code cell ``count`` if it ran, drops stderr, and joins what was printed in pieces, as time would have it."""
    if cell.execution_count is not None:
        cell.execution_count = count
    outputs: list[Any] = []
    for output in cell.outputs:
        if output.output_type == "execute_result":
            output.execution_count = count
        if output.output_type != "stream":
            outputs.append(output)
        elif output.name != "stderr":
            if outputs and outputs[-1].output_type == "stream":
                outputs[-1].text += output.text
            else:
                outputs.append(output)
    cell.outputs = outputs


def _rename_widgets(notebook: Any) -> None:
    """Gives the widgets' random ids the numbers in which they are met, starting from the cells."""
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    state = widgets.get("state")
    if not state:
        return
    order: dict[str, str] = {}

    def meet(value: Any) -> None:
        for identifier in re.findall(r"[0-9a-f]{32}", json.dumps(value, sort_keys=True)):
            if identifier in state and identifier not in order:
                order[identifier] = f"{len(order):032x}"
                meet(state[identifier])

    meet([cell.get("outputs", []) for cell in notebook.cells])
    # Widgets that nothing shows come last, in an order that does not depend on their ids.
    masked = {key: re.sub(r"[0-9a-f]{32}", "", json.dumps(model, sort_keys=True)) for key, model in state.items()}
    for identifier in sorted(state, key=lambda key: masked[key]):
        meet(identifier)
    text = re.sub(r"[0-9a-f]{32}", lambda match: order.get(match[0], match[0]), nbformat.writes(notebook))
    renamed = nbformat.reads(text, as_version=4)
    notebook.cells, notebook.metadata = renamed.cells, renamed.metadata
