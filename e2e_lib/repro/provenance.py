"""What produced a number: settings, seeds, versions, commit, hashes, machine, time and memory.

Nothing recorded here names a person, a computer or a place on its disk.
"""

import contextlib
import dataclasses
import os
import platform
import re
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

from e2e_lib.repro.files import sha256

LIBRARIES = ("torch", "transformers", "diffusers", "accelerate", "tokenizers", "numpy", "torch-fidelity",
             "sacrebleu", "rouge-score")
ROOT = Path(__file__).resolve().parents[2]
# A run writes into these folders itself, so changes there say nothing about the code that ran.
WRITTEN_BY_RUNS = ("results", "figures", "notebooks")
Hashes = Mapping[str, Path | str] | None  # the SHA-256 of something, or a file to hash, by name


def library_versions() -> dict[str, str | None]:
    """The versions of Python and of the libraries that decide numbers; None for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("e2e_lib", *LIBRARIES):
        versions[name] = None
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def relativize_paths(value: Any) -> Any:
    """Nested settings, absolute paths in them relative to the working folder, or outside it only the name."""
    if isinstance(value, Mapping):
        return {key: relativize_paths(item) for key, item in value.items()}
    if isinstance(value, str) and os.path.isabs(value):
        path = Path(value)
        return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.name
    return value


def git_state() -> dict[str, Any]:
    """``{"commit": 40 hex digits, "dirty": bool}`` of the package's own checkout, both None outside one.

    Dirty means that something differs from the commit outside the folders that runs write into.
    """
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=30, check=True)
        return os.fsdecode(done.stdout).strip()  # a path may have any bytes, whatever the locale

    with contextlib.suppress(OSError, subprocess.SubprocessError, UnicodeDecodeError):
        # Installed below another project's checkout, that project's commit would say nothing about this code.
        if Path(git("rev-parse", "--show-toplevel")).resolve() == ROOT:
            excluded = [f":(exclude){folder}" for folder in WRITTEN_BY_RUNS]
            changes = git("status", "--porcelain", "--", ".", *excluded)
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    return {"commit": None, "dirty": None}


def _processor() -> str:
    """The processor's model name."""
    with contextlib.suppress(OSError):
        if name := re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("latin-1"), re.M):
            return name[1].strip()
    return platform.processor() or platform.machine()


def _hashes(items: Hashes) -> dict[str, str]:
    return {name: sha256(item) if isinstance(item, Path) else item for name, item in (items or {}).items()}


def provenance_record(config: Any, *, seeds: Mapping[str, int] | Sequence[int], data: Hashes = None,
                      weights: Hashes = None) -> dict[str, Any]:
    """Everything needed to make a result again, as JSON values.

    ``config`` is a dataclass of dataclasses. A missing library, git or checkout is recorded as None.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    machine = {"system": platform.system(), "machine": platform.machine(), "cpu_count": os.cpu_count(),
               "threads": torch.get_num_threads(), "device": device}
    return {"config": relativize_paths(dataclasses.asdict(config)), "seeds": seeds,
            "versions": library_versions(), "git": git_state(), "data": _hashes(data),
            "weights": _hashes(weights), "platform": machine,
            "time": datetime.now(UTC).isoformat(timespec="seconds")}


def clock(seconds: float) -> str:
    """A duration as minutes and seconds, ``1:05``, or from one hour as ``1:01:05``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def peak_memory_bytes() -> int:
    """Peak resident memory of this process plus that of its largest finished child (a kernel, say)."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return unit * sum(resource.getrusage(kind).ru_maxrss for kind in kinds)


class ResourceMonitor:
    """Wall time of a ``with`` block in seconds, and ``peak_memory_bytes`` at its end."""

    def __enter__(self) -> "ResourceMonitor":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_seconds = time.perf_counter() - self._start
        self.peak_memory_bytes = peak_memory_bytes()

    def as_dict(self) -> dict[str, float | int]:
        """``{"wall_seconds": …, "peak_memory_bytes": …}``, once the block has ended."""
        return {"wall_seconds": round(self.wall_seconds, 3), "peak_memory_bytes": self.peak_memory_bytes}
