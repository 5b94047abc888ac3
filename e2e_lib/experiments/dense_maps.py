"""Every vocabulary map of a caption as matrices of V1 × V2 numbers, to be looked at (section 2.4.2).

A map is a list of ``reference.DenseMap``; it gives the gradient of ``CaptionBridge``, which needs no such
matrix. Axes: C tokens of the language model, L of the text encoder, V1 and V2 their vocabularies, D2 width of
an embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e2e_lib.bridge import aligned
from e2e_lib.bridge.alignment import (
    Encoding,
    encode_with_offsets,
    overlap,
    vocabulary_size,
    without_undrawn,
)
from e2e_lib.bridge.reference import DenseMap, caption_matrix, dense_maps, static_matrix
from e2e_lib.bridge.vocabulary import DYNAMIC, normalized_tokens


@dataclass(frozen=True)
class Pair:
    """A caption in the tokens of both tokenizers, as texts and as encodings without a batch axis. ``shared``
    and ``same_text`` (C, L): which tokens share a character, and which look the same."""

    text: str
    source_tokens: list[str]
    target_tokens: list[str]
    source: Encoding
    target: Encoding
    shared: Tensor
    same_text: Tensor


Map = Callable[[Pair], list[DenseMap]]


def pair(source_tokenizer: Any, target_tokenizer: Any, text: str, length: int | None = None) -> Pair:
    """``text`` in the tokens of both, the second with its marks and, if given, padded or cut to ``length``;
    what is cut off there is no part of the caption (``source.token_mask``) either, as for the bridge."""
    cut, truncated = encode_with_offsets(target_tokenizer, [text], special=True, length=length)
    whole, _ = encode_with_offsets(source_tokenizer, [text], special=False)
    batches = without_undrawn(whole, cut, truncated), cut
    source, target = (Encoding(*(values[0] for values in vars(batch).values())) for batch in batches)
    sides = ((source_tokenizer, source.input_ids.tolist()), (target_tokenizer, target.input_ids.tolist()))
    tokens = [tokenizer.convert_ids_to_tokens(ids) for tokenizer, ids in sides]
    texts = [np.array(normalized_tokens(tokenizer), object)[ids].tolist() for tokenizer, ids in sides]
    shared = overlap(batches[0].spans, batches[1].spans)[0] & target.token_mask  # (C, L)
    same_text = static_matrix(*texts).bool() & target.token_mask  # (C, L)
    return Pair(text, tokens[0], tokens[1], source, target, shared, same_text)


def maps_of(source_tokenizer: Any, target_tokenizer: Any, words: Sequence[str]) -> dict[str, Map]:
    """The maps of Eq. 8-11 and those like them, by name; ``words`` is the word list of "static_word"."""
    tokenizers = (source_tokenizer, target_tokenizer)
    sizes = vocabulary_size(source_tokenizer), vocabulary_size(target_tokenizer)
    ids = [tokenizer(list(words), add_special_tokens=False)["input_ids"] for tokenizer in tokenizers]
    by_word = torch.zeros(sizes, dtype=torch.float64)
    for source_ids, target_ids in zip(*ids, strict=True):
        by_word += caption_matrix(torch.tensor(source_ids), torch.tensor(target_ids), *sizes)

    def static(matrix: Tensor, caption: Pair) -> list[DenseMap]:
        mean = caption.source.token_mask / caption.source.token_mask.sum().double()
        return [DenseMap(matrix, mean, caption.target.token_mask.double())]

    return {"static_piece": partial(static, static_matrix(*map(normalized_tokens, tokenizers))),
            "static_word": partial(static, by_word),
            **{name: partial(_in_caption, name, sizes, None) for name in DYNAMIC}}


def aligned_maps_of(source_tokenizer: Any, target_tokenizer: Any) -> dict[str, Map]:
    """"aligned" and its control "aligned_shuffled": one matrix of spellings, position by position."""
    sizes = vocabulary_size(source_tokenizer), vocabulary_size(target_tokenizer)
    spelled = aligned.spelling(source_tokenizer, target_tokenizer)
    return {name: partial(_in_caption, "aligned", sizes, spelling_matrix(each, *sizes))
            for name, each in (("aligned", spelled), ("aligned_shuffled", aligned.shuffled(spelled)))}


def _in_caption(name: str, sizes: tuple[int, int], static: Tensor | None, caption: Pair) -> list[DenseMap]:
    spans = caption.source.spans * caption.source.token_mask[:, None]  # what is cut off is in no word
    source = replace(caption.source, spans=spans)
    return dense_maps(name, caption.text, source, caption.target, *sizes, static=static)


def spelling_matrix(spelled: aligned.Spelling, source_size: int, target_size: int) -> Tensor:
    """How much each target token counts in each source token's Ē, (V1, V2), so that Ē is this times E."""
    matrix = torch.zeros(source_size, target_size, dtype=torch.float64)
    ends = torch.cat([spelled.starts[1:], torch.tensor([len(spelled.target_ids)])])  # (V1,)
    rows = torch.arange(source_size).repeat_interleave(ends - spelled.starts)  # (n,)
    matrix.index_put_((rows, spelled.target_ids), spelled.weights.double(), accumulate=True)
    return matrix if spelled.order is None else matrix[spelled.order]


def gradient_to_h(maps: Sequence[DenseMap], embedding_gradient: Tensor, embeddings: Tensor) -> Tensor:
    """The gradient (C, V1) to h of Eq. 9 and 11: Σ_k pooling_k ⊗ M_k E (Σ_l scatter_k[l] g[l]).

    g (L, D2) is the loss's gradient to the text encoder's embeddings, E (V2, D2) its table. Positive at [t,
    i] means that the loss would grow if position t gave word i more probability.
    """
    return torch.stack([torch.outer(pooling, matrix @ (embeddings @ (scatter @ embedding_gradient)))
                        for matrix, pooling, scatter in maps]).sum(0)


def numbers_through(maps: Sequence[DenseMap], embeddings: Tensor, rng: torch.Generator) -> int:
    """How many numbers get through a map: the rank of the gradients to h, over all gradients g (L, D2)."""
    (matrix, *_), *others = maps
    if all(other.matrix is matrix for other in others):  # then it is a product of two ranks
        ways = torch.stack([torch.outer(pooling, scatter).flatten() for _, pooling, scatter in maps])
        ways = ways.sum(0).view(len(maps[0].pooling), -1)  # (C, L)
        return int(torch.linalg.matrix_rank(ways)) * int(torch.linalg.matrix_rank(matrix @ embeddings))
    g = torch.randn(128, len(maps[0].scatter), embeddings.shape[1], generator=rng, dtype=torch.float64)
    to_h = torch.stack([gradient_to_h(maps, gradient, embeddings).flatten() for gradient in g])
    return int(torch.linalg.matrix_rank(to_h))
