"""Chats in a language model's own chat template (section 2.2), by rules for what templates refuse.

A template is taken apart once, by writing four known messages with it::

    start user cue lead assistant tail stop rest user cue …

With Llama-2's, ``start`` and ``rest`` are "<s>[INST] ", ``cue`` is " [/INST]", ``lead`` and ``tail`` are a
blank each and ``stop`` is "</s>". A context ends with a cue, and a response is all from the lead to the stop.
The tokens of a chat of text alone, whose speakers alternate, are exactly those of the template. The rules for
other chats, which are legal for every template:

- Turns of the user in a row are one message, with a line end between them. (Turns without photos are one turn
  already, see ``examples.merge_turns``.)
- Each turn of the assistant is a message of its own, since each is a response. Where no turn of the user
  comes before it, at the beginning or after another turn of the assistant, an empty message of the user does.
- A photo stands in its message where it was shared: after the words of its turn.
- Where turns are left out, the system message stays. A message that does not fit by itself loses its oldest
  photos, as in the own format, and then its first words, whole ones.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError

from e2e_lib.data.dialogue import Turn, clean_text

Part = str | int | list[int]  # of a message: plain text, a special token, a photo's tokens
_PROBE = ("Hello there, how are you?", "Fine: 2 red cars!", "(so it is) ok")
LATELY = 4096  # pieces of text whose tokens are kept
_WORD = "a"  # what stands before text that goes on after a photo


class ChatTemplate:
    """The chat template of ``tokenizer``. ``photo_ids`` gives the tokens of a photo, with its marks.

    ``cue`` holds the tokens with which every context ends, ``ending`` those with which every response does,
    the last of which, ``stop``, ends an answer. Raises ValueError for a template that cannot be taken apart.
    """

    def __init__(self, tokenizer: Any, photo_ids: Callable[[Any], list[int]]) -> None:
        self.tokenizer, self.photo_ids = tokenizer, photo_ids
        self._lately: dict[tuple[str, bool], list[int]] = {}
        added = tokenizer.added_tokens_decoder.items()
        self.special: dict[str, int] = {token.content: number for number, token in added if token.special}
        try:
            self._take_apart()
        except TemplateError as error:
            raise self._refused(str(error)) from None
        self._anchor = re.split(self._pattern, self._cue)[-1]  # the plain text that a response goes on from
        self.ending = [*self._after(_WORD, self._tail), self.special[self._stop]]
        self.stop = self.ending[-1]
        ends = [self._user(self._start, [text])[::-1] for text in ("", "a", "2", "!", "[")]
        self.cue = list(commonprefix(ends))[::-1]
        self._check()

    def _render(self, *texts: Any, prompt: bool = False) -> str:
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        rendered: str = self.tokenizer.apply_chat_template(messages, tokenize=False,
                                                           add_generation_prompt=prompt)
        return rendered

    def _take_apart(self) -> None:
        marks = ("QQ1", "AA1", "QQ2", "AA2")
        parts: list[str] = re.split("|".join(marks), self._render(*marks))
        prompted = self._render(marks[0], prompt=True).split(marks[0])
        if len(parts) != 5 or len(prompted) != 2 or parts[1] != parts[3] or prompted[0] != parts[0]:
            raise self._refused("it does not write every message in the same way")
        self._start, self._cue, between = parts[0], prompted[1], parts[2]
        stop = next((part for part in re.split(self._pattern, between) if part in self.special), None)
        if stop is None or not parts[1].startswith(self._cue):
            raise self._refused("no special token ends the assistant's messages")
        self._lead, self._stop = parts[1][len(self._cue):], stop
        self._tail, self._rest = between.split(stop, 1)

    def _check(self) -> None:
        one, two, three = _PROBE
        ours = [*self._user(self._start, [one]), *self.words(two), *self.ending,
                *self._user(self._rest, [three])]
        theirs = self.tokenizer(self._render(*_PROBE, prompt=True), add_special_tokens=False)["input_ids"]
        if ours != theirs or not self.cue:
            raise self._refused("its tokens depend on more than the messages")

    def _refused(self, why: str) -> ValueError:
        return ValueError(f"the language model's chat template cannot be used ({why}); write chats in the "
                          "project's own format: --set model.chat_format=own")

    @property
    def _pattern(self) -> str:
        return "(" + "|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) + ")"

    def _split(self, text: str) -> list[Part]:
        """A piece of the template as plain text and special tokens."""
        return [self.special.get(part, part) for part in re.split(self._pattern, text) if part] or [""]

    def _tokens(self, text: str, split: bool) -> list[int]:
        """Token ids, of special tokens in the text too unless these are ``split``. The contexts of a dialogue
        have most of their messages in common, so what was encoded lately is kept."""
        if (text, split) not in self._lately:
            if len(self._lately) >= LATELY:
                self._lately.clear()
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=split)
            self._lately[text, split] = encoded["input_ids"]
        return self._lately[text, split]

    def _plain(self, text: str) -> list[int]:
        return self._tokens(text, split=True)

    def _at_mark(self, text: str) -> list[int]:
        """The tokens of plain text that follows a special token. Marks that someone typed stay text."""
        if any(mark in text for mark in self.special):
            return self._plain(text)
        return self._tokens(self._stop + text, split=False)[1:]

    def _after(self, before: str, text: str) -> list[int]:
        """The tokens of plain text that follows other plain text."""
        start, whole = self._plain(before), self._plain(before + text)
        if not before or whole[:len(start)] != start:  # a token that holds the end of one and of the other
            return self._plain(text)
        return whole[len(start):]

    def _encode(self, parts: Sequence[Part]) -> list[int]:
        ids, before = list[int](), None
        for kind, group in groupby(parts, type):
            for part in ["".join(map(str, group))] if kind is str else group:
                if isinstance(part, str):  # the only one of its group
                    ids += (self._plain(part) if before is None else self._at_mark(part) if before is int
                            else self._after(_WORD, part))
                else:
                    ids += [part] if isinstance(part, int) else part
            before = kind
        return ids

    def _user(self, opening: str, content: Sequence[Part]) -> list[int]:
        return self._encode([*self._split(opening), *content, *self._split(self._cue)])

    def words(self, text: str) -> list[int]:
        """The tokens of a response's text, without its ending."""
        return self._after(self._anchor, self._lead + text) if text else []

    def _assistant(self, turn: Turn) -> list[int]:
        photos = [i for photo in turn.photos for i in self.photo_ids(photo)]
        return [*self.words(clean_text(turn.text)), *photos, *self.ending]

    def _content(self, turns: Sequence[Turn]) -> list[Part]:
        """The user's turns as one message."""
        parts = list[Part]()
        for number, turn in enumerate(turns):
            parts += ["\n" * (number > 0) + clean_text(turn.text), *map(self.photo_ids, turn.photos)]
        return parts

    def encode(self, turns: Sequence[Turn], answering: int) -> list[int]:
        """The tokens of a context, all of it, up to and with the cue to speaker ``answering`` (0 or 1)."""
        ids, said, opening = list[int](), list[Turn](), self._start
        for turn in turns:
            if turn.speaker != answering:
                said.append(turn)
                continue
            ids += [*self._user(opening, self._content(said)), *self._assistant(turn)]
            said, opening = [], self._rest
        return [*ids, *self._user(opening, self._content(said))]

    def fitting(self, turns: Sequence[Turn], answering: int, limit: int) -> tuple[list[int], list[Turn]]:
        """The tokens of the latest turns that have at most ``limit`` tokens together, and these turns; the
        last one is shortened if it does not fit alone."""
        for first in range(len(turns)):
            ids = self.encode(turns[first:], answering)
            if len(ids) <= limit:
                return ids, list(turns[first:])
        if not turns:
            return self.encode([], answering), []
        return self._shorten(turns[-1], answering, limit)

    def _shorten(self, turn: Turn, answering: int, limit: int) -> tuple[list[int], list[Turn]]:
        room = limit - len(self.encode([replace(turn, text="", photos=())], answering))
        sizes = [len(self.photo_ids(photo)) for photo in turn.photos]
        while sizes and len(self.encode([turn], answering)) > limit and (
                sum(sizes) > (room // 2 if len(sizes) > 1 else room)):
            turn = replace(turn, photos=turn.photos[1:])
            del sizes[0]
        text = clean_text(turn.text)
        last = text.rfind(" ") + 1  # which loses its first letters if it does not fit by itself
        words = (blank.end() for blank in re.finditer(" ", text) if blank.end() < last)
        starts = [0, *words, *range(last, len(text) + 1)]

        def of(start: int) -> list[int]:
            return self.encode([replace(turn, text=text[start:])], answering)

        at = bisect_left(starts, True, key=lambda start: len(of(start)) <= limit)
        return of(starts[min(at, len(starts) - 1)]), [turn]
