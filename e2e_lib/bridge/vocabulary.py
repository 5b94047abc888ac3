"""Vocabulary transformation matrices (section 2.4.2, Eq. 8 and 10), factored: never V1 × V2 numbers.

A matrix M of Eq. 8 or 10 says which tokens of the language model correspond to which of the text encoder.
Every matrix here is a sum of terms of rank one,

    M = Σ_k 1_{A_k} 1_{B_k}ᵀ

where A_k is a set of tokens of the one vocabulary and B_k of the other. The paper's sentence-level matrix has
one term, all tokens of the caption; a word-level matrix has one term per word; the span map has one matrix of
one term per token of the text encoder. ``reference`` writes the matrices out.
Axes: B captions, C source positions, L target positions, K terms, V1 and V2 the vocabularies.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from e2e_lib.bridge.alignment import (
    Encoding,
    check_texts,
    encode_with_offsets,
    overlap,
    vocabulary_size,
    word_spans,
)

DYNAMIC = ("sentence", "word", "span")
STATIC = ("static_piece", "static_word")
MAPPINGS = ("none", *STATIC, *DYNAMIC, "aligned", "aligned_shuffled", "aligned_random")
POOLINGS = ("mean", "sum")
ADDED_AT = ("caption", "caption_and_marks")


@dataclass
class FactoredMap:
    """The dynamic matrices of a batch of captions. ``source`` (B, K, C): the positions whose tokens make up
    A_k, each token once; ``target`` (B, K, L): likewise B_k; ``pooling`` (B, K, C): Eq. 11's weights of
    source positions; ``scatter`` (B, L, K): 1 at the target positions that term k is added at."""

    source: Tensor
    pooling: Tensor
    target: Tensor
    scatter: Tensor


def distinct(members: Tensor, input_ids: Tensor) -> Tensor:
    """Keeps each token once per set: bool (B, K, n), which of the tokens (B, n) are in which set, as (B, K,
    n)."""
    same = input_ids[:, :, None] == input_ids[:, None, :]  # (B, n, n)
    repeated = members.float() @ same.triu(1).float() > 0  # (B, K, n): an earlier member is the same token
    return members & ~repeated


def pooling_weights(members: Tensor, pooling: str) -> Tensor:
    """Eq. 11's weights, float64: bool (…, C) to 1 over the number of members ("mean") or to 1 ("sum")."""
    weights = members.double()
    return weights / weights.sum(-1, keepdim=True).clamp_min(1) if pooling == "mean" else weights


def positions_added_at(target: Encoding, added_at: str) -> Tensor:
    """Where Eq. 11 adds to the embeddings, bool (B, L): at the tokens of the "caption", or, as the authors'
    released code does, at its start and end marks too ("caption_and_marks"); never at padding."""
    return target.token_mask if added_at == "caption" else target.attention_mask.bool()


def caption_map(mapping: str, captions: list[str], source: Encoding, target: Encoding,
                pooling: str, added_at: str = "caption") -> FactoredMap:
    """The dynamic map of each caption.

    "sentence" is Eq. 10. "word" has one term per word of the caption (a word that occurs twice counts twice),
    added at every position, as in Eq. 11: at those of ``added_at``. "span" averages, for each target token,
    over the source positions that share a character with it, and is added at that token alone.
    """
    source_tokens = source.token_mask[:, None, :]  # (B, 1, C)
    target_tokens = target.token_mask[:, None, :]  # (B, 1, L)
    if mapping == "span":  # K = L
        in_source = overlap(target.spans, source.spans) & source_tokens & target_tokens.mT  # (B, L, C)
        in_target = torch.eye(target_tokens.shape[-1], dtype=torch.bool) & target_tokens  # (B, L, L)
        pooled, scatter = in_source, in_target
    else:
        in_source, in_target = source_tokens, target_tokens  # K = 1
        if mapping == "word":  # K = W
            words, _ = word_spans(captions)  # (B, W, 2); padding is empty and overlaps nothing
            in_source = overlap(words, source.spans) & source_tokens  # (B, W, C)
            in_target = overlap(words, target.spans) & target_tokens  # (B, W, L)
        pooled = source_tokens.expand_as(in_source)  # (B, K, C)
        scatter = positions_added_at(target, added_at)[:, :, None].expand(-1, -1, in_source.shape[1])
        # scatter: (B, L, K)
    return FactoredMap(distinct(in_source, source.input_ids).float(), pooling_weights(pooled, pooling),
                       distinct(in_target, target.input_ids).float(), scatter.float())


@dataclass
class StaticMap:
    """One matrix of K = ``terms`` terms for all captions: token ``source_ids[n]`` belongs to A of term
    ``source_terms[n]``, ``target_ids[n]`` to B of term ``target_terms[n]``."""

    terms: int
    source_ids: Tensor
    source_terms: Tensor
    target_ids: Tensor
    target_terms: Tensor


def normalized_tokens(tokenizer: Any) -> list[str]:
    """Each token of a vocabulary, by id, in lower case (CLIP has no other), without the marks of where words
    begin or end. Special tokens, bare marks and ids that no token has become ""."""
    tokens = tokenizer.convert_ids_to_tokens(range(vocabulary_size(tokenizer)))
    special = {None, *tokenizer.all_special_tokens}
    return ["" if token in special else token.removeprefix("##").lstrip("▁Ġ").removesuffix("</w>").lower()
            for token in tokens]


def static_piece(source_tokenizer: Any, target_tokenizer: Any) -> StaticMap:
    """Eq. 8: one term per token text that both vocabularies have; every other token maps to nothing."""
    sides = [normalized_tokens(tokenizer) for tokenizer in (source_tokenizer, target_tokenizer)]
    common = {text: term for term, text in enumerate(sorted(set(sides[0]) & set(sides[1]) - {""}))}
    members = []
    for side in sides:
        ids = [i for i, text in enumerate(side) if text in common]
        members += [torch.tensor(ids).long(), torch.tensor([common[side[i]] for i in ids]).long()]
    return StaticMap(len(common), *members)


def static_word(source_tokenizer: Any, target_tokenizer: Any, words: Iterable[str]) -> StaticMap:
    """The word-level matrix, which the paper rejects as too large: one term per word of a list, its tokens on
    either side. Raises ValueError for an empty list, TypeError for what is no list of texts."""
    words = sorted(set(check_texts("words", words)))
    if not words:
        raise ValueError("the mapping static_word needs a word list, such as words=['dog', 'beach', …]; "
                         "it got none")
    members = []
    for tokenizer in (source_tokenizer, target_tokenizer):
        encoding, _ = encode_with_offsets(tokenizer, words, special=False)
        in_word = distinct(encoding.token_mask[:, None, :], encoding.input_ids)[:, 0]  # (K, n)
        members += [encoding.input_ids[in_word], in_word.nonzero()[:, 0]]
    return StaticMap(len(words), *members)
