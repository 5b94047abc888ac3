"""From examples to tensors (section 2.1): the chat format and batches.

A chat is written for the language model as::

    <s>User: found it?⏎Assistant: yes, look! [IMG]▢▢▢▢[/IMG]⏎User: nice! where was that?⏎Assistant:

where ▢ is an image token, in whose place one query embedding of the photo is put. The one who answers is
always "Assistant". A response is text, ``[IMG] caption [/IMG]`` for each photo, or both, and then </s>. A
language model whose tokenizer has a chat template reads and writes in that instead, see ``chat_template``.

A row of a batch is one context and its response, or a whole dialogue: all that one speaker answers in it. The
dialogue's tokens then stand once, followed by "Assistant:" and the response of each turn, which attends to
what was said before it and to itself. That gives each response the same logits as a row of its own.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from e2e_lib.data.chat_template import ChatTemplate
from e2e_lib.data.dialogue import SharedPhoto, Turn, clean_text
from e2e_lib.data.examples import Example
from e2e_lib.data.photos import PhotoSource
from e2e_lib.repro.randomness import generator, seed_of

IMAGE_START, IMAGE_END = "[IMG]", "[/IMG]"
IMAGE_TOKEN = "<image>"  # replaced by one query embedding of a photo
IGNORED = -100  # transformers' label for a position without loss


@dataclass
class Batch:
    """Tensors of B examples, padded on the right to train, on the left (and without responses) to answer.

    ``input_ids``, ``attention_mask``, ``labels``, ``caption_index`` are (B, T). ``photos`` are the context's
    P photos in reading order, where a model sees them; ``target_photos`` the R photos of responses,
    ``target_rows`` (R,) their rows in the batch, ``captions`` their gold captions and ``photo_keys`` a number
    for each that names its place in the corpus, whatever batch it is in. ``caption_index`` says which of the
    R captions a position belongs to; it is -1 at all others. A photo is uint8 (3, H, W) at its own size.
    ``context_cut`` and ``response_cut`` count, for each example, the tokens that did not fit.

    Where a row has several responses, three more are (B, T), else None: ``position_ids``; ``response_index``,
    which of its row's responses a token belongs to, from 1, or 0 for the context and -1 for padding; and
    ``context_seen``, to how many of its row's context tokens it attends.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    caption_index: Tensor
    photos: list[Tensor]
    target_photos: list[Tensor]
    target_rows: Tensor
    captions: list[str]
    photo_keys: list[int]
    context_cut: list[int]
    response_cut: list[int]
    position_ids: Tensor | None = None
    response_index: Tensor | None = None
    context_seen: Tensor | None = None

    @property
    def is_learnt(self) -> Tensor:
        """Whether a token has a loss, bool (B, T): N of them do. The first token of a row never does."""
        return (self.labels != IGNORED).index_fill(1, self.labels.new_zeros(1), False)

    @property
    def is_caption(self) -> Tensor:
        """Which of the N tokens that have a loss are words of captions, bool (N,), in reading order."""
        return self.caption_index[self.is_learnt] >= 0

    def to(self, device: torch.device | str, **_: Any) -> "Batch":
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                moved[f.name] = value.to(device)
            elif value and isinstance(value[0], Tensor):
                moved[f.name] = [tensor.to(device) for tensor in value]
        return replace(self, **moved)


def photo_rngs(batch: Batch, *key: object) -> list[torch.Generator]:
    """A generator for each response photo of a batch, the same in whatever batch the photo is: R of them."""
    return [generator(*key, photo) for photo in batch.photo_keys]


class ContextTokens(NamedTuple):
    """A context as a model reads it: tokens, the turns (and of these the photos) that they hold, and the
    number of tokens that did not fit."""

    ids: list[int]
    turns: list[Turn]
    cut: int


class ResponseTokens(NamedTuple):
    """A response as a model writes it: tokens, for each the number of the caption that it belongs to (else
    -1), the photos that they share, and how many tokens did not fit."""

    ids: list[int]
    caption_index: list[int]
    photos: list[SharedPhoto]
    cut: int


class PromptFormatter:
    """How turns become tokens, for one tokenizer and ``queries`` query embeddings per photo.

    A context has at most ``max_context`` tokens, a response ``max_response``, if that is given. With
    ``photos_as_captions`` a context photo is its caption as words instead: for a model that cannot see.
    Raises ValueError where a context could not hold a single photo, and for a chat template (of a tokenizer
    that has one) that cannot be used.
    """

    def __init__(self, tokenizer: Any, queries: int, max_context: int, photos_as_captions: bool = False,
                 max_response: int | None = None) -> None:
        self.tokenizer, self.queries, self.max_context = tokenizer, queries, max_context
        self.photos_as_captions = photos_as_captions
        self.max_response = sys.maxsize if max_response is None else max_response
        self.image_start_id, self.image_end_id, self.image_token_id, self.pad_token_id = (
            tokenizer.convert_tokens_to_ids(token)
            for token in (IMAGE_START, IMAGE_END, IMAGE_TOKEN, tokenizer.pad_token))
        self.newline = self.tokenize("\n")
        has_template = getattr(tokenizer, "chat_template", None)
        self.template = ChatTemplate(tokenizer, self.photo_ids) if has_template else None
        if self.template:
            self.cue, self.ending = self.template.cue, self.template.ending
            self.eos_token_ids = sorted({self.template.stop, tokenizer.eos_token_id})
        else:
            # An answer ends with </s>; a new line would begin the next turn, so it ends an answer, too.
            self.cue, self.ending = self.tokenize("Assistant:"), [tokenizer.eos_token_id]
            self.eos_token_ids = [tokenizer.eos_token_id, self.newline[-1]]
        self.no_words = sorted({*tokenizer.all_special_ids, *self.eos_token_ids})
        shortest = Turn(0, "", (SharedPhoto("", ""),))
        needed = (len(self.template.encode([shortest], 0)) if self.template
                  else 1 + len(self.context_turn(shortest, 0)) + len(self.cue))
        if needed > max_context:
            raise ValueError(f"a photo takes {queries} tokens, and a context with one {needed} or more, but "
                             f"data.max_context is {max_context}")

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text: markers that someone typed are text, never a photo or an end."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def context_turn(self, turn: Turn, answering: int) -> list[int]:
        """One turn of a context in the own format, seen from speaker ``answering`` (0 or 1)."""
        photos = [i for photo in turn.photos for i in self.photo_ids(photo)]
        return [*self._words(turn, answering), *photos, *self.newline]

    def _words(self, turn: Turn, answering: int) -> list[int]:
        return self.tokenize(f"{_role(turn, answering)} {clean_text(turn.text)}".strip())

    def photo_ids(self, photo: SharedPhoto) -> list[int]:
        """A context photo between its markers: image tokens, or its caption."""
        shown = (self.tokenize(clean_text(photo.caption)) if self.photos_as_captions
                 else [self.image_token_id] * self.queries)
        return [self.image_start_id, *shown, self.image_end_id]

    def context(self, turns: Sequence[Turn], answering: int) -> ContextTokens:
        """The latest turns that fit ``max_context``, whole; the last one is shortened if it alone does not.

        A shortened turn keeps who speaks, its newest photos and its last words: its oldest photos go for as
        long as photos take more than half of the room, then its first words. No photo is cut in two.
        """
        if self.template:
            fitting, latest = self.template.fitting(turns, answering, self.max_context)
            whole = self.template.encode(turns, answering)
            return ContextTokens(fitting, latest, len(whole) - len(fitting))
        room, length, fits = self.max_context - 1 - len(self.cue), 0, True
        kept: list[Turn] = []
        ids: list[int] = []
        for turn in reversed(turns):
            more = self.context_turn(turn, answering)
            length += len(more)
            if not kept and len(more) > room:
                turn, more = self._shorten(turn, answering, room)
            fits = fits and len(more) + len(ids) <= room
            if fits:
                kept.insert(0, turn)
                ids = more + ids
        return ContextTokens([self.tokenizer.bos_token_id, *ids, *self.cue], kept, length - len(ids))

    def _shorten(self, turn: Turn, answering: int, room: int) -> tuple[Turn, list[int]]:
        """A turn that takes more than ``room`` tokens, and the tokens that are left of it."""
        role, words = self.tokenize(_role(turn, answering)), self._words(turn, answering)
        room -= len(role) + len(self.newline)
        photos, shown = list(turn.photos), [self.photo_ids(photo) for photo in turn.photos]
        while photos and len(words) - len(role) + (size := sum(map(len, shown))) > room and (
                size > (room // 2 if len(photos) > 1 else room)):
            del photos[0], shown[0]
        room -= sum(map(len, shown))
        if len(words) - len(role) > room:
            words = [*role, *words[len(words) - room:]]
        ids = [*words, *(i for photo in shown for i in photo), *self.newline]
        return replace(turn, photos=tuple(photos)), ids

    def response(self, turn: Turn) -> ResponseTokens:
        """The response's tokens. What is beyond ``max_response`` is cut at the end, which stays marked; a
        photo's caption is then what is left of it, and a photo without a word of its caption is left out."""
        text = clean_text(turn.text)
        words = self._response_words(text) if text else []
        ending = self.ending[-self.max_response:]
        ids = words[:max(0, self.max_response - len(ending))]
        caption_index, cut, photos = [-1] * len(ids), len(words) - len(ids), list[SharedPhoto]()
        for photo in turn.photos:
            caption, room = clean_text(photo.caption), self.max_response - len(ids) - len(ending) - 2
            tokens = self.tokenize(caption)
            shown = tokens[:max(0, room)]
            cut += len(tokens) - len(shown)
            if room < 0 or len(tokens) > len(shown) == 0:
                cut += 2  # its marks
                continue
            caption = caption if len(shown) == len(tokens) else self.tokenizer.decode(shown).strip()
            ids += [self.image_start_id, *shown, self.image_end_id]
            caption_index += [-1, *[len(photos)] * len(shown), -1]
            photos.append(replace(photo, caption=caption))
        return ResponseTokens([*ids, *ending], [*caption_index, *[-1] * len(ending)], photos, cut)

    def _response_words(self, text: str) -> list[int]:
        return self.template.words(text) if self.template else self.tokenize(text)


def _role(turn: Turn, answering: int) -> str:
    return "Assistant:" if turn.speaker == answering else "User:"


class Collator:
    """Examples to a Batch.

    ``answering=True`` leaves the responses out and pads on the left, for generation.
    """

    def __init__(self, formatter: PromptFormatter, store: PhotoSource, answering: bool = False) -> None:
        self.formatter, self.store, self.answering = formatter, store, answering

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """A batch with a row per example."""
        return self._batch([[self._tokens(example)] for example in examples])

    def dialogues(self, groups: Sequence[Sequence[Example]]) -> Batch:
        """A batch with a row per group (all that one speaker answers in a dialogue, see ``by_dialogue``).

        A response whose context does not begin where the one before it does, since its oldest turns did not
        fit, begins a further row.
        """
        rows: list[list[_Pair]] = []
        for group in groups:
            row: list[_Pair] = []
            for pair in map(self._tokens, group):
                if not row or not self._continues(row[-1].context, pair.context):
                    rows.append(row := [])
                row.append(pair)
        return self._batch(rows)

    def _tokens(self, example: Example) -> "_Pair":
        context = self.formatter.context(example.context, example.response.speaker)
        response = (ResponseTokens([], [], [], 0) if self.answering
                    else self.formatter.response(example.response))
        return _Pair(context, response, seed_of(example.dialogue_id, example.index))

    def _said(self, context: ContextTokens) -> list[int]:
        """A context's tokens without the cue to answer."""
        return context.ids[:-len(self.formatter.cue)]

    def _continues(self, earlier: ContextTokens, later: ContextTokens) -> bool:
        said = self._said(earlier)
        return (earlier.turns == later.turns[:len(earlier.turns)] and said == self._said(later)[:len(said)])

    def _batch(self, rows: Sequence[Sequence["_Pair"]]) -> Batch:
        laid_out, targets = [], list[tuple[int, SharedPhoto, int]]()
        for number, row in enumerate(rows):
            laid_out.append(_Row(self._said(row[-1].context)))
            for context, response, key in row:
                laid_out[-1].add(len(self._said(context)), self.formatter.cue, response, len(targets))
                targets += [(number, photo, seed_of(key, k)) for k, photo in enumerate(response.photos)]
        seen = [] if self.formatter.photos_as_captions else [
            photo for row in rows for turn in row[-1].context.turns for photo in turn.photos]
        several: dict[str, Tensor] = {} if all(len(row) == 1 for row in rows) else {
            name: self._pad([getattr(row, name) for row in laid_out], filler)
            for name, filler in (("position_ids", 0), ("response_index", -1), ("context_seen", 0))}
        return Batch(
            input_ids=self._pad([row.ids for row in laid_out], self.formatter.pad_token_id),
            attention_mask=self._pad([[1] * len(row.ids) for row in laid_out], 0),
            labels=self._pad([row.labels for row in laid_out], IGNORED),
            caption_index=self._pad([row.caption_index for row in laid_out], -1),
            photos=[self.store.tensor(photo.photo_id) for photo in seen],
            target_photos=[self.store.tensor(photo.photo_id) for _, photo, _ in targets],
            target_rows=torch.tensor([row for row, *_ in targets], dtype=torch.long),
            captions=[photo.caption for _, photo, _ in targets],
            photo_keys=[key for *_, key in targets],
            context_cut=[pair.context.cut for row in rows for pair in row],
            response_cut=[pair.response.cut for row in rows for pair in row], **several)

    def _pad(self, rows: list[list[int]], filler: int) -> Tensor:
        longest = max(map(len, rows))
        padding = [[filler] * (longest - len(row)) for row in rows]
        return torch.tensor([pad + row if self.answering else row + pad
                             for row, pad in zip(rows, padding, strict=True)])  # (B, T)


class _Pair(NamedTuple):
    """An example as tokens, and a number that names it."""

    context: ContextTokens
    response: ResponseTokens
    key: int


class _Row:
    """One row of a batch: the context's tokens, then each response after its cue."""

    def __init__(self, context: list[int]) -> None:
        self.ids, self.context = list(context), len(context)
        self.labels, self.caption_index = [IGNORED] * self.context, [-1] * self.context
        self.position_ids, self.response_index = list(range(self.context)), [0] * self.context
        self.context_seen = [i + 1 for i in range(self.context)]

    def add(self, seen: int, cue: list[int], response: ResponseTokens, captions: int) -> None:
        """Adds a response that attends to the first ``seen`` tokens; ``captions`` came before it in the
        batch."""
        length = len(cue) + len(response.ids)
        self.ids += cue + response.ids
        self.labels += [IGNORED] * len(cue) + response.ids
        self.caption_index += [-1] * len(cue) + [-1 if k < 0 else captions + k
                                                 for k in response.caption_index]
        self.position_ids += range(seen, seen + length)
        self.response_index += [self.response_index[-1] + 1] * length
        self.context_seen += [seen] * length
