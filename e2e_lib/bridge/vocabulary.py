"""Vocabulary transformation matrices (section 2.4.2, Eq. 8 and 10), as sums of few caption_map, never as V1 × V2 numbers.

A matrix M of Eq. 8 or 10 says which word_spans of the language model's vocabulary mean which of the text encoder's. All of them here are

    M = Σ_k 1_{A_k} 1_{B_k}ᵀ

where A_k is a set of tokens of the one and B_k of the other. The paper's sentence-level matrix is the one term "all of the caption's
tokens"; a word-level matrix has a term a word; the span map a term, and a matrix of its own, for each token of the text encoder.
Axes: B captions, C source positions, L target positions, K caption_map, V1 and V2 the vocabularies.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from e2e_lib.bridge.alignment import Encoding, encode_with_offsets, overlap, padded, word_spans

DYNAMIC = ("sentence", "word", "span")
STATIC = ("static_piece", "static_word")
MAPPINGS = ("none", *STATIC, *DYNAMIC)
POOLINGS = ("mean", "sum")


@dataclass
class FactoredMap:
    """The dynamic matrices of a batch. ``source`` (B, K, C): the positions whose tokens make up A_k, each token once. ``target`` (B, K, L):
    likewise B_k. ``pool`` (B, K, C): the weight of each source position in Eq. 11's pooling. ``place`` (B, L, K): where term k is added."""

    source: Tensor
    pool: Tensor
    target: Tensor
    place: Tensor


def distinct(members: Tensor, input_ids: Tensor) -> Tensor:
    """Leaves each token once in each set: (B, K, n) membership of positions, (B, n) tokens, to (B, K, n)."""
    earlier = (input_ids[:, :, None] == input_ids[:, None, :]).tril(-1).float()  # [u, v]: v comes before u and is the same token
    repeats = torch.einsum("bkv,buv->bku", members.float(), earlier) > 0
    return members & ~repeats


def caption_map(mapping: str, captions: list[str], source: Encoding, target: Encoding, pooling: str) -> FactoredMap:
    """The caption_map of a dynamic map for each caption.

    "sentence" is Eq. 10. "word" has one term for every word said (a word said twice counts twice), added at every position as Eq. 11 has
    it. "span" pools, for each target token, over the source positions that share a character with it, and adds at that token alone.
    """
    everywhere = target.valid[:, :, None]  # (B, L, 1)
    if mapping == "span":
        members = overlap(target.spans, source.spans) & everywhere & source.valid[:, None, :]
        chosen = pooled = members
        aimed = torch.eye(target.valid.shape[1], dtype=torch.bool).expand(len(members), -1, -1) & everywhere
        place = aimed
    else:
        if mapping == "sentence":
            chosen, aimed = source.valid[:, None, :], target.valid[:, None, :]
        else:
            spans, real = word_spans(captions)
            chosen = overlap(spans, source.spans) & real[:, :, None] & source.valid[:, None, :]
            aimed = overlap(spans, target.spans) & real[:, :, None] & target.valid[:, None, :]
        pooled = source.valid[:, None, :].expand_as(chosen)
        place = everywhere.expand(-1, -1, chosen.shape[1])
        aimed = distinct(aimed, target.input_ids)
    pool = pooled.double()  # divided before it is rounded to the logits' own precision
    if pooling == "mean":
        pool = pool / pool.sum(-1, keepdim=True).clamp_min(1)
    return FactoredMap(distinct(chosen, source.input_ids).float(), pool, aimed.float(), place.float())


@dataclass
class StaticMap:
    """One matrix for all captions: token ``source[n]`` belongs to A of term ``source_term[n]``, ``target[n]`` to B of ``target_term[n]``."""

    source: Tensor
    source_term: Tensor
    target: Tensor
    target_term: Tensor
    count: int


def normalized_tokens(tokenizer: Any) -> list[str]:
    """What each token of a vocabulary looks like in lower case, without the marks that tokenizers put where word_spans begin or end.

    Special tokens and bare marks look like nothing (""). Lower case, because CLIP's vocabulary has no other.
    """
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    return ["" if token in special else token.removeprefix("##").lstrip("▁Ġ").removesuffix("</w>").lower() for token in tokens]


def static_piece(source_tokenizer: Any, target_tokenizer: Any) -> StaticMap:
    """Eq. 8: tokens that look the same in both vocabularies, whether or not a word begins or ends there; every other token maps to nothing."""
    source, target = normalized_tokens(source_tokenizer), normalized_tokens(target_tokenizer)
    common = {text: k for k, text in enumerate(sorted(set(source) & set(target) - {""}))}
    pairs = [[(i, common[text]) for i, text in enumerate(side) if text in common] for side in (source, target)]
    return _static_map(pairs[0], pairs[1], len(common))


def static_word(source_tokenizer: Any, target_tokenizer: Any, english: Iterable[str]) -> StaticMap:
    """The word-level matrix over a word list, which the paper rejects as too large: a term a word, its tokens in either vocabulary.

    Raises ValueError for an empty word list.
    """
    listed = sorted(set(english))
    if not listed:
        raise ValueError("the mapping static_word needs a word list, such as words=['dog', 'beach', …]; it got none")
    sides = []
    for tokenizer in (source_tokenizer, target_tokenizer):
        pieces, _ = encode_with_offsets(tokenizer, listed, special=False)
        members = distinct(pieces.valid[:, None, :], pieces.input_ids)[:, 0]
        word, position = members.nonzero(as_tuple=True)
        sides.append(torch.stack([pieces.input_ids[word, position], word], 1).tolist())
    return _static_map(sides[0], sides[1], len(listed))


def _static_map(source: list[Any], target: list[Any], count: int) -> StaticMap:
    (a, _), (b, _) = padded([source], 0), padded([target], 0)
    a, b = a.reshape(-1, 2), b.reshape(-1, 2)
    return StaticMap(a[:, 0], a[:, 1], b[:, 0], b[:, 1], count)


def dense_matrix(source_ids: Tensor, target_ids: Tensor, rows: int, columns: int) -> Tensor:
    """Eq. 10 written out for one caption's tokens, (rows, columns) of 0 and 1: for pictures, never for training."""
    matrix = torch.zeros(rows, columns)
    matrix[source_ids[:, None], target_ids[None, :]] = 1
    return matrix
