"""Characters of words and tokens, against str.split, and against decoding token by token."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import FAMILIES, tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from e2e_lib.bridge.alignment import (
    align_ids_to_text,
    encode_with_offsets,
    overlap,
    vocabulary_size,
    word_spans,
)

SPANS = st.tuples(st.integers(0, 9), st.integers(1, 9)).map(lambda span: [span[0], sum(span)])


@given(SPANS, SPANS)
def test_spans_overlap_where_they_share_a_character(a, b):
    both = [torch.tensor([[span]]) for span in (a, b)]
    assert overlap(*both).item() == bool(set(range(*a)) & set(range(*b)))


@pytest.mark.fuzz
@given(st.lists(st.text(max_size=20), max_size=4))
def test_words_are_those_of_split(captions):
    spans, mask = word_spans(captions)
    for caption, row, real in zip(captions, spans.tolist(), mask.tolist(), strict=True):
        assert [caption[first:last] for (first, last), r in zip(row, real, strict=True) if r] == caption.split()


@pytest.mark.parametrize("length", [None, 4, 30])
@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_agrees_with_the_tokenizer(family, length):
    tok, captions = tokenizer(family), ["the dog and the cat", "", "a beach"]
    encoding, truncated = encode_with_offsets(tok, captions, special=True, length=length)
    assert truncated.tolist() == [len(tok(caption)["input_ids"]) > (length or 99) for caption in captions]
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


def test_as_many_other_tokens_get_their_own_characters():
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}, merges=[("a", "b"), ("b", "c")]))
    backend.decoder = decoders.Fuse()
    tok = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tok("abc")["input_ids"] == [3, 2]  # "ab", "c"
    for ids, spans in (([3, 2], [[0, 2], [2, 3]]), ([0, 4], [[0, 1], [1, 3]])):
        assert align_ids_to_text(tok, ["abc"], torch.tensor([ids]), torch.ones(1, 2)).spans[0].tolist() == spans


@pytest.mark.parametrize("family", ["sentencepiece", "byte_level"])
@pytest.mark.parametrize("text", ["a   red    kite", "  a red kite", "A  Red kite \t", "a\nred  \u00a0 kite"])
def test_tokens_with_other_blanks_than_their_caption_cover_their_words(family, text):
    tok, caption = tokenizer(family), "a red kite"
    encoded = tok(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor([encoded["input_ids"]])
    encoding = align_ids_to_text(tok, [caption], ids, torch.ones_like(ids))
    words, _ = word_spans([text])
    in_word = overlap(words, torch.tensor([encoded["offset_mapping"]]))[0]  # (3, C), in the text that they were written in
    in_word &= torch.tensor([token != "▁" for token in tok.convert_ids_to_tokens(encoded["input_ids"])])  # said to cover a letter after it
    again, _ = word_spans([caption])
    assert torch.equal(overlap(again, encoding.spans)[0], in_word)
    for word, (first, last) in zip(caption.split(), again[0].tolist(), strict=True):
        spans = encoding.spans[0][overlap(again, encoding.spans)[0, caption.split().index(word)]]
        assert (spans[:, 0].min(), spans[:, 1].max()) == (first, last)


def test_stray_bytes_and_whole_characters_of_bytes_get_their_place():
    tok = tokenizer("byte_level")
    e_acute, balloon = tok("é", add_special_tokens=False)["input_ids"], tok("🎈", add_special_tokens=False)["input_ids"]
    x = tok("x", add_special_tokens=False)["input_ids"]
    assert len(balloon) == 4
    ids = [*balloon, *x, e_acute[0], *x, *balloon[:1], *balloon]
    caption = tok.decode(ids)
    assert caption.count("\ufffd") == (2 if len(e_acute) > 1 else 1)
    spans = align_ids_to_text(tok, [caption], torch.tensor([ids]), torch.ones(1, len(ids))).spans[0].tolist()
    assert spans[:4] == [[0, 1]] * 4 and spans[4:] == [[n, n + 1] for n in range(1, 5)] + [[5, 6]] * 4


WRITTEN_APART = [["c", "a", "f", "e\u0301"], ["a\u0308\u0323", "b"], ["👩\u200d👩\u200d👧", " ", "x"], ["❤\ufe0f"], ["👍🏽", "!"],
                 ["\u1112\u1161\u11ab", "\u1100\u1173\u11af"], ["न", "मो"], ["ก็"]]  # the characters as a reader counts them


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("characters", WRITTEN_APART, ids="|".join)
def test_no_token_parts_a_character_from_its_marks(family, characters):
    tok, caption = tokenizer(family), "".join(characters)
    encoding, _ = encode_with_offsets(tok, [caption], special=False)
    raw = tok(caption, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = [*accumulate(map(len, characters))]
    clusters = [*zip([0, *ends], ends, strict=False)]
    for (first, last), given_ in zip(encoding.spans[0].tolist(), raw, strict=True):
        touched = [cluster for cluster in clusters if cluster[0] < given_[1] and given_[0] < cluster[1]]
        assert (first, last) == ((touched[0][0], touched[-1][1]) if touched else tuple(given_))


@pytest.mark.parametrize("caption", [*map("".join, WRITTEN_APART)])
def test_a_mark_of_its_own_on_one_side_touches_the_composed_character_on_the_other(caption):
    sides = [encode_with_offsets(tokenizer(family), [caption], special=False)[0] for family in ("byte_level", "clip")]
    assert overlap(sides[0].spans, sides[1].spans)[0][sides[0].spans[0, :, 1] > sides[0].spans[0, :, 0]].any(1).all()


def test_a_mark_after_a_blank_does_not_reach_over_it():
    encoding, _ = encode_with_offsets(tokenizer("byte_level"), ["a \u0301b"], special=False)
    assert encoding.spans[0, 0].tolist() == [0, 1] and encoding.spans[0, :, 0].tolist().count(0) == 1


def test_an_empty_vocabulary_has_no_size():
    class Nothing:
        def get_vocab(self):
            return {}

    assert vocabulary_size(Nothing()) == 0 and vocabulary_size(tokenizer("clip")) == len(tokenizer("clip"))
