"""DialogCC (Lee et al. 2024) from its own JSON or Parquet files, as dialogues and photos.

**Not tried on the whole real files**, which could not be had: it follows the published description of their
fields, and prints which keys and types it met. A dialogue is a list of entries, each with a speaker's name,
an utterance and the photos shared, on an entry of their own or beside the utterance; lists may be empty or
null. Who speaks is told by name alone: the same person may have several entries in a row.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from e2e_lib.data.dialogue import DataError, Dialogue, SharedPhoto, Turn, clean_text
from e2e_lib.sources.reading import (
    RowProblem,
    SourcePhoto,
    SourceReport,
    add_problem,
    count_types,
    is_counted,
    keep,
    record_file,
    rows,
)

PARQUET_ROWS = 1000  # decoded at once


class _Image(msgspec.Struct):
    image_url: str | None = None
    caption: str | None = None


class _Entry(msgspec.Struct):
    utterance: str | None = None
    speaker: str | int | None = None
    utterance_idx: int | None = None
    shared_image: list[_Image] | None = None
    description: str | None = None


class _Row(msgspec.Struct):
    dialogue_id: str
    dialogue: list[_Entry]
    split: str | None = None


def read(path: Path, split: str, report: SourceReport,
         captions: str = "") -> Iterator[tuple[Dialogue, list[SourcePhoto]]]:
    """The dialogues of one file, each with its photos; ``report`` counts what was kept and what was not.

    Ids are ``<split>/<dialogue_id>``; a photo's id is a hash of its address, so that one photo in two
    dialogues is one photo. ``captions`` is unused: every photo has a caption of its own.
    """
    source = _parquet(path, report) if path.suffix == ".parquet" else rows(path, _Row, report)
    for number, row in source:
        try:
            dialogue, photos = _parse(row, split, report)
        except RowProblem as problem:
            add_problem(report, path, number, problem.field, problem.reason)
        else:
            if keep(report, path, number, dialogue):
                yield dialogue, photos


def _parquet(path: Path, report: SourceReport) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install 'e2e-lib[parquet]', or take the "
                        "JSON files") from None
    number = 0
    record_file(report, path)
    try:
        for batch in parquet.ParquetFile(path).iter_batches(PARQUET_ROWS):
            for value in _values(batch):
                number += 1
                try:
                    if isinstance(value, UnicodeDecodeError):
                        raise value
                    if is_counted(number, report):
                        count_types(value, "", report.schema)
                    yield number, msgspec.convert(value, _Row)
                except UnicodeDecodeError as error:
                    add_problem(report, path, number, "row", f"its text is not UTF-8 ({error})")
                except msgspec.ValidationError as error:
                    reason, _, place = str(error).partition(" - at `$")
                    add_problem(report, path, number, place.strip("`.") or "row", reason)
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: names that are not UTF-8
        raise DataError(f"{path}: not a readable Parquet file ({error}); fetch it again") from error


def _values(batch: Any) -> Iterable[Any]:
    """The rows of a batch as dictionaries, or in place of one the error that it has text that is not UTF-8.
    """
    def value(i: int) -> Any:
        try:
            return batch.slice(i, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            return error

    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # of any of its rows
        return map(value, range(batch.num_rows))


def _parse(row: Any, split: str, report: SourceReport) -> tuple[Dialogue, list[SourcePhoto]]:
    entries, numbers = row.dialogue, [entry.utterance_idx for entry in row.dialogue]
    if None not in numbers and numbers != sorted(numbers):
        entries = sorted(entries, key=lambda entry: entry.utterance_idx)
        report.repaired["entries put in the order of utterance_idx"] += 1
    speakers, turns, photos = dict[Any, int](), list[Turn](), list[SourcePhoto]()
    for i, entry in enumerate(entries):
        shared = _photos(entry, report) if entry.shared_image else []
        text = clean_text(entry.utterance) if entry.utterance else ""
        if not text and not shared:
            report.repaired["entry with neither words nor photos left out"] += 1
            continue
        if entry.speaker is None:
            raise RowProblem("dialogue[].speaker", f"entry {i} has no speaker")
        speaker = speakers.setdefault(entry.speaker, len(speakers))
        if speaker > 1:
            raise RowProblem("dialogue[].speaker", f"entry {i} is a third speaker's, expected two")
        if shared:
            photos += shared
            in_turn = tuple([SharedPhoto(photo.photo_id, photo.caption) for photo in shared])
            turns.append(Turn(speaker, text, in_turn))
        else:
            turns.append(Turn(speaker, text))
    if not row.dialogue_id:
        raise RowProblem("dialogue_id", "expected an id, found none")
    if not turns:
        raise RowProblem("dialogue", "no entry has words or photos")
    return Dialogue(f"{split}/{row.dialogue_id}", tuple(turns)), photos


def _photos(entry: Any, report: SourceReport) -> list[SourcePhoto]:
    photos = []
    for image in entry.shared_image:
        url, caption = (image.image_url or "").strip(), clean_text(image.caption or entry.description or "")
        if url and caption:
            photos.append(SourcePhoto(photo_id(url), url, caption))
        else:
            report.repaired[f"photo without {'a caption' if url else 'an address'} left out"] += 1
    return photos


def photo_id(url: str) -> str:
    """The id of a photo that has no name but its address."""
    return f"url/{hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
