"""Eq. 8-11 in the paper's form against loops over tokens, and the factored form against it."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import tokenizer

from e2e_lib.bridge import reference
from e2e_lib.bridge.alignment import Encoding, encode_with_offsets
from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.bridge.gumbel import gumbel_noise, softmax_with_temperature
from e2e_lib.bridge.vocabulary import ADDED_AT, DYNAMIC, caption_map, normalized_tokens
from e2e_lib.repro.randomness import generator

CAPTIONS = ["a red car on the beach", "the dog and the dog", "42 small umbrellas"]


def row(encoding):
    return Encoding(*(values[0] for values in vars(encoding).values()))


def test_eq_8_links_equal_texts():
    matrix = reference.static_matrix(["a", "", "dog", "a"], ["dog", "a", ""])
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]]


@given(st.sets(st.integers(0, 8), min_size=1), st.sets(st.integers(0, 10), min_size=1))
def test_eq_10_links_all_tokens_of_a_caption_and_has_rank_one(a, b):
    matrix = reference.caption_matrix(torch.tensor(sorted(a)), torch.tensor(sorted(b)), 9, 11)
    assert matrix.tolist() == [[i in a and j in b for j in range(11)] for i in range(9)]
    assert torch.linalg.matrix_rank(matrix) == 1


def test_eq_9_and_11_are_sums_over_words_and_means_over_positions():
    h, table = torch.rand(2, 3, generator=generator("h")), torch.rand(4, 2, generator=generator("e"))
    matrix, pooling = torch.rand(3, 4, generator=generator("m")), torch.tensor([0.5, 0.5])
    added = reference.added_embeddings(h, [reference.DenseMap(matrix, pooling, torch.tensor([0.0, 1, 1]))], table)
    for d in range(2):
        mean = sum(h[t, i] * matrix[i, j] * table[j, d] for t in range(2) for i in range(3) for j in range(4)) / 2
        torch.testing.assert_close(added[:, d], torch.stack([torch.zeros(()), mean, mean]))


@pytest.mark.parametrize("added_at", ADDED_AT)
@pytest.mark.parametrize("mapping", DYNAMIC)
@pytest.mark.parametrize("caption", CAPTIONS)
def test_the_factored_matrices_are_the_dense_ones(caption, mapping, added_at):
    source, target = tokenizer("sentencepiece"), tokenizer("clip")
    a, _ = encode_with_offsets(source, [caption], special=False)
    b, _ = encode_with_offsets(target, [caption], special=True, length=30)
    factored = caption_map(mapping, [caption], a, b, "mean", added_at)
    dense = reference.dense_maps(mapping, caption, row(a), row(b), len(source), len(target), added_at=added_at)
    terms = [k for k in range(factored.source.shape[1]) if factored.source[0, k].any()]
    for k, (matrix, pooling, scatter) in zip(terms, dense, strict=True):
        written = torch.zeros_like(matrix)
        for t, u in itertools.product(range(a.input_ids.shape[1]), range(b.input_ids.shape[1])):
            written[a.input_ids[0, t], b.input_ids[0, u]] += factored.source[0, k, t] * factored.target[0, k, u]
        assert torch.equal(written, matrix)
        torch.testing.assert_close(factored.pooling[0, k], pooling)
        assert torch.equal(factored.scatter[0, :, k].double(), scatter)


@pytest.mark.parametrize("added_at", ADDED_AT)
@pytest.mark.parametrize("mapping", [*DYNAMIC, "static_piece"])
@pytest.mark.parametrize("caption", CAPTIONS)
def test_the_bridges_gradient_is_that_of_the_dense_form(caption, mapping, added_at):
    source, target = tokenizer("sentencepiece"), tokenizer("clip")
    a, _ = encode_with_offsets(source, [caption], special=False)
    b, _ = encode_with_offsets(target, [caption], special=True, length=30)
    if mapping == "static_piece":
        matrix = reference.static_matrix(normalized_tokens(source), normalized_tokens(target))
        mean = torch.full((a.input_ids.shape[1],), 1 / a.input_ids.shape[1], dtype=torch.float64)
        maps = [reference.DenseMap(matrix, mean, (b.token_mask if added_at == "caption" else b.attention_mask)[0].double())]
    else:
        maps = reference.dense_maps(mapping, caption, row(a), row(b), len(source), len(target), added_at=added_at)
    shape = (1, a.input_ids.shape[1], len(source))
    logits = torch.randn(shape, generator=generator("z"), dtype=torch.float64, requires_grad=True)
    noise = gumbel_noise(shape, generator("g")).double()
    table = torch.randn(len(target), 5, generator=generator("e"), dtype=torch.float64)
    weight = torch.randn(30, 5, generator=generator("w"), dtype=torch.float64)
    bridge = CaptionBridge(source, target, mapping, length=30, added_at=added_at)
    out = bridge([caption], logits, torch.nn.Embedding.from_pretrained(table), 0.7, noise)
    dense = reference.added_embeddings(softmax_with_temperature(logits, 0.7, noise)[0], maps, table)
    gradients = [torch.autograd.grad((x * weight).sum(), logits)[0] for x in (out.embeddings[0], dense)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    assert gradients[0].abs().max() > 0


def test_with_the_marks_the_one_number_of_a_caption_can_change_its_sign():
    source, target, gradients = tokenizer("sentencepiece"), tokenizer("clip"), []
    logits = torch.randn(1, 30, len(source), generator=generator("z"), requires_grad=True)
    table = torch.nn.Embedding(len(target), 5, _weight=torch.randn(len(target), 5, generator=generator("e")))
    for added_at in ADDED_AT:
        out = CaptionBridge(source, target, "sentence", added_at=added_at)(CAPTIONS[:1], logits, table, noise=None)
        marks = (out.input_ids == target.bos_token_id) | (out.input_ids == target.eos_token_id)  # (1, L)
        valid = out.attention_mask.bool() & ~marks
        direction = out.embeddings.detach()[valid].sum(0)  # Σ E[j], where each token occurs once
        weight = valid.double() - 2 * valid.sum() * (marks & out.attention_mask.bool())  # what the marks say outweighs the words
        gradients += torch.autograd.grad((out.embeddings @ direction * weight).sum(), logits)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], -3 * gradients[0], rtol=1e-3, atol=1e-7)  # n - 2·2n = -3n
