"""Rows of published JSON files, one at a time, and an account of what was read (section 3.1.1).

A file is a JSON array or JSON lines, told apart by its first character. Each row is kept as bytes until it is
decoded, so that one bad row is one problem and never the end of the file.
"""

import json
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from e2e_lib.data.dialogue import DataError, Dialogue, Problem
from e2e_lib.repro import files

SCHEMA_ROWS, SCHEMA_ROWS_OF_FILE = 500, 20  # of a split, and at least of each file: whose types are counted


class SourcePhoto(msgspec.Struct, frozen=True, omit_defaults=True):
    """A photo as a corpus publishes it; ``url`` is "" where no address is known."""

    photo_id: str
    url: str
    caption: str
    labels: tuple[str, ...] = ()
    relation: str = ""
    name: str = ""


@dataclass
class SourceReport:
    """What was read of one split: files and their SHA-256, rows kept, each row set aside and why, what was
    ``repaired`` by a stated rule, and the keys and types seen (see ``count_types``)."""

    files: dict[str, str] = field(default_factory=dict)
    kept: int = 0
    problems: list[Problem] = field(default_factory=list)
    repaired: Counter[str] = field(default_factory=Counter)
    schema: dict[str, Counter[str]] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)

    @property
    def set_aside(self) -> dict[str, int]:
        """How many rows were set aside, by the field that was at fault."""
        return dict(Counter(problem.field for problem in self.problems).most_common())


class RowProblem(ValueError):
    """A row cannot be used: the ``field`` that is at fault, and why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def rows(path: Path, kind: Any, report: SourceReport) -> Iterator[tuple[int, Any]]:
    """The rows of a file that decode as the msgspec type ``kind``, with their numbers from 1.

    Others are listed in ``report``. Raises DataError for a file that is missing, empty or not JSON at all.
    """
    record_file(report, path)
    decoder = msgspec.json.Decoder(kind)
    for number, raw in _raw_rows(path, report):
        try:
            if is_counted(number, report):
                count_types(msgspec.json.decode(raw), "", report.schema)
            row = decoder.decode(raw)
        except msgspec.ValidationError as error:
            reason, _, place = str(error).partition(" - at `$")
            add_problem(report, path, number, place.strip("`.") or "row", reason)
        except (ValueError, RecursionError) as error:  # malformed JSON, and bytes that are not UTF-8
            add_problem(report, path, number, "json", f"not readable JSON ({error})")
        else:
            yield number, row


def record_file(report: SourceReport, path: Path) -> None:
    """Notes a file and its SHA-256. Raises DataError where it cannot be read."""
    name = str(path) if path.name in report.files else path.name  # folders may have files of one name
    try:
        report.files[name] = files.sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def add_problem(report: SourceReport, path: Path, number: int, name: str, reason: str) -> None:
    report.problems.append(Problem(path.name, number, name, reason))


def keep(report: SourceReport, path: Path, number: int, dialogue: Dialogue) -> bool:
    """Counts a dialogue as kept, or as a problem if its id was met before; says which."""
    if dialogue.dialogue_id in report.ids:
        add_problem(report, path, number, "dialogue_id", f"{dialogue.dialogue_id!r} was read already")
        return False
    report.ids.add(dialogue.dialogue_id)
    report.kept += 1
    return True


def _raw_rows(path: Path, report: SourceReport) -> Iterator[tuple[int, Any]]:
    try:
        with open(path, "rb") as file:
            if not path.stat().st_size:
                raise DataError(f"{path}: the file is empty; fetch it again")
            # Never closed by hand: the rows of an array are views of it.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    start = 3 if content[:3] == b"\xef\xbb\xbf" else 0  # a byte order mark is no JSON
    while content[start:start + 1].isspace():
        start += 1
    content.seek(start)
    if content[start:start + 1] == b"[":
        yield from _array(content, start, path, report)
    elif content[start:start + 1] == b"{":
        lines = enumerate(iter(content.readline, b""), 1)
        yield from ((number, line) for number, line in lines if line.strip())
    else:
        raise DataError(f"{path}: expected a JSON array or one JSON object per line, and it begins with "
                        f"{content[start:start + 20]!r}; fetch it again")


def _array(content: mmap.mmap, start: int, path: Path, report: SourceReport) -> Iterator[tuple[int, Any]]:
    try:
        found = msgspec.json.decode(memoryview(content)[start:], type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return _sound_beginning(content[start:], path, report)
    return iter(enumerate(found, 1))


def _sound_beginning(content: bytes, path: Path, report: SourceReport) -> Iterator[tuple[int, bytes]]:
    """The rows before the damage of an array that is cut short or broken; the rest is one problem."""
    text, decoder, at, number = content.decode("utf-8", "surrogateescape"), json.JSONDecoder(), 1, 0
    try:
        while True:
            number += 1
            at = _skip(text, at)
            if text[at:at + 1] == "]" and number == 1:
                return
            end = decoder.raw_decode(text, at)[1]
            yield number, text[at:end].encode("utf-8", "surrogateescape")
            at = _skip(text, end)
            if text[at:at + 1] != ",":
                break
            at += 1
        if text[at:at + 1] == "]" and not text[at + 1:].strip():
            return
        number, reason = number + 1, "expected a comma or the array's end"
    except (ValueError, RecursionError) as error:
        reason = str(error)[:200]
    add_problem(report, path, number, "json", f"the file is damaged from character {at:,} on ({reason}); "
                "what stands before is used, fetch the file again for the rest")


def _skip(text: str, at: int) -> int:
    while text[at:at + 1].isspace():
        at += 1
    return at


def is_counted(number: int, report: SourceReport) -> bool:
    """Whether the keys and types of the row ``number`` of a file are counted."""
    counted = report.schema.get("", Counter()).total()
    return number <= SCHEMA_ROWS_OF_FILE or number <= SCHEMA_ROWS and counted < SCHEMA_ROWS


def count_types(value: Any, path: str, schema: dict[str, Counter[str]]) -> None:
    """Counts the type of every value of a decoded row by its path, such as ``dialogue[].speaker``."""
    kind = "null" if value is None else "empty" if value in ("", [], {}) else type(value).__name__
    if path not in schema:
        schema[path] = Counter()
    schema[path][kind] += 1
    if isinstance(value, dict):
        for key, inner in value.items():
            count_types(inner, f"{path}.{key}" if path else str(key), schema)
    elif isinstance(value, list):
        for inner in value:
            count_types(inner, f"{path}[]", schema)
