"""Writing files so that nothing already written is ever lost.

Everything the project saves goes through here: it is written beside its place under a temporary name,
flushed to the disk, and only then moved into place. A reader sees the old file or the new one, never half
of one, and a full disk leaves the old one as it was.
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

from e2e_lib.repro import files


class SaveError(OSError):
    """A file or folder could not be saved; what stood there before is untouched."""


def _advice(path: Path, error: OSError) -> str:
    advice = {
        errno.ENOSPC: "the disk is full: free some space and run the same command again",
        errno.EDQUOT: "your disk quota is used up: free some space and run the same command again",
        errno.EACCES: "the folder is not writable: check its permissions",
        errno.EROFS: "the disk is mounted read-only",
    }.get(error.errno or 0, error.strerror or str(error))
    return f"could not save {path}: {advice}. What was saved there before is untouched."


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns an operating-system error met while saving ``path`` into a SaveError that says what to do."""
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(_advice(path, error)) from error
    except Exception as error:
        # safetensors reports the system's errors as one of its own, with the number in its words.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise SaveError(_advice(path, OSError(int(number[1]), os.strerror(int(number[1]))))) from error


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Writes ``content`` to ``path`` atomically, making its folder if need be. Raises SaveError."""
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from other users
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    return path


def write_text(path: Path | str, text: str) -> Path:
    """Writes ``text`` as UTF-8 to ``path`` atomically. Raises SaveError."""
    return write_bytes(path, text.encode("utf-8"))


def append_text(path: Path | str, text: str) -> Path:
    """Adds ``text`` at the end of ``path``. Not atomic: a reader must expect a last line cut off by a kill. Raises SaveError."""
    path = Path(path)
    with _explained(path), open(path, "a", encoding="utf-8") as file:
        file.write(text)
    return path


def write_json(path: Path | str, value: Any) -> Path:
    """Writes ``value`` as indented JSON to ``path`` atomically. Raises SaveError, and ValueError on NaN."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields an empty temporary folder that takes the place of ``path`` when the block ends without an error.

    If the block fails, the temporary folder is removed and a folder already at ``path`` stays as it was.
    Raises SaveError when the system refuses a write (a full disk, say).
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        os.chmod(temporary, 0o755)
        try:
            yield temporary
            os.sync()  # one flush for all its files: a corpus holds thousands, and a flush each would take most of the time
            if path.exists():
                # A rename cannot replace a full folder: step the old one aside first. A kill between the two
                # renames leaves the old folder under its ".old" name, which `recover_folder` puts back.
                aside = path.with_name(f".{path.name}.old")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(path, aside)
                os.replace(temporary, path)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def recover_folder(path: Path | str) -> Path:
    """Puts back a folder whose replacement was cut off between two renames, or removes the old one that it left; returns ``path``."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.old")
    if not path.exists() and aside.exists():
        os.replace(aside, path)
    shutil.rmtree(aside, ignore_errors=True)
    return path


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_folder(folder: Path | str) -> dict[str, str]:
    """The SHA-256 of every file below ``folder``, keyed by its path relative to it, in sorted order."""
    folder = Path(folder)
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or of another configuration; the message says which and what to do."""


def check(folder: Path | str) -> dict[str, str]:
    """Verifies every file of a folder against its manifest.json and returns the manifest's hashes. Raises CheckpointError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint at {folder}; train one with `e2e train`, or name another folder")
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        hashes = manifest.get("files", manifest)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint at {folder} has no readable manifest.json ({type(error).__name__}); "
                              "remove the folder and train again") from None
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"the checkpoint at {folder} is damaged: {name} is missing; remove the folder and train again")
        if files.sha256(path) != expected:
            raise CheckpointError(f"the checkpoint at {folder} is damaged: {name} is not what was saved (its SHA-256 differs from "
                                  "manifest.json); remove the folder and train again")
    return dict(hashes)


def weights_hash(folder: Path | str) -> str:
    """The SHA-256 of a checkpoint's weights, all its files verified. Raises CheckpointError as ``check`` does."""
    return check(folder)["model.safetensors"]
