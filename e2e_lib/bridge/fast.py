"""Eq. 5 at a caption's own tokens, in about a third of the time and memory of the plain form."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from e2e_lib.bridge.gumbel import check_logits, check_temperature, softmax_with_temperature
from e2e_lib.bridge.transfer import at_tokens

CACHED = 2**19  # numbers, 2 MB of them: what a core's cache holds


def plain_probabilities(logits: Tensor, ids: Tensor, temperature: float, noise: Tensor | None) -> Tensor:
    """The definition: y of Eq. 5 from logits and noise (B, C, V1), at the tokens ids (B, U), as (B, C, U)."""
    return at_tokens(softmax_with_temperature(logits, temperature, noise), ids)


def token_probabilities(logits: Tensor, ids: Tensor, temperature: float, noise: Tensor | None,
                        real: Tensor | None = None) -> Tensor:
    """``plain_probabilities``, values and gradient, without writing y to memory; both are 0 at positions
    where ``real`` (B, C) is False, whatever the logits hold there.

    Raises ValueError for a temperature that is not positive and for logits that have no softmax.
    """
    check_temperature(temperature)
    return _TokenProbabilities.apply(logits, None if noise is None else noise.to(logits), temperature, ids,
                                     real)  # (B, C, U)


class _TokenProbabilities(torch.autograd.Function):
    """Reads the logits once forward and once backward, where it writes their gradient in place; a softmax and
    its gradient go over memory many times."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, noise: Tensor | None, temperature: float, ids: Tensor,
                real: Tensor | None) -> Tensor:
        index = ids[:, None, :].expand(-1, logits.shape[1], -1)  # (B, C, U)
        log_total, y = logits.new_empty(*logits.shape[:2], 1), logits.new_empty(index.shape)
        for rows, z, g in _cache_sized(logits, noise):
            scaled = (z + g).div_(temperature)  # (rows, C, V1)
            log_total[rows] = scaled.logsumexp(-1, keepdim=True)
            y[rows] = (scaled.gather(-1, index[rows]) - log_total[rows]).exp_()
        check_logits(log_total[..., 0], logits, real)
        if real is not None:
            y.masked_fill_(~real[:, :, None], 0)
        unknown = ~log_total[..., 0].isfinite()  # (B, C): padding that holds no numbers
        ctx.temperature = temperature
        ctx.save_for_backward(logits, noise, log_total, index, y, unknown if unknown.any() else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, noise, log_total, index, y, unknown = ctx.saved_tensors
        weighted = gradients[0] * y / ctx.temperature  # (B, C, U)
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)  # (B, C, V1)
        for rows, z, g in _cache_sized(logits, noise):
            scaled = torch.add(z, g, out=gradient[rows]).div_(ctx.temperature)
            scaled.sub_(log_total[rows]).exp_().mul_(-weighted[rows].sum(-1, keepdim=True))
        if unknown is not None:
            gradient[unknown] = 0
        return gradient.scatter_add_(-1, index, weighted), None, None, None, None


def _cache_sized(logits: Tensor, noise: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor | int]]:
    """Consecutive captions, as many as fit a CPU's cache (an accelerator takes all): rows, logits and
    noise."""
    step = max(1, CACHED // max(1, logits[:1].numel())) if logits.device.type == "cpu" else len(logits)
    for first in range(0, len(logits), max(1, step)):
        rows = slice(first, first + step)
        yield rows, logits[rows], 0 if noise is None else noise[rows]


def aligned_softmax(logits: Tensor, ids: Tensor, temperature: float, noise: Tensor | None, weights: Tensor,
                    words: Tensor, real: Tensor, top_k: int | None = None) -> Tensor:
    """``aligned.plain_transfer`` of y of Eq. 5: zeros (B, L, D2), with its gradient to the logits (B, C, V1),
    without a product forward and without y in memory. Positions that ``weights`` (B, L, C) leave out get
    none, whatever the logits hold there.

    With ``top_k``, only that many words of each position get a gradient: the likeliest, of which its own, in
    ``ids`` (B, C), is always taken for one. Their probabilities are those of Eq. 5 over all words; words left
    out count as good as those taken are on average, p-weighted, which leaves them no gradient.

    Raises ValueError for a temperature that is not positive and for logits that have no softmax where
    ``real`` (B, C).
    """
    check_temperature(temperature)
    return _AlignedSoftmax.apply(logits, None if noise is None else noise.to(logits), temperature, ids,
                                 weights, words, real, top_k)  # (B, L, D2)


def aligned_transfer(y: Tensor, ids: Tensor, weights: Tensor, words: Tensor, top_k: int | None = None
                     ) -> Tensor:
    """``aligned.plain_transfer`` without a product forward. With ``top_k``, words left out get the gradient
    that those taken have on average."""
    return _AlignedTransfer.apply(y, ids, weights, words, top_k)  # (B, L, D2)


def likeliest(values: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """The ``top_k`` words (n, k) with the largest values (n, V1), of which ids (n,) are always one each."""
    own = ids[:, None]
    return values.scatter(-1, own, math.inf).topk(min(top_k, values.shape[-1]), -1, sorted=False).indices


class _AlignedTransfer(torch.autograd.Function):
    """One product backward, none forward."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, ids: Tensor, weights: Tensor, words: Tensor, top_k: int | None
                ) -> Tensor:
        ctx.save_for_backward(y if top_k else None, ids, weights, words)
        ctx.top_k, ctx.shape = top_k, y.shape
        return words.new_zeros(*weights.shape[:2], words.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        y, ids, weights, words = ctx.saved_tensors
        said = torch.einsum("blc,bld->bcd", weights.to(words), gradients[0]) @ words.T  # (B, C, V1)
        if ctx.top_k:
            y, said = y.flatten(0, 1), said.flatten(0, 1)  # (B·C, V1)
            kept = likeliest(y, ids.flatten(), ctx.top_k)
            p, values = y.gather(-1, kept), said.gather(-1, kept)  # (B·C, k)
            mean = (p * values).sum(-1, keepdim=True) / p.sum(-1, keepdim=True)
            said = mean.expand_as(said).scatter(-1, kept, values).view(ctx.shape)
        return said, None, None, None, None


class _AlignedSoftmax(torch.autograd.Function):
    """Reads the logits once forward and once backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, noise: Tensor | None, temperature: float, ids: Tensor,
                weights: Tensor, words: Tensor, real: Tensor, top_k: int | None) -> Tensor:
        positions = real.flatten().nonzero()[:, 0]  # (n,)
        log_total = logits.new_empty(len(positions), 1)
        kept = ids.new_empty(len(positions), min(top_k or 0, logits.shape[-1]))  # (n, k)
        p = logits.new_empty(kept.shape)
        for rows, scaled in _scaled(logits, noise, temperature, positions):
            log_total[rows] = scaled.logsumexp(-1, keepdim=True)
            if top_k:
                kept[rows] = likeliest(scaled, ids.flatten()[positions[rows]], top_k)
                p[rows] = (scaled.gather(-1, kept[rows]) - log_total[rows]).exp_()
        everywhere = logits.new_zeros(real.shape)  # (B, C)
        check_logits(everywhere.flatten().index_copy_(0, positions, log_total[:, 0]).view_as(real), logits)
        ctx.temperature, ctx.top_k = temperature, top_k
        ctx.save_for_backward(logits, noise, positions, log_total, kept, p, weights, words)
        return words.new_zeros(*weights.shape[:2], words.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None, None, None]:
        logits, noise, positions, log_total, kept, p, weights, words = ctx.saved_tensors
        change = torch.einsum("blc,bld->bcd", weights.to(words), gradients[0]) / ctx.temperature  # (B, C, D2)
        change = change.flatten(0, 1)[positions]  # (n, D2)
        gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format)  # (B, C, V1)
        flat = gradient.flatten(0, 1)  # (B·C, V1)
        if ctx.top_k:
            for rows in _blocks(len(positions), kept.shape[1] * words.shape[1], logits.device):
                said = torch.einsum("nd,nkd->nk", change[rows], words[kept[rows]])
                mean = (p[rows] * said).sum(-1, keepdim=True) / p[rows].sum(-1, keepdim=True)
                flat[positions[rows, None], kept[rows]] = p[rows] * (said - mean)
        else:
            for rows, scaled in _scaled(logits, noise, ctx.temperature, positions):
                said = change[rows] @ words.T  # (n, V1)
                scaled.sub_(log_total[rows]).exp_()
                said.sub_(torch.linalg.vecdot(scaled, said)[:, None]).mul_(scaled)
                flat[positions[rows]] = said
        return gradient, None, None, None, None, None, None, None


def _blocks(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Consecutive rows of ``width`` numbers, as many as fit a CPU's cache; an accelerator takes all."""
    step = max(1, CACHED // max(1, width)) if device.type == "cpu" else max(1, count)
    return (slice(first, first + step) for first in range(0, count, step))


def _scaled(logits: Tensor, noise: Tensor | None, temperature: float, positions: Tensor
            ) -> Iterator[tuple[slice, Tensor]]:
    """(z + g)/τ at the given ones of the B·C positions, some at a time: rows of ``positions``, (rows, V1)."""
    for rows in _blocks(len(positions), logits.shape[-1], logits.device):
        scaled = logits.flatten(0, 1)[positions[rows]]
        if noise is not None:
            scaled += noise.flatten(0, 1)[positions[rows]]
        yield rows, scaled.div_(temperature)
