"""Bytes of a training step, counted without computing it: on the meta device, whose tensors have no numbers.

Counted is every storage that an operation makes, from then until nothing refers to it any more: activations
kept for the backward pass, temporaries of forward and backward, and gradients. Two things are put in CUDA's
place, since the meta device does otherwise: number formats under autocast, and the attention kernel that
keeps no scores. Not counted is what stays inside an operation: a convolution's workspace, and the rounding up
of an allocator's blocks.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 256  # numbers that share a scale in 8-bit AdamW's states
SMALL = 4096  # tensors of fewer numbers keep their states in 32 bits
# What autocast computes in half precision on CUDA, and what in float32 (PyTorch's list of both, as far as the
# parts use them); everything else takes the formats it is given.
_HALF: set[Any] = {F.linear, F.conv1d, F.conv2d, F.conv_transpose2d, torch.matmul, torch.bmm, torch.mm,
                   torch.addmm, torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.__matmul__, Tensor.bmm,
                   Tensor.__rmatmul__, F.scaled_dot_product_attention}
_FLOAT32: set[Any] = {F.layer_norm, F.group_norm, torch.layer_norm, torch.group_norm, F.softmax,
                      torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, F.cross_entropy,
                      F.mse_loss, torch.exp, Tensor.exp, torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt,
                      Tensor.rsqrt, torch.sum, Tensor.sum, torch.norm, torch.cumsum, Tensor.cumsum}


_aten = torch.ops.aten
# Their result is like their first argument, if others are alike, too.
_LIKE_FIRST = {_aten.add.Tensor, _aten.mul.Tensor, _aten.gelu.default, _aten.silu.default,
               _aten.pow.Tensor_Scalar, _aten.gelu_backward.default, _aten.silu_backward.default,
               _aten.native_dropout_backward.default}


def _norm_gradients(like: Tensor, weight: Tensor | None, mask: Sequence[bool]) -> Any:
    sources = (like, weight, weight)
    return tuple(torch.empty_like(source) if wanted and source is not None else None
                 for source, wanted in zip(sources, mask, strict=True))


# What other frequent operations make. The meta device knows it as well, but takes half of a plan's time.
_RESULTS: dict[Any, Callable[..., Any]] = {
    _aten.native_dropout.default: lambda x, *_: (torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)),
    _aten.native_layer_norm.default: lambda x, shape, *_: (
        torch.empty_like(x), *(x.new_empty((*x.shape[:-len(shape)], *[1] * len(shape))) for _ in range(2))),
    _aten.native_layer_norm_backward.default: lambda g, x, shape, mean, rstd, weight, bias, mask:
        _norm_gradients(x, weight, mask),
    _aten.native_group_norm.default: lambda x, weight, bias, n, c, size, groups, eps: (
        torch.empty_like(x), x.new_empty(n, groups), x.new_empty(n, groups)),
    _aten.native_group_norm_backward.default: lambda g, x, mean, rstd, weight, n, c, size, groups, mask:
        _norm_gradients(x, weight, mask)}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages by ``owner`` (set it as the step goes on), those of ``known`` tensors
    left out, and remembers the fullest moment: ``at_peak``."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.owner, self.live, self.at_peak = "", Counter[str](), Counter[str]()
        self.total = self.peak = 0
        self._owners: dict[int, str] = {}
        self._watched: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LIKE_FIRST and all(_alike(args[0], other) for other in args[1:]):
            out = torch.empty_like(args[0])
        elif func in _RESULTS and args[0].device.type == "meta":
            out = _RESULTS[func](*args)
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return out

    def add(self, tensor: Tensor, owner: str = "") -> None:
        """Counts a tensor's storage, or gives one that is counted already to another ``owner``."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._watched:
            if owner and key in self._owners:
                self.live[self._owners[key]] -= size
                self.live[owner] += size
                self._owners[key] = owner
            return
        self._owners[key] = owner or self.owner
        self._watched[key] = weakref.ref(storage, lambda _: self._freed(key, size))
        self.live[self._owners[key]] += size
        self.total += size
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, Counter(self.live)

    def _freed(self, key: int, size: int) -> None:
        del self._watched[key]
        self.live[self._owners.pop(key)] -= size
        self.total -= size

    def made_by(self, tensor: Tensor, owner: str) -> Tensor:
        """The tensor, and a mark in the backward pass: what is made from there on is ``owner``'s."""
        marked: Tensor = _Mark.apply(tensor, self, owner)
        return marked


def _alike(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and one.device.type == "meta" and (
        not isinstance(other, Tensor) or other.shape == one.shape and other.dtype == one.dtype)


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counter: LiveBytes, owner: str) -> Tensor:
        ctx.counter, ctx.owner = counter, owner
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.counter.owner = ctx.owner
        return gradients[0], None, None


class CudaFunctions(TorchFunctionMode):
    """Makes the meta device take number formats as CUDA's autocast to ``half`` does (None: no autocast), and
    attention as its memory-efficient kernel does."""

    def __init__(self, half: torch.dtype | None) -> None:
        super().__init__()
        self.half, self._copies = half, dict[int, Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.half and (func in _HALF or func in _FLOAT32):
            wanted = self.half if func in _HALF else torch.float32
            args = tuple(self._cast(value, wanted) for value in args)
            kwargs = {name: self._cast(value, wanted) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is F.dropout and self.half:  # CUDA's own keeps a byte a number
            training = kwargs.get("training", args[2] if len(args) > 2 else True)
            p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            return torch.native_dropout(args[0], p, True)[0] if training and p else args[0]
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        # Autocast copies a learnt weight once, and keeps the copy until the pass ends.
        if id(value) not in self._copies:
            self._copies[id(value)] = value.to(dtype)
        return self._copies[id(value)]

    def forget_copies(self) -> None:
        """Ends a pass."""
        self._copies.clear()


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
               dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
               enable_gqa: bool = False) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)
    out: Tensor = _Attention.apply(query, key, value, attn_mask)
    return out


class _Attention(torch.autograd.Function):
    """As kernels that keep no scores: saved are queries, keys, values, the output, and a sum per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        # Its result lies in memory as (B, T, heads, width), so that joining heads needs no copy.
        batch, heads, length, _ = query.shape
        out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32),
                              *([] if mask is None else [mask]))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return *(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None


def count_recomputation(model: nn.Module, functions: CudaFunctions) -> None:
    """Lets what a model's checkpointing computes again be counted, each time as an autocast pass of its own:
    autograd leaves ``functions`` out of the backward pass."""
    for module in model.modules():
        if plain := getattr(module, "_gradient_checkpointing_func", None):  # of either library
            counted: Any = partial(_checkpoint, plain, functions)
            module._gradient_checkpointing_func = counted


def _checkpoint(plain: Callable[..., Any], functions: CudaFunctions, function: Callable[..., Any],
                *args: Any, **kwargs: Any) -> Any:
    calls: list[None] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            return function(*args, **kwargs)
        try:
            with torch.device("meta"), functions:
                return function(*args, **kwargs)
        finally:  # it is left by an exception once it has made what is needed
            functions.forget_copies()

    return plain(counted, *args, **kwargs)


def count_of(parameter: Tensor) -> int:
    """How many numbers a parameter holds; of NF4, two in a byte."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


def size_of(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_bytes(counts: Iterable[int], optimizer: str) -> int:
    """The bytes of AdamW's two states for tensors of so many numbers each: "adamw" in 32 bits, "adamw8bit" in
    8 with a scale per block."""
    total = 0
    for count in counts:
        in_8_bits = optimizer == "adamw8bit" and count >= SMALL
        total += 2 * (count + 4 * -(-count // BLOCK)) if in_8_bits else 8 * count
    return total


def fullest_share(groups: Iterable[Iterable[tuple[str, int]]], processes: int) -> list[tuple[str, int]]:
    """Of tensors, each a name and how many numbers it holds, those whose optimizer states the process with
    most keeps, where several share them out as ``ZeroRedundancyOptimizer`` does: the largest of each group
    first, each to the process that has least so far."""
    shares: list[list[tuple[str, int]]] = [[] for _ in range(processes)]
    sizes = [0] * processes
    for group in groups:
        for tensor in sorted(group, key=lambda tensor: -tensor[1]):
            least = sizes.index(min(sizes))
            shares[least].append(tensor)
            sizes[least] += tensor[1]
    return shares[sizes.index(max(sizes))]
