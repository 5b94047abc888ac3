"""Files that are never half written, and that say what is wrong with them when they are read.

Everything is saved under a temporary name beside its place, flushed to the disk and then moved into place.
A reader sees the old file or the new one, never half of one, and a full disk leaves the old one.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Writes ``content`` to ``path`` atomically, in a folder made for it if need be. Raises SaveError."""
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.",
                                         ignore_cleanup_errors=True) as folder:
            with open(Path(folder) / path.name, "wb") as file:
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


def read_bytes(path: Path | str, made_by: str) -> bytes:
    """The bytes of a file that the command ``made_by`` makes. Raises ResultsError if it is missing."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file in {Path.cwd().name!r}; `{made_by}` makes it") from None
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def _parsed(content: bytes, where: str, made_by: str, kind: type = object) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{where}: damaged, it is not readable JSON ({error}); delete the file and make "
                           f"it again with `{made_by}`") from None
    if not isinstance(value, kind):
        raise ResultsError(f"{where}: expected an object, found {type(value).__name__}")
    return value


def read_json(path: Path | str, made_by: str) -> Any:
    """The content of a JSON file. Raises ResultsError if it is missing or damaged."""
    return _parsed(read_bytes(path, made_by), str(path), made_by)


def read_json_lines(path: Path | str, made_by: str, *, growing: bool = False) -> list[dict[str, Any]]:
    """The rows of a file of one JSON object per line. Raises ResultsError naming the file and the row.

    A ``growing`` file may end in a line that a kill cut off, which is left out.
    """
    lines = read_bytes(path, made_by).split(b"\n")
    if growing or not lines[-1]:
        lines.pop()
    return [_parsed(line, f"{path}, row {number}", made_by, dict) for number, line in enumerate(lines, 1)]


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields an empty temporary folder that takes the place of ``path`` when the block ends without an error.

    If the block fails, a folder already at ``path`` stays as it was. Raises SaveError when a write fails.
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.",
                                         ignore_cleanup_errors=True) as temporary:
            os.chmod(temporary, 0o755)
            yield Path(temporary)
            os.sync()  # one flush for thousands of files: a flush for each would take most of the time
            # A rename cannot replace a full folder, so the old one steps aside first. A kill between the two
            # renames leaves it under its ".old" name, from which `recover_folder` puts it back.
            aside = path.with_name(f".{path.name}.old")
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside, ignore_errors=True)


def recover_folder(path: Path | str) -> Path:
    """Puts back a folder whose replacement was cut off between two renames; returns ``path``."""
    path = Path(path)
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
        manifest = json.loads((folder / "manifest.json").read_text())
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
    """The SHA-256 of a checkpoint's weights, once all its files are verified. Raises CheckpointError."""
    return check(folder)["model.safetensors"]
