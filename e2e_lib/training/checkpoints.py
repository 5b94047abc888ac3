"""Checkpoints that are whole or absent, as safetensors and JSON, never pickle.

A checkpoint is a folder: ``model.safetensors``, ``optimizer.safetensors`` (if training goes on from it),
``state.json`` (progress and the configuration) and ``manifest.json`` with the SHA-256 of the others. What is
larger than ``SHARD`` lies in several files, as on the hub: ``model-00001-of-00002.safetensors``, and so on,
beside an index.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from e2e_lib.config import Config, ConfigError, with_defaults
from e2e_lib.corpora import named
from e2e_lib.models.losses import misfit, trainable_weights
from e2e_lib.models.systems import PhotoChatModel
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError, check
from e2e_lib.training.shares import share_of
from e2e_lib.versions import versions

SHARD = 2 * 10**9  # bytes of tensors in a file
# Settings that say how a machine works, not what it gives.
HOW = {"data.workers", "train.optimizer_sharding", "train.full_sharding"}
INSIDE = "/"  # between the names of a dictionary in an optimizer's state and of what is in it


def save(folder: Path | str, weights: dict[str, Tensor], state: dict[str, Any],
         optimizer: torch.optim.Optimizer | None = None, *, before: Path | None = None) -> Path:
    """Writes a checkpoint folder in one atomic step; the one that was there is kept as ``before``, if given.

    Raises files.SaveError; an older checkpoint is then still there, in its place or as ``before``.
    """
    folder = Path(folder)
    with files.atomic_folder(folder) as new:
        _write(new, "model", weights)
        if optimizer is not None:
            _write(new, "optimizer", _flatten(optimizer))
        files.write_json(new / "state.json", state)
        files.write_json(new / "manifest.json", files.sha256_folder(new))
        if before is not None and folder.is_dir():
            # Only now that the new one is complete does the oldest go: one whole checkpoint is always there.
            if before.exists():
                shutil.rmtree(before)
            os.replace(folder, before)
    return folder


def _write(folder: Path, stem: str, tensors: dict[str, Tensor]) -> None:
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=SHARD)
    for name, keys in split.filename_to_tensors.items():
        # A copy of each: tied weights share memory, which the format refuses.
        save_file({key: tensors[key].detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
                   for key in keys}, folder / name)
    if split.is_sharded:
        files.write_json(folder / f"{stem}.safetensors.index.json",
                         {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def exists(folder: Path | str) -> bool:
    """Whether there is a checkpoint at ``folder`` (one whose replacement was cut off is put back first)."""
    return files.recover_folder(folder).is_dir()


def load(folder: Path | str, *, optimizer: torch.optim.Optimizer | None = None, shape: Any = dict,
         hashes: dict[str, str] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and state of a checkpoint, checked against its manifest; fills ``optimizer`` if given.

    ``hashes`` are those of its files, where they have just been verified. Raises CheckpointError if the
    folder or any file is missing or damaged, or if the state is not of the ``shape`` (see
    ``files.find_problem``).
    """
    folder = files.recover_folder(folder) if hashes is None else Path(folder)
    hashes = check(folder) if hashes is None else hashes
    if optimizer is not None and not files.shards(hashes, "optimizer"):
        raise CheckpointError(f"the checkpoint at {folder} holds weights to answer with, not to train on "
                              "from: optimizer.safetensors is missing; remove the folder to train anew")
    try:
        for name, is_there in (("model.safetensors", files.shards(hashes, "model")),
                               ("state.json", "state.json" in hashes)):
            if not is_there:
                raise ValueError(f"manifest.json does not name {name}")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if problem := files.find_problem(state, shape, "state.json"):
            raise ValueError(problem)
        weights = _read(folder, files.shards(hashes, "model"))
        if optimizer is not None:
            _unflatten(optimizer, _read(folder, files.shards(hashes, "optimizer")))
    except (ValueError, IndexError) as error:  # whole, and yet not what `save` saves
        raise CheckpointError(f"the checkpoint at {folder} is not one that this version saves ({error}); "
                              "remove the folder to train anew") from None
    return weights, state


def load_weights(model: PhotoChatModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Loads a checkpoint's weights into a model.

    Raises CheckpointError naming ``folder`` where they do not fit it.
    """
    own = trainable_weights(model)
    if problem := misfit(own, weights):
        raise CheckpointError(f"the checkpoint at {folder} does not fit the model: {problem}; remove the "
                              "folder to train anew")
    model.load_state_dict({name: share_of(own[name], tensor) for name, tensor in weights.items()},
                          strict=False)


def start_from(model: PhotoChatModel, config: Config, seed: int) -> str:
    """Gives a model the weights of ``train.start_from``; returns their hash. What learns in the model and not
    there keeps its weights. Raises CheckpointError where the checkpoint is not there, or does not fit."""
    folder = files.recover_folder(config.train.start_from.replace("{seed}", str(seed)))
    hashes = check(folder)
    weights, _ = load(folder, hashes=hashes)
    own = model.state_dict()
    for name, tensor in weights.items():
        here = own.get(name)
        if here is None or here.shape != tensor.shape:
            found = "none" if here is None else tuple(here.shape)
            raise CheckpointError(f"train.start_from = {str(folder)!r}: its {name} {tuple(tensor.shape)} "
                                  f"does not fit the model ({found} there); begin with a run of the same "
                                  "system and parts")
    model.load_state_dict(weights, strict=False)
    return files.hash_of_weights(hashes)


def load_run(model: PhotoChatModel, weights: dict[str, Tensor], config: Config, seed: int,
             folder: Path) -> None:
    """Gives a model all that a run in ``folder`` ended with: its own ``weights``, and of what it did not
    train those that it began with. Raises CheckpointError."""
    if config.train.start_from:
        start_from(model, config, seed)
    load_weights(model, weights, folder)


def made_with(config: Config) -> dict[str, Any]:
    """What decides a run's weights besides its seed: the configuration, and versions of corpus and code."""
    return {"config": asdict(config), "numbers": _numbers(config)}


def _numbers(config: Config) -> dict[str, int]:
    return {config.data.name: named(config.data.name).version, **versions("training")}


def check_made_with(saved: dict[str, Any], config: Config, folder: Path) -> None:
    """Raises CheckpointError naming the settings, or the version, with which a checkpoint was made and that
    differ here.

    ``saved`` holds what ``made_with`` gave when it was made. How answers are written may differ, and how
    processes share the work.
    """
    # Before versions were written down, all were 1.
    older = [f"{name} {saved.get('numbers', {}).get(name, 1)} there, {number} here"
             for name, number in _numbers(config).items() if saved.get("numbers", {}).get(name, 1) != number]
    if older:
        raise CheckpointError(f"the checkpoint at {folder} is of another version, whose training gave other "
                              f"weights ({'; '.join(older)}); remove the folder to train anew")
    try:
        here, there = _compared(asdict(config)), _compared(with_defaults(saved["config"]))
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint at {folder} is not one that this version saves ({error}); "
                              "remove the folder to train anew") from None
    if different := differences(there, here):
        raise CheckpointError(f"the checkpoint at {folder} is of another configuration ({different}); use "
                              "the same settings, or remove the folder to train anew")


def _compared(config: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section in ("data", "model", "bridge", "train")
            for key, value in config[section].items() if f"{section}.{key}" not in HOW}


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The first of the settings ``here`` that have another value ``there``, in words; "" where none has."""
    different = [f"{key}: {there.get(key)!r} there, {value!r} here" for key, value in here.items()
                 if there.get(key) != value]
    return f"{'; '.join(different[:3])}{' …' if len(different) > 3 else ''}"


def _read(folder: Path, names: list[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in names:
        with safe_open(folder / name, framework="pt") as stored:
            tensors |= {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a dict
    return tensors


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    flat = {f"{index}.{key}": torch.as_tensor(value)
            for index, entry in optimizer.state_dict()["state"].items() for key, value in _leaves(entry)}
    # A schedule sets the rate only after a step: the first one after resuming would use that of step 0.
    return flat | {f"group.{i}.lr": torch.tensor(float(group["lr"]), dtype=torch.float64)
                   for i, group in enumerate(optimizer.param_groups)}


def _leaves(entry: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a parameter's state, those of dictionaries in it (8-bit AdamW's) with both names."""
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{key}{INSIDE}")
        else:
            yield f"{before}{key}", value


def _unflatten(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups, first = list[dict[str, Any]](), 0  # as `state_dict` has them, which sharded states do not give
    for group in optimizer.param_groups:
        groups.append({**group, "params": list(range(first, first + len(group["params"])))})
        first += len(group["params"])
    for name, tensor in flat.items():
        index, _, key = name.partition(".")
        if index == "group":
            groups[int(key.partition(".")[0])]["lr"] = tensor.item()
        else:
            *dictionaries, last = key.split(INSIDE)
            entry: Any = state.setdefault(int(index), {})
            for name in dictionaries:
                entry = entry.setdefault(name, {})
            entry[last] = share_of(parameters[int(index)], tensor)
    optimizer.load_state_dict({"param_groups": groups, "state": state})
