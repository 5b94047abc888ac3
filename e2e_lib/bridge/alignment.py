"""Which characters of a caption each token stands for: all that two tokenizers need to have in common.

Axes: B captions, C tokens of the language model, L tokens of the text encoder, W word_spans. No loop over captions or tokens: offsets come
from the tokenizers in one batch, and who overlaps whom is a comparison of tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor


@dataclass
class Encoding:
    """Captions encode_with_offsets into tokens, padded on the right: ``input_ids`` (B, n), ``spans`` (B, n, 2) the first and one past the last character
    of each, ``valid`` (B, n) what is a token of the caption and not padding or a start or end mark, ``attention_mask`` (B, n)."""

    input_ids: Tensor
    spans: Tensor
    valid: Tensor
    attention_mask: Tensor


def check_tokenizer(tokenizer: Any, role: str) -> None:
    """Raises TypeError for a tokenizer that cannot say which characters a token came from."""
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(f"the {role} tokenizer ({type(tokenizer).__name__}) gives no character offsets; load its fast version "
                        "(AutoTokenizer.from_pretrained(...) with a tokenizer.json), which does")


def padded(rows: Sequence[Sequence[Any]], fill: int, width: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of numbers or of pairs as one tensor (B, n) or (B, n, 2) of whole numbers, at least ``width`` wide, and which entries are real (B, n)."""
    lengths = torch.tensor(list(map(len, rows)), dtype=torch.long)
    flat = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.long)
    real = torch.arange(max(width, int(lengths.max()) if len(rows) else 0)) < lengths[:, None]
    out = torch.full((*real.shape, *flat.shape[1:]), fill, dtype=torch.long)
    out[real] = flat
    return out, real


def encode_with_offsets(tokenizer: Any, captions: list[str], *, special: bool, length: int | None = None) -> tuple[Encoding, int]:
    """Captions to tokens with their characters, and how many captions were longer than ``length`` and lost their end.

    ``special`` adds the tokenizer's start and end marks, as a text encoder expects; ``length`` pads and truncates.
    """
    def encode(truncation: bool) -> Any:
        # ``verbose=False``: a caption longer than the limit is counted here, not warned about.
        return tokenizer(captions, add_special_tokens=special, truncation=truncation, max_length=length if truncation else None,
                         return_offsets_mapping=True, return_special_tokens_mask=True, return_attention_mask=False, verbose=False)

    if not captions:
        empty = torch.zeros(0, length or 0, dtype=torch.long)
        return Encoding(empty, empty[..., None].expand(-1, -1, 2), empty.bool(), empty), 0
    rows = encode(False)
    too_long = sum(n > length for n in map(len, rows["input_ids"])) if length else 0
    if too_long:
        rows = encode(True)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids, real = padded(rows["input_ids"], fill, length or 0)
    spans, _ = padded([row or [] for row in rows["offset_mapping"]], 0, length or 0)
    marks, _ = padded(rows["special_tokens_mask"], 1, length or 0)
    # A mark of the template covers no characters; one that somebody wrote into the caption does.
    spans = spans if spans.ndim == 3 else spans.new_zeros(*ids.shape, 2)
    valid = real & ((marks == 0) | (spans[..., 1] > spans[..., 0]))
    return Encoding(ids, spans, valid, real.long()), too_long


def word_spans(captions: list[str]) -> tuple[Tensor, Tensor]:
    """The spans (B, W, 2) of each caption's word_spans, encode_with_offsets at white space, and which are real (B, W)."""
    text = "\n".join([*captions, "\n"])  # white space ends every caption, and so every word
    codes = torch.frombuffer(bytearray(text.encode("utf-32-le", "surrogatepass")), dtype=torch.int32)
    blank = _is_blank(codes)
    inside = torch.nn.functional.pad(~blank, (1, 0))  # a word starts where a character follows a blank, or the beginning
    starts = (inside[1:] & ~inside[:-1]).nonzero().squeeze(1)
    ends = (~inside[1:] & inside[:-1]).nonzero().squeeze(1)
    lengths = torch.tensor([0, *map(len, captions)])
    firsts = (lengths + torch.tensor([0] + [1] * len(captions))).cumsum(0)  # where each caption begins in the joined text
    row = torch.searchsorted(firsts, starts, right=True) - 1
    counts = torch.bincount(row, minlength=len(captions))
    real = torch.arange(max(1, int(counts.max()) if len(captions) else 1)) < counts[:, None]
    spans = torch.zeros((*real.shape, 2), dtype=torch.long)
    spans[real] = torch.stack([starts - firsts[row], ends - firsts[row]], 1)
    return spans, real


_BLANKS = torch.tensor([code for code in range(0x3001) if chr(code).isspace()], dtype=torch.int32)


def _is_blank(codes: Tensor) -> Tensor:
    return torch.isin(codes, _BLANKS)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Which spans of a (B, n, 2) share a character with which of b (B, m, 2): (B, n, m)."""
    return (a[:, :, None, 0] < b[:, None, :, 1]) & (b[:, None, :, 0] < a[:, :, None, 1])


def align_ids_to_text(tokenizer: Any, captions: list[str], input_ids: Tensor, mask: Tensor) -> Encoding:
    """Given tokens (B, C) of captions, which need not be those the tokenizer would choose, with the characters each stands for.

    A language model may write "c", "at" where its tokenizer has "cat". Those rows (only) are spelt out piece by piece. Raises ValueError
    for tokens that do not align_ids_to_text their caption.
    """
    own, _ = encode_with_offsets(tokenizer, captions, special=False)
    width = input_ids.shape[1]
    ids, counted = input_ids.cpu(), mask.cpu()
    canonical = torch.zeros(len(captions), dtype=torch.bool)
    spans = torch.zeros(*ids.shape, 2, dtype=torch.long)
    if own.input_ids.shape[1]:
        n = min(width, own.input_ids.shape[1])
        same = (own.valid[:, :n] == counted[:, :n]) & ((own.input_ids[:, :n] == ids[:, :n]) | ~counted[:, :n])
        canonical = same.all(1) & ~own.valid[:, n:].any(1) & ~counted[:, n:].any(1)
        spans[:, :n] = own.spans[:, :n] * counted[:, :n, None]
    for row in (~canonical).nonzero().squeeze(1).tolist():
        spans[row] = _spelt(tokenizer, captions[row], ids[row], counted[row], row)
    return Encoding(ids, spans, counted, counted.long())


def _spelt(tokenizer: Any, caption: str, ids: Tensor, mask: Tensor, row: int) -> Tensor:
    chosen = ids[mask].tolist()
    prefixes = tokenizer.batch_decode([chosen[:k] for k in range(1, len(chosen) + 1)], skip_special_tokens=True) if chosen else []
    whole = prefixes[-1] if prefixes else ""
    if "".join(whole.split()).lower() != "".join(caption.split()).lower():
        raise ValueError(f"caption {row} is {caption!r}, but its {len(chosen)} tokens align_ids_to_text {whole!r}: give the tokens the caption was decoded from")
    shift = len(whole) - len(whole.lstrip()) if not caption[:1].isspace() else 0
    # Half a character decodes to a replacement mark; the tokens that make it up share it.
    ends = torch.tensor([0] + [len(p.rstrip("\ufffd")) + (p[-1:] == "\ufffd") - shift for p in prefixes]).clamp(0, len(caption))
    starts = torch.where(torch.tensor([False, *(p[-1:] == "\ufffd" for p in prefixes[:-1])]), (ends[:-1] - 1).clamp_min(0), ends[:-1]) if prefixes \
        else ends[:-1]
    spans = torch.zeros(len(ids), 2, dtype=torch.long)
    spans[mask] = torch.stack([starts, torch.maximum(ends[1:], starts)], 1) if prefixes else spans[mask]
    return spans
