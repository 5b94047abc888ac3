"""Which characters of a caption each token covers: all that two tokenizers need to have in common.

Axes: B captions, C tokens of the language model, L tokens of the text encoder, W words, n any of these.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor


@dataclass
class Encoding:
    """Tokenized captions, padded on the right.

    ``input_ids`` (B, n); ``spans`` (B, n, 2), the first character of each token and one past its last;
    ``token_mask`` (B, n), True for tokens of the caption, False for start and end marks and padding;
    ``attention_mask`` (B, n), 1 for all but padding.
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


def encode_with_offsets(tokenizer: Any, captions: list[str], *, special: bool,
                        length: int | None = None) -> tuple[Encoding, int]:
    """Tokenizes captions, and counts those longer than ``length`` tokens, which lose their end.

    ``special`` adds the tokenizer's start and end marks, as a text encoder expects; ``length`` also pads.
    """
    if not captions:
        empty = torch.zeros(0, length or 0, dtype=torch.long)
        return Encoding(empty, empty[..., None].expand(-1, -1, 2), empty.bool(), empty), 0
    # ``verbose=False``: captions that are too long are counted, not warned about.
    rows = tokenizer(captions, add_special_tokens=special, truncation=length is not None, max_length=length,
                     return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids, in_row = _pad(rows["input_ids"], fill, length or 0)  # (B, n)
    spans = _pad(rows["offset_mapping"], 0, length or 0, pairs=True)[0]  # (B, n, 2)
    special_mask = _pad(rows["special_tokens_mask"], 1, length or 0)[0].bool()  # (B, n)
    # A mark that the tokenizer adds covers no characters; one that is written in the caption does.
    token_mask = in_row & (~special_mask | (spans[..., 1] > spans[..., 0]))
    truncated = sum(bool(row.overflowing) for row in rows.encodings)
    return Encoding(ids, spans, token_mask, in_row.long()), truncated


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
    token. ``mask`` (B, C) is False for padding. Raises ValueError for tokens that do not spell their caption.
    """
    ids, mask = input_ids.cpu(), mask.cpu()
    canonical, _ = encode_with_offsets(tokenizer, captions, special=False)
    spans = torch.zeros(*ids.shape, 2, dtype=torch.long)  # (B, C, 2)
    for row, caption in enumerate(captions):
        own = canonical.token_mask[row]  # (n,)
        if torch.equal(ids[row][mask[row]], canonical.input_ids[row][own]):
            spans[row, mask[row]] = canonical.spans[row][own]
        else:
            spans[row, mask[row]] = _spans_by_decoding(tokenizer, caption, ids[row][mask[row]].tolist(), row)
    return Encoding(ids, spans, mask, mask.long())


def _spans_by_decoding(tokenizer: Any, caption: str, ids: list[int], row: int) -> Tensor:
    """The spans (n, 2) of tokens, each the characters that it adds to the decoding of those before."""
    prefixes = [""] + tokenizer.batch_decode([ids[:k + 1] for k in range(len(ids))], skip_special_tokens=True)
    text = prefixes[-1]
    if "".join(text.split()).lower() != "".join(caption.split()).lower():
        raise ValueError(f"caption {row} is {caption!r}, but its {len(ids)} tokens spell {text!r}: give the "
                         "tokens the caption was decoded from")
    shift = len(text) - len(text.lstrip()) if not caption[:1].isspace() else 0
    # Part of a character decodes to a replacement mark; all tokens that make it up get that character.
    partial = torch.tensor([prefix.endswith("\ufffd") for prefix in prefixes])
    ends = torch.tensor([len(prefix.rstrip("\ufffd")) - shift for prefix in prefixes]) + partial
    ends = ends.clamp(0, len(caption))
    starts = (ends[:-1] - partial[:-1].long()).clamp_min(0)
    return torch.stack([starts, torch.maximum(ends[1:], starts)], 1)  # (n, 2)
