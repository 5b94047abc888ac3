"""Running notebooks headlessly, in order, and publishing them.

A finished notebook is not run again while nothing it depends on has changed: its cells, the parameters, the
caller's ``inputs`` (hashes of settings and data) and the notebooks before it (see ``<name>.done.json``).
"""

import ast
import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from e2e_lib.repro import files
from e2e_lib.repro.provenance import clock
from e2e_lib.settings import did_you_mean

ADDED_BY_PAPERMILL = {"injected-parameters", "papermill-error-cell-tag"}


class NotebookError(ValueError):
    """Notebooks cannot be run as asked; nothing was run."""


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message says which, at which cell and why, and where what ran of it is."""


class _KernelManager(AsyncKernelManager):
    """Starts kernels of the interpreter that runs this, whatever kernels are installed by that name."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def _execution(folder: Path) -> dict[str, Any]:
    """papermill's arguments for a kernel that keeps its files in ``folder``, a private one.

    Sockets stand in the file system: nobody else on the machine can listen, and no two runs share one."""
    return {"kernel_name": "python3", "language": "python", "kernel_manager_class": _KernelManager,
            "progress_bar": False,
            "start_timeout": 120, "iopub_timeout": 60,  # under load a kernel starts and sends outputs slowly
            "config": Config({"KernelManager": {
                "transport": "ipc", "ip": str(folder / "k"), "connection_file": str(folder / "k.json")}})}


def _private_folder() -> "tempfile.TemporaryDirectory[str]":
    """A temporary folder that only this user can enter; paths of sockets in it must stay below 104 bytes."""
    usual = tempfile.gettempdir()
    return tempfile.TemporaryDirectory(prefix="e2e-", dir=usual if len(os.fsencode(usual)) < 80 else "/tmp")


def _tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _read(path: Path) -> Any:
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in path.parent.glob("*.ipynb"))) or "none"
        raise NotebookError(f"{path}: no such notebook; there are: {names}")
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat lets out whatever its JSON and schema parsers raise
        raise NotebookError(f"{path}: not a readable notebook ({error}); restore it, with git say") from error


def find_notebook(name: str, stems: Sequence[str]) -> str:
    """The one of ``stems`` that ``name`` means: "03", "3", "03_maps", "maps", each also with ".ipynb" or as a
    path. Raises NotebookError where none is or several are meant."""
    wanted = Path(name).name.removesuffix(".ipynb")
    number = wanted.zfill(2) if wanted.isdecimal() else wanted
    found = [stem for stem in stems if number in (stem, *stem.split("_", 1))]
    if len(found) != 1:
        raise NotebookError(f"no notebook is called {name!r}{did_you_mean(wanted, stems)}; "
                            f"there are: {', '.join(stems)}")
    return found[0]


def read_parameters(assignments: Sequence[str]) -> dict[str, Any]:
    """Texts such as "draws=4000" or "logits=[0, 0, 2]" as names and values: Python's literals, or else texts.

    Whether a notebook knows them is another matter. Raises NotebookError for a text without a name or "=",
    and for a name given twice."""
    parameters: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name.strip().isidentifier():
            raise NotebookError(f"parameter {assignment!r}: expected NAME=VALUE, such as draws=4000")
        if (name := name.strip()) in parameters:
            raise NotebookError(f"parameter {name!r} is given twice")
        try:
            parameters[name] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            parameters[name] = text
    return parameters


def _depends_on(path: Path, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The hash of all that decides a notebook's outputs, which is checked, not run. Raises NotebookError."""
    notebook = _read(path)
    cells = [[cell.cell_type, cell.source, sorted(_tags(cell))] for cell in notebook.cells]
    known = _parameters(path, [cell.source for cell in notebook.cells if "parameters" in _tags(cell)])
    for key, value in parameters.items():
        if key not in known:
            raise NotebookError(f"{path}: unknown parameter {key!r} (value {value!r})"
                                f"{did_you_mean(key, known)}; its cell with the tag 'parameters' sets: "
                                f"{', '.join(known) or 'none'}")
    try:
        content = json.dumps([cells, dict(parameters), dict(inputs)], sort_keys=True)
    except TypeError as error:
        raise NotebookError(f"{path}: parameters must be values that JSON can hold ({error})") from error
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _parameters(path: Path, sources: Sequence[str]) -> list[str]:
    """The names that a notebook's cells of parameters set, in order. Raises NotebookError."""
    try:
        tree = ast.parse("\n".join(sources))
    except SyntaxError as error:
        raise NotebookError(f"{path}: its cell with the tag 'parameters' is not Python: {error}") from None
    return [name.id for line in tree.body if isinstance(line, ast.Assign | ast.AnnAssign)
            for name in ast.walk(line) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]


def _unformatted(path: Path) -> str:
    """A path for papermill, which fills in parameters where it finds braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _stamp(executed: Path) -> dict[str, Any]:
    """What a notebook's last complete run depended on, its seconds and its hash; {} where that is unknown."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return {"seconds": 0} | json.loads(executed.with_suffix(".done.json").read_bytes())
    return {}


def _failure(path: Path, copy: Path, partial: Path, error: Exception, timeout_s: int) -> NotebookFailed:
    """The error to raise for a notebook that stopped; keeps what ran of it, its ``copy``, in ``partial``."""
    where, lines = "could not be run", list[str]()
    with contextlib.suppress(Exception):
        files.write_bytes(partial, copy.read_bytes())
        cells = [cell for cell in _read(copy).cells if not _tags(cell) & ADDED_BY_PAPERMILL]
        started = [i for i, cell in enumerate(cells, 1) if cell.metadata.papermill.get("start_time")]
        where = f"failed in cell {started[-1]}" if started else "could not be run: the kernel did not start"
        lines = cells[started[-1] - 1].source.strip().splitlines() if started else []
    problem = f"{type(error).__name__}: {error}"
    if isinstance(error, PapermillExecutionError):
        traceback = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", "\n".join(error.traceback))  # without colours
        problem = "\n".join(traceback.splitlines()[-12:]) or f"{error.ename}: {error.evalue}"
    elif isinstance(error, CellTimeoutError):
        problem = f"it did not finish within its {timeout_s} s; give it more time or a smaller profile"
    elif isinstance(error, DeadKernelError):
        problem = "the kernel died while the cell ran: killed, perhaps for want of memory, or crashed"
    excerpt = "".join(f"    {line}\n" for line in lines[:6] + ["…"] * (len(lines) > 6))
    return NotebookFailed(f"notebook {path.stem} {where}:\n{excerpt}{problem}\n"
                          f"What ran until then is in {partial}. Notebooks finished before it are kept; "
                          "the next run goes on from here.")


def _run(path: Path, executed: Path, parameters: Mapping[str, Any], timeout_s: int, depends_on: str) -> float:
    """Runs one notebook and saves it with its stamp; returns its seconds. Raises NotebookFailed."""
    start, partial = time.monotonic(), executed.with_suffix(".failed.ipynb")
    with _private_folder() as folder:
        copy = Path(folder) / path.name
        try:
            notebook = papermill.execute_notebook(
                _unformatted(path), _unformatted(copy), parameters=dict(parameters), cwd=str(path.parent),
                # Each cell may take what is left of the notebook's time, so that one limit holds for both.
                timeout_func=lambda _cell: max(1, round(timeout_s - time.monotonic() + start)),
                **_execution(Path(folder)))
            if notebook.metadata.papermill.get("exception"):  # papermill takes exit() for a regular end
                raise RuntimeError("the cell ended the notebook before its last cell")
        except Exception as error:  # papermill, nbclient and the kernel's channels each raise their own
            raise _failure(path, copy, partial, error, timeout_s) from error
        files.write_bytes(executed, copy.read_bytes())
    seconds = time.monotonic() - start
    partial.unlink(missing_ok=True)
    files.write_json(executed.with_suffix(".done.json"), {
        "depends_on": depends_on, "executed": files.sha256(executed), "seconds": round(seconds, 3)})
    return seconds


def run_notebooks(paths: Sequence[Path], output: Path, *, parameters: Mapping[str, Any], timeout_s: int,
                  inputs: Mapping[str, str], fresh: bool = False,
                  echo: Callable[[str], None] = print) -> list[Path]:
    """Runs notebooks in order; saves the executed copies in the folder ``output`` and returns them.

    Every notebook must know all ``parameters``, runs in its own folder and has ``timeout_s`` seconds. One
    that is done (see above) is skipped unless ``fresh``; once one has run, those after it run too, since they
    may read what it wrote. Raises NotebookError before anything has run (no such notebook, unknown parameter)
    and NotebookFailed when a cell raises, runs out of time or loses its kernel; what was finished is kept.
    """
    copies = [output / path.name for path in paths]
    depends_on = [_depends_on(path, parameters, inputs) for path in paths]
    seconds: list[Any] = [_stamp(executed).get("seconds") for executed in copies]
    start, ran = time.monotonic(), fresh
    for i, (path, executed) in enumerate(zip(paths, copies, strict=True)):
        label, stamp = f"notebook {i + 1} of {len(paths)}: {path.stem}", _stamp(executed)
        is_same = stamp.get("depends_on") == depends_on[i] and executed.is_file()
        if not ran and is_same and stamp.get("executed") == files.sha256(executed):
            echo(f"{label} already done, skipped")
            continue
        ran = True
        for later in copies[i:]:
            later.with_suffix(".done.json").unlink(missing_ok=True)
        remaining = _remaining(seconds[:i], seconds[i:])
        to_go = "" if remaining is None else f", about {clock(remaining)} remaining"
        echo(f"{label} (elapsed {clock(time.monotonic() - start)}{to_go})")
        seconds[i] = _run(path.resolve(), executed, parameters, timeout_s, depends_on[i])
        echo(f"{label} done in {clock(seconds[i])}")
    return copies


def _remaining(finished: Sequence[float], earlier: Sequence[float | None]) -> float | None:
    """Seconds to go: what each notebook took ``earlier``, else what the finished ones took on average."""
    if None in earlier and not finished:
        return None
    return sum(sum(finished) / len(finished) if last is None else last for last in earlier)


def publish(executed: Path, target: Path) -> Path:
    """Copies a notebook without what changes from run to run (times, warnings, logs) to ``target``.

    Two like runs give the same bytes. Raises NotebookError if the notebook did not run to its end.
    """
    notebook = _read(executed)
    if notebook.metadata.get("papermill", {}).get("exception"):
        raise NotebookError(f"{executed}: it did not run to its end; run it again before publishing it")
    notebook.cells = [cell for cell in notebook.cells if not _tags(cell) & ADDED_BY_PAPERMILL]
    count = 0
    for cell in notebook.cells:
        cell.metadata = {"tags": sorted(_tags(cell))} if _tags(cell) else {}
        if cell.cell_type == "code":
            count += cell.execution_count is not None
            cell.execution_count = cell.execution_count and count
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
    CoalesceStreamsPreprocessor().preprocess(notebook, {})  # one output for what was printed in pieces
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                         "language_info": {"name": "python"}}
    return files.write_text(target, nbformat.writes(notebook).rstrip("\n") + "\n")
