"""The bridge against Eq. 9-11 written out entry by entry with Python loops, in float64, over arbitrary captions."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_tokenizers import tokenizer
from torch import nn

from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.bridge.vocabulary import normalized_tokens
from e2e_lib.repro.randomness import generator

WORDS = ("dog", "cat", "umbrellas", "night", "42", "balloon", "haha", "beach")
PAIRS = [("sentencepiece", "clip"), ("byte_level", "clip"), ("sentencepiece", "wordpiece"), ("wordpiece", "byte_level")]


def by_hand(bridge, caption, z, noise, table, temperature):
    """The target's embeddings (L, D2) of one caption, Eq. 9 and 11 with full matrices, entry by entry."""
    source, target = bridge.source_tokenizer, bridge.target_tokenizer
    a = source(caption, add_special_tokens=False, return_offsets_mapping=True)
    b = target(caption, truncation=True, max_length=bridge.length, return_offsets_mapping=True)
    ids, spans = b["input_ids"], b["offset_mapping"]
    inner = [n for n, (first, last) in enumerate(spans) if last > first or ids[n] not in target.all_special_ids]
    count = len(a["input_ids"])
    y = torch.softmax((z[:count] + noise[:count]) / temperature, -1)
    hard = torch.nn.functional.one_hot(y.argmax(-1), z.shape[-1]).double()
    h = hard - y.detach() + y
    out = [table[i] for i in ids]
    if not count:
        return table[torch.tensor(ids, dtype=torch.long)], ids

    def share_a_character(one, other):
        return any(c in range(*other) for c in range(*one))

    def matrix(pairs):
        m = torch.zeros(z.shape[-1], len(table), dtype=torch.float64)
        for rows, columns in pairs:
            for i, j in itertools.product(set(rows), set(columns)):
                m[i, j] += 1
        return m

    pool = (lambda x: x.mean(0)) if bridge.pooling == "mean" else (lambda x: x.sum(0))
    tokens = list(zip(a["input_ids"], a["offset_mapping"], strict=True))
    if bridge.mapping == "span":
        for n in inner:
            shared = [t for t, (_, span) in enumerate(tokens) if share_a_character(span, spans[n])]
            if shared:
                transferred = pool(h[shared]) @ matrix([([tokens[t][0] for t in shared], [ids[n]])]) @ table
                out[n] = out[n] + transferred - transferred.detach()
        return torch.stack(out), ids
    if bridge.mapping == "sentence":
        m = matrix([(a["input_ids"], [ids[n] for n in inner])])
    elif bridge.mapping == "word":
        pairs, first = [], 0
        for word in caption.split():
            first = caption.index(word, first)
            span = (first, first + len(word))
            first += len(word)
            pairs.append(([i for i, s in tokens if share_a_character(s, span)], [ids[n] for n in inner if share_a_character(spans[n], span)]))
        m = matrix(pairs)
    elif bridge.mapping == "static_piece":
        sides = [normalized_tokens(t) for t in (source, target)]
        m = matrix([([i for i, x in enumerate(sides[0]) if x == text], [j for j, x in enumerate(sides[1]) if x == text])
                    for text in set(sides[0]) & set(sides[1]) - {""}])
    else:
        m = matrix([(source(w, add_special_tokens=False)["input_ids"], target(w, add_special_tokens=False)["input_ids"]) for w in set(WORDS)])
    transferred = pool(h @ m @ table)
    for n in inner:
        out[n] = out[n] + transferred - transferred.detach()
    return torch.stack(out), ids


texts = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(["dog", "Dog", "the", "umbrellas", "haha", "42", "café", "🎈", "👩‍👩‍👧", "it's", "x,y", "İ", "ß", "e\u0301", "中文", "\t"]),
             max_size=12).map(" ".join),
    st.sampled_from(["", " ", "  two  dogs", "a " * 60, "dog dog dog dog", "🎈" * 9]),
)


@pytest.mark.parametrize("families", PAIRS, ids="-".join)
@pytest.mark.parametrize("mapping", ["sentence", "word", "span", "static_piece", "static_word"])
@given(captions=st.lists(texts, min_size=1, max_size=4), pooling=st.sampled_from(["mean", "sum"]), temperature=st.sampled_from([0.3, 1.0, 2.5]),
       seed=st.integers(0, 10**6))
@example(captions=["", "the dog and the dog", "🎈 two  dogs"], pooling="mean", temperature=1.0, seed=0)
@settings(max_examples=20, deadline=None)
def test_every_map_equals_its_matrix_written_out(families, mapping, captions, pooling, temperature, seed):
    source, target = (tokenizer(family, 12) for family in families)
    bridge = CaptionBridge(source, target, mapping, pooling=pooling, words=WORDS, length=12)
    rng = generator(seed)
    longest = max(len(row) for row in source(captions, add_special_tokens=False)["input_ids"]) + 1
    logits = torch.randn(len(captions), longest, len(source), generator=rng, dtype=torch.float64, requires_grad=True)
    noise = gumbel_noise(logits.shape, rng).double()
    embedding = nn.Embedding(len(target), 5, dtype=torch.float64).requires_grad_(False)
    out = bridge(captions, logits, embedding, temperature, noise)
    weight = torch.randn(*out.embeddings.shape, generator=rng, dtype=torch.float64)
    assert torch.equal(out.embeddings, embedding(out.input_ids))  # forward: the encoder's own embeddings, to the last bit
    loss = 0.0
    for row, caption in enumerate(captions):
        expected, ids = by_hand(bridge, caption, logits[row], noise[row], embedding.weight, temperature)
        assert out.input_ids[row, :len(ids)].tolist() == ids and int(out.attention_mask[row].sum()) == len(ids)
        loss = loss + (expected * weight[row, :len(ids)]).sum()
    gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] if torch.is_tensor(x) and x.requires_grad else torch.zeros_like(logits)
                 for x in ((out.embeddings * weight).sum(), loss)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("families", PAIRS, ids="-".join)
def test_gumbel_noise_is_sampled_from_rng(families):
    source, target = (tokenizer(family) for family in families)
    captions = ["a red car on the beach", "the cat"]
    logits = torch.randn(2, 30, len(source), requires_grad=True)
    embedding = nn.Embedding(len(target), 4)
    for mapping in ("span", "static_piece"):
        bridge = CaptionBridge(source, target, mapping)
        width = max(len(row) for row in source(captions, add_special_tokens=False)["input_ids"])
        noise = torch.zeros_like(logits)
        noise[:, :width] = gumbel_noise((2, width, len(source)), generator("noise"))
        weight = torch.randn(bridge(captions, logits, embedding).embeddings.shape)
        sampled, given_ = (torch.autograd.grad((bridge(captions, logits, embedding, 0.7, **how).embeddings * weight).sum(), logits)[0]
                         for how in ({"rng": generator("noise")}, {"noise": noise}))
        assert torch.equal(sampled, given_) and sampled.abs().max() > 0


def test_no_gradient_without_a_map():
    bridge = CaptionBridge(tokenizer("sentencepiece"), tokenizer("clip"), "none")
    out = bridge(["a red car"], torch.randn(1, 9, len(bridge.source_tokenizer), requires_grad=True), nn.Embedding(len(bridge.target_tokenizer), 4))
    assert not torch.autograd.grad(out.embeddings.sum(), out.embeddings)[0].isnan().any()
    frozen = nn.Embedding(len(bridge.target_tokenizer), 4).requires_grad_(False)
    assert not bridge(["a red car"], torch.randn(1, 9, len(bridge.source_tokenizer), requires_grad=True), frozen).embeddings.requires_grad


@pytest.mark.parametrize("estimator", ["straight_through", "gumbel", "soft", "decoupled", "gumbel_rao", "reinmax"])
@pytest.mark.parametrize("mapping", ["span", "static_piece"])
def test_every_estimator_reaches_the_logits(estimator, mapping):
    bridge = CaptionBridge(tokenizer("sentencepiece"), tokenizer("clip"), mapping, estimator=estimator)
    logits = torch.randn(1, 20, len(bridge.source_tokenizer), requires_grad=True)
    out = bridge(["a red car"], logits, nn.Embedding(len(bridge.target_tokenizer), 4).requires_grad_(False), rng=generator("draws"))
    gradient, = torch.autograd.grad((out.embeddings**2).sum(), logits)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(1, 20), atol=1e-5, rtol=0)  # softmax's gradient sums to nothing


# --------------------------------------------------------------------------------------------------------------- bad input

class _Slow:
    is_fast = False


BAD = {
    "no offsets": (lambda b, e: CaptionBridge(_Slow(), b.target_tokenizer), TypeError, "source tokenizer .* no character offsets"),
    "mapping": (lambda b, e: CaptionBridge(b.source_tokenizer, b.target_tokenizer, "letter"), ValueError, "mapping 'letter' .* sentence"),
    "estimator": (lambda b, e: CaptionBridge(b.source_tokenizer, b.target_tokenizer, estimator="x"), ValueError, "estimator 'x'.*reinmax"),
    "no words": (lambda b, e: CaptionBridge(b.source_tokenizer, b.target_tokenizer, "static_word"), ValueError, "word list"),
    "batch": (lambda b, e: b(["a", "b"], torch.zeros(1, 9, len(b.source_tokenizer)), e), ValueError, r"2 captions need logits of shape \(2,.*\(1, 9"),
    "width": (lambda b, e: b(["a"], torch.zeros(1, 9, 7), e), ValueError, r"logits are 7 words wide, but the source tokenizer has \d+"),
    "table": (lambda b, e: b(["a"], torch.zeros(1, 9, len(b.source_tokenizer)), nn.Embedding(9, 4)), ValueError, "embedding are 9 words wide"),
    "positions": (lambda b, e: b(["the dog and the dog"], torch.zeros(1, 2, len(b.source_tokenizer)), e), ValueError,
                  r"caption 0 \('the dog and the dog'\) has \d+ tokens"),
    "nan": (lambda b, e: b(["a dog"], torch.full((1, 9, len(b.source_tokenizer)), float("nan")), e), ValueError, "not numbers"),
    "temperature": (lambda b, e: b(["a dog"], torch.zeros(1, 9, len(b.source_tokenizer)), e, 0.0), ValueError, "positive, got 0.0"),
    "noise name": (lambda b, e: b(["a dog"], torch.zeros(1, 9, len(b.source_tokenizer)), e, noise="white"), ValueError, "noise 'white'"),
    "noise shape": (lambda b, e: b(["a"], torch.zeros(1, 9, len(b.source_tokenizer)), e, noise=torch.zeros(3)), ValueError, r"noise \(3,\)"),
    "other tokens": (lambda b, e: b(["a dog"], torch.zeros(1, 3, len(b.source_tokenizer)), e, source_ids=torch.full((1, 3), 300)), ValueError,
                 "caption 0 is 'a dog', but its 3 tokens spell"),
    "ids": (lambda b, e: b(["a"], torch.zeros(1, 3, len(b.source_tokenizer)), e, source_ids=torch.zeros(1, 2, dtype=torch.long)), ValueError,
            r"source_ids \(1, 2\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, error, message = BAD[case]
    bridge = CaptionBridge(tokenizer("sentencepiece"), tokenizer("clip"))
    with pytest.raises(error, match=message):
        call(bridge, nn.Embedding(len(bridge.target_tokenizer), 4))


def test_an_empty_batch_and_half_precision_are_fine():
    bridge = CaptionBridge(tokenizer("sentencepiece"), tokenizer("clip"))
    embedding = nn.Embedding(len(bridge.target_tokenizer), 4)
    assert bridge([], torch.zeros(0, 3, len(bridge.source_tokenizer)), embedding).embeddings.shape[0] == 0
    logits = torch.randn(1, 9, len(bridge.source_tokenizer), dtype=torch.float16, requires_grad=True)
    out = bridge(["a dog"], logits, embedding)
    out.embeddings.sum().backward()
    assert logits.grad.dtype == torch.float16 and logits.grad.abs().max() > 0
    assert bridge(["the dog " * 90], torch.randn(1, 400, len(bridge.source_tokenizer)), embedding).truncated == 1
