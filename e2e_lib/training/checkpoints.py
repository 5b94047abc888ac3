"""Checkpoints that are whole or absent, as safetensors and JSON, never pickle.

A checkpoint is a folder: ``model.safetensors``, ``optimizer.safetensors`` (if training goes on from it),
``state.json`` (progress and the configuration) and ``manifest.json`` with the SHA-256 of the others.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from e2e_lib.config import Config, ConfigError, with_defaults
from e2e_lib.corpora import named
from e2e_lib.models.losses import trainable_weights
from e2e_lib.models.systems import PhotoChatModel
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError, check
from e2e_lib.versions import versions

INSIDE = "/"  # between the names of a dictionary in an optimizer's state and of what is in it


def save(folder: Path | str, weights: dict[str, Tensor], state: dict[str, Any],
         optimizer: torch.optim.Optimizer | None = None) -> Path:
    """Writes a checkpoint folder in one atomic step.

    Raises files.SaveError; an older checkpoint there is then untouched.
    """
    with files.atomic_folder(folder) as new:
        # A copy of each: tied weights share memory, which the format refuses.
        copies = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                  for name, tensor in weights.items()}
        save_file(copies, new / "model.safetensors")
        if optimizer is not None:
            save_file(_flatten(optimizer), new / "optimizer.safetensors")
        files.write_json(new / "state.json", state)
        files.write_json(new / "manifest.json", files.sha256_folder(new))
    return Path(folder)


def exists(folder: Path | str) -> bool:
    """Whether there is a checkpoint at ``folder`` (one whose replacement was cut off is put back first)."""
    return files.recover_folder(folder).is_dir()


def load(folder: Path | str, *, optimizer: torch.optim.Optimizer | None = None,
         shape: Any = dict) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and state of a checkpoint, checked against its manifest; fills ``optimizer`` if given.

    Raises CheckpointError if the folder or any file is missing or damaged, or if the state is not of the
    ``shape`` (see ``files.find_problem``).
    """
    folder = files.recover_folder(folder)
    hashes = check(folder)
    if optimizer is not None and "optimizer.safetensors" not in hashes:
        raise CheckpointError(f"the checkpoint at {folder} holds weights to answer with, not to train on "
                              "from: optimizer.safetensors is missing; remove the folder to train anew")
    try:
        if missing := {"model.safetensors", "state.json"} - hashes.keys():
            raise ValueError(f"manifest.json does not name {min(missing)}")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if problem := files.find_problem(state, shape, "state.json"):
            raise ValueError(problem)
        weights = _read(folder / "model.safetensors")
        if optimizer is not None:
            _unflatten(optimizer, _read(folder / "optimizer.safetensors"))
    except (ValueError, IndexError) as error:  # whole, and yet not what `save` saves
        raise CheckpointError(f"the checkpoint at {folder} is not one that this version saves ({error}); "
                              "remove the folder to train anew") from None
    return weights, state


def load_weights(model: PhotoChatModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Loads a checkpoint's weights into a model.

    Raises CheckpointError naming ``folder`` where they do not fit it.
    """
    own, saved = ({name: tuple(tensor.shape) for name, tensor in tensors.items()}
                  for tensors in (trainable_weights(model), weights))
    if different := sorted({name for name, _ in own.items() ^ saved.items()}):
        name = different[0]
        raise CheckpointError(f"the checkpoint at {folder} does not fit the model: {len(different)} tensors "
                              f"differ, {name} first ({saved.get(name, 'none')} there, "
                              f"{own.get(name, 'none')} here); remove the folder to train anew")
    model.load_state_dict(weights, strict=False)


def start_from(model: PhotoChatModel, config: Config, seed: int) -> str:
    """Gives a model the weights of ``train.start_from``; returns their hash. What learns in the model and not
    there keeps its weights. Raises CheckpointError where the checkpoint is not there, or does not fit."""
    folder = Path(config.train.start_from.replace("{seed}", str(seed)))
    weights, _ = load(folder)
    own = model.state_dict()
    for name, tensor in weights.items():
        here = own.get(name)
        if here is None or here.shape != tensor.shape:
            found = "none" if here is None else tuple(here.shape)
            raise CheckpointError(f"train.start_from = {str(folder)!r}: its {name} {tuple(tensor.shape)} "
                                  f"does not fit the model ({found} there); begin with a run of the same "
                                  "system and parts")
    model.load_state_dict(weights, strict=False)
    return files.weights_hash(folder)


def made_with(config: Config) -> dict[str, Any]:
    """What decides a run's weights besides its seed: the configuration, and versions of corpus and code."""
    return {"config": asdict(config), "numbers": _numbers(config)}


def _numbers(config: Config) -> dict[str, int]:
    return {config.data.name: named(config.data.name).version, **versions("training")}


def check_made_with(saved: dict[str, Any], config: Config, folder: Path) -> None:
    """Raises CheckpointError naming the settings, or the version, with which a checkpoint was made and that
    differ here.

    ``saved`` holds what ``made_with`` gave when it was made. How answers are written may differ, and how many
    processes read the data.
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
            for key, value in config[section].items() if (section, key) != ("data", "workers")}


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The first of the settings ``here`` that have another value ``there``, in words; "" where none has."""
    different = [f"{key}: {there.get(key)!r} there, {value!r} here" for key, value in here.items()
                 if there.get(key) != value]
    return f"{'; '.join(different[:3])}{' …' if len(different) > 3 else ''}"


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state, groups = optimizer.state_dict()["state"], optimizer.state_dict()["param_groups"]
    flat = {f"{index}.{key}": torch.as_tensor(value).cpu().contiguous()
            for index, entry in state.items() for key, value in _leaves(entry)}
    # A schedule sets the rate only after a step: the first one after resuming would use that of step 0.
    return flat | {f"group.{i}.lr": torch.tensor(float(group["lr"]), dtype=torch.float64)
                   for i, group in enumerate(groups)}


def _leaves(entry: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a parameter's state, those of dictionaries in it (8-bit AdamW's) with both names."""
    for key, value in entry.items():
        if isinstance(value, dict):
            # Parameters share tables there, and safetensors refuses what shares memory.
            copies = {name: inner.clone() if isinstance(inner, Tensor) else inner
                      for name, inner in value.items()}
            yield from _leaves(copies, f"{before}{key}{INSIDE}")
        else:
            yield f"{before}{key}", value


def _unflatten(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for name, tensor in flat.items():
        index, _, key = name.partition(".")
        if index == "group":
            groups[int(key.partition(".")[0])]["lr"] = tensor.item()
        else:
            *dictionaries, last = key.split(INSIDE)
            entry: Any = state.setdefault(int(index), {})
            for name in dictionaries:
                entry = entry.setdefault(name, {})
            entry[last] = tensor
    optimizer.load_state_dict({"param_groups": groups, "state": state})
