"""Files that are never half written, and that say what is wrong with them when they are read.

Everything is saved under a temporary name beside its place, flushed to the disk and then moved into place.
A reader sees the old file or the new one, never half of one, and a full disk leaves the old one.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

TEMPORARY = ".tmp"  # how the names of temporary folders end


class SaveError(OSError):
    """A file or folder could not be saved; the one that stood there before is untouched."""


class ResultsError(ValueError):
    """A file is missing, damaged or not like the others; the message names it and says what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or of another configuration; the message says which and what to do."""


ADVICE = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "your disk quota is used up: free some space and run the same command again",
    errno.EACCES: "the folder is not writable: check its permissions",
    errno.EROFS: "the disk is mounted read-only",
}


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns a system error while ``path`` is saved into a SaveError that says what to do."""
    try:
        yield
    except Exception as error:  # a SaveError has no errno and goes through
        # safetensors reports an error of the system as one of its own, with the number in its message.
        number = re.search(r"\(os error (\d+)\)", str(error))
        code = error.errno if isinstance(error, OSError) else int(number[1]) if number else None
        if code is None:
            raise
        advice = ADVICE.get(code, os.strerror(code))
        raise SaveError(f"could not save {path}: {advice}. What was there before is untouched.") from error


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, removed at the end; first, those that killed processes left are removed.

    Its process holds a lock on it, which the system releases however the process ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    lock = None
    while lock is None:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY))
        lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """Opens and locks a new folder; None if another process took it for abandoned and removed it."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # a file system without locks: there, none is taken for abandoned
        fcntl.flock(lock, fcntl.LOCK_EX)
    if folder.is_dir():
        return lock
    os.close(lock)
    return None


def _remove_abandoned(path: Path) -> None:
    """Removes the temporary folders beside ``path`` whose process has ended."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}"):
        with contextlib.suppress(OSError):  # its process lives, or removed it meanwhile
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def make_folder(path: Path | str) -> Path:
    """Makes a folder, if need be, in which files can be written. Raises SaveError where that cannot be."""
    path = Path(path)
    with _explained(path), _temporary_folder(path / "new"):
        return path


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Writes ``content`` to ``path`` atomically, in a folder made for it if need be. Raises SaveError."""
    path = Path(path)
    with _explained(path):
        with _temporary_folder(path) as folder:
            with open(folder / path.name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # other users may read results
            os.replace(file.name, path)
    return path


def write_text(path: Path | str, text: str) -> Path:
    """Writes ``text`` as UTF-8 to ``path`` atomically. Raises SaveError."""
    return write_bytes(path, text.encode("utf-8"))


def append_text(path: Path | str, text: str) -> Path:
    """Adds ``text`` to the end of ``path``. Not atomic: a kill can cut off a line. Raises SaveError."""
    with _explained(Path(path)), open(path, "a", encoding="utf-8") as file:
        file.write(text)
    return Path(path)


def write_json(path: Path | str, value: Any) -> Path:
    """Writes ``value`` as indented JSON to ``path`` atomically. Raises SaveError, and ValueError on NaN."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_bytes(path: Path | str, made_by: str, remove: Path | str = "") -> bytes:
    """The bytes of a file that the command ``made_by`` makes, which keeps what is done unless ``remove`` is
    deleted. Raises ResultsError if it is missing."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        once = f", once {remove} is deleted" if remove and Path(remove).exists() else ""
        where = f"no such file in {Path.cwd().name!r}"
        raise ResultsError(f"{path}: {where}; `{made_by}` makes it{once}") from None
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def find_problem(value: Any, shape: Any, where: str = "") -> str | None:
    """Where a JSON value first differs from ``shape``, in words, or None where it does not.

    A shape is a type, or several (``str | None``); a list of the one shape that every row has; or a
    dictionary with the shape of each field of an object: "name", "name?" for one that may be missing, or
    "*" for all. ``where`` is the place of the value in a larger one.
    """
    if isinstance(shape, list) and isinstance(value, list):
        return next(filter(None, (find_problem(row, shape[0], f"{where}, row {number}".removeprefix(", "))
                                  for number, row in enumerate(value, 1))), None)
    if isinstance(shape, dict) and isinstance(value, dict):
        fields = [(name.rstrip("?"), kind) for name, kind in shape.items()
                  if name != "*" and (name[-1] != "?" or name[:-1] in value)]
        fields += [(name, shape["*"]) for name in value if "*" in shape]
        inside = f"{where[:-1]}." if where.endswith("'") else f"{where}, field '".removeprefix(", ")
        return next(filter(None, (find_problem(value.get(name), kind, f"{inside}{name}'")
                                  for name, kind in fields)), None)
    kinds = (type(shape),) if isinstance(shape, dict | list) else get_args(shape) or (shape,)
    # JSON's true and false are no numbers, though Python's are.
    if isinstance(value, kinds) and (not isinstance(value, bool) or {bool, object} & {*kinds}):
        return None
    names = {dict: "an object", list: "a list", type(None): "None"}
    expected = " or ".join(names.get(kind, kind.__name__) for kind in kinds)
    found = type(value).__name__ if dict in kinds or list in kinds else f"{value!r:.60}"
    return f"{where}: expected {expected}, found {found}".removeprefix(": ")


def _parsed(content: bytes, where: str, again: str, shape: Any) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{where}: damaged, it is not readable JSON ({error}); {again}") from None
    if problem := find_problem(value, shape):
        raise ResultsError(f"{where}: {problem}; {again}")
    return value


def read_json(path: Path | str, made_by: str, shape: Any = object, *, remove: Path | str = "") -> Any:
    """The content of a JSON file that the command ``made_by`` makes, once it, or ``remove``, is deleted.
    Raises ResultsError if it is missing, damaged or not of the ``shape`` (see ``find_problem``)."""
    again = f"delete {remove or 'the file'} and make it again with `{made_by}`"
    return _parsed(read_bytes(path, made_by, remove), str(path), again, shape)


def read_json_lines(path: Path | str, made_by: str, shape: Any = dict, *, growing: bool = False,
                    remove: Path | str = "") -> list[dict[str, Any]]:
    """The rows of a file of one JSON object per line, each of the ``shape``, otherwise as ``read_json``.

    A ``growing`` file may end in a line that a kill cut off, which is left out.
    """
    again = f"delete {remove or 'the file'} and make it again with `{made_by}`"
    lines = read_bytes(path, made_by, remove).split(b"\n")
    if growing or not lines[-1]:
        lines.pop()
    return [_parsed(line, f"{path}, row {number}", again, shape) for number, line in enumerate(lines, 1)]


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields an empty temporary folder that takes the place of ``path`` when the block ends without an error.

    If the block fails, a folder already at ``path`` stays as it was. Raises SaveError when a write fails.
    """
    path = Path(path)
    with _explained(path):
        with _temporary_folder(path) as temporary:
            os.chmod(temporary, 0o755)
            yield temporary
            os.sync()  # one flush for thousands of files: a flush for each would take most of the time
            # A rename cannot replace a full folder, so the old one steps aside first. A kill between the two
            # renames leaves it under its ".old" name, from which `recover_folder` puts it back.
            aside = path.with_name(f".{path.name}.old")
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside, ignore_errors=True)


READY = ".new.ready"  # the folder of finished files that are being moved into the one around it


@contextlib.contextmanager
def atomic_files(folder: Path | str) -> Iterator[Path]:
    """Yields an empty temporary folder whose files move into ``folder`` when the block ends without an error.

    Each replaces the one of its name; whatever else is in ``folder`` stays. All of them move or none: where a
    kill cuts the moves off, ``complete_files`` ends them, which whoever reads several of the files calls
    first. Raises SaveError.
    """
    folder = complete_files(folder)
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(folder / "new") as temporary:
            yield temporary
            if taken := [file.name for file in temporary.iterdir() if (folder / file.name).is_dir()]:
                raise SaveError(f"could not save {folder / taken[0]}: a folder of that name is there. What "
                                "was there before is untouched.")
            os.chmod(temporary, 0o755)
            os.sync()
            while True:
                try:
                    os.rename(temporary, folder / READY)  # from here on, the new files are what counts
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    complete_files(folder)  # another process's, which ended meanwhile
    complete_files(folder)


def complete_files(folder: Path | str) -> Path:
    """Ends the moves of ``atomic_files`` into ``folder`` that were cut off, if any; returns ``folder``.

    Raises SaveError where they cannot be ended.
    """
    folder = Path(folder)
    ready = folder / READY
    if not ready.is_dir():
        return folder
    try:
        with contextlib.suppress(FileNotFoundError):  # another process moves them too
            for file in sorted(ready.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(file, folder / file.name)
            ready.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # new ones, which their own process moves
            why = ADVICE.get(error.errno or 0, error.strerror)
            raise SaveError(f"could not save {folder}: {why}. Its new files wait in {ready}, and the same "
                            "command goes on with them.") from error
    return folder


def recover_folder(path: Path | str) -> Path:
    """Puts back a folder whose replacement was cut off between two renames; returns ``path``.

    What processes that were killed left of it beside ``path`` is removed."""
    path = Path(path)
    _remove_abandoned(path)
    aside = path.with_name(f".{path.name}.old")
    if not path.exists() and aside.exists():
        os.replace(aside, path)
    shutil.rmtree(aside, ignore_errors=True)
    return path


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path | str) -> dict[str, str]:
    """The SHA-256 of every file below ``folder``, keyed by its path relative to it, in sorted order."""
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def check(folder: Path | str) -> dict[str, str]:
    """Verifies a folder's files against its manifest.json; returns their hashes. Raises CheckpointError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint at {folder}; train one with `e2e train`, "
                              "or name another folder")
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        hashes = manifest.get("files", manifest)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint at {folder} has no readable manifest.json "
                              f"({type(error).__name__}); remove the folder and train again") from None
    for name, expected in hashes.items():
        actual = sha256(folder / name) if (folder / name).is_file() else None
        if actual != expected:
            problem = "not what was saved (its SHA-256 differs from manifest.json)" if actual else "missing"
            raise CheckpointError(f"the checkpoint at {folder} is damaged: {name} is {problem}; "
                                  "remove the folder and train again")
    return dict(hashes)


def weights_hash(folder: Path | str) -> str:
    """The SHA-256 of a checkpoint's weights (of its hashes, where they lie in several files), once all its
    files are verified. Raises CheckpointError."""
    return hash_of_weights(check(folder))


def hash_of_weights(hashes: dict[str, str]) -> str:
    """``weights_hash`` of a checkpoint whose files, by the ``hashes`` of its manifest, have been verified."""
    each = [hashes[name] for name in shards(hashes, "model")]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def shards(hashes: dict[str, str], stem: str) -> list[str]:
    """The files of a checkpoint that hold its "model" or its "optimizer", by the names in its manifest."""
    return sorted(name for name in hashes if re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.safetensors", name))
