"""Eq. 5 and its gradient where few of its numbers are needed, or the whole gradient once, written in place.

A softmax and its gradient go over memory many times; these read the logits once forward and once backward,
some rows at a time, as many as a CPU's cache holds. Padding is not read at all there.
Axes: B captions, C source positions, U tokens, L target positions, k words with a gradient, V1 words, D2 the
width of the text encoder's embeddings.
"""

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
    if real is None:
        real = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    return _TokenProbabilities.apply(logits, None if noise is None else noise.to(logits), temperature, ids,
                                     real)  # (B, C, U)


def aligned_softmax(logits: Tensor, ids: Tensor, temperature: float, noise: Tensor | None, weights: Tensor,
                    words: Tensor, real: Tensor, top_k: int | None = None) -> Tensor:
    """``aligned.plain_transfer`` of y of Eq. 5: zeros (B, L, D2), with its gradient to the logits (B, C, V1),
    without a product forward and without y in memory. Positions where ``real`` (B, C) is False get none,
    whatever the logits hold there.

    With ``top_k``, only that many words of each position get a gradient: the likeliest, of which its own, in
    ``ids`` (B, C), is always taken for one. Their probabilities are those of Eq. 5 over all words; the words
    left out count as good as those taken are on average, by probability, which leaves them no gradient.

    Raises ValueError for a temperature that is not positive and for logits that have no softmax.
    """
    check_temperature(temperature)
    return _AlignedSoftmax.apply(logits, None if noise is None else noise.to(logits), temperature, ids,
                                 weights, words, real, top_k)  # (B, L, D2)


def aligned_transfer(y: Tensor, weights: Tensor, words: Tensor, kept: tuple[Tensor, Tensor] | None = None
                     ) -> Tensor:
    """``aligned.plain_transfer`` of any y without a product forward. ``kept``: words (B, C, k) and their
    shares, that sum to 1; all others get the gradient that these have on average."""
    return _AlignedTransfer.apply(y, weights, words, *(kept or (None, None)))  # (B, L, D2)


def likeliest(values: Tensor, ids: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The ``top_k`` words (…, k) with the largest ``values`` (…, V1), of which ids (…) are always one each,
    and their values. It writes to ``values``, and leaves them as they were."""
    own = ids[..., None]  # (…, 1)
    value = values.gather(-1, own)
    kept = values.scatter_(-1, own, math.inf).topk(min(top_k, values.shape[-1]), sorted=False).indices
    return kept, values.scatter_(-1, own, value).gather(-1, kept)


class _TokenProbabilities(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, logits: Tensor, noise: Tensor | None, temperature: float, ids: Tensor,
                real: Tensor) -> Tensor:
        index = ids[:, None, :].expand(-1, logits.shape[1], -1).flatten(0, 1)  # (B·C, U)
        log_total, y = logits.new_zeros(len(index), 1), logits.new_zeros(index.shape)
        for rows, scaled in _scaled(logits, noise, temperature, real):
            y[rows] = scaled.gather(-1, index[rows])
            log_total[rows] = _log_total(scaled)
        check_logits(log_total.view_as(real), logits, real)
        y.sub_(log_total).exp_().masked_fill_(~real.view(-1, 1), 0)
        ctx.temperature = temperature
        ctx.save_for_backward(logits, noise, log_total, index, y, real)
        return y.view(*real.shape, ids.shape[1])  # (B, C, U)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, noise, log_total, index, y, real = ctx.saved_tensors
        weighted = gradients[0].flatten(0, 1) * y / ctx.temperature  # (B·C, U)
        gradient = logits.new_zeros(len(index), logits.shape[-1])  # (B·C, V1)
        for rows, scaled in _scaled(logits, noise, ctx.temperature, real, gradient):
            scaled.sub_(log_total[rows]).exp_().mul_(-weighted[rows].sum(-1, keepdim=True))
        gradient = _without_unknown(gradient, log_total).scatter_add_(-1, index, weighted)
        return gradient.view_as(logits), None, None, None, None


class _AlignedSoftmax(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, logits: Tensor, noise: Tensor | None, temperature: float, ids: Tensor,
                weights: Tensor, words: Tensor, real: Tensor, top_k: int | None) -> Tensor:
        log_total = logits.new_zeros(real.numel(), 1)  # (B·C, 1)
        kept = ids.new_zeros(len(log_total), min(top_k or 0, logits.shape[-1]))  # (B·C, k)
        values = logits.new_zeros(kept.shape)
        for rows, scaled in _scaled(logits, noise, temperature, real):
            if top_k:
                kept[rows], values[rows] = likeliest(scaled, ids.flatten()[rows], top_k)
            log_total[rows] = _log_total(scaled)
        check_logits(log_total.view_as(real), logits, real)
        ctx.temperature, ctx.top_k = temperature, top_k
        ctx.save_for_backward(logits, noise, log_total, kept, values, weights, words, real)
        return words.new_zeros(*weights.shape[:2], words.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None, None, None]:
        logits, noise, log_total, kept, values, weights, words, real = ctx.saved_tensors
        change = torch.einsum("blc,bld->bcd", weights.to(words), gradients[0]) / ctx.temperature
        change = change.flatten(0, 1)  # (B·C, D2)
        gradient = logits.new_zeros(len(change), logits.shape[-1])  # (B·C, V1)
        if ctx.top_k:
            for rows in _runs(real, kept.shape[1] * words.shape[1]):
                said = (words[kept[rows]] @ change[rows, :, None])[..., 0]  # (rows, k)
                mean = (values[rows].softmax(-1) * said).sum(-1, keepdim=True)
                p = (values[rows] - log_total[rows]).exp()  # (rows, k)
                gradient[rows].scatter_(-1, kept[rows], p * (said - mean))
        else:
            runs = _runs(real, logits.shape[-1])
            said = torch.cat([change[rows] for rows in runs]) @ words.T  # (n, V1): the runs one after another
            parts = iter(said.split([rows.stop - rows.start for rows in runs]))
            for rows, scaled in _scaled(logits, noise, ctx.temperature, real):
                p, part = scaled.sub_(log_total[rows]).exp_(), next(parts)
                part.sub_(torch.linalg.vecdot(p, part)[:, None])
                torch.mul(part, p, out=gradient[rows])
        gradient = _without_unknown(gradient, log_total)
        return gradient.view_as(logits), None, None, None, None, None, None, None


class _AlignedTransfer(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, words: Tensor, kept: Tensor | None,
                shares: Tensor | None) -> Tensor:
        ctx.save_for_backward(weights, words, kept, shares)
        return words.new_zeros(*weights.shape[:2], words.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        weights, words, kept, shares = ctx.saved_tensors
        said = torch.einsum("blc,bld->bcd", weights.to(words), gradients[0]) @ words.T  # (B, C, V1)
        if kept is not None:
            values = said.gather(-1, kept)  # (B, C, k)
            mean = (shares * values).sum(-1, keepdim=True)  # (B, C, 1)
            said = mean.expand_as(said).scatter(-1, kept, values)
        return said, None, None, None, None


def _runs(real: Tensor, width: int) -> list[slice]:
    """Of the B·C positions, those that are ``real`` (B, C), as runs of rows of ``width`` numbers that fit a
    CPU's cache; on an accelerator all positions at once."""
    if real.device.type != "cpu":
        return [slice(0, real.numel())]
    most, runs = max(1, CACHED // max(1, width)), [slice(0, 0)]
    for row in real.flatten().nonzero()[:, 0].tolist():
        first, end = runs[-1].start, runs[-1].stop
        if row == end and end - first < most:
            runs[-1] = slice(first, row + 1)
        else:
            runs.append(slice(row, row + 1))
    return runs


def _scaled(logits: Tensor, noise: Tensor | None, temperature: float, real: Tensor, out: Tensor | None = None
            ) -> Iterator[tuple[slice, Tensor]]:
    """(z + g)/τ of each run, (rows, V1), written to ``out`` (B·C, V1) or to a place that the next run uses,
    too: new memory costs more than the computation."""
    runs = _runs(real, logits.shape[-1])
    z, g = logits.flatten(0, 1), None if noise is None else noise.flatten(0, 1)  # (B·C, V1)
    place = z.new_empty(max(rows.stop - rows.start for rows in runs), z.shape[1]) if out is None else out
    for rows in runs:
        scaled = place[:rows.stop - rows.start] if out is None else place[rows]
        if g is None:
            torch.div(z[rows], temperature, out=scaled)
        else:
            torch.add(z[rows], g[rows], out=scaled).div_(temperature)
        yield rows, scaled


def _log_total(scaled: Tensor) -> Tensor:
    """Its log-sum-exp (rows, 1), which overwrites it (rows, V1); not finite where there is no softmax."""
    largest = scaled.amax(-1, keepdim=True)
    return scaled.sub_(largest).exp_().sum(-1, keepdim=True).log_().add_(largest)


def _without_unknown(gradient: Tensor, log_total: Tensor) -> Tensor:
    """The gradient (B·C, V1), in place, 0 at padding that holds no numbers."""
    unknown = ~log_total[:, 0].isfinite()  # (B·C,)
    if unknown.any():
        gradient[unknown] = 0
    return gradient
