"""The statistics of a corpus, in the columns of the paper's Table 1 (section 3.1.1)."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, TypedDict

from e2e_lib.data.dialogue import DataError, Dialogue, Turn

PHOTO_TURNS = ("left_out", "end_runs", "in_runs")


class Table1Row(TypedDict):
    """The columns of Table 1 for one split."""

    dialogues: int
    utterances: int
    consecutive_utterances: int
    utterances_per_dialogue: float
    images: int
    distinct_images: int
    images_per_dialogue: float


class Table1:
    """Counts dialogues as they come. ``photo_turns`` is what a turn that shares photos does to a run of turns
    by one speaker, which the paper does not say: it is left out before runs are counted ("left_out"), it ends
    the run before it ("end_runs"), or it counts as any other turn of a run ("in_runs")."""

    def __init__(self, photo_turns: str = "left_out") -> None:
        if photo_turns not in PHOTO_TURNS:
            raise DataError(f"photo_turns {photo_turns!r}: expected one of {', '.join(PHOTO_TURNS)}")
        self.photo_turns = photo_turns
        self.dialogues = self.utterances = self.runs = self.images = 0
        self.photo_ids: set[str] = set()

    def __iadd__(self, other: "Table1") -> "Table1":
        """Takes up what another table counted; a photo of both is one distinct image."""
        self.dialogues += other.dialogues
        self.utterances += other.utterances
        self.runs += other.runs
        self.images += other.images
        self.photo_ids |= other.photo_ids
        return self

    def add(self, dialogue: Dialogue) -> None:
        self.dialogues += 1
        self.utterances += sum(not turn.photos for turn in dialogue.turns)
        self.runs += self._runs(dialogue.turns)
        for photo in dialogue.photos:
            self.images += 1
            self.photo_ids.add(photo.photo_id)

    def _runs(self, turns: Iterable[Turn]) -> int:
        if self.photo_turns == "left_out":
            turns = [turn for turn in turns if not turn.photos]
        if self.photo_turns == "end_runs":
            return sum(not has_photos for (_, has_photos), _ in groupby(
                turns, lambda turn: (turn.speaker, bool(turn.photos))))
        return sum(1 for _ in groupby(turns, lambda turn: turn.speaker))

    def row(self) -> Table1Row:
        """The row of what was counted, unrounded. Raises DataError for no dialogue at all."""
        if not self.dialogues:
            raise DataError("Table 1 of an empty split: expected at least one dialogue")
        return {"dialogues": self.dialogues, "utterances": self.utterances,
                "consecutive_utterances": self.runs,
                "utterances_per_dialogue": self.runs / self.dialogues, "images": self.images,
                "distinct_images": len(self.photo_ids), "images_per_dialogue": self.images / self.dialogues}


def table_1(dialogues: Iterable[Dialogue], photo_turns: str = "left_out") -> Table1Row:
    """Table 1 for one split, unrounded. Raises DataError for an empty split.

    "Utterances in which photos are shared are excluded": a turn that shares photos counts only as images,
    even where it has text beside them. The others are counted one by one (``utterances``) and with each
    run by the same speaker as one (``consecutive_utterances``); ``utterances_per_dialogue`` counts runs, as
    the paper does. Of the three ways to treat a photo's turn in a run (see ``Table1``), the default comes
    nearest to the paper's count on the dialogues that could be compared.
    """
    table = Table1(photo_turns)
    for dialogue in dialogues:
        table.add(dialogue)
    return table.row()


def beside_paper(rows: Mapping[str, Mapping[str, Any]], paper: Iterable[Mapping[str, Any]],
                 dataset: str) -> list[dict[str, Any]]:
    """Rows of Table 1 as texts, ours of each split with the paper's (of ``dataset``) below it.

    A number of ours that is not the paper's, at the paper's own digits, has its difference behind it.
    """
    published = {row["split"]: row for row in paper if row["dataset"] == dataset}
    table: list[dict[str, Any]] = []
    for split, row in rows.items():
        theirs = published.get(split, {})
        table.append({"split": split, "counted by": "ours",
                      **{key: _beside(row[key], theirs.get(key)) for key in Table1Row.__annotations__}})
        if theirs:
            table.append({"split": split, "counted by": "paper",
                          **{key: _written(theirs[key]) for key in Table1Row.__annotations__}})
    return table


def _written(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _beside(ours: float, theirs: float | None) -> str:
    if theirs is None or _written(ours) == _written(theirs):
        return _written(ours)
    sign, size = "+" if ours > theirs else "−", abs(ours - theirs)
    return f"{_written(ours)} ({sign}{_written(size if isinstance(ours, int) else round(size, 2))})"
