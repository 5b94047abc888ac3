"""Where pretrained parts come from: the package itself, a local folder, or a model hub (section 3.1.4)."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, errors, snapshot_download
from huggingface_hub.utils import get_session
from transformers import AutoTokenizer

from e2e_lib.repro.files import CheckpointError, check

# What `from_pretrained` raises for a part that is missing, damaged or another model's: there is no end of it.
LOADING = (Exception,)
WEIGHTS = Path(__file__).parent.parent / "weights"
ANSWER_SECONDS = 3.0  # in which the hub must answer; its own client would try again for half a minute
# What is fetched of a repository: safetensors and text, and of several number formats the first.
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_OTHER_FILES = ("*.fp16.*", "*.non_ema.*", "*nonema*", "*ema-pruned*", "onnx/*", "openvino/*")
# Why a part cannot be had from the hub, and what to do; the first that fits.
_CAUSES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((errors.GatedRepoError,),
     "it is gated: accept its licence on its page, log in with `hf auth login`, and try again"),
    ((errors.RevisionNotFoundError,), 'the hub has it, but not in this revision; leave out what follows "@"'),
    ((errors.RepositoryNotFoundError, errors.DisabledRepoError, errors.HFValidationError),
     "the hub has no such repository: it is misspelt, withdrawn, or private"),
    ((errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError),
     "it was not downloaded before, and the hub does not answer: you are offline"))


def locate(source: str, part: str) -> str:
    """Where to load ``part`` (a key of the configuration's section ``model``, or "scene_reader") from.

    ``source`` is ``shipped:mini`` or ``shipped:mini-baselines`` (parts that come with the package, verified
    against their manifest), a local folder, or a hub id, which is returned as it is, see ``fetch``.
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
    """Yields the folder to load ``part`` from, fetched if ``source`` is a hub id; whatever fails becomes a
    CheckpointError."""
    place = locate(source, part)
    try:
        yield place if Path(place).is_dir() else fetch(place)
    except LOADING as error:
        raise unreachable(part, source, error) from None


def fetch(source: str) -> str:
    """The folder of a hub repository, ``owner/name`` or ``owner/name@revision``; downloaded if need be.

    Raises what the hub's client does; within ``ANSWER_SECONDS`` where nobody answers.
    """
    return _snapshot(source, local_files_only=not answers())


def downloaded(source: str) -> str:
    """As ``fetch``, of a repository that was downloaded before; nobody is asked."""
    return _snapshot(source, local_files_only=True)


def _snapshot(source: str, local_files_only: bool) -> str:
    name, _, revision = source.partition("@")
    return snapshot_download(name, revision=revision or None, local_files_only=local_files_only,
                             allow_patterns=[*_FILES], ignore_patterns=[*_OTHER_FILES])


def origin(source: str) -> str:
    """A part's ``source`` as results record it: of a hub id, which commit was downloaded."""
    if source.startswith("shipped:") or Path(source).expanduser().is_dir():
        return source
    try:
        # The hub's client calls the folder after its commit.
        return f"{source.partition('@')[0]}@{Path(downloaded(source)).name}"
    except LOADING:
        return source  # nothing was downloaded


def answers() -> bool:
    """Whether the model hub can be reached."""
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception:  # of whatever library the client uses, and where the environment says to stay offline
        return False
    return True


def load_pretrained(kind: Any, place: str, dtype: torch.dtype = torch.float32, **where: str) -> Any:
    """A model of transformers or diffusers of class ``kind``, all of its weights from safetensors files.

    ``where`` may hold a ``subfolder``. Raises ValueError for another kind of model or missing weights, of
    which the libraries would make one of that class, with random numbers where nothing was saved.
    """
    check_kind(kind, place, **where)
    is_transformers = hasattr(kind, "config_class")
    precision = {"dtype" if is_transformers else "torch_dtype": dtype}
    model, report = kind.from_pretrained(place, **where, **precision, output_loading_info=True,
                                         use_safetensors=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{len(missing)} of its weights are not in the files, {missing[0]} first")
    return _check_numbers(model)


def check_kind(kind: Any, place: str, **where: str) -> None:
    """Raises ValueError unless ``place`` holds a model of transformers or diffusers of class ``kind``."""
    if hasattr(kind, "config_class"):
        wanted, config = kind.config_class.model_type, kind.config_class.get_config_dict(place, **where)[0]
        found = config.get("model_type")
    else:
        wanted, found = kind.__name__, kind.load_config(place, **where).get("_class_name")
    if found != wanted:
        raise ValueError(f"its config.json is of {found!r} instead of {wanted!r}")


def _check_numbers(model: Any) -> Any:
    if wrong := [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]:
        raise ValueError(f"{len(wrong)} of its weights hold values that are not numbers, {wrong[0]} first")
    return model


def load_tokenizer(place: str, *needed: str, kind: Any = AutoTokenizer, **where: str) -> Any:
    """A tokenizer, of class ``kind``; ``where`` may hold a ``subfolder``.

    Raises ValueError for one without words, which the library makes where files are missing, or without one
    of the ``needed`` tokens, such as "eos".
    """
    tokenizer = kind.from_pretrained(place, **where)
    if set(tokenizer("a photo", add_special_tokens=False)["input_ids"]) <= set(tokenizer.all_special_ids):
        raise ValueError("its tokenizer has no words: tokenizer.json, or what stands for it, is missing")
    if missing := [name for name in needed if getattr(tokenizer, f"{name}_token_id") is None]:
        raise ValueError(f"its tokenizer has no {missing[0]}_token; tokenizer_config.json names it")
    return tokenizer


def load_own(kind: Any, place: str) -> Any:
    """One of our own modules (a ``PyTorchModelHubMixin``) in float32, without the line the library prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return _check_numbers(kind.from_pretrained(place, strict=True).float())


def unreachable(part: str, source: str, error: BaseException, advice: str = "") -> CheckpointError:
    """The error to raise when a part cannot be loaded: what a user can do, not a library's traceback.

    ``advice`` says how to name another source, where the setting ``model.<part>`` is not the way.
    """
    advice = advice or f"--set model.{part}=FOLDER"
    chain: list[BaseException] = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    for kinds, reason in _CAUSES:
        if any(isinstance(link, kinds) for link in chain):
            return CheckpointError(f"{part}: could not load {source!r}: {reason}; {advice} takes a local "
                                   "copy in the hub's layout")
    lines = str(error).splitlines() or [""]
    return CheckpointError(
        f"{part}: could not load {source!r} ({type(error).__name__}: {lines[0][:200]}): a file is missing or "
        f"damaged, or it is another kind of model; {advice} takes another, in the hub's layout")
