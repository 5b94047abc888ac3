"""Number formats of training: what a device can do, gradient scaling, and the optimizer's states."""

from collections.abc import Sequence, Set
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from e2e_lib.config import ConfigError, Train


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


def new_optimizer(parameters: Sequence[nn.Parameter], settings: Train, device: torch.device,
                  drawing: Set[nn.Parameter] = frozenset()) -> torch.optim.Optimizer:
    """AdamW with the rates and weight decay that are set, of those parameters that learn; ``drawing`` are the
    image generator's. Raises ConfigError where its library is missing."""
    rate = settings.learning_rate
    parts = (([p for p in parameters if p not in drawing], rate),
             ([p for p in parameters if p in drawing], rate * settings.generator_rate))
    groups: list[dict[str, Any]] = [{"params": members, "lr": lr} for members, lr in parts if members]
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
