"""From the language model's words to the text encoder's embeddings, and the gradient back (section 2.4.2, Eq. 9 and 11).

Forward, the text encoder gets exactly its own embeddings of the caption. Backward, the gradient reaches the language model through
h M E of Eq. 9 and 11. With M = Σ_k 1_{A_k} 1_{B_k}ᵀ that is one number a term, s_k = pool_t Σ_{i∈A_k} h[t, i], which enters as
(s_k - sg(s_k)) Σ_{j∈B_k} E[j]: so of h, only the probability of the caption's own tokens is ever needed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from e2e_lib.bridge.vocabulary import FactoredMap, StaticMap

CACHED = 2**19  # numbers, 2 MB of them: what a core's cache holds


def _parts(x: Tensor) -> list[slice]:
    """Consecutive captions of (B, C, V), as many at once as fit a processor's cache; an accelerator takes all at once."""
    step = max(1, CACHED // max(1, x[:1].numel())) if x.device.type == "cpu" else max(1, len(x))
    return [slice(first, first + step) for first in range(0, len(x), step)]


def _tempered(logits: Tensor, noise: Tensor | None, temperature: float, out: Tensor | None = None) -> Tensor:
    """(z + g) / τ, a new tensor or ``out``."""
    x = torch.add(logits, 0 if noise is None else noise, out=out)
    return x if temperature == 1 else x.div_(temperature)


class _ProbabilityOf(torch.autograd.Function):
    """softmax(x)[b, t, ids[b, u]] for x (B, C, V), without writing the softmax: forward reads x once, backward reads it once more and writes
    the gradient, where a softmax and its gradient go over memory many times."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, noise: Tensor | None, temperature: float, ids: Tensor) -> Tensor:
        index = ids[:, None, :].expand(-1, logits.shape[1], -1)
        total, chosen = logits.new_empty(*logits.shape[:2], 1), logits.new_empty(index.shape)
        for part in _parts(logits):
            x = _tempered(logits[part], None if noise is None else noise[part], temperature)
            total[part] = x.logsumexp(-1, keepdim=True)
            chosen[part] = (x.gather(-1, index[part]) - total[part]).exp_()
        ctx.temperature = temperature
        ctx.save_for_backward(logits, noise, total, index, chosen)
        return chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, noise, total, index, chosen = ctx.saved_tensors
        weighted = gradients[0] * chosen / ctx.temperature  # (B, C, U)
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for part in _parts(logits):
            x = _tempered(logits[part], None if noise is None else noise[part], ctx.temperature, out=gradient[part])
            x.sub_(total[part]).exp_().mul_(-weighted[part].sum(-1, keepdim=True))
        return gradient.scatter_add_(-1, index, weighted), None, None, None


def probability_of(logits: Tensor, ids: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """The relaxation y of Eq. 5 at a caption's own tokens: logits (B, C, V1), ids (B, U) to y[b, t, ids[b, u]] (B, C, U), with its gradient.

    Raises ValueError for a temperature that is not positive and for logits that are not numbers.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    chosen = _ProbabilityOf.apply(logits, None if noise is None else noise.to(logits), temperature, ids)
    if torch.isnan(chosen).any():
        raise ValueError(f"the logits (shape {tuple(logits.shape)}) hold values that are not numbers; lower the learning rate")
    return chosen


def transfer(chosen: Tensor, terms: FactoredMap, embeddings: Tensor) -> Tensor:
    """What Eq. 9 and 11 add to the caption's embeddings (B, L, D2): nothing forward, the gradient to ``chosen`` (B, C, C) backward.

    ``chosen[b, t, u]`` is how much position t chooses the token at position u; ``embeddings`` are E of the target tokens.
    """
    s = torch.einsum("bkt,btu,bku->bk", terms.pool.to(chosen), chosen, terms.source.to(chosen))
    change = (s - s.detach()).to(embeddings)
    aimed, place = change[:, :, None] * terms.target.to(embeddings), terms.place.to(embeddings)  # (B, K, L), (B, L, K)
    # Whichever product is smaller comes first: few terms are multiplied out to embeddings, many to a matrix between positions.
    few = aimed.shape[1] < aimed.shape[2] // 2
    return place @ (aimed @ embeddings.detach()) if few else (place @ aimed) @ embeddings.detach()


def static_transfer(y: Tensor, pool: Tensor, static: StaticMap, table: Tensor) -> Tensor:
    """The same for one matrix of the whole vocabulary: y (B, C, V1), pool (B, C) to (B, D2), to be added at every position."""
    pooled = torch.einsum("bc,bcv->bv", pool.to(y), y)
    s = pooled.new_zeros(len(y), static.count).index_add(1, static.source_term, pooled[:, static.source])  # (B, K)
    change = (s - s.detach()).to(table)
    # Σ_k change_k 1_{B_k}, a row over the target vocabulary, then its embeddings: no copy of the table is made.
    row = change.new_zeros(len(y), len(table)).index_add(1, static.target, change[:, static.target_term])
    return row @ table.detach()
