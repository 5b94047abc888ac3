"""From examples to tensors (section 2.1): the chat format and batches.

A chat is written for the language model as::

    <s>User: found it?⏎Assistant: yes, look! [IMG]▢▢▢▢[/IMG]⏎User: nice! where was that?⏎Assistant:

where ▢ is an image token, in whose place one query embedding of the photo is put. The one who answers is
always "Assistant". A response is text, ``[IMG] caption [/IMG]``, or both, and ends with </s>.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.photos import PhotoSource

IMAGE_START, IMAGE_END = "[IMG]", "[/IMG]"
IMAGE_TOKEN = "<image>"  # replaced by one query embedding of a photo
IGNORED = -100  # transformers' label for a position without loss


@dataclass
class Batch:
    """Tensors of B examples, padded on the right to train, on the left (and without responses) to answer.

    ``input_ids``, ``attention_mask``, ``labels``, ``is_caption`` are (B, T). ``photos`` are the context's P
    photos in reading order, where a model sees them; ``target_photos`` the R photos of responses,
    ``target_rows`` (R,) their rows in the batch and ``captions`` their gold captions. A photo is uint8
    (3, H, W) at its own size.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    is_caption: Tensor
    photos: list[Tensor]
    target_photos: list[Tensor]
    target_rows: Tensor
    captions: list[str]

    def to(self, device: torch.device | str, **_: Any) -> "Batch":
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                moved[f.name] = value.to(device)
            elif value and isinstance(value[0], Tensor):
                moved[f.name] = [tensor.to(device) for tensor in value]
        return replace(self, **moved)


class PromptFormatter:
    """How turns become tokens, for one tokenizer and ``queries`` query embeddings per photo.

    With ``photos_as_captions`` a context photo is its caption as words instead: for a model that cannot see.
    """

    def __init__(self, tokenizer: Any, queries: int, max_context: int,
                 photos_as_captions: bool = False) -> None:
        self.tokenizer, self.queries, self.max_context = tokenizer, queries, max_context
        self.photos_as_captions = photos_as_captions
        self.image_start_id, self.image_end_id, self.image_token_id, self.pad_token_id = (
            tokenizer.convert_tokens_to_ids(token)
            for token in (IMAGE_START, IMAGE_END, IMAGE_TOKEN, tokenizer.pad_token))
        # An answer ends with </s>; a new line would begin the next turn, so it ends an answer, too.
        self.eos_token_ids = [tokenizer.eos_token_id, self.tokenize("\n")[-1]]
        if queries > max_context:
            raise ValueError(f"a photo takes {queries} tokens, more than data.max_context = {max_context}")

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text: markers that someone typed are text, never a photo or an end."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def context_turn(self, turn: Turn, answering: int) -> list[int]:
        """One turn of a context, seen from speaker ``answering`` (0 or 1)."""
        role = "Assistant" if turn.speaker == answering else "User"
        photo = [self.image_start_id, *self.photo_ids(turn.photo), self.image_end_id] if turn.photo else []
        return [*self.tokenize(f"{role}: {turn.text}".strip()), *photo, *self.tokenize("\n")]

    def photo_ids(self, photo: SharedPhoto) -> list[int]:
        """A context photo between its markers: image tokens, or its caption."""
        if self.photos_as_captions:
            return self.tokenize(photo.caption)
        return [self.image_token_id] * self.queries

    def context(self, turns: Sequence[Turn], answering: int) -> tuple[list[int], list[Turn]]:
        """The tokens of the latest turns that fit ``max_context`` (always the last one), and those turns."""
        cue = self.tokenize("Assistant:")
        kept: list[Turn] = []
        ids: list[int] = []
        for turn in reversed(turns):
            more = self.context_turn(turn, answering)
            if kept and 1 + len(more) + len(ids) + len(cue) > self.max_context:
                break
            kept.insert(0, turn)
            ids = more + ids
        return [self.tokenizer.bos_token_id, *ids, *cue], kept

    def response(self, turn: Turn) -> tuple[list[int], list[bool]]:
        """The response's tokens, and for each whether it is part of the caption."""
        text = self.tokenize(turn.text) if turn.text else []
        caption = self.tokenize(turn.photo.caption) if turn.photo else []
        photo = [self.image_start_id, *caption, self.image_end_id] if turn.photo else []
        ids = [*text, *photo, self.tokenizer.eos_token_id]
        first = len(text) + 1
        return ids, [first <= i < first + len(caption) for i in range(len(ids))]


class Collator:
    """Examples to a Batch.

    ``answering=True`` leaves the responses out and pads on the left, for generation.
    """

    def __init__(self, formatter: PromptFormatter, store: PhotoSource, answering: bool = False) -> None:
        self.formatter, self.store, self.answering = formatter, store, answering

    def __call__(self, examples: Sequence[Example]) -> Batch:
        rows, labels, is_caption, photos = [], [], [], []
        for example in examples:
            context, kept = self.formatter.context(example.context, example.response.speaker)
            if not self.formatter.photos_as_captions:
                photos += [self.store.tensor(turn.photo.photo_id) for turn in kept if turn.photo]
            response, in_caption = ([], []) if self.answering else self.formatter.response(example.response)
            rows.append(context + response)
            labels.append([IGNORED] * len(context) + response)
            is_caption.append([False] * len(context) + in_caption)
        shared = enumerate([] if self.answering else examples)
        targets = [(row, e.response.photo) for row, e in shared if e.response.photo]
        return Batch(
            input_ids=self._pad(rows, self.formatter.pad_token_id),
            attention_mask=self._pad([[1] * len(row) for row in rows], 0),
            labels=self._pad(labels, IGNORED), is_caption=self._pad(is_caption, False), photos=photos,
            target_photos=[self.store.tensor(photo.photo_id) for _, photo in targets],
            target_rows=torch.tensor([row for row, _ in targets], dtype=torch.long),
            captions=[photo.caption for _, photo in targets],
        )

    def _pad(self, rows: list[list[Any]], filler: Any) -> Tensor:
        longest = max(map(len, rows))
        padding = [[filler] * (longest - len(row)) for row in rows]
        return torch.tensor([pad + row if self.answering else row + pad
                             for row, pad in zip(rows, padding, strict=True)])  # (B, T)
