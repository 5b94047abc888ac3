"""A run's folder while it is trained in: by one run at a time, from the newest checkpoint that is whole."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError, SaveError, check
from e2e_lib.training import checkpoints
from e2e_lib.training.processes import ProcessError, from_first

LATEST, BEFORE = "latest", "before"  # a checkpoint to go on from, and the one before it
LOCK = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps every other run out of a run's folder, which is made if need be, while a block runs.

    The system lets go of the lock however its process ends. Raises ProcessError naming the process that is at
    work there, and files.SaveError where nothing can be written.
    """
    lock = FileLock(folder / LOCK)
    from_first(lambda: _take(lock, folder))
    try:
        yield
    finally:
        lock.release()  # which the other processes of this run have not


def _take(lock: BaseFileLock, folder: Path) -> None:
    files.make_folder(folder)
    try:
        lock.acquire(blocking=False)
        (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout:
        who = (folder / LOCK).read_text(encoding="utf-8") or "another process"
        raise ProcessError(f"{folder}: {who} is training there; let it end, or end it, first") from None
    except OSError as error:
        raise _save_error(folder / LOCK, error) from error


def newest(folder: Path, echo: Callable[[str], None]) -> tuple[Path, dict[str, str]] | None:
    """The checkpoint that a run goes on from, and the hashes of its files, which are verified; None if there
    is none.

    A damaged ``latest`` is said to be, and the one before takes its place. Raises CheckpointError if that is
    damaged, too, or not there.
    """
    latest, before = folder / LATEST, folder / BEFORE
    problem = ""
    try:
        if checkpoints.exists(latest):
            return latest, check(latest)
    except CheckpointError as error:
        problem = str(error)
        if not before.is_dir():
            raise
    if not before.is_dir():
        return None
    try:
        hashes = check(before)
    except CheckpointError as error:
        first = problem or f"the checkpoint at {latest} is missing"
        raise CheckpointError(f"{first}. Nor does the one before it help: {error}") from None
    found = problem.partition("; ")[0] or f"{latest} is missing, its replacement was cut off"
    echo(f"{found}; going on from the checkpoint before it")
    try:
        shutil.rmtree(latest, ignore_errors=True)
        os.replace(before, latest)
    except OSError as error:
        raise _save_error(latest, error) from error
    return latest, hashes


def _save_error(path: Path, error: OSError) -> SaveError:
    advice = files.ADVICE.get(error.errno or 0, error.strerror)
    return SaveError(f"could not save {path}: {advice}. What was there before is untouched.")
