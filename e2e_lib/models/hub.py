"""Where pretrained parts come from: the package itself, a local folder, or a model hub (section 3.1.4)."""

import contextlib
import io
from pathlib import Path
from typing import Any

from huggingface_hub.utils.logging import set_verbosity_error
from safetensors import SafetensorError
from transformers.utils import logging

from e2e_lib.repro import files

set_verbosity_error()  # of the hub: a machine without one would read of every attempt to reach it
logging.disable_progress_bar()  # a few MB load in a blink, and a bar for each part would fill logs and notebooks
LOADING = (OSError, ValueError, TypeError, SafetensorError)  # what `from_pretrained` raises for a part that is missing or damaged
WEIGHTS = Path(__file__).parent.parent / "weights"


def locate(source: str, part: str) -> str:
    """Where to load ``part`` (language, perceptron, generator or scene_reader) from.

    ``source`` is ``shipped:mini`` (parts that come with the package, verified against their manifest), a local folder, or a
    hub id, which is returned as it is for ``from_pretrained``. Raises CheckpointError for shipped or local parts that are
    missing or damaged.
    """
    kind, _, name = source.partition(":")
    if kind == "shipped":
        folder = WEIGHTS / name
        files.check(folder)
        return str(folder / part)
    if source.startswith(("/", ".", "~")) and not Path(source).expanduser().is_dir():
        raise files.CheckpointError(f"{part}: there is no folder {source}; name a folder in the hub's layout or a hub id")
    return str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source


def load_own(kind: Any, place: str) -> Any:
    """One of our own modules (see ``PyTorchModelHubMixin``) in float32, without the line the hub library prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return kind.from_pretrained(place, strict=True).float()


def unreachable(part: str, source: str, error: Exception) -> files.CheckpointError:
    """The error to raise when ``from_pretrained`` fails: what a user can do about it, instead of a library's traceback."""
    return files.CheckpointError(
        f"{part}: could not load {source!r} ({type(error).__name__}: {str(error).splitlines()[0][:200]}). If it is a hub id, it may be gated "
        f"(accept its licence and log in), withdrawn, or you are offline; --set model.{part}=FOLDER takes a local copy in the hub's formatter."
    )
