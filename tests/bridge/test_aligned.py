"""The aligned map: its matrix written out, its gradient by finite differences, words left out, and what it can say."""

import copy
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import FAMILIES, tokenizer
from spelled_words import spelled_by_hand
from torch import nn
from transformers import AutoTokenizer, CLIPTokenizer

from e2e_lib.bridge import fast, reference
from e2e_lib.bridge.aligned import alignment_weights, order_of_batch, plain_transfer, spelling
from e2e_lib.bridge.alignment import Encoding, encode_with_offsets
from e2e_lib.bridge.caption_bridge import ONE_SOFTMAX, CaptionBridge
from e2e_lib.bridge.estimators import RELAXATIONS
from e2e_lib.bridge.gumbel import gumbel_noise, softmax_with_temperature
from e2e_lib.repro.randomness import generator

TOKENIZERS = Path(__file__).parents[3] / "shared" / "tokenizers"
CAPTIONS = ["a red car on the beach", "", "the dog and 42 umbrellas"]


def normal(name, *shape):
    return torch.randn(*shape, generator=generator(name), dtype=torch.float64)


def dense(spelled, size):
    """The sparse matrix of a Spelling as numbers (V1, V2)."""
    counts = torch.cat([spelled.starts[1:], torch.tensor([len(spelled.target_ids)])]) - spelled.starts
    matrix = torch.zeros(len(counts), size, dtype=torch.float64)
    return matrix.index_put((torch.arange(len(counts)).repeat_interleave(counts), spelled.target_ids), spelled.weights, accumulate=True)


# ------------------------------------------------------------------------------------------------------------ what a token says

@pytest.mark.parametrize("source", FAMILIES)
@pytest.mark.parametrize("target", FAMILIES)
def test_words_are_spelled_as_the_rule_says(source, target):
    source, target = tokenizer(source), tokenizer(target)
    expected = spelled_by_hand(source, target)
    spelled = spelling(source, target)
    torch.testing.assert_close(dense(spelled, expected.shape[1]), expected)
    table = normal("table", expected.shape[1], 3)
    words = spelled.embeddings(table, torch.zeros(1, 1, len(expected) + 4, dtype=torch.float64))
    torch.testing.assert_close(words, nn.functional.pad(expected @ table, (0, 0, 0, 4)))
    assert not words[source.all_special_ids].any() and (expected.sum(1) > 0.99).sum() > 70


def test_words_are_themselves_and_pieces_the_words_that_they_may_become():
    source, target = tokenizer("sentencepiece"), tokenizer("clip")
    matrix = dense(spelling(source, target), len(target))

    def said(token):
        row = matrix[source.convert_tokens_to_ids(token)]
        return {target.convert_ids_to_tokens(int(j)): round(float(row[j]), 2) for j in row.nonzero()[:, 0]}

    assert said("▁the") == {"the</w>": 1.0}
    assert source.tokenize("cat car") == ["▁ca", "t", "▁ca", "r"]
    cat, car = (1 / (1 + target.convert_tokens_to_ids(word))**2 for word in ("cat</w>", "car</w>"))
    assert said("▁ca") == pytest.approx({"cat</w>": cat / (cat + car), "car</w>": car / (cat + car)}, abs=0.01)  # not "ca</w>"
    assert said("<0x41>") == {"a</w>": 1.0}  # of which no word of the target is made
    assert said("</s>") == {} == said("<0xE9>")


def test_the_control_gives_each_word_another_ones_embedding():
    source, target = tokenizer("sentencepiece"), tokenizer("clip")
    table, like = normal("table", len(target), 6), torch.zeros(1, 1, len(source) + 3, dtype=torch.float64)
    own, other, again = (CaptionBridge(source, target, mapping).spelling.embeddings(table, like)
                         for mapping in ("aligned", "aligned_shuffled", "aligned_shuffled"))
    writes = own.any(1)
    assert torch.equal(other, again) and torch.equal(other.any(1), writes)
    assert sorted(map(tuple, own.tolist())) == sorted(map(tuple, other.tolist()))
    assert (own == other)[writes].all(1).float().mean() < 0.02  # but for tokens that say the same


def test_the_other_control_draws_another_order_for_every_batch_and_the_same_one_for_the_same():
    source, target = tokenizer("sentencepiece"), tokenizer("clip")
    bridges = {mapping: CaptionBridge(source, target, mapping, estimator="straight_through") for mapping in ("aligned", "aligned_random")}
    spelled = bridges["aligned"].spelling
    table = nn.Embedding(len(target), 6, _weight=normal("table", len(target), 6)).requires_grad_(False)

    def gradient(mapping, captions):
        width = max(len(source.tokenize(caption)) for caption in captions)
        logits = normal("z", len(captions), width, len(source) + 3).requires_grad_()
        out = bridges[mapping](captions, logits, table, 1.0, None)
        (out.embeddings * normal("w", *out.embeddings.shape)).sum().backward()
        return logits.grad

    def by_hand(captions):
        """The aligned map's, with the order of this batch in place of each word's own."""
        own, order = spelled.order, order_of_batch(spelled, captions)
        spelled.order, spelled._latest = order, None
        try:
            return gradient("aligned", captions)
        finally:
            spelled.order, spelled._latest = own, None

    one, other = ["a red dog", "a green boat"], ["a green boat", "a red dog"]
    assert torch.equal(gradient("aligned_random", one), gradient("aligned_random", one))
    assert not torch.equal(*(order_of_batch(spelled, captions) for captions in (one, other)))
    for captions in (one, other):
        torch.testing.assert_close(gradient("aligned_random", captions), by_hand(captions))
        assert not torch.allclose(gradient("aligned_random", captions), gradient("aligned", captions))


@pytest.mark.skipif(not TOKENIZERS.is_dir(), reason="the real vocabularies are not at hand")
def test_llama_2s_words_are_clips():
    source = AutoTokenizer.from_pretrained(TOKENIZERS / "llama-2")
    target = CLIPTokenizer.from_pretrained(TOKENIZERS / "clip", model_max_length=77)
    bridge = CaptionBridge(source, target, "aligned")
    spelled = bridge.spelling
    ends = [*spelled.starts[1:].tolist(), len(spelled.target_ids)]
    assert len(ends) == 32000 and sum(end > first for first, end in zip(spelled.starts.tolist(), ends, strict=True)) > 31800

    def said(token):
        i = source.convert_tokens_to_ids(token)
        links = slice(int(spelled.starts[i]), ends[i])
        return dict(zip(target.convert_ids_to_tokens(spelled.target_ids[links].tolist()), spelled.weights[links].tolist(), strict=True))

    for word in ("red", "green", "dog", "beach", "standing"):
        assert source.tokenize(word) == [f"▁{word}"] and said(f"▁{word}")[f"{word}</w>"] > 0.85
    assert source.tokenize("purple") == ["▁pur", "ple"]
    assert all(max(said(piece), key=said(piece).get) == "purple</w>" for piece in ("▁pur", "ple"))
    caption = "a purple lantern, two umbrellas at the café 🎈"
    logits = normal("z", 1, len(source.tokenize(caption)), 32000).float().requires_grad_()
    table = nn.Embedding(len(target), 4, _weight=normal("table", len(target), 4).float()).requires_grad_(False)
    out = bridge([caption], logits, table, 0.7, None)
    assert torch.equal(out.embeddings, table(out.input_ids))
    weight = normal("w", *out.embeddings.shape).float()
    found, = torch.autograd.grad((out.embeddings * weight).sum(), logits)
    a, _ = encode_with_offsets(source, [caption], special=False)
    b, _ = encode_with_offsets(target, [caption], special=True, length=77)
    words = dense_rows(spelled, ends, table.weight)  # (V1, 4)
    change = alignment_by_hand(a, b, weight[0].double())  # (C, 4)
    p = torch.softmax(logits[0].double() / 0.7, -1)
    said_of = change @ words.double().T  # (C, V1)
    expected = p * (said_of - (p * said_of).sum(-1, keepdim=True)) / 0.7
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-3, atol=1e-8)
    assert found[0].abs().amax(-1).count_nonzero() > 12


def dense_rows(spelled, ends, table):
    return torch.stack([(spelled.weights[first:end, None].float() * table[spelled.target_ids[first:end]]).sum(0)
                        for first, end in zip(spelled.starts.tolist(), ends, strict=True)])


def alignment_by_hand(source, target, gradient):
    """Σ_{l∈S(t)} g_l / |T(l)| of one caption, position by position and character by character: (C, D2)."""
    change = torch.zeros(source.input_ids.shape[1], gradient.shape[1], dtype=torch.float64)
    for place, (first, end) in enumerate(target.spans[0].tolist()):
        near = [t for t, (a, b) in enumerate(source.spans[0].tolist()) if set(range(a, b)) & set(range(first, end))]
        for t in near:
            change[t] += gradient[place] / len(near)
    return change


# ------------------------------------------------------------------------------------------------------------ the gradient

@cache
def small_bridge():
    return CaptionBridge(tokenizer("sentencepiece"), tokenizer("clip"), "aligned", length=24)


def case(seed="case", estimator="gumbel", top_k=None, captions=CAPTIONS, pooling="mean"):
    """A bridge, float64 logits, noise, a table and weights for its embeddings."""
    source, target = tokenizer("sentencepiece"), tokenizer("clip")
    bridge = copy.copy(small_bridge())
    bridge.estimator, bridge.top_k, bridge.pooling = estimator, top_k, pooling
    longest = max(len(row) for row in source(captions, add_special_tokens=False)["input_ids"])
    logits = normal((seed, "z"), len(captions), longest, len(source)).requires_grad_()
    table = nn.Embedding(len(target), 5, _weight=normal((seed, "e"), len(target), 5)).requires_grad_(False)
    return bridge, logits, gumbel_noise(logits.shape, generator(seed)).double(), table, normal((seed, "w"), len(captions), 24, 5)


def gradient(bridge, logits, noise, table, weight, temperature=0.7, captions=CAPTIONS):
    out = bridge(captions, logits, table, temperature, noise, generator("draws"))
    assert torch.equal(out.embeddings, table(out.input_ids))
    return torch.autograd.grad((out.embeddings * weight).sum(), logits)[0]


def rows_of(encoding, row):
    return Encoding(*(values[row] for values in vars(encoding).values()))


def test_its_gradient_is_that_of_finite_differences_of_eq_9_written_out():
    bridge, logits, noise, table, weight = case()
    a, _ = encode_with_offsets(bridge.source_tokenizer, CAPTIONS, special=False)
    b, _ = encode_with_offsets(bridge.target_tokenizer, CAPTIONS, special=True, length=24)
    static = spelled_by_hand(bridge.source_tokenizer, bridge.target_tokenizer)
    maps = [reference.dense_maps("aligned", caption, rows_of(a, row), rows_of(b, row), static=static) for row, caption in enumerate(CAPTIONS)]

    def written_out(z):
        y = torch.softmax((z + noise) / 0.7, -1)
        return torch.stack([reference.added_embeddings(y[row], maps[row], table.weight) if maps[row] else torch.zeros(24, 5).double()
                            for row in range(len(CAPTIONS))])

    def values_written_out_but_the_bridges_gradient(z):
        return written_out(z).detach() + bridge(CAPTIONS, z, table, 0.7, noise).embeddings

    torch.testing.assert_close(gradient(bridge, logits, noise, table, weight), torch.autograd.grad((written_out(logits) * weight).sum(), logits)[0])
    assert torch.autograd.gradcheck(values_written_out_but_the_bridges_gradient, logits, fast_mode=True)


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("cached", [1, 700, 2**19])  # a row at a time, two, all
@pytest.mark.parametrize("noisy", [False, True])
def test_fast_and_plain_forms_are_the_same(monkeypatch, pooling, top_k, cached, noisy):
    monkeypatch.setattr(fast, "CACHED", cached)
    bridge, logits, noise, table, weight = case(top_k=top_k, pooling=pooling)
    found = gradient(bridge, logits, noise if noisy else None, table, weight)
    a, _ = encode_with_offsets(bridge.source_tokenizer, CAPTIONS, special=False)
    b, _ = encode_with_offsets(bridge.target_tokenizer, CAPTIONS, special=True, length=24)
    y = softmax_with_temperature(logits, 0.7, noise if noisy else None)
    kept = None if top_k is None else torch.tensor([[own_and_likeliest(y[r, t].tolist(), int(a.input_ids[r, t]), top_k)
                                                     for t in range(y.shape[1])] for r in range(len(y))])
    words = spelled_by_hand(bridge.source_tokenizer, bridge.target_tokenizer) @ table.weight
    added = plain_transfer(y, alignment_weights(a, b, pooling), words, kept)
    assert not added.any()
    torch.testing.assert_close(found, torch.autograd.grad((added * weight).sum(), logits)[0], rtol=1e-9, atol=1e-12)


def own_and_likeliest(p, own, count):
    return [own, *(i for i in sorted(range(len(p)), key=lambda i: -p[i]) if i != own)][:count]


# ------------------------------------------------------------------------------------------------------------ the likeliest words

@pytest.mark.parametrize("estimator", RELAXATIONS)
def test_as_many_words_as_there_are_change_nothing(estimator):
    temperature = 1.0 if estimator == "reinmax" else 0.7
    everything, limited = (gradient(*case(estimator=estimator, top_k=top_k), temperature) for top_k in (None, 100_000))
    torch.testing.assert_close(everything, limited, rtol=1e-9, atol=1e-14)
    exactly = len(tokenizer("sentencepiece"))
    torch.testing.assert_close(everything, gradient(*case(estimator=estimator, top_k=exactly), temperature), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("estimator", RELAXATIONS)
def test_words_left_out_count_as_good_as_those_kept_are_on_average(estimator):
    bridge, logits, noise, table, weight = case(estimator=estimator, top_k=5, captions=CAPTIONS[:1])
    weight = weight[:1]
    temperature = 1.0 if estimator == "reinmax" else 0.7
    found = gradient(bridge, logits, noise, table, weight, temperature, CAPTIONS[:1])
    torch.testing.assert_close(found.sum(-1), torch.zeros(found.shape[:2], dtype=torch.float64), atol=1e-12, rtol=0)
    a, _ = encode_with_offsets(bridge.source_tokenizer, CAPTIONS[:1], special=False)
    b, _ = encode_with_offsets(bridge.target_tokenizer, CAPTIONS[:1], special=True, length=24)
    words = spelled_by_hand(bridge.source_tokenizer, bridge.target_tokenizer) @ table.weight
    own_noise = noise if estimator in ("gumbel", "soft") else None
    y = (softmax_with_temperature(logits, temperature, own_noise) if estimator in ONE_SOFTMAX
         else RELAXATIONS[estimator](logits, temperature, generator("draws"), a.input_ids))
    seen = softmax_with_temperature(logits.detach(), temperature, own_noise)
    for t in range(logits.shape[1]):
        kept = own_and_likeliest(seen[0, t].tolist(), int(a.input_ids[0, t]), 5)
        p = seen[0, t, kept] / seen[0, t, kept].sum()
        replaced = (p @ words[kept]).expand_as(words).clone()
        replaced[kept] = words[kept]
        added = plain_transfer(y, alignment_weights(a, b, "mean"), replaced)
        expected, = torch.autograd.grad((added * weight).sum(), logits, retain_graph=True)
        torch.testing.assert_close(found[0, t], expected[0, t], rtol=1e-8, atol=1e-12)
        if estimator in ONE_SOFTMAX:
            assert set(found[0, t].nonzero()[:, 0].tolist()) <= set(kept)


@pytest.mark.parametrize("estimator", RELAXATIONS)
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("at_once", [False, True])  # as an accelerator takes all positions, padding too
def test_hard_cases(monkeypatch, estimator, top_k, at_once):
    if at_once:
        monkeypatch.setattr(fast, "_runs", lambda real, width: [slice(0, real.numel())])
    bridge, logits, noise, table, weight = case(estimator=estimator, top_k=top_k)
    real = encode_with_offsets(bridge.source_tokenizer, CAPTIONS, special=False)[0].attention_mask.bool()
    expected = gradient(bridge, logits, noise, table, weight, 1.0)
    assert expected[0].any() and not expected[~real].any()
    for filling in (math.nan, math.inf, -math.inf):
        assert torch.equal(gradient(bridge, logits.detach().masked_fill(~real[..., None], filling).requires_grad_(), noise, table, weight, 1.0), expected)
    masked = logits.detach().clone()
    masked[:, :, ::2] = -math.inf  # some of them the captions' own words
    found = gradient(bridge, masked.requires_grad_(), noise, table, weight, 1.0)
    assert found.isfinite().all() and not found[masked == -math.inf].any()
    extreme = gradient(bridge, (1e5 * logits.detach().sign()).requires_grad_(), noise, table, weight, 1.0)
    assert extreme.isfinite().all()


def test_the_captions_own_word_is_always_kept():
    bridge, logits, _, table, weight = case(estimator="straight_through", top_k=2)
    ids, _ = encode_with_offsets(bridge.source_tokenizer, CAPTIONS, special=False)
    unlikely = logits.detach().scatter(2, ids.input_ids[..., None], -9.0).requires_grad_()
    found = gradient(bridge, unlikely, None, table, weight)[0]
    own = found.gather(1, ids.input_ids[0, :, None])[:, 0]
    assert torch.equal(found.count_nonzero(1) > 0, own != 0) and (own != 0).sum() > 8


@pytest.mark.parametrize(("top_k", "mapping", "message"), [
    (1, "aligned", "top_k 1: .*at least 2, as one word has none to be compared with"), (0, "aligned", "top_k 0"), (-3, "aligned", "top_k -3"),
    (2.0, "aligned", "top_k 2.0"), (True, "aligned", "top_k True"), ("64", "aligned", "top_k '64'"), (64, "span", "top_k 64 needs the mapping aligned, not span")])
def test_a_number_of_words_that_cannot_be_is_refused(top_k, mapping, message):
    with pytest.raises(ValueError, match=message):
        CaptionBridge(tokenizer("sentencepiece"), tokenizer("clip"), mapping, top_k=top_k)


# ------------------------------------------------------------------------------------------------------------ what it can say

@pytest.mark.parametrize("estimator", [name for name in RELAXATIONS if name != "gumbel_rao"])  # which draws a number for each word
def test_it_can_say_not_this_word_but_that(estimator):
    """A loss that wants the embedding of "and" where the caption has "the": "and" becomes likelier, more than any word, and "the" less."""
    source, target = tokenizer("sentencepiece"), tokenizer("clip")
    caption, table = ["car the car"], nn.Embedding(len(target), 64, _weight=normal("e", len(target), 64)).requires_grad_(False)
    place = source.tokenize(caption[0]).index("▁the")
    logits = torch.zeros(1, len(source.tokenize(caption[0])), len(source), dtype=torch.float64, requires_grad=True)
    out = CaptionBridge(source, target, "aligned", estimator=estimator)(caption, logits, table, rng=generator("x"), noise=None)
    at = target.tokenize(caption[0]).index("the</w>") + 1
    wanted = table.weight[target.convert_tokens_to_ids("and</w>")]
    (out.embeddings[0, at] - wanted).square().sum().backward()
    assert int(logits.grad[0, place].argmin()) == source.convert_tokens_to_ids("▁and")
    assert int(logits.grad[0, place].argmax()) == source.convert_tokens_to_ids("▁the")


# ------------------------------------------------------------------------------------------------------------ the table's changes

def test_words_follow_every_change_of_the_table():
    bridge, logits, noise, table, weight = case()
    static = spelled_by_hand(bridge.source_tokenizer, bridge.target_tokenizer)

    def up_to_date(table, like=logits):
        expected = (static @ table.weight.detach().double()).to(like)
        torch.testing.assert_close(bridge.spelling.embeddings(table.weight, like), expected, check_dtype=True)

    up_to_date(table)
    words = bridge.spelling.embeddings(table.weight, logits)
    assert bridge.spelling.embeddings(table.weight, logits) is words  # computed once
    with torch.no_grad():
        table.weight[3:].mul_(-2)
    up_to_date(table)
    table.weight.requires_grad_()
    table(torch.arange(9)).sum().backward()
    torch.optim.SGD([table.weight], lr=1.0).step()
    up_to_date(table)
    table.load_state_dict({"weight": normal("other", *table.weight.shape)})
    up_to_date(table)
    table.weight.data = normal("moved", *table.weight.shape)
    up_to_date(table)
    up_to_date(table, logits.float())
    up_to_date(table.float(), logits.float())
    up_to_date(table.to(torch.float64))
    for number in range(20):  # which may come to lie where the one before lay
        up_to_date(nn.Embedding(*table.weight.shape, _weight=normal(number, *table.weight.shape)))
    with torch.inference_mode():
        frozen = nn.Embedding(*table.weight.shape, _weight=normal("inference", *table.weight.shape))
        up_to_date(frozen)
        frozen.weight.mul_(2)
        up_to_date(frozen)


@pytest.mark.fuzz
@given(st.lists(st.sampled_from(["dog", "the", "a red", "🎈", "é", "İ", "中文", "42", "\t", ""]), max_size=6).map(" ".join),
       st.integers(2, 400), st.sampled_from([*RELAXATIONS]), st.integers(0, 10**6))
def test_any_number_of_words_gives_gradients_that_cancel(caption, top_k, estimator, seed):
    if not tokenizer("sentencepiece").tokenize(caption):
        return
    found = gradient(*case(seed, estimator, top_k, [caption]), 1.0, [caption])
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(-1), torch.zeros(found.shape[:2], dtype=torch.float64), atol=1e-10, rtol=0)
    if estimator in ONE_SOFTMAX:
        assert (found.count_nonzero(-1) <= top_k).all()
