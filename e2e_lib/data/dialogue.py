"""Dialogue records, the one form every dataset takes (paper sections 2.1 and 3.1.1).

A file holds one dialogue per line, as JSON; not every turn has a photo::

    {"dialogue_id": "…", "turns": [{"speaker": 0, "text": "…", "photo": {"photo_id": "…", "caption": "…"}}]}

A turn with several photos has a list of them instead, ``"photos": [{…}, {…}]``. Reading never stops at a bad
row and never drops one silently: what is set aside is listed in a Report.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from e2e_lib.repro import files

_SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which no text file can hold
# Control characters that are no white space, soft hyphens, marks of the text's direction, and the like.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f"
                        "\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]")
# Joiners, but not those between visible characters beyond Latin: emoji, Persian or Hindi need them.
_SEEN = "[^\x00-\u02ff\u2000-\u206f\\s]"
_JOINERS = re.compile(f"(?<!{_SEEN})[\u200c\u200d]|[\u200c\u200d](?!{_SEEN})")
_BLANKS = re.compile(r"[\s\u2800\u3164\uffa0]+")  # the last three are empty letters


def clean_text(text: str) -> str:
    """A turn or caption as it is read, trained on and scored: one line of visible characters.

    Runs of white space, line ends among them, become one blank, and none is left at either end. What cannot
    be seen is left out (joiners inside an emoji or a word stay), half a surrogate pair becomes U+FFFD.
    """
    if text.isascii() and text.isprintable() and "  " not in text:  # most are: ten times as fast
        return text.strip(" ")
    text = _JOINERS.sub("", _INVISIBLE.sub("", _SURROGATES.sub("\ufffd", text)))
    return _BLANKS.sub(" ", text).strip(" ")


@dataclass(frozen=True)
class SharedPhoto:
    """A photo shared in a turn: its id in the photo store and its caption ("image text description")."""

    photo_id: str
    caption: str


@dataclass(frozen=True)
class Turn:
    """What one speaker (0 or 1) says at once: text, photos, or both."""

    speaker: int
    text: str
    photos: tuple[SharedPhoto, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """A two-person chat; ``turns`` is never empty."""

    dialogue_id: str
    turns: tuple[Turn, ...]

    @property
    def photos(self) -> list[SharedPhoto]:
        return [photo for turn in self.turns for photo in turn.photos]


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
        raise RowError(Problem("<record>", 1, name, reason if len(reason) <= 200 else f"{reason[:199]}…"))


def _is_name(value: Any) -> bool:
    """Whether a value can be an id: text that a file can hold."""
    return isinstance(value, str) and bool(value.strip()) and not _SURROGATES.search(value)


def _parse_photo(row: Any, name: str) -> SharedPhoto:
    _expect(isinstance(row, dict), name, f"expected an object, found {row!r}")
    photo_id, caption = row.get("photo_id"), row.get("caption")
    is_caption = isinstance(caption, str) and bool(clean_text(caption))
    for key, sound in (("photo_id", _is_name(photo_id)), ("caption", is_caption)):
        _expect(sound, f"{name}.{key}", f"expected a string that is not empty, found {row.get(key)!r}")
    return SharedPhoto(photo_id, clean_text(caption))


def _parse_photos(row: dict[str, Any], name: str) -> tuple[SharedPhoto, ...]:
    """A turn's "photo" or "photos"; null and an empty list mean none."""
    photo, photos = row.get("photo"), row.get("photos")
    _expect(not (photo and photos), f"{name}.photos",
            'expected "photo" for one photo or "photos" for several, found both')
    if photo is not None:
        return (_parse_photo(photo, f"{name}.photo"),)
    _expect(photos is None or isinstance(photos, list), f"{name}.photos",
            f"expected a list, found {type(photos).__name__}")
    return tuple(_parse_photo(one, f"{name}.photos[{i}]") for i, one in enumerate(photos or []))


def _parse_turn(row: Any, name: str) -> Turn:
    _expect(isinstance(row, dict), name, f"expected an object, found {type(row).__name__}")
    speaker, text = row.get("speaker"), row.get("text", "")
    _expect(type(speaker) is int and speaker in (0, 1), f"{name}.speaker",
            f"expected 0 or 1, found {speaker!r}")
    _expect(isinstance(text, str), f"{name}.text", f"expected a string, found {type(text).__name__}")
    turn = Turn(speaker, clean_text(text), _parse_photos(row, name))
    _expect(bool(turn.text or turn.photos), f"{name}.text", "the turn has neither text nor a photo")
    return turn


def parse_dialogue(row: Any, file: str = "<record>", number: int = 1) -> Dialogue:
    """A Dialogue from a decoded JSON row. Raises RowError, a DataError, naming file, row and field."""
    try:
        _expect(isinstance(row, dict), "dialogue", f"expected an object, found {type(row).__name__}")
        identifier, turns = row.get("dialogue_id"), row.get("turns")
        _expect(_is_name(identifier), "dialogue_id", f"expected a string, found {identifier!r}")
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
    files.complete_files(path.parent)
    if not path.is_file():
        raise DataError(f"{path}: no such file; `e2e data` makes the corpus of a profile")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}); check its rights") from error
    dialogues: list[Dialogue] = []
    report = Report()
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            dialogue = parse_dialogue(json.loads(line), path.name, number)
            if first := report.rows.get(dialogue.dialogue_id):
                reason = f"{dialogue.dialogue_id!r} stands in row {first} already"
                raise RowError(Problem(path.name, number, "dialogue_id", reason))
        except RowError as error:
            report.problems.append(error.problem)
        except (ValueError, RecursionError) as error:  # also of numbers and lists that Python finds too long
            reason = f"the line is not readable JSON ({error})"
            report.problems.append(Problem(path.name, number, "json", reason))
        else:
            report.rows[dialogue.dialogue_id] = number
            dialogues.append(dialogue)
    report.kept = len(dialogues)
    if not dialogues:
        raise DataError(f"{path}: no dialogue could be read; {report}")
    return dialogues, report


def to_row(dialogue: Dialogue) -> dict[str, Any]:
    """The JSON row of a dialogue, the inverse of ``parse_dialogue``."""
    turns: list[dict[str, Any]] = []
    for turn in dialogue.turns:
        photos = [{"photo_id": photo.photo_id, "caption": photo.caption} for photo in turn.photos]
        shared = {} if not photos else {"photo": photos[0]} if len(photos) == 1 else {"photos": photos}
        turns.append({"speaker": turn.speaker, "text": turn.text, **shared})
    return {"dialogue_id": dialogue.dialogue_id, "turns": turns}


def write_dialogues(path: Path | str, dialogues: Iterable[Dialogue]) -> Path:
    """Writes dialogues as JSON lines, atomically. Raises files.SaveError."""
    rows = (json.dumps(to_row(dialogue), ensure_ascii=False) + "\n" for dialogue in dialogues)
    return files.write_text(path, "".join(rows))
