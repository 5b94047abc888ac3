"""A photo folder's addresses in several parts, for as many processes, and back into its one index.

A part is a photo folder of its own below ``parts/``, with its own index, which only the process that works on
it opens. Parts that a run leaves behind when it is killed are merged by the next one: at most what was in
flight is fetched again. Nothing here knows how or where the processes run.
"""

import contextlib
import fcntl
import heapq
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e_lib.data.dialogue import DataError
from e2e_lib.data.photo_index import INDEX, PhotoIndex, PhotoRow
from e2e_lib.download.addresses import host_of
from e2e_lib.repro import files

PARTS = "parts"
LOCK = ".lock"
PATIENCE = 60.0  # seconds until a process that was told to end has ended, on another node perhaps


@dataclass(frozen=True)
class Split:
    """The parts' ``folders``, how many addresses each has, and how many a ``fair`` one would have; ``large``
    has the numbers of addresses of hosts that have more than that, and stay whole."""

    folders: list[Path]
    counts: list[int]
    fair: int
    large: list[int]


def shards_of(counts: Mapping[str, int], number: int) -> dict[str, int]:
    """The shard, from 0 to at most ``number`` - 1, of each host, by how many addresses the hosts have.

    A host is never divided, so that its pace can be kept. The largest come first, each into the shard with
    the fewest addresses so far; the same counts always give the same shards, none of them empty.
    """
    loads = [(0, shard) for shard in range(number)]
    shards: dict[str, int] = {}
    for host in sorted(counts, key=lambda host: (-counts[host], host)):
        load, shard = loads[0]
        shards[host] = shard
        heapq.heapreplace(loads, (load + counts[host], shard))
    return shards


def write_parts(index: PhotoIndex, statuses: Sequence[str], number: int) -> Split:
    """Writes the addresses with one of the ``statuses`` as pending into at most ``number`` parts, by host."""
    counts = Counter(host_of(row.url) for row in index.rows(statuses))
    shards = shards_of(counts, number)
    fair = -(-counts.total() // number)
    folders = [index.folder / PARTS / f"{shard:03d}" for shard in sorted(set(shards.values()))]
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(PhotoIndex(folder)) for folder in folders]
        for part in parts:
            part.execute("BEGIN")
        for row in index.rows(statuses):
            parts[shards[host_of(row.url)]].put(
                PhotoRow(row.url, row.photo_id, licence=row.licence, tries=row.tries))
        for part in parts:
            part.execute("COMMIT")
    sizes = Counter[int]()
    for host, shard in shards.items():
        sizes[shard] += counts[host]
    return Split(folders, [sizes[shard] for shard in sorted(sizes)], fair,
                 [count for _, count in counts.most_common() if count > fair])


def merge_parts(index: PhotoIndex, patience: float = PATIENCE) -> int:
    """Takes the rows and files of all parts into the folder of ``index``, removes the parts, and returns how
    many rows came. Raises DataError where another process still writes to one, and files.SaveError."""
    taken = 0
    for folder in sorted(path for path in (index.folder / PARTS).glob("*") if path.is_dir()):
        with locked(folder, patience):
            if (folder / INDEX).is_file():
                taken += _merge(index, folder)
            shutil.rmtree(folder)
    shutil.rmtree(index.folder / PARTS, ignore_errors=True)
    return taken


def _merge(index: PhotoIndex, folder: Path) -> int:
    taken = 0
    try:
        with PhotoIndex(folder) as part:
            index.execute("BEGIN")  # files are moved before rows are there: no row is without its file
            for row in part.rows():
                if _is_better(index, row) and (row.file is None or _move(folder, index.folder, row.file)):
                    index.put(row)
                    taken += 1
            index.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        raise DataError(f"{folder / INDEX}: not a readable index ({error}); remove {folder}, and what it "
                        "had is asked for again") from error
    except files.SaveError:
        raise
    except OSError as error:
        raise files.SaveError(error.errno, f"could not move the photos of {folder} to {index.folder}: "
                              f"{error.strerror}. Nothing is lost: the same command goes on") from error
    return taken


def _is_better(index: PhotoIndex, row: PhotoRow) -> bool:
    """Whether a part's row takes the place of the index's: a photo stays, and else the later news count."""
    if row.status in ("pending", "ok"):
        return row.status == "ok"
    old = index.execute("SELECT status FROM photos WHERE url = ?", (row.url,)).fetchone()
    return old is None or old[0] not in ("ok", "drawn")


def _move(source: Path, target: Path, file: str) -> bool:
    """Moves a photo's file, of which one folder or both may have a copy; False where neither has."""
    old, new = source / file, target / file
    if new.exists():
        return True  # named after its content: the same photo
    new.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.replace(old, new)
    return new.exists()


def sweep(folder: Path) -> None:
    """Removes files that a killed run left half written."""
    for path in folder.glob("*/.*.part"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Keeps a photo folder to this process, however that ends. Raises DataError where another one has it for
    ``patience`` seconds more, and files.SaveError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "w")
    except OSError as error:
        raise files.SaveError(error.errno, f"could not write to {folder}: {error.strerror}") from error
    end = time.monotonic() + patience
    with lock:
        while not _lock(lock.fileno()):
            if time.monotonic() > end:
                raise DataError(f"{folder}: another run is at work there; let it end, or end it, first")
            time.sleep(0.05)
        yield


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: there, runs cannot be kept apart
        return True
    return True
