"""Made-up captions, logits and settings: whatever they are, a finite result or an error of the bridge's own."""

import math
import traceback
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import FAMILIES, tokenizer
from torch import nn

from e2e_lib.bridge import CaptionBridge, estimators
from e2e_lib.bridge.alignment import align_ids_to_text, encode_with_offsets, word_spans
from e2e_lib.bridge.estimators import ESTIMATORS, RELAXATIONS, exact_gradient
from e2e_lib.bridge.gumbel import softmax_with_temperature, straight_through
from e2e_lib.bridge.vocabulary import ADDED_AT, MAPPINGS, POOLINGS
from e2e_lib.repro.randomness import generator

pytestmark = pytest.mark.fuzz
BRIDGE = Path(estimators.__file__).parent
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

pieces = st.sampled_from(["dog", "the ", "a red kite", " ", "  ", "\t", "\n", "\u00a0", "\u0301", "e\u0301", "\u200d", "\ufe0f", "🎈", "👩‍👩‍👧", "👍🏽", "🇩🇪", "한",
                          "\u1112\u1161\u11ab", "İ", "ß", "ﬁ", "\x00", "\ufffd", "\ufeff", "</s>", "<s>", "<image>", "[UNK]", "<|endoftext|>", "##s", "▁", "Ġ", ","])
captions_of_all_kinds = st.lists(pieces | st.text(max_size=6), max_size=8).map("".join)
temperatures = st.sampled_from([1.0, 0.5, 1e-3, 50.0, 1.0, 1.0]) | st.floats() | st.floats(1e-3, 100)


def numbers(shape, seed, palette, dtype):
    """Random logits of a type, some of them taken from the palette."""
    rng = generator(seed)
    values = 3 * torch.randn(shape, generator=rng)
    if palette:
        chosen = torch.tensor(palette)[torch.randint(len(palette), values.shape, generator=rng)]
        values = torch.where(torch.rand(values.shape, generator=rng) < 0.2, chosen, values)
    return values.to(dtype).requires_grad_()


palettes = st.lists(st.sampled_from([-math.inf, -math.inf, 1e4, -1e4, 6e4, -6e4, 1e30, -3e38]), max_size=3) | st.lists(st.sampled_from([math.nan, math.inf]))


def result_or_refusal(call):
    """What ``call`` returns, or None where the bridge refuses its input with a ValueError or TypeError raised by itself."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        assert Path(traceback.extract_tb(error.__traceback__)[-1].filename).parent == BRIDGE, error
        assert len(str(error)) > 20
        return None


def check_gradient(value, logits, temperature):
    gradient, = torch.autograd.grad(value, logits)
    assert not gradient[logits == -math.inf].any()
    assert gradient.isfinite().all() or logits.dtype == torch.float16 and temperature < 0.1  # whose largest number is 65,504


@cache
def bridge_of(families, mapping, estimator, pooling, added_at, length):
    return CaptionBridge(*map(tokenizer, families), mapping, estimator=estimator, pooling=pooling, added_at=added_at, words=["dog", "red kite", "é"], length=length)


@given(st.data(), st.lists(captions_of_all_kinds, max_size=3), st.integers(0, 10**6), palettes, st.sampled_from(DTYPES), st.sampled_from(DTYPES), temperatures)
def test_the_bridge_gives_finite_numbers_or_says_what_is_wrong(data, captions, seed, palette, dtype, table_dtype, temperature):
    families = data.draw(st.tuples(st.sampled_from(FAMILIES), st.sampled_from(FAMILIES)))
    length = data.draw(st.none() | st.integers(-2, 90) | st.sampled_from([4, 12, 77]))
    bridge = result_or_refusal(lambda: bridge_of(families, *(data.draw(st.sampled_from([*names])) for names in (MAPPINGS, RELAXATIONS, POOLINGS, ADDED_AT)), length))
    if bridge is None:
        assert length is not None and not 2 <= length <= 77
        return
    longest = max([0, *(len(row) for row in bridge.source_tokenizer(captions, add_special_tokens=False)["input_ids"])]) if captions else 0
    shape = (len(captions), max(0, longest + data.draw(st.integers(-1, 2))), len(bridge.source_tokenizer) + data.draw(st.sampled_from([0, 0, 5])))
    logits, given_ids = numbers(shape, seed, palette, dtype), {}
    if data.draw(st.booleans()):
        ids = torch.randint(data.draw(st.sampled_from([0, 0, -2])), shape[-1] + data.draw(st.sampled_from([0, 0, 3])), shape[:2], generator=generator(seed, "ids"))
        mask = torch.arange(shape[1]) < torch.randint(shape[1] + 1, (len(captions), 1), generator=generator(seed, "mask"))
        given_ids = {"source_ids": ids, "source_mask": data.draw(st.sampled_from([None, mask, mask.long()]))}
        if data.draw(st.booleans()) and ids.numel() and ids.min() >= 0:
            captions = [bridge.source_tokenizer.decode(row[real], skip_special_tokens=True).strip() for row, real in zip(ids, mask, strict=True)]
    noise = data.draw(st.sampled_from(["gumbel", None, numbers(shape, seed, [], torch.float32).detach()]))
    table = nn.Embedding(len(bridge.target_tokenizer), 3, _weight=torch.randn(len(bridge.target_tokenizer), 3, generator=generator("table")).to(table_dtype))
    out = result_or_refusal(lambda: bridge(captions, logits, table.requires_grad_(False), temperature, noise, generator(seed), **given_ids))
    if out is not None:
        assert torch.equal(out.embeddings, table(out.input_ids)) and out.embeddings.dtype == table_dtype
        if out.embeddings.requires_grad:
            check_gradient((out.embeddings.double()**2).sum(), logits, temperature)


@given(st.sampled_from([*ESTIMATORS]), st.sampled_from([(3,), (2, 4), (2, 1, 3), (1, 2, 2, 2), (0, 2), (2, 1)]), st.integers(0, 10**6), palettes,
       st.sampled_from(DTYPES), temperatures)
def test_every_estimator_gives_finite_numbers_or_says_what_is_wrong(name, shape, seed, palette, dtype, temperature):
    logits = numbers(shape, seed, palette, dtype)
    weight = torch.randn(shape, generator=generator(seed, "weight"))
    value = result_or_refusal(lambda: ESTIMATORS[name](lambda d: (d * weight).sum().square(), logits, temperature, generator(seed)))
    if value is not None:
        assert value.isfinite()
        check_gradient(value, logits, temperature)


@given(st.integers(0, 10**6), palettes, st.sampled_from(DTYPES), st.booleans())
def test_the_exact_gradient_is_finite_and_the_mean_gradient_of_its_samples(seed, palette, dtype, masked):
    logits = numbers((2, 3), seed, [*palette, -math.inf] if masked else palette, dtype)
    weight = torch.randn(2, 3, generator=generator(seed, "weight"))
    found = result_or_refusal(lambda: exact_gradient(lambda d: (d * weight).sum(), logits))
    if found is not None:
        closed = (softmax_with_temperature(logits, 1.0) * weight).sum()
        torch.testing.assert_close(found[0], closed.detach(), check_dtype=False, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[1], torch.autograd.grad(closed, logits)[0], check_dtype=False, rtol=2e-2, atol=1e-2)


@given(st.integers(0, 10**6), palettes, st.sampled_from(DTYPES), temperatures)
def test_words_are_one_hot_and_relaxations_are_distributions(seed, palette, dtype, temperature):
    y = result_or_refusal(lambda: softmax_with_temperature(numbers((4, 5), seed, palette, dtype), temperature))
    if y is not None:
        torch.testing.assert_close(y.sum(-1), torch.ones(4, dtype=y.dtype), rtol=1e-5, atol=1e-5)
        assert straight_through(y).detach().sort(-1).values.allclose(torch.tensor([0.0, 0, 0, 0, 1]).to(y), atol=1e-6)


@given(st.sampled_from(FAMILIES), st.lists(captions_of_all_kinds, max_size=3), st.booleans(), st.none() | st.integers(2, 12))
def test_any_text_is_tokenized_with_spans_inside_it_that_keep_their_order(family, captions, special, length):
    encoding, truncated = encode_with_offsets(tokenizer(family), captions, special=special, length=length)
    assert truncated.shape == (len(captions),) and encoding.token_mask.shape == encoding.input_ids.shape == encoding.spans.shape[:2]
    for caption, spans, inside in zip(captions, encoding.spans, encoding.token_mask, strict=True):
        first, last = spans[inside].T
        assert (first >= 0).all() and (first <= last).all() and (last <= len(caption)).all() and (last.diff() >= 0).all()
    words, real = word_spans(captions)
    assert real.sum() == sum(len(caption.split()) for caption in captions) and words.shape[0] == len(captions)


@given(st.sampled_from(FAMILIES), st.data())
def test_whatever_a_model_writes_is_aligned_with_the_caption_made_of_it(family, data):
    tok = tokenizer(family)
    ids = torch.tensor([data.draw(st.lists(st.integers(0, len(tok) - 1), min_size=1, max_size=12))])
    caption = tok.decode(ids[0], skip_special_tokens=True).strip()
    encoding = result_or_refusal(lambda: align_ids_to_text(tok, [caption], ids, torch.ones_like(ids)))
    assert encoding is not None
    spans, special = encoding.spans[0], torch.isin(ids[0], torch.tensor(tok.all_special_ids))
    assert (spans[:, 0] <= spans[:, 1]).all() and (spans >= 0).all() and (spans <= len(caption)).all()
    assert not encoding.token_mask[0][special & (spans[:, 0] == spans[:, 1])].any() and encoding.token_mask[0][~special].all()
    covered = {c for first, last in spans[encoding.token_mask[0]].tolist() for c in range(first, last)}
    assert covered >= {at for at, character in enumerate(caption) if not character.isspace()}
