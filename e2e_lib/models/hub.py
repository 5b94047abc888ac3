"""Where pretrained parts come from: the package itself, a local folder, or a model hub (section 3.1.4)."""

import contextlib
import io
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from e2e_lib.repro.files import CheckpointError, check

# What `from_pretrained` raises for a missing or damaged part.
LOADING = (OSError, ValueError, TypeError, SafetensorError)
WEIGHTS = Path(__file__).parent.parent / "weights"


def locate(source: str, part: str) -> str:
    """Where to load ``part`` (a key of the configuration's section ``model``, or "scene_reader") from.

    ``source`` is ``shipped:mini`` or ``shipped:mini-baselines`` (parts that come with the package, verified
    against their manifest), a local folder, or a hub id, which is returned as it is for ``from_pretrained``.
    Raises CheckpointError for shipped or local parts that are missing or damaged.
    """
    kind, _, name = source.partition(":")
    if kind == "shipped":
        folder = WEIGHTS / name
        check(folder)
        return str(folder / part)
    path = Path(source).expanduser()
    if source.startswith(("/", ".", "~")) and not path.is_dir():
        raise CheckpointError(f"{part}: there is no folder {source}; name a folder in the hub's "
                              "layout or a hub id")
    return str(path) if path.is_dir() else source


def load_own(kind: Any, place: str) -> Any:
    """One of our own modules (a ``PyTorchModelHubMixin``) in float32, without the line the library prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return kind.from_pretrained(place, strict=True).float()


def unreachable(part: str, source: str, error: Exception) -> CheckpointError:
    """The error to raise when ``from_pretrained`` fails: what a user can do, not a library's traceback."""
    return CheckpointError(
        f"{part}: could not load {source!r} ({type(error).__name__}: {str(error).splitlines()[0][:200]}). If "
        "it is a hub id, it may be gated (accept its licence and log in), withdrawn, or you are offline; "
        f"--set model.{part}=FOLDER takes a local copy in the hub's layout."
    )
