"""Dialogue records, the one form every dataset takes (paper sections 2.1 and 3.1.1).

A file holds one dialogue per line, as JSON; not every turn has a photo::

    {"dialogue_id": "…", "turns": [{"speaker": 0, "text": "…", "photo": {"photo_id": "…", "caption": "…"}}]}

Reading never stops at a bad row and never drops one silently: what is set aside is listed in a Report.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from e2e_lib.repro import files


@dataclass(frozen=True)
class SharedPhoto:
    """A photo shared in a turn: its id in the photo store and its caption ("image text description")."""

    photo_id: str
    caption: str


@dataclass(frozen=True)
class Turn:
    """What one speaker (0 or 1) says at once: text, a photo, or both."""

    speaker: int
    text: str
    photo: SharedPhoto | None = None


@dataclass(frozen=True)
class Dialogue:
    """A two-person chat; ``turns`` is never empty."""

    dialogue_id: str
    turns: tuple[Turn, ...]

    @property
    def photos(self) -> list[SharedPhoto]:
        return [turn.photo for turn in self.turns if turn.photo]


@dataclass(frozen=True)
class Problem:
    """A row that was set aside: where it is (rows count from 1) and why."""

    file: str
    row: int
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, {self.field}: {self.reason}"


@dataclass
class Report:
    """How many rows were kept, each one that was set aside, and the row of each kept dialogue by its id."""

    kept: int = 0
    problems: list[Problem] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.problems:
            return f"{self.kept:,} kept, none set aside"
        fields = Counter(problem.field for problem in self.problems)
        counts = ", ".join(f"{count} for {name}" for name, count in fields.most_common())
        return f"{self.kept:,} kept, {len(self.problems):,} set aside ({counts}); first: {self.problems[0]}"


class DataError(ValueError):
    """A record or a file of records is not as it should be; the message says where and what was expected."""


class RowError(DataError):
    """A row is not a sound dialogue; ``problem`` says where and why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _expect(condition: bool, name: str, reason: str) -> None:
    if not condition:
        raise RowError(Problem("<record>", 1, name, reason))


def _parse_turn(row: Any, name: str) -> Turn:
    _expect(isinstance(row, dict), name, f"expected an object, found {type(row).__name__}")
    speaker, text, photo = row.get("speaker"), row.get("text", ""), row.get("photo")
    _expect(speaker in (0, 1) and not isinstance(speaker, bool), f"{name}.speaker",
            f"expected 0 or 1, found {speaker!r}")
    _expect(isinstance(text, str), f"{name}.text", f"expected a string, found {type(text).__name__}")
    _expect(bool(text.strip()) or "photo" in row, f"{name}.text", "the turn has neither text nor a photo")
    if "photo" not in row:
        return Turn(speaker, text)
    _expect(isinstance(photo, dict), f"{name}.photo",
            f"a photo turn without a photo: expected an object, found {photo!r}")
    for key in ("photo_id", "caption"):
        value = photo.get(key)
        _expect(isinstance(value, str) and bool(value.strip()), f"{name}.photo.{key}",
                f"expected a string that is not empty, found {value!r}")
    return Turn(speaker, text, SharedPhoto(photo["photo_id"], photo["caption"]))


def parse_dialogue(row: Any, file: str = "<record>", number: int = 1) -> Dialogue:
    """A Dialogue from a decoded JSON row. Raises RowError, a DataError, naming file, row and field."""
    try:
        _expect(isinstance(row, dict), "dialogue", f"expected an object, found {type(row).__name__}")
        identifier, turns = row.get("dialogue_id"), row.get("turns")
        _expect(isinstance(identifier, str) and bool(identifier), "dialogue_id",
                f"expected a string, found {identifier!r}")
        _expect(isinstance(turns, list), "turns", f"expected a list, found {type(turns).__name__}")
        _expect(bool(turns), "turns", "the dialogue has no turns")
        return Dialogue(identifier, tuple(_parse_turn(turn, f"turns[{i}]") for i, turn in enumerate(turns)))
    except RowError as error:
        raise RowError(replace(error.problem, file=file, row=number)) from None


def read_dialogues(path: Path | str) -> tuple[list[Dialogue], Report]:
    """All sound dialogues of a JSON-lines file, and a Report of the rows set aside.

    Raises DataError if the file is missing or holds no sound dialogue at all.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; `e2e data` makes the corpus of a profile")
    dialogues: list[Dialogue] = []
    report = Report()
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                dialogue = parse_dialogue(json.loads(line), path.name, number)
                if first := report.rows.get(dialogue.dialogue_id):
                    reason = f"{dialogue.dialogue_id!r} stands in row {first} already"
                    raise RowError(Problem(path.name, number, "dialogue_id", reason))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                reason = f"the line is not readable JSON ({error})"
                report.problems.append(Problem(path.name, number, "json", reason))
            except RowError as error:
                report.problems.append(error.problem)
            else:
                report.rows[dialogue.dialogue_id] = number
                dialogues.append(dialogue)
    report.kept = len(dialogues)
    if not dialogues:
        raise DataError(f"{path}: no dialogue could be read; {report}")
    return dialogues, report


def to_row(dialogue: Dialogue) -> dict[str, Any]:
    """The JSON row of a dialogue, the inverse of ``parse_dialogue``."""
    turns = [{"speaker": turn.speaker, "text": turn.text}
             | ({"photo": asdict(turn.photo)} if turn.photo else {}) for turn in dialogue.turns]
    return {"dialogue_id": dialogue.dialogue_id, "turns": turns}


def write_dialogues(path: Path | str, dialogues: Iterable[Dialogue]) -> Path:
    """Writes dialogues as JSON lines, atomically. Raises files.SaveError."""
    rows = (json.dumps(to_row(dialogue), ensure_ascii=False) + "\n" for dialogue in dialogues)
    return files.write_text(path, "".join(rows))
