"""Eq. 8-11 as the paper writes them, with matrices of V1 × V2 numbers: for tests and notebook 03 only.

One caption at a time, float64. Axes: C source positions, L target positions, V1 and V2 the vocabularies, D2
the width of the text encoder's embeddings E (V2, D2).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from e2e_lib.bridge.alignment import Encoding, overlap, word_spans


class DenseMap(NamedTuple):
    """A ``matrix`` (V1, V2), the ``pooling`` weights (C,) of source positions, and ``scatter`` (L,), 1 at the
    target positions that the result is added at."""

    matrix: Tensor
    pooling: Tensor
    scatter: Tensor


def static_matrix(source_tokens: Sequence[str], target_tokens: Sequence[str]) -> Tensor:
    """Eq. 8: M[i, j] = 1 where the two vocabularies have the same token text, (V1, V2); "" is no text."""
    return torch.tensor([[a == b != "" for b in target_tokens] for a in source_tokens], dtype=torch.float64)


def caption_matrix(source_ids: Tensor, target_ids: Tensor, source_size: int, target_size: int) -> Tensor:
    """Eq. 10: M[i, j] = 1 where i is one of source_ids (C,) and j one of target_ids (L,), (V1, V2)."""
    matrix = torch.zeros(source_size, target_size, dtype=torch.float64)
    matrix[source_ids[:, None], target_ids[None, :]] = 1
    return matrix


def added_embeddings(h: Tensor, maps: Sequence[DenseMap], embeddings: Tensor) -> Tensor:
    """Eq. 9 and 11: vectors over the source vocabulary h (C, V1) to what they add, (L, D2)."""
    added = embeddings.new_zeros(len(maps[0].scatter), embeddings.shape[1])
    for matrix, pooling, scatter in maps:
        transferred = h @ matrix @ embeddings  # (C, D2), Eq. 9
        pooled = pooling @ transferred  # (D2,), Eq. 11
        added = added + torch.outer(scatter, pooled)  # (L, D2)
    return added


def dense_maps(mapping: str, caption: str, source: Encoding, target: Encoding, *sizes: int,
               added_at: str = "caption", static: Tensor | None = None) -> list[DenseMap]:
    """The map of one caption, whose encodings have no batch axis, for vocabularies of ``sizes`` V1, V2: one
    matrix for "sentence" (Eq. 10), one per word for "word", one per target token for "span", and for
    "aligned" the same ``static`` one (V1, V2) for each target token. The first two are added at the tokens of
    the "caption", or at its marks too, "caption_and_marks"."""
    def matrix(in_source: Tensor, in_target: Tensor) -> Tensor:
        return caption_matrix(source.input_ids[in_source], target.input_ids[in_target], *sizes)

    if mapping in ("span", "aligned"):
        shared = overlap(target.spans[None], source.spans[None])[0] & target.token_mask[:, None]  # (L, C)
        here = torch.eye(len(shared), dtype=torch.bool)  # (L, L)
        return [DenseMap(matrix(shared[n], here[n]) if static is None else static,
                         shared[n] / shared[n].sum().double(), here[n].double())
                for n in range(len(shared)) if shared[n].any()]
    pairs = [(source.token_mask, target.token_mask)]  # the tokens of the caption, or of each word
    if mapping == "word":
        words, _ = word_spans([caption])  # (1, W, 2)
        sides = (overlap(words, side.spans[None])[0] & side.token_mask for side in (source, target))
        pairs = list(zip(*sides, strict=True))
    mean = source.token_mask / source.token_mask.sum().double()  # (C,)
    scatter = target.token_mask if added_at == "caption" else target.attention_mask  # (L,)
    return [DenseMap(matrix(*members), mean, scatter.double()) for members in pairs]
