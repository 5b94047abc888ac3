"""What learns and what stays: LoRA, number formats and checkpointing of pretrained parts (section 3.1.2).

A part that learns whole does so in float32. A large one stays frozen, in half precision if need be, and
low-rank factors beside some of its matrices learn instead, in float32 as well.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

LANGUAGE_MATRICES = ("q_proj", "k_proj", "v_proj")  # of the language model, as in the released code
UNET_MATRICES = ("to_q", "to_k", "to_v", "to_out.0")  # as in diffusers' own training script
# What `train.mixed_precision` makes of the forward pass.
FORMATS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DROPOUT = 0.1  # of what enters the language model's factors, as in the released code


def add_language_lora(model: Any, rank: int, new_tokens: Sequence[int]) -> None:
    """Freezes a language model but for LoRA factors of ``rank`` and the rows of ``new_tokens``, which it has
    never seen, in its input table and in its output table where that is another one."""
    tables = ["embed_tokens"] if model.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    _add_lora(model, LoraConfig(r=rank, lora_alpha=rank, lora_dropout=DROPOUT,
                                target_modules=[*LANGUAGE_MATRICES],
                                trainable_token_indices={table: [*new_tokens] for table in tables}))


def add_unet_lora(unet: Any, rank: int) -> None:
    """Freezes a UNet but for LoRA factors of ``rank`` in its attention."""
    _add_lora(unet, LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian",
                               target_modules=[*UNET_MATRICES]))


def _add_lora(model: Any, config: LoraConfig) -> None:
    model.requires_grad_(False)
    model.add_adapter(config)
    for parameter in model.parameters():
        if parameter.requires_grad:  # steps of half precision would round to nothing
            parameter.data = parameter.data.float()


def checkpoint_activations(*models: Any) -> None:
    """Makes models compute their inner activations again in the backward pass instead of keeping them."""
    for model in models:
        names = ("activation_checkpointing_enable", "enable_gradient_checkpointing")  # of either library
        next(getattr(model, name) for name in names if hasattr(model, name))()


def in_autocast(module: nn.Module, dtype: torch.dtype) -> torch.autocast:
    """A context in which parts of several number formats work together: a half precision's own, where
    ``dtype`` is one."""
    device = next(module.parameters()).device.type
    half = dtype != torch.float32
    return torch.autocast(device, dtype=dtype if half else None, enabled=half)
