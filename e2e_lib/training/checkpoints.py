"""Checkpoints that are whole or absent: weights, optimizer and progress as safetensors and JSON, never pickle.

A checkpoint is a folder: ``model.safetensors``, ``optimizer.safetensors`` (if training goes on from it), ``state.json``
(progress and the configuration) and ``manifest.json`` with the SHA-256 of the others.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError, check


def save(folder: Path | str, weights: dict[str, Tensor], state: dict[str, Any], optimizer: torch.optim.Optimizer | None = None) -> Path:
    """Writes a checkpoint folder in one atomic step. Raises files.SaveError; an older checkpoint there then stays as it was."""
    with files.atomic_folder(folder) as new:
        # A copy of each: tied weights share memory, which the format refuses.
        save_file({name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()},
                  new / "model.safetensors")
        if optimizer is not None:
            save_file(_flatten(optimizer), new / "optimizer.safetensors")
        files.write_json(new / "state.json", state)
        files.write_json(new / "manifest.json", files.sha256_folder(new))
    return Path(folder)


def exists(folder: Path | str) -> bool:
    """Whether a checkpoint stands at ``folder`` (one whose replacement was cut off is put back first)."""
    return files.recover_folder(folder).is_dir()


def load(folder: Path | str, *, optimizer: torch.optim.Optimizer | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and state of a checkpoint, checked against its manifest; fills ``optimizer`` if one is given.

    Raises CheckpointError if the folder is missing or any file is missing or damaged.
    """
    folder = files.recover_folder(folder)
    if "optimizer.safetensors" not in check(folder) and optimizer is not None:
        raise CheckpointError(f"the checkpoint at {folder} has no optimizer.safetensors: training cannot go on from it")
    state = json.loads((folder / "state.json").read_text())
    weights = _read(folder / "model.safetensors")
    if optimizer is not None:
        if not (folder / "optimizer.safetensors").is_file():
            raise CheckpointError(f"the checkpoint at {folder} holds weights to answer with, not to train on from: optimizer.safetensors is "
                                  "missing; remove the folder to train anew")
        _unflatten(optimizer, _read(folder / "optimizer.safetensors"))
    return weights, state


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state, groups = optimizer.state_dict()["state"], optimizer.state_dict()["param_groups"]
    flat = {f"{index}.{key}": torch.as_tensor(value).cpu().contiguous() for index, entry in state.items() for key, value in entry.items()}
    # A schedule sets the rate only after a step: without it, the first step after resuming would use the rate of step 0.
    return flat | {f"group.{i}.lr": torch.tensor(float(group["lr"]), dtype=torch.float64) for i, group in enumerate(groups)}


def _unflatten(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for name, tensor in flat.items():
        index, _, key = name.partition(".")
        if index == "group":
            groups[int(key.partition(".")[0])]["lr"] = tensor.item()
        else:
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"param_groups": groups, "state": state})
