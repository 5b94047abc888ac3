"""What produced a number: settings, seeds, versions, commit, hashes, machine, time and memory.

Nothing recorded here names a person, a computer or a place on its disk.
"""

import dataclasses
import hashlib
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from e2e_lib.repro import files

LIBRARIES = ("torch", "transformers", "diffusers", "accelerate", "tokenizers", "numpy", "torch-fidelity", "sacrebleu", "rouge-score")
ROOT = Path(__file__).resolve().parents[2]
# A run writes into these folders itself, so changes there say nothing about the code that ran.
WRITTEN_BY_RUNS = ("results", "figures", "notebooks")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def relativize_paths(value: Any) -> Any:
    """``value`` as JSON holds it, its absolute paths shortened to what is below the working folder, or to the name."""
    if isinstance(value, Mapping):
        return {str(key): relativize_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [relativize_paths(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((relativize_paths(item) for item in value), key=repr)
    if isinstance(value, os.PathLike) or isinstance(value, str) and os.path.isabs(value):
        path = Path(value)
        if path.is_absolute():
            path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(path.name)
        return path.as_posix()
    return value


def fingerprint(path: Path | str) -> str:
    """The SHA-256 of a file, or of a folder's file names and contents together. Raises FileNotFoundError if it is missing."""
    path = Path(path)
    if path.is_file():
        return files.sha256(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder, so its contents cannot be recorded; check the path")
    listing = "".join(f"{digest}  {name}\n" for name, digest in files.sha256_folder(path).items())
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def _git(*arguments: str) -> str | None:
    """What a git command prints, or None where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def git_state() -> dict[str, Any]:
    """``{"commit": 40 hex digits, "dirty": bool}`` of the checkout this package stands in, both None outside one. Never raises.

    Dirty means that something differs from the commit outside the folders that runs write into.
    """
    top = _git("rev-parse", "--show-toplevel")
    # Installed below some other project's checkout, that project's commit would say nothing about this code.
    if top is None or Path(top).resolve() != ROOT:
        return {"commit": None, "dirty": None}
    changes = _git("status", "--porcelain", "--", ".", *(f":(exclude){folder}" for folder in WRITTEN_BY_RUNS))
    return {"commit": _git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _processor() -> str:
    """The processor's model name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _hashes(parts: Mapping[str, Path | str] | None) -> dict[str, str]:
    return {name: fingerprint(part) if isinstance(part, Path) else part for name, part in (parts or {}).items()}


def provenance_record(config: Any, *, seeds: Mapping[str, int] | Sequence[int] | int, data: Mapping[str, Path | str] | None = None,
          weights: Mapping[str, Path | str] | None = None) -> dict[str, Any]:
    """Everything needed to make a result again, as JSON values.

    ``config`` is a (tree of) dataclass(es), resolved. ``data`` and ``weights`` map a name to a Path (a file or a
    folder, hashed here) or to a hash already known (a string). Raises TypeError if ``config`` is no dataclass and
    FileNotFoundError if a file to be hashed is missing; a missing library, git or checkout is recorded as None.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"config must be a dataclass object, found {type(config).__name__}")
    cuda = torch.cuda.is_available()
    return {
        "config": relativize_paths(dataclasses.asdict(config)),
        "seeds": relativize_paths(seeds),
        "versions": {"python": platform.python_version(), "e2e_lib": _version("e2e_lib"), **{name: _version(name) for name in LIBRARIES}},
        "git": git_state(),
        "data": _hashes(data),
        "weights": _hashes(weights),
        "platform": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if cuda else _processor(),
        },
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


class ResourceMonitor:
    """Wall time and peak memory of a ``with`` block; ``as_dict`` may be asked inside the block, too.

    The system counts memory since the process began, not since the block began. The peak is this process's own plus
    that of its largest finished child process (a notebook's kernel, say), in bytes.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._wall: float | None = None
        self._peak: int | None = None

    def __enter__(self) -> "ResourceMonitor":
        self._start, self._wall, self._peak = time.perf_counter(), None, None
        return self

    def __exit__(self, *_: object) -> None:
        self._wall, self._peak = self.wall_seconds, self.peak_memory_bytes

    @property
    def wall_seconds(self) -> float:
        """Seconds from the start of the block to its end, or to now."""
        return time.perf_counter() - self._start if self._wall is None else self._wall

    @property
    def peak_memory_bytes(self) -> int:
        """Peak resident memory in bytes at the end of the block, or until now."""
        if self._peak is not None:
            return self._peak
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
        return unit * sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    def as_dict(self) -> dict[str, float | int]:
        """``{"wall_seconds": …, "peak_memory_bytes": …}``."""
        return {"wall_seconds": round(self.wall_seconds, 3), "peak_memory_bytes": self.peak_memory_bytes}
