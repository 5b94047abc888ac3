"""The language model's frozen weights in 4 bits: NF4 with double quantisation, by bitsandbytes.

A number is one of 16 values, times the scale of its block of 64; scales are in 8 bits, with a scale of their
own for each 256 of them (QLoRA's way). So are stored all linear layers but the output table; that, embeddings
and norms stay as they are. For each product, the layer's weight is turned back into an ordinary format.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from e2e_lib.config import ConfigError

BLOCK, BLOCKS = 64, 256  # numbers of a block, and blocks whose scales have one scale
OUTPUT = "lm_head"  # the output table, which stays as it is


def check_library() -> None:
    """Raises ConfigError where bitsandbytes is not installed."""
    try:
        import bitsandbytes  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError:
        raise ConfigError("model.language_bits = 4 needs bitsandbytes: `pip install -e '.[quantized]'`, or "
                          "set 16") from None


def loading_settings(compute: torch.dtype) -> dict[str, Any]:
    """What ``from_pretrained`` takes to store weights in NF4, and to multiply in the format ``compute``.

    Raises ConfigError where bitsandbytes is not installed.
    """
    check_library()
    # On the CPU, as all parts are loaded: who trains moves them together.
    return {"device_map": {"": "cpu"}, "quantization_config": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute)}


def check_rows(model: Any) -> None:
    """Raises ConfigError for a linear layer whose rows blocks do not divide: on a CPU, bitsandbytes begins
    each row with a block of its own, and so reads other numbers than it wrote."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != OUTPUT and layer.in_features % BLOCK:
            raise ConfigError(f"model.language_bits = 4 stores blocks of {BLOCK} numbers, but the rows of "
                              f"{name} in this language model have {layer.in_features}; set 16")


def settle(model: Any) -> None:
    """Makes a model, once loaded in NF4, ready to train. Raises ValueError for weights that are no numbers.
    """
    for name, layer in model.named_modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is None:
            continue
        if not state.offset.isfinite():  # the mean of all scales
            raise ValueError(f"its weights hold values that are not numbers, {name} first")
        # Else answering on some CPUs stores the weight in another order, for a product that gives no
        # gradient, and training goes on without one.
        layer.support_avx512bf16_for_cpu = False


def quantize(model: Any, compute: torch.dtype) -> None:
    """Stores a model's linear layers in NF4, its output table left out; on the meta device, tensors of the
    same sizes and formats take their place. Raises ConfigError where their rows do not go with that."""
    check_rows(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != OUTPUT:
            meta = layer.weight.device.type == "meta"
            model.set_submodule(name, (MetaLinear if meta else _quantized)(layer, compute))
    model.is_loaded_in_4bit = True  # what `peft` asks for
    settle(model)


def _quantized(layer: nn.Linear, compute: torch.dtype) -> nn.Module:
    from bitsandbytes import nn as library  # type: ignore[import-not-found, unused-ignore]

    new: nn.Module = library.Linear4bit(layer.in_features, layer.out_features, bias=False,
                                        compute_dtype=compute, device="meta")
    new.weight = library.Params4bit(layer.weight.data, quant_type="nf4", module=new).to(layer.weight.device)
    new.bias = layer.bias
    return new


class MetaLinear(nn.Linear):
    """A linear layer in NF4 on the meta device: what it stores, and the tensors that it makes."""

    scales: Tensor
    constants: Tensor

    def __init__(self, layer: nn.Linear, compute: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.compute, self.stored, self.bias = compute, layer.weight.dtype, layer.bias
        count, device = layer.weight.numel(), torch.device("meta")
        blocks = -(-count // BLOCK)
        self.weight = nn.Parameter(torch.empty((count + 1) // 2, 1, dtype=torch.uint8, device=device),
                                   requires_grad=False)
        # Of each weight: its scales, theirs with the 256 values that they can have, and the 16 of the weight.
        self.register_buffer("scales", torch.empty(blocks, dtype=torch.uint8, device=device))
        self.register_buffer("constants", torch.empty(-(-blocks // BLOCKS) + 256 + 16 + 1, device=device))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _MetaProduct.apply(input.to(self.compute), self)
        return output.to(input.dtype)


class _MetaProduct(torch.autograd.Function):
    """The product of an input (..., in) and a weight that, forward and backward, is turned back for it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: MetaLinear) -> Tensor:
        ctx.layer, ctx.shape = layer, input.shape
        weight = _turned_back(layer, input.dtype)
        return input.new_empty(*input.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        weight = _turned_back(ctx.layer, ctx.layer.stored).to(gradients[0].dtype)
        return weight.new_empty(ctx.shape), None


def _turned_back(layer: MetaLinear, dtype: torch.dtype) -> Tensor:
    scales = layer.scales.float()
    return scales.new_empty(layer.out_features, layer.in_features, dtype=dtype)  # and these are freed
