"""Characters of words and tokens, against str.split, and against decoding token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import FAMILIES, tokenizer

from e2e_lib.bridge.alignment import align_ids_to_text, encode_with_offsets, word_spans


@given(st.lists(st.text(max_size=20), max_size=4))
@settings(max_examples=200, deadline=None)
def test_words_are_those_of_split(captions):
    spans, mask = word_spans(captions)
    for caption, row, real in zip(captions, spans.tolist(), mask.tolist(), strict=True):
        assert [caption[first:last] for (first, last), r in zip(row, real, strict=True) if r] == caption.split()


@pytest.mark.parametrize("length", [None, 4, 30])
@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_agrees_with_the_tokenizer(family, length):
    tok, captions = tokenizer(family), ["the dog and the cat", "", "a beach"]
    encoding, truncated = encode_with_offsets(tok, captions, special=True, length=length)
    assert truncated == sum(len(tok(caption)["input_ids"]) > (length or 99) for caption in captions)
    for n, caption in enumerate(captions):
        expected = tok(caption, truncation=bool(length), max_length=length, return_offsets_mapping=True)
        count = len(expected["input_ids"])
        assert encoding.input_ids[n, :count].tolist() == expected["input_ids"]
        assert encoding.attention_mask[n].tolist() == [1] * count + [0] * (encoding.input_ids.shape[1] - count)
        inside = encoding.token_mask[n, :count]
        assert encoding.spans[n, :count][inside].tolist() == [
            list(span) for span, keep in zip(expected["offset_mapping"], inside, strict=True) if keep]
        assert inside.tolist() == [i not in tok.all_special_ids for i in expected["input_ids"]]
    assert length is None or encoding.input_ids.shape[1] == length


@pytest.mark.parametrize("family", FAMILIES[:3])
@given(text=st.sampled_from(["umbrellas in the city", "a balloon, café", "🎈 the dog"]), data=st.data())
@settings(max_examples=15, deadline=None)
def test_tokens_of_another_segmentation_get_their_characters(family, text, data):
    """A model may write a word in smaller pieces than its tokenizer would."""
    tok = tokenizer(family)
    inside_words = [k for k in range(1, len(text)) if text[k] != " " and text[k - 1] != " "]
    at = data.draw(st.sampled_from(inside_words))
    parts = [tok(part, add_special_tokens=False)["input_ids"] for part in (text[:at], text[at:])]
    ids = torch.tensor([sum(parts, [])])
    if tok.decode(ids[0]).replace(" ", "").lower() != text.replace(" ", "").lower():
        return  # this family cannot write the split
    caption = tok.decode(ids[0]).strip()
    spans = align_ids_to_text(tok, [caption], ids, torch.ones_like(ids, dtype=torch.bool)).spans[0].tolist()
    for (first, last), token in zip(spans, ids[0].tolist(), strict=True):
        assert 0 <= first <= last <= len(caption)
        decoded = tok.decode([token]).strip().lower()
        if "\ufffd" not in decoded:
            assert decoded in caption[first:last].lower() or not decoded
    covered = {c for first, last in spans for c in range(first, last)}
    assert covered >= {k for k, c in enumerate(caption) if not c.isspace()}
