"""A published corpus as the project's own records: ``e2e data build`` (section 3.1.1, Table 1).

The folder it writes holds ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl`` (see ``data.dialogue``),
``photos.jsonl`` (a row per distinct photo: id, address, caption, splits, and what else is known of it) and
``report.json``. Photos that ``e2e data photos`` brought into it stay where they are.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from e2e_lib.data.dialogue import DataError, Dialogue, to_row
from e2e_lib.data.statistics import Table1
from e2e_lib.repro import files
from e2e_lib.sources import dialogcc, photochat
from e2e_lib.sources.reading import SourcePhoto, SourceReport

READERS = {"photochat": photochat.read, "dialogcc": dialogcc.read}
SPLITS = ("train", "dev", "test")
SPLIT_NAMES = {**{name: name for name in SPLITS}, **dict.fromkeys(("valid", "validation", "val"), "dev")}
SUFFIXES = (".json", ".jsonl", ".parquet")
PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".tar")
EVERY = 5000  # rows between two lines of progress
SHOWN = 5  # rows at fault that a message names
UNMET = ("The reader of DialogCC follows the published description of its fields and has not met the whole "
         "real files yet: compare the fields above with what you expect of them.")
Echo = Callable[[str], None]


def find_files(source: Path) -> dict[str, list[Path]]:
    """The files of each split below ``source``, told by their own name or by their folder's. Raises DataError
    where there are none."""
    if not source.is_dir():
        raise DataError(f"{source}: there is no such folder; `e2e data get` fetches the official files")
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in sorted(source.rglob("*")):
        names = (path.name, *path.relative_to(source).parts[-2::-1])
        splits = (SPLIT_NAMES.get(name.replace("-", "_").replace(".", "_").partition("_")[0])
                  for name in names)
        if not path.is_file() or not (split := next(filter(None, splits), None)):
            continue
        if path.suffix == ".part":
            raise DataError(f"{path}: a file that was not fetched to its end; run `e2e data get` again, or "
                            "delete it")
        if path.suffix in PACKED:
            raise DataError(f"{path}: a packed file, which is not read; unpack it, or move it away")
        if path.suffix.lower() in SUFFIXES:
            found[split].append(path)
    if not any(found.values()):
        raise DataError(f"{source}: no file whose name, or whose folder's name, begins with train, dev, "
                        f"valid, validation or test, and ends with {', '.join(SUFFIXES)}")
    return {split: paths for split, paths in found.items() if paths}


def build(name: str, source: Path, out: Path, echo: Echo, *, captions: str = "labels", skip_bad: bool = False,
          photo_turns: str = "left_out", redact: bool = False, schema: bool = False) -> dict[str, Any]:
    """Reads the corpus ``name`` below ``source``, writes it to ``out``, and returns its report.

    The report has for each split the columns of Table 1, "kept", "set_aside" and "repaired" (how many, by
    reason), the source's "files" with their SHA-256, and the "schema" seen. The schema is also said of splits
    with a file that what stands in ``out`` was not built from, or, with ``schema``, of all. Raises DataError
    naming the first rows at fault, unless these are to be skipped (``skip_bad``), or where ``out`` would be
    left with splits of two builds; nothing is written then. With ``redact`` neither the report nor a message
    has anything that people wrote.
    """
    if name not in READERS:
        raise DataError(f"corpus {name!r}: expected one of {', '.join(READERS)}")
    found, record = find_files(source), dict[str, Any]()
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out}: lies in {source}, whose files are read; name a folder outside of it")
    if missing := [split for split in SPLITS if split not in found]:
        echo(f"{source} has no file of {', '.join(missing)}")
    known = _built_from(files.complete_files(out) / "report.json")
    if older := [f"{split}.jsonl" for split in missing if (out / f"{split}.jsonl").exists()]:
        raise DataError(f"{out} has {', '.join(older)} of an earlier build, and {source} has no such files: "
                        "the folder would be half old, half new. Name another folder, or delete them")
    reports = {split: SourceReport() for split in found}
    with files.atomic_files(out) as new, open(new / "photos.part", "w+b") as photo_rows:
        photos = _Photos(photo_rows)
        for split, paths in found.items():
            report, counts = reports[split], Table1(photo_turns)
            pairs = (pair for path in paths for pair in READERS[name](path, split, report, captions))
            with open(new / f"{split}.jsonl", "wb") as lines:
                for dialogue in _progress(pairs, split, photos, echo):
                    counts.add(dialogue)
                    lines.write(msgspec.json.encode(to_row(dialogue)) + b"\n")
            if not report.kept:
                raise DataError(f"{', '.join(map(str, paths))}: no dialogue could be read; "
                                f"{_first(report, redact)}")
            record[split] = {**counts.row(), **_account(report)}
            echo(f"{split}: {report.kept:,} dialogues kept, {len(report.problems):,} set aside")
        new_to_us = {split: report for split, report in reports.items()
                     if schema or not known.issuperset(report.files.values())}
        if new_to_us:
            _report_schema(name, new_to_us, echo)
        bad = sum(len(report.problems) for report in reports.values())
        worst = max(reports.values(), key=lambda report: len(report.problems))
        if bad and not skip_bad:
            raise DataError(f"{bad:,} rows of {source} cannot be used; nothing was written. --skip-bad "
                            f"leaves them out and counts them. {_first(worst, redact)}")
        if bad:
            echo(f"set aside: {bad:,} rows. {_first(worst, redact)}")
        photos.write(new / "photos.jsonl")
        (new / "photos.part").unlink()
        content = {"corpus": name, "captions": captions, "photo_turns": photo_turns,
                   "photos": len(photos.splits), "photos_in_several_splits": photos.in_several(),
                   "splits": record}
        files.write_json(new / "report.json", content)
    return record


def kept_in(out: Path) -> str:
    """What an interrupted build leaves, in words."""
    if not (out / files.READY).is_dir():
        return f"nothing was written, and {out} is as it was"
    return f"all was read and written already, and is in {files.complete_files(out)}"


def _progress(pairs: Iterable[tuple[Dialogue, list[SourcePhoto]]], split: str, photos: "_Photos",
              echo: Echo) -> Iterator[Dialogue]:
    for number, (dialogue, shared) in enumerate(pairs, 1):
        for photo in shared:
            photos.add(photo, split)
        if number % EVERY == 0:
            echo(f"{split}: {number:,} dialogues")
        yield dialogue


class _Photos:
    """The distinct photos. Their rows wait in a file for the splits that are known only at the end, so that
    memory holds no more than their ids."""

    def __init__(self, rows: BinaryIO) -> None:
        self.rows, self.splits = rows, dict[str, int]()  # a bit for each of SPLITS

    def add(self, photo: SourcePhoto, split: str) -> None:
        bits = self.splits.get(photo.photo_id)
        if bits is None:
            self.rows.write(msgspec.json.encode(photo) + b"\n")
        self.splits[photo.photo_id] = (bits or 0) | 1 << SPLITS.index(split)

    def write(self, path: Path) -> None:
        self.rows.seek(0)
        with open(path, "wb") as lines:
            for row, bits in zip(self.rows, self.splits.values(), strict=True):
                names = [split for i, split in enumerate(SPLITS) if bits >> i & 1]
                lines.write(row[:-2] + b',"splits":' + msgspec.json.encode(names) + b"}\n")

    def in_several(self) -> int:
        return sum(bits.bit_count() > 1 for bits in self.splits.values())


def _account(report: SourceReport) -> dict[str, Any]:
    return {"kept": report.kept, "set_aside": report.set_aside, "repaired": dict(report.repaired),
            "files": report.files, "schema": {path: dict(kinds) for path, kinds in report.schema.items()}}


def _first(report: SourceReport, redact: bool) -> str:
    shown = [f"{problem.file}, row {problem.row}, {problem.field}" if redact else str(problem)
             for problem in report.problems[:SHOWN]]
    return f"First: {'; '.join(shown)}" if shown else "The files have no rows"


def _built_from(path: Path) -> set[str]:
    """The SHA-256 of the files that the build whose report is ``path`` read; none where there is no report.
    """
    try:
        splits = json.loads(path.read_bytes())["splits"].values()
        return {digest for row in splits for digest in row["files"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there is none, or of an older form
        return set()


def _report_schema(name: str, reports: Mapping[str, SourceReport], echo: Echo) -> None:
    """Says which keys and types the first rows of the files of some splits have."""
    schema: dict[str, Counter[str]] = {}
    for report in reports.values():
        for path, kinds in report.schema.items():
            schema.setdefault(path, Counter()).update(kinds)
    echo(f"fields seen in the first rows of each file of {', '.join(reports)}:")
    for path, kinds in schema.items():
        parent = path.rpartition(".")[0]
        total = kinds.total()
        if path and not path.endswith("[]"):  # a key, which some objects may lack
            total = max(total, schema[parent]["dict"])
        kinds["missing"] = total - kinds.total()
        shares = (f"{kind} {100 * count / total:.1f} %" for kind, count in kinds.most_common() if count)
        echo(f"  {path or '(row)'}: {', '.join(shares)}")
    if name == "dialogcc":
        echo(UNMET)
