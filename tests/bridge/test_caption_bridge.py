"""The bridge against Eq. 9-11 written out entry by entry with Python loops, in float64, over arbitrary captions."""

import itertools
import json
import math
import unicodedata
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import tokenizer
from spelled_words import spelled_by_hand
from torch import nn
from transformers import PreTrainedTokenizerFast

from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.bridge.estimators import RELAXATIONS
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.bridge.vocabulary import MAPPINGS, normalized_tokens
from e2e_lib.repro.randomness import generator

WORDS = ("dog", "cat", "umbrellas", "night", "42", "balloon", "haha", "beach")
PAIRS = [("sentencepiece", "clip"), ("byte_level", "clip"), ("sentencepiece", "wordpiece"), ("wordpiece", "byte_level")]


def with_its_marks(caption, span):
    """A span that begins or ends between a character and its marks, widened to hold them all: the rule of Unicode, in short."""
    def joined(at):
        before, after = caption[at - 1], caption[at]
        return not before.isspace() and not after.isspace() and (
            unicodedata.category(after) in ("Mn", "Mc", "Me") or before == "\u200d" or after in "\u200c\u200d"
            or 0x1F3FB <= ord(after) <= 0x1F3FF or 0x1160 <= ord(after) <= 0x11FF)
    first, last = span
    if first == last:
        return span
    while first and joined(first):
        first -= 1
    while last < len(caption) and joined(last):
        last += 1
    return first, last


def by_hand(bridge, caption, z, noise, table, temperature):
    """The target's embeddings (L, D2) of one caption, Eq. 9 and 11 with full matrices, entry by entry."""
    source, target = bridge.source_tokenizer, bridge.target_tokenizer
    a = source(caption, add_special_tokens=False, return_offsets_mapping=True)
    b = target(caption, truncation=True, max_length=bridge.length, return_offsets_mapping=True)
    ids, spans = b["input_ids"], [with_its_marks(caption, span) for span in b["offset_mapping"]]
    inner = [n for n, (first, last) in enumerate(spans) if last > first or ids[n] not in target.all_special_ids]
    tokens = [(i, with_its_marks(caption, span)) for i, span in zip(a["input_ids"], a["offset_mapping"], strict=True)]
    drawn = list(range(len(tokens)))
    if len(target(caption)["input_ids"]) > bridge.length:  # what lies in the end that was cut off is not drawn
        drawn = [t for t in drawn if tokens[t][1][0] < max((spans[n][1] for n in inner), default=0)]
    if not drawn:
        return table[torch.tensor(ids, dtype=torch.long)], ids
    tokens, z, noise = [tokens[t] for t in drawn], z[drawn], noise[drawn]
    y = torch.softmax((z + noise) / temperature, -1)
    hard = torch.nn.functional.one_hot(y.argmax(-1), z.shape[-1]).double()
    h = hard - y.detach() + y
    out = [table[i] for i in ids]
    where = range(len(ids)) if bridge.added_at == "caption_and_marks" else inner

    def share_a_character(one, other):
        return any(c in range(*other) for c in range(*one))

    def matrix(pairs):
        m = torch.zeros(z.shape[-1], len(table), dtype=torch.float64)
        for rows, columns in pairs:
            for i, j in itertools.product(set(rows), set(columns)):
                m[i, j] += 1
        return m

    pool = (lambda x: x.mean(0)) if bridge.pooling == "mean" else (lambda x: x.sum(0))
    if bridge.mapping in ("span", "aligned"):
        for n in inner:
            shared = [t for t, (_, span) in enumerate(tokens) if share_a_character(span, spans[n])]
            if shared:
                m = matrix([([tokens[t][0] for t in shared], [ids[n]])]) if bridge.mapping == "span" else spelled_by_hand(source, target)
                transferred = pool(h[shared]) @ m @ table
                out[n] = out[n] + transferred - transferred.detach()
        return torch.stack(out), ids
    if bridge.mapping == "sentence":
        m = matrix([([i for i, _ in tokens], [ids[n] for n in inner])])
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
    for n in where:
        out[n] = out[n] + transferred - transferred.detach()
    return torch.stack(out), ids


texts = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(["dog", "Dog", "the", "umbrellas", "haha", "42", "café", "🎈", "👩‍👩‍👧", "it's", "x,y", "İ", "ß", "e\u0301", "中文", "\t"]),
             max_size=12).map(" ".join),
    st.sampled_from(["", " ", "  two  dogs", "a " * 60, "dog dog dog dog", "🎈" * 9]),
)


MAPS = ("sentence", "word", "span", "aligned", "static_piece", "static_word")


def compare_with_the_matrices(families, mapping, captions, pooling, added_at, temperature, seed):
    source, target = (tokenizer(family, 12) for family in families)
    bridge = CaptionBridge(source, target, mapping, pooling=pooling, added_at=added_at, words=WORDS, length=12)
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
@pytest.mark.parametrize("mapping", MAPS)
@pytest.mark.parametrize("added_at", ["caption", "caption_and_marks"])
def test_every_map_equals_its_matrix_written_out(families, mapping, added_at):
    captions = ["", "the dog and the dog", "🎈 two  dogs", "Cafe\u0301 umbrellas at night 👩‍👩‍👧 on the snowy beach, haha 42 balloons"]
    compare_with_the_matrices(families, mapping, captions, "mean", added_at, 1.0, 0)


@pytest.mark.fuzz
@given(families=st.sampled_from(PAIRS), mapping=st.sampled_from(MAPS), captions=st.lists(texts, min_size=1, max_size=3),
       pooling=st.sampled_from(["mean", "sum"]), added_at=st.sampled_from(["caption", "caption_and_marks"]),
       temperature=st.sampled_from([0.3, 1.0, 2.5]), seed=st.integers(0, 10**6))
def test_every_map_equals_its_matrix_written_out_for_any_captions(**case):
    compare_with_the_matrices(**case)


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
    frozen = nn.Embedding(len(bridge.target_tokenizer), 4).requires_grad_(False)
    assert not bridge(["a red car"], torch.randn(1, 9, len(bridge.source_tokenizer), requires_grad=True), frozen).embeddings.requires_grad


# -------------------------------------------------------------------------------------------- every map with every estimator

EVERY = [(mapping, estimator) for mapping in MAPPINGS for estimator in RELAXATIONS]
CAPTIONS = ["a red car", "the dog and the cat"]


@cache
def every_bridge(mapping, estimator):
    return CaptionBridge(tokenizer("sentencepiece"), tokenizer("clip"), mapping, estimator=estimator, words=WORDS)


def caption_logits(bridge, seed="logits"):
    """Random logits, as wide and long as the captions' tokens, and which of the positions are real (B, C)."""
    rows = bridge.source_tokenizer(CAPTIONS, add_special_tokens=False)["input_ids"]
    real = torch.arange(max(map(len, rows))) < torch.tensor([[len(row)] for row in rows])
    return torch.randn(*real.shape, len(bridge.source_tokenizer), generator=generator(seed)), real


def gradient_of(bridge, logits, table=None, captions=CAPTIONS, temperature=1.0, context=None, **how):
    """The bridge's output, and the gradient of a sum of it with known weights to the logits, as float32."""
    free = logits.clone().requires_grad_()
    if table is None:
        table = nn.Embedding(len(bridge.target_tokenizer), 4, _weight=torch.randn(len(bridge.target_tokenizer), 4, generator=generator("table")))
    with context or nullcontext():
        out = bridge(captions, free, table.requires_grad_(False), temperature, rng=generator("draws"), **how)
    assert torch.equal(out.embeddings, table(out.input_ids))
    if bridge.mapping == "none":
        assert not out.embeddings.requires_grad
        return out, torch.zeros(logits.shape)
    weight = torch.randn(out.embeddings.shape, generator=generator("weight"))
    gradient, = torch.autograd.grad((out.embeddings.to(weight) * weight).sum(), free)
    assert gradient.dtype == logits.dtype and gradient.isfinite().all()
    return out, gradient.float()


@pytest.mark.parametrize("estimator", RELAXATIONS)
@pytest.mark.parametrize("mapping", ["span", "static_word"])
def test_only_the_estimators_of_eq_5_use_its_noise(mapping, estimator):
    bridge = every_bridge(mapping, estimator)
    logits, _ = caption_logits(bridge)
    noise = gumbel_noise(logits.shape, generator("given"))
    (_, given_), (_, without) = (gradient_of(bridge, logits, noise=g) for g in (noise, None))
    assert torch.equal(given_, without) == (estimator not in ("gumbel", "soft"))


@pytest.mark.parametrize(("mapping", "estimator"), EVERY)
def test_every_estimator_reaches_the_logits(mapping, estimator):
    bridge = every_bridge(mapping, estimator)
    _, gradient = gradient_of(bridge, caption_logits(bridge)[0])
    assert mapping == "none" or gradient.abs().max() > 0
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(gradient.shape[:2]), atol=1e-5, rtol=0)  # softmax's gradient sums to nothing


@pytest.mark.parametrize(("mapping", "estimator"), EVERY)
def test_padding_may_hold_anything_and_gets_no_gradient(mapping, estimator):
    bridge = every_bridge(mapping, estimator)
    logits, real = caption_logits(bridge)
    expected = gradient_of(bridge, logits)[1]
    assert not real.all() and not expected[~real].any()
    for filling in (math.nan, math.inf, -math.inf, 1e30):
        found = gradient_of(bridge, logits.masked_fill(~real[:, :, None], filling))[1]
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("mapping", "estimator"), EVERY)
def test_masked_words_get_no_gradient_and_models_may_pad_their_vocabularies(mapping, estimator):
    bridge = every_bridge(mapping, estimator)
    logits, _ = caption_logits(bridge)
    masked = torch.rand(logits.shape, generator=generator("masked")) < 0.5  # some of them the captions' own tokens
    gradient = gradient_of(bridge, logits.masked_fill(masked, -math.inf))[1]
    assert not gradient[masked].any() and (mapping == "none" or gradient.abs().max() > 0)
    wider = nn.functional.pad(logits, (0, 9), value=-math.inf)
    wide, narrow = (gradient_of(bridge, z, noise=None)[1] for z in (wider, logits))
    assert not wide[..., -9:].any()
    if estimator != "gumbel_rao":  # which draws other numbers for more words
        torch.testing.assert_close(wide[..., :-9], narrow)
    if mapping != "none":
        assert gradient_of(bridge, nn.functional.pad(logits, (0, 9)))[1][..., -9:].any()  # without a mask, padded words are words


@pytest.mark.parametrize(("filling", "message"), [
    (math.nan, "NaN"), (math.inf, r"\+inf"), (-math.inf, "-inf for every word"), (-3e38, "numbers that the noise or the temperature makes too large")])
def test_logits_without_a_softmax_are_refused_in_the_same_words_by_every_map_and_estimator(filling, message):
    said = set()
    for mapping, estimator in EVERY:
        if filling == -3e38 and estimator == "reinmax":
            continue  # which has no such temperature
        bridge = every_bridge(mapping, estimator)
        logits, _ = caption_logits(bridge)
        logits[1, 2, :] = filling
        with pytest.raises(ValueError, match=rf"the logits \(shape \(2, \d+, \d+\)\) hold {message} at caption 1, position 2\. .*learning rate") as error:
            gradient_of(bridge, logits, temperature=1.0 if filling != -3e38 else 1e-3)
        said.add(str(error.value))
    assert len(said) == 1


@pytest.mark.parametrize(("mapping", "estimator"), EVERY)
def test_extreme_confidence_is_finite(mapping, estimator):
    bridge = every_bridge(mapping, estimator)
    logits, _ = caption_logits(bridge)
    for scale, temperature in ((1e4, 1.0), (6e4, 1.0), (1e30, 1.0), (1e4, 1e-3)):
        if estimator == "reinmax":
            temperature = max(1.0, temperature)
        gradient_of(bridge, scale * logits.sign(), temperature=temperature)
        gradient_of(bridge, scale * logits, temperature=temperature)


@pytest.mark.parametrize(("mapping", "estimator"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(mapping, estimator, dtype):
    bridge = every_bridge(mapping, estimator)
    logits = caption_logits(bridge)[0].to(dtype)
    table = nn.Embedding(len(bridge.target_tokenizer), 4)
    _, expected = gradient_of(bridge, logits.float(), table)
    _, found = gradient_of(bridge, logits, table)
    assert torch.equal(found, expected.to(dtype).float())
    halved = nn.Embedding(len(table.weight), 4, _weight=table.weight.to(dtype))
    out, found = gradient_of(bridge, logits, halved)
    assert out.embeddings.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))
    out, _ = gradient_of(bridge, logits.double(), halved)
    assert out.embeddings.dtype == dtype


@pytest.mark.parametrize(("mapping", "estimator"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_changes_nothing_inside_the_bridge(mapping, estimator, dtype):
    bridge = every_bridge(mapping, estimator)
    logits, _ = caption_logits(bridge)
    expected = gradient_of(bridge, logits)[1]
    with (autocast := torch.autocast("cpu", dtype=dtype)):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert torch.equal(gradient_of(bridge, logits, context=autocast)[1], expected)


# ------------------------------------------------------------------------------------------------------ special tokens, cut ends

@pytest.mark.parametrize("mapping", [name for name in MAPPINGS if name != "none"])
def test_special_tokens_inside_a_caption_are_no_words_of_it(mapping):
    bridge = every_bridge(mapping, "gumbel")
    source, caption = bridge.source_tokenizer, CAPTIONS[1]
    ids = source(caption, add_special_tokens=False)["input_ids"]
    with_marks = torch.tensor([[source.eos_token_id, *ids[:2], source.convert_tokens_to_ids("<image>"), *ids[2:], source.eos_token_id]])
    words = torch.tensor([n not in (0, 3, len(ids) + 2) for n in range(len(ids) + 3)])
    logits = torch.randn(1, len(words), len(source), generator=generator("z"))
    gradient = gradient_of(bridge, logits, captions=[caption], noise=None, source_ids=with_marks)[1]
    assert not gradient[:, ~words].any()
    torch.testing.assert_close(gradient[:, words], gradient_of(bridge, logits[:, words], captions=[caption], noise=None)[1])


@pytest.mark.parametrize("mapping", [name for name in MAPPINGS if name != "none"])
def test_words_that_were_cut_off_get_no_gradient(mapping):
    bridge = CaptionBridge(tokenizer("sentencepiece"), tokenizer("clip"), mapping, words=WORDS, length=6)
    caption = "the dog and the cat on the beach at night"
    drawn = bridge.target_tokenizer(caption, truncation=True, max_length=6, return_offsets_mapping=True)["offset_mapping"][-2][1]
    spans = bridge.source_tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    seen = torch.tensor([first < drawn for first, _ in spans])
    logits = torch.randn(1, len(spans), len(bridge.source_tokenizer), generator=generator("z"))
    out, gradient = gradient_of(bridge, logits, captions=[caption])
    assert out.truncated == 1 and 3 < seen.sum() < len(seen) and not gradient[0, ~seen].any() and gradient[0, seen].any(-1).all()


def with_a_hole(family):
    """A small tokenizer whose last token has an id far behind the others, and nothing in between."""
    small = tokenizer(family)
    described = json.loads(small.backend_tokenizer.to_str())
    described["model"]["vocab"]["far"] = len(small) + 100
    backend = type(small.backend_tokenizer).from_str(json.dumps(described))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=small.eos_token, pad_token=small.pad_token, model_max_length=77)


@pytest.mark.parametrize("mapping", [name for name in MAPPINGS if name not in ("none", "aligned_shuffled", "aligned_random")])  # more words: another shuffle
def test_holes_in_the_vocabularies_change_nothing(mapping):
    source, target = with_a_hole("sentencepiece"), with_a_hole("clip")
    assert len(source) < len(source.get_vocab()) + 100 and source.convert_ids_to_tokens(len(source) + 5) is None
    bridge, plain = CaptionBridge(source, target, mapping, words=WORDS), every_bridge(mapping, "gumbel")
    logits, _ = caption_logits(plain)
    table = nn.Embedding(len(plain.target_tokenizer), 4)
    wide = nn.functional.pad(logits, (0, 101), value=-math.inf)
    wide_table = nn.Embedding(len(plain.target_tokenizer) + 101, 4, _weight=nn.functional.pad(table.weight.detach(), (0, 0, 0, 101)))
    found = gradient_of(bridge, wide, wide_table, noise=None)[1]
    torch.testing.assert_close(found[..., :-101], gradient_of(plain, logits, table, noise=None)[1])
    for narrow, narrow_table in ((wide[..., :-1], wide_table), (wide, table)):
        with pytest.raises(ValueError, match="words wide, but the (source|target) tokenizer has"):
            bridge(CAPTIONS, narrow, narrow_table)


def test_padding_ids_need_not_be_words():
    bridge = every_bridge("span", "gumbel")
    logits, real = caption_logits(bridge)
    ids = bridge.source_tokenizer(CAPTIONS, add_special_tokens=False, padding=True, return_tensors="pt")["input_ids"]
    for mask in (real, real.long()):
        found = gradient_of(bridge, logits, noise=None, source_ids=ids.masked_fill(~real, -100), source_mask=mask)[1]
        assert torch.equal(found, gradient_of(bridge, logits, noise=None)[1])
    with pytest.raises(ValueError, match=r"source_ids must be whole numbers from 0 to \d+; give a source_mask"):
        bridge(CAPTIONS, logits, nn.Embedding(len(bridge.target_tokenizer), 4), source_ids=ids.masked_fill(~real, -100))


@pytest.mark.parametrize(("length", "message"), [
    (1, "at least 2, which hold its start and end marks, and of at most 77, its tokenizer's limit"),
    *((length, "at least 2") for length in (0, -5, 1.5, True, "9", 78, 10**9))])
def test_a_length_that_the_text_encoder_cannot_have_is_refused(length, message):
    with pytest.raises(ValueError, match=f"length {length!r}: .*{message}"):
        CaptionBridge(tokenizer("sentencepiece"), tokenizer("clip"), length=length)


def test_the_length_is_that_of_the_embeddings_marks_included():
    target = tokenizer("clip")
    for length, marks in ((2, 2), (3, 2), (77, 2)):
        bridge = CaptionBridge(tokenizer("sentencepiece"), target, length=length)
        out, _ = gradient_of(bridge, caption_logits(bridge)[0])
        assert out.embeddings.shape[1] == length and out.input_ids[0, 0] == target.bos_token_id and out.truncated == (2 if length < 9 else 0)
        assert int(out.attention_mask[0].sum()) == min(length, len(target(CAPTIONS[0])["input_ids"])) >= marks
    assert CaptionBridge(tokenizer("clip"), tokenizer("sentencepiece")).length is None  # whose tokenizer has no limit


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
    "added at": (lambda b, e: CaptionBridge(b.source_tokenizer, b.target_tokenizer, added_at="marks"), ValueError, "added_at 'marks'.*caption_and_marks"),
    "words": (lambda b, e: CaptionBridge(b.source_tokenizer, b.target_tokenizer, "static_word", words="dog"), TypeError, "words must be a list of texts, got 'dog'"),
    "one caption": (lambda b, e: b("a dog", torch.zeros(1, 9, len(b.source_tokenizer)), e), TypeError, "captions must be a list of texts, got 'a dog'"),
    "no text": (lambda b, e: b(["a", None], torch.zeros(2, 9, len(b.source_tokenizer)), e), TypeError, "captions must be texts, but number 1 is None"),
    "half": (lambda b, e: b(["x\ud83d"], torch.zeros(1, 9, len(b.source_tokenizer)), e), ValueError, "captions: number 0.* half a character"),
    "integers": (lambda b, e: b(["a"], torch.zeros(1, 9, len(b.source_tokenizer)).long(), e), ValueError, r"need logits.*of torch.int64"),
    "a list": (lambda b, e: b(["a"], [[[0.0]]], e), ValueError, r"need logits.*list"),
    "temperature": (lambda b, e: b(["a dog"], torch.zeros(1, 9, len(b.source_tokenizer)), e, 0.0), ValueError, "positive, got 0.0"),
    "infinity": (lambda b, e: b(["a dog"], torch.zeros(1, 9, len(b.source_tokenizer)), e, math.inf), ValueError, "positive, got inf"),
    "noise": (lambda b, e: b(["a dog"], torch.zeros(1, 4, len(b.source_tokenizer)), e, 1.0, torch.full((1, 4, len(b.source_tokenizer)), math.inf)),
              ValueError, "hold numbers that the noise or"),
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
