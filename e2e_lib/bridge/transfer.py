"""From the language model's tokens to the text encoder's embeddings, and the gradient back (Eq. 9 and 11).

Forward, the text encoder gets exactly its own embeddings of the caption. Backward, the gradient reaches the
language model through h M E. With M = Σ_k 1_{A_k} 1_{B_k}ᵀ that is one number per term, s_k = pool_t
Σ_{i∈A_k} h[t, i], which enters as (s_k - sg(s_k)) Σ_{j∈B_k} E[j]: of h, only the caption's own tokens are
needed.
Axes: B captions, C source positions, L target positions, K terms, V1 and V2 vocabularies, D2 embedding width.
"""

import torch
from torch import Tensor

from e2e_lib.bridge.gumbel import full_precision
from e2e_lib.bridge.vocabulary import FactoredMap, StaticMap


def at_tokens(y: Tensor, ids: Tensor) -> Tensor:
    """Vectors over the vocabulary y (B, C, V1) at the tokens ids (B, U): y[b, t, ids[b, u]], (B, C, U)."""
    return y.gather(-1, ids[:, None, :].expand(-1, y.shape[1], -1))


def transfer(probabilities: Tensor, factored: FactoredMap, embeddings: Tensor) -> Tensor:
    """What Eq. 9 and 11 add to the embeddings E (B, L, D2) of the target tokens: zeros (B, L, D2), with the
    gradient to ``probabilities`` (B, C, C), whose [b, t, u] is h of position t at the token of position u."""
    embeddings = full_precision(embeddings.detach())
    source, pooling = factored.source.to(probabilities), factored.pooling.to(probabilities)  # (B, K, C)
    s = torch.einsum("bkt,btu,bku->bk", pooling, probabilities, source)  # (B, K)
    change = (s - s.detach()).to(embeddings)
    terms = (change[:, :, None] * factored.target.to(embeddings)) @ embeddings  # (B, K, D2)
    return factored.scatter.to(embeddings) @ terms  # (B, L, D2)


def static_transfer(y: Tensor, pooling: Tensor, static: StaticMap, table: Tensor) -> Tensor:
    """The same with one matrix for the whole vocabulary: y (B, C, V1), Eq. 11's weights ``pooling`` (B, C)
    and the table E (V2, D2) to zeros (B, D2), which are added at every position."""
    table = full_precision(table.detach())
    pooled = torch.einsum("bc,bcv->bv", pooling.to(y), y)  # (B, V1)
    s = pooled.new_zeros(len(y), static.terms).index_add(
        1, static.source_terms.to(y.device), pooled[:, static.source_ids.to(y.device)])  # (B, K)
    change = (s - s.detach()).to(table)
    weights = change.new_zeros(len(y), len(table)).index_add(
        1, static.target_ids.to(table.device), change[:, static.target_terms.to(table.device)])  # (B, V2)
    return weights @ table  # (B, D2)
