"""Where pretrained parts come from: the package itself, a local folder, or a model hub (section 3.1.4)."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from e2e_lib.repro.files import CheckpointError, check

# What `from_pretrained` raises for a part that is missing, damaged or another model's: there is no end of it.
LOADING = (Exception,)
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


@contextlib.contextmanager
def loading(part: str, source: str) -> Iterator[str]:
    """Yields where to load ``part`` from, see ``locate``; whatever fails then becomes a CheckpointError."""
    place = locate(source, part)
    try:
        yield place
    except LOADING as error:
        raise unreachable(part, source, error) from None


def load_pretrained(kind: Any, place: str, **where: str) -> Any:
    """A model of transformers or diffusers of class ``kind`` in float32, all of its weights from the files.

    ``where`` may hold a ``subfolder``. Raises ValueError for another kind of model or missing weights, of
    which the libraries would make one of that class, with random numbers where nothing was saved.
    """
    is_transformers = hasattr(kind, "config_class")
    if is_transformers:
        wanted, config = kind.config_class.model_type, kind.config_class.get_config_dict(place, **where)[0]
        found = config.get("model_type")
    else:
        wanted, found = kind.__name__, kind.load_config(place, **where).get("_class_name")
    if found != wanted:
        raise ValueError(f"its config.json is of {found!r} instead of {wanted!r}")
    precision = {"dtype" if is_transformers else "torch_dtype": torch.float32}
    model, report = kind.from_pretrained(place, **where, **precision, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{len(missing)} of its weights are not in the files, {missing[0]} first")
    return _check_numbers(model)


def _check_numbers(model: Any) -> Any:
    if wrong := [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]:
        raise ValueError(f"{len(wrong)} of its weights hold values that are not numbers, {wrong[0]} first")
    return model


def load_tokenizer(place: str, *needed: str, **where: str) -> Any:
    """A tokenizer; ``where`` may hold a ``subfolder``.

    Raises ValueError for one without words, which the library makes where files are missing, or without one
    of the ``needed`` tokens, such as "eos".
    """
    tokenizer = AutoTokenizer.from_pretrained(place, **where)
    if set(tokenizer("a photo", add_special_tokens=False)["input_ids"]) <= set(tokenizer.all_special_ids):
        raise ValueError("its tokenizer has no words: tokenizer.json, or what stands for it, is missing")
    if missing := [name for name in needed if getattr(tokenizer, f"{name}_token_id") is None]:
        raise ValueError(f"its tokenizer has no {missing[0]}_token; tokenizer_config.json names it")
    return tokenizer


def load_own(kind: Any, place: str) -> Any:
    """One of our own modules (a ``PyTorchModelHubMixin``) in float32, without the line the library prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return _check_numbers(kind.from_pretrained(place, strict=True).float())


def unreachable(part: str, source: str, error: Exception, advice: str = "") -> CheckpointError:
    """The error to raise when ``from_pretrained`` fails: what a user can do, not a library's traceback.

    ``advice`` says how to name another source, where the setting ``model.<part>`` is not the way.
    """
    lines = str(error).splitlines() or [""]
    return CheckpointError(
        f"{part}: could not load {source!r} ({type(error).__name__}: {lines[0][:200]}). If "
        "it is a hub id, it may be gated (accept its licence and log in), withdrawn, or you are offline; "
        f"{advice or f'--set model.{part}=FOLDER'} takes a local copy in the hub's layout."
    )
