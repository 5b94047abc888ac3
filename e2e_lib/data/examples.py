"""From dialogues to (context, response) examples (section 2.1), and what answers one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from PIL import Image
from torch import Tensor

from e2e_lib.data.dialogue import DataError, Dialogue, Problem, Report, Turn, read_dialogues
from e2e_lib.data.photos import PhotoStore, to_image

Row = TypeVar("Row")


@dataclass(frozen=True)
class Example:
    """A response and the turns before it."""

    dialogue_id: str
    index: int
    context: tuple[Turn, ...]
    response: Turn


@dataclass
class Response:
    """A model's answer: text (may be empty), the captions of the photos that it shares, and, once they are
    drawn, these photos, uint8 (3, S, S).

    ``context_tokens_cut``: how many of the context's oldest tokens it did not read (``data.max_context``).
    """

    text: str
    captions: list[str] = field(default_factory=list)
    photos: list[Tensor] = field(default_factory=list)
    context_tokens_cut: int = 0

    @property
    def images(self) -> list[Image.Image]:
        return [to_image(photo) for photo in self.photos]


def merge_turns(turns: Sequence[Turn]) -> list[Turn]:
    """Runs of utterances by one speaker as one turn, as Table 1 counts them.

    A turn that shares photos stays a turn of its own, so that "here, I took a picture" is context of the
    photo that it announces.
    """
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last and last.speaker == turn.speaker and not last.photos and not turn.photos:
            merged[-1] = replace(last, text=f"{last.text} {turn.text}")
        else:
            merged.append(turn)
    return merged


def examples_of(dialogue: Dialogue) -> list[Example]:
    """Every (merged) turn but the first, as a response to the turns before it."""
    turns = merge_turns(dialogue.turns)
    return [Example(dialogue.dialogue_id, i, tuple(turns[:i]), turns[i]) for i in range(1, len(turns))]


def by_dialogue(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples in groups of one dialogue and one speaker who answers, in the order of their first ones."""
    groups: dict[tuple[str, int], list[Example]] = {}
    for example in examples:
        groups.setdefault((example.dialogue_id, example.response.speaker), []).append(example)
    return list(groups.values())


def subsample(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows at even distances, in order, starting with the first; all of them if there are no more.
    """
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else list(rows)


def load_split(folder: Path | str, split: str,
               real_only: bool = False) -> tuple[list[Dialogue], PhotoStore, Report]:
    """A split's dialogues all of whose photos can be read, the photo store, and what was set aside and why.

    With ``real_only``, dialogues with a photo that was drawn because it could not be fetched are set aside
    too. Raises DataError if the split is missing or holds no sound dialogue.
    """
    folder = Path(folder)
    dialogues, report = read_dialogues(folder / f"{split}.jsonl")
    store, sound = PhotoStore(folder / "photos"), []
    for dialogue in dialogues:
        ids = [photo.photo_id for photo in dialogue.photos]
        damaged = store.check(ids).problems
        drawn = [photo_id for photo_id in ids if real_only and store.is_drawn(photo_id)]
        if damaged or drawn:
            what = damaged[0].reason if damaged else f"{drawn[0]!r}: drawn from its caption (data.real_only)"
            reason = f"dialogue {dialogue.dialogue_id}: {what}"
            row = report.rows[dialogue.dialogue_id]
            field_name = "photo" if damaged else "drawn photo"
            report.problems.append(Problem(f"{split}.jsonl", row, field_name, reason))
        else:
            sound.append(dialogue)
    report.kept = len(sound)
    if not sound:
        raise DataError(f"{folder / split}.jsonl: the photos of no dialogue could be read; {report}")
    return sound, store, report


def split_examples(folder: Path | str, split: str, echo: Callable[[str], None] = lambda _: None,
                   real_only: bool = False) -> tuple[list[Example], PhotoStore]:
    """All examples of a split, and its photos; says what was set aside. Raises DataError."""
    dialogues, store, report = load_split(folder, split, real_only)
    shared = {photo.photo_id for dialogue in dialogues for photo in dialogue.photos}
    drawn = sum(map(store.is_drawn, shared))
    echo(f"{split} dialogues: {report}" + (f"; {drawn:,} of their photos are drawn" if drawn else ""))
    return [example for dialogue in dialogues for example in examples_of(dialogue)], store
