"""From examples to tensors (section 2.1): the chat format and batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.photos import PhotoSource

IMAGE_START, IMAGE_END = "[IMG]", "[/IMG]"
IMAGE_TOKEN = "<image>"  # stands where a query embedding of a photo goes
IGNORED = -100  # transformers' label for a position without loss


@dataclass
class Batch:
    """Tensors of B examples. Text is padded on the right for training, on the left (and without responses) for answering.

    ``input_ids``, ``attention_mask``, ``labels``, ``is_caption`` are (B, T); ``photos`` (P, 3, S, S) uint8 are the context's photos in
    reading order, where a system sees them; ``target_photos`` (R, 3, S, S) uint8 are the responses' photos, ``target_rows`` (R,) their
    rows in the batch.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    is_caption: Tensor
    photos: Tensor
    target_photos: Tensor
    target_rows: Tensor
    captions: list[str]

    def to(self, device: torch.device | str, **_: Any) -> "Batch":
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in mine.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


class PromptFormatter:
    """How turns become tokens, for one tokenizer and a number of query embeddings a photo.

    ``caption_of`` writes a context photo as words instead of slots: what a system does that cannot see.
    """

    def __init__(self, tokenizer: Any, queries: int, max_context: int, caption_of: Callable[[SharedPhoto], str] | None = None) -> None:
        self.caption_of = caption_of
        self.tokenizer, self.queries, self.max_context = tokenizer, queries, max_context
        self.start, self.end, self.slot, self.pad = (
            tokenizer.convert_tokens_to_ids(token) for token in (IMAGE_START, IMAGE_END, IMAGE_TOKEN, tokenizer.pad_token))
        # An answer ends with </s>; a new line would begin the next turn, so it ends one, too.
        self.stops = [tokenizer.eos_token_id, self.text("\n")[-1]]
        if queries > max_context:
            raise ValueError(f"a photo takes {queries} tokens, more than data.max_context = {max_context}")

    def text(self, text: str) -> list[int]:
        # Markers that someone typed are plain text, never a photo or an end.
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def context_turn(self, turn: Turn, answering: int) -> list[int]:
        role = "Assistant" if turn.speaker == answering else "User"
        photo = [self.start, *self.seen(turn.photo), self.end] if turn.photo else []
        return [*self.text(f"{role}: {turn.text}".strip()), *photo, *self.text("\n")]

    def seen(self, photo: SharedPhoto) -> list[int]:
        return self.text(self.caption_of(photo)) if self.caption_of else [self.slot] * self.queries

    def look(self, examples: Sequence[Example], store: PhotoSource, size: int) -> Sequence[Example]:
        """What a system does with photos before it reads: nothing, where it sees them itself."""
        return examples

    def context(self, turns: Sequence[Turn], answering: int) -> tuple[list[int], list[Turn]]:
        """The context's tokens, at most ``max_context``, and the turns kept: whole turns, the latest ones (at least one)."""
        cue = self.text("Assistant:")
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
        """The response's tokens and which of them are the caption's."""
        text, caption = self.text(turn.text) if turn.text else [], self.text(turn.photo.caption) if turn.photo else []
        photo = [self.start, *caption, self.end] if turn.photo else []
        ids = [*text, *photo, self.tokenizer.eos_token_id]
        first = len(text) + 1
        return ids, [first <= i < first + len(caption) for i in range(len(ids))]


class Collator:
    """Examples to a Batch. ``answering=True`` leaves the responses out and pads on the left, for generation."""

    def __init__(self, formatter: PromptFormatter, store: PhotoSource, photo_size: int, answering: bool = False) -> None:
        self.formatter, self.store, self.photo_size, self.answering = formatter, store, photo_size, answering

    def __call__(self, examples: Sequence[Example]) -> Batch:
        rows, labels, captions_at, photo_ids = [], [], [], []
        examples = self.formatter.look(examples, self.store, self.photo_size)
        for example in examples:
            ids, kept = self.formatter.context(example.context, example.response.speaker)
            photo_ids += [turn.photo.photo_id for turn in kept if turn.photo and not self.formatter.caption_of]
            answer, is_caption = ([], []) if self.answering else self.formatter.response(example.response)
            rows.append(ids + answer)
            labels.append([IGNORED] * len(ids) + answer)
            captions_at.append([False] * len(ids) + is_caption)
        targets = [] if self.answering else [(row, e.response.photo) for row, e in enumerate(examples) if e.response.photo]
        return Batch(
            input_ids=self._pad(rows, self.formatter.pad), attention_mask=self._pad([[1] * len(row) for row in rows], 0),
            labels=self._pad(labels, IGNORED), is_caption=self._pad(captions_at, False),
            photos=self._stack(photo_ids), target_photos=self._stack([photo.photo_id for _, photo in targets]),
            target_rows=torch.tensor([row for row, _ in targets], dtype=torch.long), captions=[photo.caption for _, photo in targets],
        )

    def _pad(self, rows: list[list[Any]], filler: Any) -> Tensor:
        longest = max(map(len, rows))
        blank = [[filler] * (longest - len(row)) for row in rows]
        return torch.tensor([pad + row if self.answering else row + pad for row, pad in zip(rows, blank, strict=True)])

    def _stack(self, photo_ids: list[str]) -> Tensor:
        if not photo_ids:
            return torch.zeros((0, 3, self.photo_size, self.photo_size), dtype=torch.uint8)
        return torch.stack([self.store.tensor(photo_id, self.photo_size) for photo_id in photo_ids])
