"""Which characters of a caption each token covers: all that two tokenizers need to have in common.

Axes: B captions, C tokens of the language model, L tokens of the text encoder, W words, n any of these.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor


@dataclass
class Encoding:
    """Tokenized captions, padded on the right.

    ``input_ids`` (B, n); ``spans`` (B, n, 2), the first character of each token and one past its last, with
    the marks that combine with them; ``token_mask`` (B, n), True for tokens of the caption, False for start
    and end marks and padding; ``attention_mask`` (B, n), 1 for all but padding.
    """

    input_ids: Tensor
    spans: Tensor
    token_mask: Tensor
    attention_mask: Tensor


def check_tokenizer(tokenizer: Any, role: str) -> None:
    """Raises TypeError for a tokenizer that does not report the characters of each token."""
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(f"the {role} tokenizer ({type(tokenizer).__name__}) gives no character offsets; load "
                        "its fast version, AutoTokenizer.from_pretrained(...) with a tokenizer.json")


def check_texts(name: str, texts: Iterable[str]) -> list[str]:
    """The ``texts`` as a list. Raises TypeError for what is no list of texts, ValueError for half a character
    (one of the two surrogates of UTF-16)."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a list of texts, got {texts!r:.100}")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be texts, but number {number} is {text!r:.100}")
        if re.search("[\ud800-\udfff]", text):
            raise ValueError(f"{name}: number {number}, {text!r:.100}, holds half a character (a surrogate "
                             "alone, as where an emoji was cut in two); remove it")
    return texts


def vocabulary_size(tokenizer: Any) -> int:
    """The largest id and one: rows of a table for all tokens. A vocabulary with holes has fewer tokens."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def encode_with_offsets(tokenizer: Any, captions: list[str], *, special: bool,
                        length: int | None = None) -> tuple[Encoding, Tensor]:
    """Tokenizes captions, and says which have more than ``length`` tokens and lose their end, bool (B,).

    ``special`` adds the tokenizer's start and end marks, as a text encoder expects; ``length`` also pads.
    Raises TypeError for captions that are no list of texts, ValueError for half a character.
    """
    captions = check_texts("captions", captions)
    if not captions:
        none = torch.zeros(0, length or 0, dtype=torch.long)
        return Encoding(none, none[..., None].expand(-1, -1, 2), none.bool(), none), torch.zeros(0).bool()
    # ``verbose=False``: captions that are too long are counted, not warned about.
    rows = tokenizer(captions, add_special_tokens=special, truncation=length is not None, max_length=length,
                     return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids, in_row = _pad(rows["input_ids"], fill, length or 0)  # (B, n)
    spans = _pad(rows["offset_mapping"], 0, length or 0, pairs=True)[0]  # (B, n, 2)
    special_mask = _pad(rows["special_tokens_mask"], 1, length or 0)[0].bool()  # (B, n)
    # A mark that the tokenizer adds covers no characters; one that is written in the caption does.
    token_mask = in_row & (~special_mask | (spans[..., 1] > spans[..., 0]))
    truncated = torch.tensor([bool(row.overflowing) for row in rows.encodings])  # (B,)
    return Encoding(ids, _with_marks(captions, spans), token_mask, in_row.long()), truncated


def without_undrawn(source: Encoding, target: Encoding, truncated: Tensor) -> Encoding:
    """The source encoding without those tokens of ``truncated`` captions (B,) that begin after the target's
    last one, where the caption was cut: no photo is drawn from them."""
    if not truncated.any():
        return source
    end = target.spans[..., 1].masked_fill(~target.token_mask, 0).amax(1, keepdim=True)  # (B, 1)
    drawn = source.spans[..., 0] < end  # (B, C)
    return replace(source, token_mask=source.token_mask & (drawn | ~truncated[:, None]))


def _joins(before: str, character: str) -> bool:
    """Whether a character combines with the one before it: accents and other marks, what joins emoji and
    varies them, and the later letters of a Korean syllable. Blanks combine with nothing."""
    if before.isspace() or character.isspace():
        return False
    return (unicodedata.category(character).startswith("M") or "\u200d" in (before, character)
            or character == "\u200c" or "\u1160" <= character <= "\u11ff"
            or "\U0001f3fb" <= character <= "\U0001f3ff")


def _with_marks(captions: Sequence[str], spans: Tensor) -> Tensor:
    """Spans (B, n, 2) that part no character from its marks, as one tokenizer may do and another not."""
    spans = spans.clone()
    for row, caption in enumerate(captions):
        if caption.isascii():
            continue
        inner = (k for k in range(1, len(caption)) if not _joins(caption[k - 1], caption[k]))
        edges = torch.tensor([0, *inner, len(caption)])
        first, last = spans[row].T.contiguous()  # each (n,)
        whole = torch.stack([edges[torch.searchsorted(edges, first, right=True) - 1],
                             edges[torch.searchsorted(edges, last)]], -1)  # (n, 2)
        spans[row] = torch.where((last > first)[:, None], whole, spans[row])
    return spans


def _pad(rows: Sequence[Sequence[Any]], fill: int, width: int, pairs: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of whole numbers, or of pairs, as one tensor (B, n) or (B, n, 2), n at least ``width``; and which
    entries are not padding, (B, n)."""
    n = max([width, *map(len, rows)])
    mask = torch.arange(n) < torch.tensor([len(row) for row in rows])[:, None]  # (B, n)
    padded = torch.full((*mask.shape, 2) if pairs else mask.shape, fill)
    padded[mask] = torch.tensor([*chain.from_iterable(rows)]).long().reshape(-1, *padded.shape[2:])
    return padded, mask


def word_spans(captions: list[str]) -> tuple[Tensor, Tensor]:
    """The spans (B, W, 2) of each caption's words, split at white space, and which are not padding (B, W)."""
    spans = [[word.span() for word in re.finditer(r"\S+", caption)] for caption in captions]
    return _pad(spans, fill=0, width=1, pairs=True)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Which spans of a (B, n, 2) share a character with which of b (B, m, 2): (B, n, m)."""
    return (a[:, :, None, 0] < b[:, None, :, 1]) & (b[:, None, :, 0] < a[:, :, None, 1])


def align_ids_to_text(tokenizer: Any, captions: list[str], input_ids: Tensor, mask: Tensor) -> Encoding:
    """The characters of given tokens (B, C), which need not be those that the tokenizer would choose.

    A language model may write "c", "at" where its tokenizer has "cat"; only such rows are decoded token by
    token. ``mask`` (B, C) is False for padding. Special tokens that cover no character are none of the
    caption's tokens. Raises ValueError for tokens that do not spell their caption.
    """
    mask = mask.cpu().bool()
    ids = input_ids.cpu().masked_fill(~mask, 0)
    canonical, _ = encode_with_offsets(tokenizer, captions, special=False)
    spans, token_mask = torch.zeros(*ids.shape, 2, dtype=torch.long), mask.clone()  # (B, C, 2), (B, C)
    for row, caption in enumerate(captions):
        own, given = canonical.token_mask[row], mask[row]  # (n,), (C,)
        if torch.equal(ids[row][given], canonical.input_ids[row][own]):
            spans[row, given] = canonical.spans[row][own]
        else:
            spans[row, given] = _spans_by_decoding(tokenizer, caption, ids[row][given].tolist(), row)
            special = torch.isin(ids[row], torch.tensor(special_ids(tokenizer)))  # (C,)
            token_mask[row] &= ~special | (spans[row, :, 1] > spans[row, :, 0])
    return Encoding(ids, _with_marks(captions, spans), token_mask, mask.long())


def special_ids(tokenizer: Any) -> list[int]:
    """The tokens that ``skip_special_tokens`` leaves out."""
    added = tokenizer.added_tokens_decoder.items()
    return [*tokenizer.all_special_ids, *(i for i, token in added if token.special)]


def _letters(text: str) -> list[tuple[str, int]]:
    """The characters of a text but its blanks, in lower case, and where each stands."""
    return [(letter, at) for at, character in enumerate(text) if not character.isspace()
            for letter in character.lower()]


def _spans_by_decoding(tokenizer: Any, caption: str, ids: list[int], row: int) -> Tensor:
    """The spans (n, 2) of tokens, each the characters that it adds to the decoding of those before.

    Decoding may differ from the caption in blanks and case, so characters other than blanks are counted.
    """
    prefixes = [""] + tokenizer.batch_decode([ids[:k + 1] for k in range(len(ids))], skip_special_tokens=True)
    decoded = [[letter for letter, _ in _letters(prefix)] for prefix in prefixes]
    letters, places = zip(*_letters(caption), strict=True) if caption.strip() else ((), ())
    if decoded[-1] != [*letters]:
        raise ValueError(f"caption {row} is {caption!r}, but its {len(ids)} tokens spell {prefixes[-1]!r}: "
                         "give the tokens the caption was decoded from")
    # Part of a character decodes to a replacement mark; all tokens that make it up get that character, or
    # none where it is a blank.
    sure = [len(os.path.commonprefix([prefix, decoded[-1]])) for prefix in decoded]
    ends, settled = list(sure), sure[-1]
    for k in reversed(range(len(sure))):
        if len(decoded[k]) > sure[k]:
            ends[k] = min(sure[k] + 1, settled)
        else:
            settled = sure[k]
    edges = [*places, len(caption)]
    spans = [(edges[first], edges[last - 1] + 1 if last > first else edges[first])
             for first, last in zip(sure[:-1], ends[1:], strict=True)]
    return torch.tensor(spans).long().reshape(-1, 2)  # (n, 2)
