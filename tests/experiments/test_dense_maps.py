"""Vocabulary maps as matrices against loops over tokens and characters, autograd, closed forms, and the bridge."""

import itertools

import pytest
import torch
from model_helpers import SENTENCES, pairs_of

from e2e_lib.bridge import aligned
from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.bridge.gumbel import gumbel_noise, softmax_with_temperature
from e2e_lib.bridge.reference import added_embeddings
from e2e_lib.bridge.vocabulary import DYNAMIC, STATIC, normalized_tokens
from e2e_lib.data.minichat.chats import caption_words
from e2e_lib.experiments import dense_maps
from e2e_lib.repro.randomness import generator

MAPS = [*STATIC, *DYNAMIC, "aligned", "aligned_shuffled"]


@pytest.fixture(scope="module")
def maps(sides):
    return {**dense_maps.maps_of(sides[0], sides[1], caption_words()), **dense_maps.aligned_maps_of(sides[0], sides[1])}


@pytest.mark.parametrize("text", SENTENCES)
def test_a_pair_has_shared_characters_and_equal_texts(sides, text):
    pair = dense_maps.pair(*sides[:2], text, sides[2])
    texts = [normalized_tokens(tokenizer) for tokenizer in sides[:2]]
    assert len(pair.target_tokens) == sides[2] and "".join(pair.source_tokens).replace("▁", " ").strip() == text
    for t, j in itertools.product(range(len(pair.source_tokens)), range(len(pair.target_tokens))):
        characters = [set(range(*side.spans[n].tolist())) for side, n in ((pair.source, t), (pair.target, j))]
        assert pair.shared[t, j] == bool(characters[0] & characters[1])
        one, other = texts[0][pair.source.input_ids[t]], texts[1][pair.target.input_ids[j]]
        assert pair.same_text[t, j] == (one == other != "" and bool(pair.target.token_mask[j]))


@pytest.mark.parametrize(("sentence", "length"), [(0, None), (1, None), (2, None), (0, 7), (1, 10)])  # with a length, cut
@pytest.mark.parametrize("mapping", MAPS)
def test_the_gradient_through_the_matrices_is_the_bridges(sides, maps, table, mapping, sentence, length):
    sides = (*sides[:2], length or sides[2])
    pair = pairs_of(sides)[sentence]
    shape = (1, len(pair.source_tokens), len(sides[0]))
    z = torch.randn(shape, generator=generator("z"), dtype=torch.float64).requires_grad_()
    noise = gumbel_noise(z.shape, generator("g"))
    gradient = torch.randn((sides[2], table.shape[1]), generator=generator("p"), dtype=torch.float64)
    bridge = CaptionBridge(*sides[:2], mapping, words=caption_words(), length=sides[2])
    out = bridge([pair.text], z, torch.nn.Embedding.from_pretrained(table), 0.7, noise)
    ours, = torch.autograd.grad((out.embeddings[0] * gradient).sum(), z)
    to_h = dense_maps.gradient_to_h(maps[mapping](pair), gradient, table)
    dense, = torch.autograd.grad((softmax_with_temperature(z, 0.7, noise)[0] * to_h).sum(), z)
    torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-12)
    assert to_h.shape == z.shape[1:] and to_h.abs().max() > 0


@pytest.mark.parametrize("mapping", MAPS)
def test_the_gradient_to_h_is_that_of_eq_9_and_11(sides, maps, table, mapping):
    pair = pairs_of(sides)[1]
    dense = maps[mapping](pair)
    h = torch.rand((len(pair.source_tokens), len(sides[0])), generator=generator("h"), dtype=torch.float64).requires_grad_()
    gradient = torch.randn((sides[2], table.shape[1]), generator=generator("p"), dtype=torch.float64)
    expected, = torch.autograd.grad((added_embeddings(h, dense, table) * gradient).sum(), h)
    torch.testing.assert_close(dense_maps.gradient_to_h(dense, gradient, table), expected)


def test_the_word_list_matrix_counts_the_words_that_two_tokens_share(sides):
    words = ["hats", "hat", "tents", "an"]
    (matrix, _, _), = dense_maps.maps_of(*sides[:2], words)["static_word"](pairs_of(sides)[0])
    expected = torch.zeros_like(matrix)
    for word in words:
        one, other = (set(tokenizer(word, add_special_tokens=False)["input_ids"]) for tokenizer in sides[:2])
        for i, j in itertools.product(one, other):
            expected[i, j] += 1
    assert torch.equal(matrix, expected)


def test_as_many_numbers_get_through_as_there_are_terms(sides, maps, table):
    pair = pairs_of(sides)[0]
    rank = {name: dense_maps.numbers_through(of(pair), table, generator("rank")) for name, of in maps.items()}
    assert rank["sentence"] == 1 and rank["word"] == len(set(pair.text.split()))
    assert rank["span"] == len({tuple(column) for column in pair.shared.T.tolist() if any(column)})
    assert rank["static_piece"] == min(128, table.shape[1])  # all that fits
    weights = rank["aligned"] // int(torch.linalg.matrix_rank(maps["aligned"](pair)[0].matrix @ table))
    assert weights == rank["span"] and rank["aligned"] == rank["aligned_shuffled"] > rank["static_piece"]
    short = maps["aligned"](pairs_of(sides)[2])
    random = torch.randn(200, sides[2], table.shape[1], generator=generator("many"), dtype=torch.float64)
    to_h = torch.stack([dense_maps.gradient_to_h(short, each, table).flatten() for each in random])
    assert torch.linalg.matrix_rank(to_h) == dense_maps.numbers_through(short, table, generator("rank")) < 200


def test_the_matrix_of_spellings_gives_the_mean_embeddings(sides, table):
    for spelled in (aligned.spelling(*sides[:2]), aligned.shuffled(aligned.spelling(*sides[:2]))):
        matrix = dense_maps.spelling_matrix(spelled, len(sides[0]), len(sides[1]))
        logits = torch.zeros(1, len(sides[0]), dtype=torch.float64)
        torch.testing.assert_close(matrix @ table, spelled.embeddings(table, logits))
