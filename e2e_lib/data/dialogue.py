"""Dialogue records, the one form every dataset takes (paper section 2.1 and 3.1.1).

A file holds one dialogue a line, as JSON::

    {"dialogue_id": "…", "turns": [{"speaker": 0, "text": "…"}, {"speaker": 1, "text": "", "photo": {"photo_id": "…", "caption": "…"}}]}

Reading never stops at a bad row and never drops one silently: what is set aside is listed in a Report.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e_lib.repro import files


class DataError(ValueError):
    """A record or a file of records is not what it should be; the message says where and what was expected."""


@dataclass(frozen=True)
class SharedPhoto:
    """A photo shared in a turn: its id in the photo store and its caption (the paper's "image text description")."""

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
    """One row that was set aside: where it stands and why."""

    file: str
    row: int
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, {self.field}: {self.reason}"


@dataclass
class Report:
    """How many rows were kept, each one that was set aside, and where in the file each kept dialogue stands (by its id)."""

    kept: int = 0
    problems: list[Problem] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.problems:
            return f"{self.kept:,} kept, none set aside"
        reasons = Counter(problem.field for problem in self.problems)
        counted = ", ".join(f"{count} for {name}" for name, count in reasons.most_common())
        return f"{self.kept:,} kept, {len(self.problems):,} set aside ({counted}); first: {self.problems[0]}"


def _expect(condition: bool, field_name: str, reason: str) -> None:
    if not condition:
        raise _BadField(field_name, reason)


class _BadField(Exception):
    def __init__(self, field_name: str, reason: str) -> None:
        super().__init__(f"{field_name}: {reason}")
        self.field, self.reason = field_name, reason


def _parse_turn(row: Any, name: str) -> Turn:
    _expect(isinstance(row, dict), name, f"expected an object, found {type(row).__name__}")
    speaker, text, photo = row.get("speaker"), row.get("text", ""), row.get("photo")
    _expect(speaker in (0, 1) and not isinstance(speaker, bool), f"{name}.speaker", f"expected 0 or 1, found {speaker!r}")
    _expect(isinstance(text, str), f"{name}.text", f"expected a string, found {type(text).__name__}")
    _expect(bool(text.strip()) or "photo" in row, f"{name}.text", "the turn has neither text nor a photo")
    if "photo" not in row:
        return Turn(speaker, text)
    _expect(isinstance(photo, dict), f"{name}.photo", f"a photo turn without a photo: expected an object, found {photo!r}")
    for key in ("photo_id", "caption"):
        value = photo.get(key)
        _expect(isinstance(value, str) and bool(value.strip()), f"{name}.photo.{key}",
                f"expected a string that is not empty, found {value!r}")
    return Turn(speaker, text, SharedPhoto(photo["photo_id"], photo["caption"]))


def parse_dialogue(row: Any, file: str = "<record>", number: int = 1) -> Dialogue:
    """A Dialogue from a decoded JSON row. Raises DataError naming file, row and field."""
    try:
        _expect(isinstance(row, dict), "dialogue", f"expected an object, found {type(row).__name__}")
        identifier, turns = row.get("dialogue_id"), row.get("turns")
        _expect(isinstance(identifier, str) and bool(identifier), "dialogue_id", f"expected a string, found {identifier!r}")
        _expect(isinstance(turns, list), "turns", f"expected a list, found {type(turns).__name__}")
        _expect(bool(turns), "turns", "the dialogue has no turns")
        return Dialogue(identifier, tuple(_parse_turn(turn, f"turns[{i}]") for i, turn in enumerate(turns)))
    except _BadField as bad:
        error = DataError(str(Problem(file, number, bad.field, bad.reason)))
        error.problem = Problem(file, number, bad.field.split("[")[0] if "[" not in bad.field else bad.field, bad.reason)  # type: ignore[attr-defined]
        raise error from None


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
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                report.problems.append(Problem(path.name, number, "json", f"the line is not readable JSON ({error})"))
                continue
            except DataError as error:
                report.problems.append(error.problem)  # type: ignore[attr-defined]
                continue
            if dialogue.dialogue_id in report.rows:
                reason = f"{dialogue.dialogue_id!r} stands in row {report.rows[dialogue.dialogue_id]} already"
                report.problems.append(Problem(path.name, number, "dialogue_id", reason))
                continue
            report.rows[dialogue.dialogue_id] = number
            dialogues.append(dialogue)
    report.kept = len(dialogues)
    if not dialogues:
        raise DataError(f"{path}: no dialogue could be read; {report}")
    return dialogues, report


def to_row(dialogue: Dialogue) -> dict[str, Any]:
    """The JSON row of a dialogue, the inverse of ``parse_dialogue``."""
    turns = []
    for turn in dialogue.turns:
        row: dict[str, Any] = {"speaker": turn.speaker, "text": turn.text}
        if turn.photo:
            row["photo"] = {"photo_id": turn.photo.photo_id, "caption": turn.photo.caption}
        turns.append(row)
    return {"dialogue_id": dialogue.dialogue_id, "turns": turns}


def write_dialogues(path: Path | str, dialogues: Iterable[Dialogue]) -> Path:
    """Writes dialogues as JSON lines, atomically. Raises files.SaveError."""
    return files.write_text(path, "".join(json.dumps(to_row(d), ensure_ascii=False) + "\n" for d in dialogues))
