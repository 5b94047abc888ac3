"""From dialogues to tensors (section 2.1): (context, response) examples, their token layout and their batches.

A chat is written for the language model as::

    <s>User: did you find it?⏎Assistant: yes, look! [IMG]▢▢▢▢[/IMG]⏎User: nice! where was that?⏎Assistant:

where ▢ is the slot of one query embedding. The one who answers is always "Assistant". A response is text, ``[IMG] caption [/IMG]``, or
both, and ends with </s>.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from e2e_lib.data.dialogue import Dialogue, Problem, Report, Turn, read_dialogues
from e2e_lib.data.photos import PhotoStore

Row = TypeVar("Row")


@dataclass(frozen=True)
class Example:
    """A response and all that was said before it."""

    dialogue_id: str
    index: int
    context: tuple[Turn, ...]
    response: Turn


def merge_turns(turns: Sequence[Turn]) -> list[Turn]:
    """Runs of utterances by one speaker as one turn, as Table 1 counts them. A turn that shares a photo stays by itself, so that
    "here, I took a picture" is context of the photo it announces."""
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last and last.speaker == turn.speaker and last.photo is None and turn.photo is None:
            merged[-1] = replace(last, text=f"{last.text} {turn.text}")
        else:
            merged.append(turn)
    return merged


def examples_of(dialogue: Dialogue) -> list[Example]:
    """Every turn but the first, as a response to what stands before it."""
    turns = merge_turns(dialogue.turns)
    return [Example(dialogue.dialogue_id, i, tuple(turns[:i]), turns[i]) for i in range(1, len(turns))]


def subsample(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows at even distances, in order, from the first on; all of them if there are no more."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else list(rows)


def load_split(folder: Path | str, split: str) -> tuple[list[Dialogue], PhotoStore, Report]:
    """The dialogues of a corpus split whose photos can all be read, the photo store, and a Report of what was set aside."""
    folder = Path(folder)
    dialogues, report = read_dialogues(folder / f"{split}.jsonl")
    store, sound = PhotoStore(folder / "photos"), []
    for dialogue in dialogues:
        damaged = store.check([photo.photo_id for photo in dialogue.photos]).problems
        if damaged:
            reason = f"dialogue {dialogue.dialogue_id}: {damaged[0].reason}"
            report.problems.append(Problem(f"{split}.jsonl", report.rows[dialogue.dialogue_id], "photo", reason))
        else:
            sound.append(dialogue)
    report.kept = len(sound)
    return sound, store, report
