"""The index of a photo folder: what became of each address, in one SQLite file (``index.sqlite``).

Nothing is decoded to know what a folder holds: the index says which photos are sound, how large they are, and
where each file is. A photo's file is named after the SHA-256 of its bytes, so that the same photo under many
addresses is kept once.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from e2e_lib.data.dialogue import DataError
from e2e_lib.repro import files

Status = Literal["pending", "ok", "drawn", "placeholder", "missing", "refused", "bad_address",
                 "private_address", "timeout", "too_large", "broken", "not_a_photo", "dns", "network",
                 "server_error", "redirect_loop"]
STATUSES: tuple[str, ...] = get_args(Status)
PASSING = ("timeout", "dns", "network", "server_error")  # another try may succeed
INDEX = "index.sqlite"
_COLUMNS = {
    "url": "TEXT PRIMARY KEY", "photo_id": "TEXT NOT NULL", "status": "TEXT NOT NULL DEFAULT 'pending'",
    "reason": "TEXT NOT NULL DEFAULT ''", "sha256": "TEXT", "width": "INTEGER", "height": "INTEGER",
    "bytes": "INTEGER", "source": "TEXT NOT NULL DEFAULT ''", "licence": "TEXT NOT NULL DEFAULT ''",
    "file": "TEXT", "tries": "INTEGER NOT NULL DEFAULT 0"}
_NAMES = ", ".join(_COLUMNS)


@dataclass(frozen=True)
class PhotoRow:
    """An address's row; ``file`` is relative to the photo folder, None where no photo is kept."""

    url: str
    photo_id: str
    status: Status = "pending"
    reason: str = ""
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    source: str = ""
    licence: str = ""
    file: str | None = None
    tries: int = 0


class PhotoIndex:
    """The index of the photo folder ``folder``; use it as a context manager, or ``close`` it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / INDEX
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.SaveError(f"could not make {folder}: {error.strerror}") from error
        try:
            self.connection = sqlite3.connect(self.path, isolation_level=None)
            self.connection.execute("PRAGMA journal_mode = WAL")
            # A kill loses nothing, a power cut the last rows.
            self.connection.execute("PRAGMA synchronous = NORMAL")
            columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
            self.connection.execute(f"CREATE TABLE IF NOT EXISTS photos ({columns})")
            self.connection.execute("CREATE INDEX IF NOT EXISTS by_photo_id ON photos (photo_id)")
            # One address may be that of several photos of a list.
            self.connection.execute("CREATE TABLE IF NOT EXISTS names (photo_id TEXT, url TEXT, "
                                    "PRIMARY KEY (photo_id, url)) WITHOUT ROWID")
            found = {name for _, name, *_ in self.connection.execute("PRAGMA table_info(photos)")}
            if missing := sorted(_COLUMNS.keys() - found):
                raise sqlite3.DatabaseError(f"its table has no column {missing[0]}")
            statuses = ", ".join(f"'{status}'" for status in STATUSES)
            if odd := self.connection.execute("SELECT status FROM photos WHERE status NOT IN "
                                              f"({statuses}) LIMIT 1").fetchone():
                raise sqlite3.DatabaseError(f"it has the unknown status {odd[0]!r}")
        except sqlite3.DatabaseError as error:
            raise _unreadable(self.path, error) from error

    def __enter__(self) -> "PhotoIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all writing, in a single file that can be copied."""
        with contextlib.suppress(sqlite3.Error):
            self.connection.execute("PRAGMA journal_mode = DELETE")
        self.connection.close()

    def add(self, rows: Iterable[tuple[str, str]]) -> None:
        """Adds pairs of address and photo id as pending, each address once. Raises files.SaveError."""
        rows = list(rows)
        with _explained(self.path):
            self.connection.execute("BEGIN")
            self.connection.executemany("INSERT OR IGNORE INTO photos (url, photo_id) VALUES (?, ?)", rows)
            self.connection.executemany("INSERT OR IGNORE INTO names (url, photo_id) VALUES (?, ?)", rows)
            self.connection.execute("COMMIT")

    def put(self, row: PhotoRow) -> None:
        """Writes an address's row, replacing what it was. Raises files.SaveError."""
        marks = ", ".join("?" * len(_COLUMNS))
        changed = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)
        with _explained(self.path):
            self.connection.execute(
                f"INSERT INTO photos ({_NAMES}) VALUES ({marks}) ON CONFLICT (url) DO UPDATE SET {changed}",
                [getattr(row, name) for name in _COLUMNS])
            self.connection.execute("INSERT OR IGNORE INTO names (photo_id, url) VALUES (?, ?)",
                                    (row.photo_id, row.url))

    def rows(self, statuses: Iterable[str] = ()) -> Iterator[PhotoRow]:
        """All rows, or those of some statuses, in the order in which they were added; read in parts."""
        wanted, last = list(statuses), 0
        where = f"AND status IN ({', '.join('?' * len(wanted))})" if wanted else ""
        while True:
            try:
                part = self.connection.execute(
                    f"SELECT rowid, {_NAMES} FROM photos WHERE rowid > ? {where} ORDER BY rowid LIMIT 1000",
                    (last, *wanted)).fetchall()
            except sqlite3.DatabaseError as error:
                raise _unreadable(self.path, error) from error
            if not part:
                return
            last = part[-1][0]
            yield from (PhotoRow(*values) for _, *values in part)

    def find(self, photo_id: str) -> PhotoRow | None:
        """The best row of a photo: a usable one if any of its addresses has one. None if it is unknown."""
        values = self.connection.execute(
            f"SELECT {', '.join('photos.' + name for name in _COLUMNS)} FROM names JOIN photos USING (url) "
            "WHERE names.photo_id = ? ORDER BY status = 'ok' DESC, status = 'drawn' DESC LIMIT 1",
            (photo_id,)).fetchone()
        return PhotoRow(*values) if values else None

    def counts(self) -> dict[str, int]:
        """How many addresses have each status, the most frequent first."""
        return dict(self.connection.execute(
            "SELECT status, COUNT(*) FROM photos GROUP BY status ORDER BY 2 DESC, 1"))

    def drawn_beside(self) -> int:
        """How many drawn photos stand beside an address of the same photo, which could not be fetched."""
        return self.connection.execute(
            "SELECT COUNT(*) FROM photos AS drawn WHERE status = 'drawn' AND EXISTS (SELECT 1 FROM names "
            "WHERE names.photo_id = drawn.photo_id AND names.url != drawn.url)").fetchone()[0]

    def repeated(self, least: int, most_bytes: int) -> list[tuple[str, int]]:
        """Contents (SHA-256) of at most ``most_bytes`` that ``least`` addresses or more gave, and how many.
        """
        return self.connection.execute(
            "SELECT sha256, COUNT(*) FROM photos WHERE status IN ('ok', 'placeholder') AND bytes <= ? "
            "GROUP BY sha256 HAVING COUNT(*) >= ? AND SUM(status = 'ok') > 0", (most_bytes, least)).fetchall()

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> Any:
        return self.connection.execute(statement, values)


def usable_photos(folder: Path) -> dict[str, PhotoRow]:
    """The fetched and drawn photos of a photo folder with an index, by photo id; fetched ones where both are
    there. Raises DataError."""
    columns = ", ".join("names.photo_id" if name == "photo_id" else f"photos.{name}" for name in _COLUMNS)
    try:
        with contextlib.closing(sqlite3.connect(folder / INDEX)) as connection:
            rows = connection.execute(f"SELECT {columns} FROM names JOIN photos USING (url) "
                                      "WHERE status IN ('ok', 'drawn') ORDER BY status = 'ok', photos.rowid")
            return {row.photo_id: row for row in (PhotoRow(*values) for values in rows)}
    except sqlite3.DatabaseError as error:
        raise _unreadable(folder / INDEX, error) from error


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what SQLite raises while it writes (a full disk, another process that does not end) into ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise files.SaveError(f"could not save {path}: {error}. What it had is kept: free some space, or end "
                              "what else writes it, and the same command goes on") from error
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: sqlite3.DatabaseError) -> DataError | files.SaveError:
    if "readonly" in str(error):
        return files.SaveError(f"could not write to {path}: it is read-only")
    return DataError(f"{path}: not a readable index ({error}); move it away, and `e2e data photos` makes it "
                     "again")
