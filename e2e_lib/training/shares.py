"""Tensors of which each of several processes holds a share (DTensors), and the whole ones that files hold."""

from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Any) -> Any:
    """A tensor of which each process holds a share, put together (all must call this); all else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(parameter: Tensor, tensor: Tensor) -> Tensor:
    """What this process keeps of a whole ``tensor`` of a ``parameter``, which all have: a share, where it
    holds no more of the parameter, either."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements,
                             src_data_rank=None)


def gathered(tensors: dict[str, Any]) -> dict[str, Any]:
    """Whole tensors, in the first process alone; on the CPU, if they were shared out. All must call this."""
    first, made = PartialState().is_main_process, dict[str, Any]()
    for name, tensor in tensors.items():
        together = whole(tensor)
        if first:
            made[name] = together if together is tensor else together.cpu()
    return made


def gathered_optimizer(optimizer: torch.optim.Optimizer) -> Any:
    """What a checkpoint takes of an optimizer, with whole states in the first process. All must call this."""
    states = {index: gathered(entry) for index, entry in optimizer.state_dict()["state"].items()}
    return SimpleNamespace(param_groups=optimizer.param_groups, state_dict=lambda: {"state": states})
