"""Number formats of training: what a device can do, gradient scaling, and the optimizer's states."""

from collections.abc import Sequence, Set
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs
from torch import nn

from e2e_lib.config import ConfigError, Train
from e2e_lib.training.shares import gathered_optimizer


def new_accelerator(settings: Train) -> Accelerator:
    """What trains in the number format that is set, on this process's device, together with the others.

    Raises ConfigError for a format that the device does not have.
    """
    AcceleratorState._reset_state()  # or this process would keep the number format of an earlier run
    try:
        accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            # A batch without photos leaves the generator or the perceptron unused.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True,
                                                           gradient_as_bucket_view=True),
                             # Half-precision copies of all layers would stay until a forward pass ends.
                             *([AutocastKwargs(cache_enabled=False)] if settings.full_sharding else [])])
    except ValueError as error:
        raise ConfigError(f"train.mixed_precision = {settings.mixed_precision!r}: {error}") from None
    check_precision(accelerator, settings)
    return accelerator


def check_precision(accelerator: Accelerator, settings: Train) -> None:
    """Makes ``accelerator`` train in the number format that is set, or raises ConfigError.

    Some take a format and then compute in another one: accelerate leaves fp16 out on a CPU, and CUDA emulates
    bf16 where the device has none.
    """
    if settings.mixed_precision == "bf16" and accelerator.device.type == "cuda" and (
            not torch.cuda.is_bf16_supported(including_emulation=False)):
        raise ConfigError(f"train.mixed_precision = 'bf16': {torch.cuda.get_device_name()} has no bf16 of "
                          "its own and would emulate it, slowly; use fp16")
    if settings.mixed_precision == "fp16" and accelerator.scaler is None:
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler(accelerator.device.type)


def check_sharding(settings: Train) -> None:
    """Raises ConfigError for an optimizer whose states cannot be shared out among processes, and where that
    is asked for in two ways."""
    for name in ("optimizer_sharding", "full_sharding"):
        if getattr(settings, name) and settings.optimizer != "adamw":
            raise ConfigError(f"train.{name} = true shares out the states of adamw, and not of "
                              f"{settings.optimizer}; set train.optimizer=adamw, or leave them whole")
    if settings.optimizer_sharding and settings.full_sharding:
        raise ConfigError("train.full_sharding = true shares out the optimizer's states, too: leave "
                          "train.optimizer_sharding false")


def new_optimizer(parameters: Sequence[nn.Parameter], settings: Train, device: torch.device,
                  drawing: Set[nn.Parameter] = frozenset(), processes: int = 1) -> torch.optim.Optimizer:
    """AdamW with the rates and weight decay that are set, of those parameters that learn; ``drawing`` are the
    image generator's. Each of several ``processes`` may keep the states of its share of them alone.

    Raises ConfigError where its library is missing, or for what cannot be shared out.
    """
    check_sharding(settings)
    rate = settings.learning_rate
    parts = (([p for p in parameters if p not in drawing], rate),
             ([p for p in parameters if p in drawing], rate * settings.generator_rate))
    groups: list[dict[str, Any]] = [{"params": members, "lr": lr} for members, lr in parts if members]
    if settings.optimizer_sharding and processes > 1:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # slow to import, and seldom needed
        # One weight at a time: fused, it refuses the states that this class gives it after a checkpoint.
        return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, weight_decay=settings.weight_decay,
                                       foreach=False if device.type == "cuda" else None)
    if settings.optimizer == "adamw":
        # Fused, it makes no temporary copies of all weights.
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay,
                                 fused=device.type == "cuda" or None)
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ConfigError("train.optimizer = 'adamw8bit' needs bitsandbytes: `pip install -e "
                          "'.[quantized]'`, or set adamw") from None
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, weight_decay=settings.weight_decay)
    return optimizer


def gather_states(optimizer: Any) -> Any:
    """The optimizer as a checkpoint takes it, in the first process with the states that processes share out.
    All must call it."""
    if not hasattr(optimizer, "consolidate_state_dict"):
        return gathered_optimizer(optimizer)
    optimizer.consolidate_state_dict()
    return optimizer


def forget_others(optimizer: Any) -> None:
    """Leaves each process the states of its own share alone, once they were read from a checkpoint."""
    if hasattr(optimizer, "consolidate_state_dict"):
        optimizer.state.clear()  # its own ones are in the optimizer that it holds
