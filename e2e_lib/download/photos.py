"""Fetching the photos of a list: ``e2e data photos`` (section 3.1.1).

Every address ends with a status of its own in the folder's index, and a run that was cut off goes on with
what has none: at most what was in flight is fetched again. A file has its final name only once it is whole,
was decoded and is named in the index.
"""

import asyncio
import hashlib
import io
import itertools
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from e2e_lib.data.dialogue import DataError
from e2e_lib.data.photo_index import PASSING, STATUSES, PhotoIndex, PhotoRow, Status
from e2e_lib.data.photo_input import FORMATS, MAX_PIXELS, PhotoError, decode_photo, open_photo
from e2e_lib.download.addresses import FetchError
from e2e_lib.download.client import Client, Limits
from e2e_lib.download.parts import PATIENCE, locked, merge_parts, sweep
from e2e_lib.download.progress import Progress, taken_up
from e2e_lib.download.report import by_host
from e2e_lib.repro import files

AT_ONCE = 64  # addresses in flight
REPEATED, SMALL = 5, 30_000  # as many addresses with the same so few bytes are a placeholder
EVERY_SECONDS = 5.0  # between two lines of progress
SAVED_SECONDS = 0.5  # between two states of a part's progress
JPEG_QUALITY = 95
NO_ADDRESS = "photo:"  # begins the place of an address in the index, where none is known
LIMITS = Limits()
# PhotoChat's photos are of Open Images, whose copy at CVDF is found by subset and id.
OPEN_IMAGES = "https://open-images-dataset.s3.amazonaws.com/{photo_id}.jpg"
_OPEN_IMAGES_ID = re.compile(r"(train|validation|test)/[0-9a-f]{16}")
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif",
            "AVIF": "avif", "JPEG2000": "jp2", "PPM": "ppm"}
Echo = Callable[[str], None]


@dataclass(frozen=True)
class Kept:
    """A decoded photo's file: its content, hash, ending, and size in pixels."""

    content: bytes
    sha256: str
    suffix: str
    width: int
    height: int

    @property
    def file(self) -> str:
        """Its place in a photo folder."""
        return f"{self.sha256[:2]}/{self.sha256}.{self.suffix}"


@dataclass(frozen=True)
class Options:
    """How each photo is fetched, as ``fetch`` has it; ``decoders`` threads decode (0: one a core)."""

    limits: Limits = LIMITS
    size: int = 0
    second_source: str = OPEN_IMAGES
    decoders: int = 0


# Fetches what has one of these statuses in an index; returns what was done, and more for the report.
Runner = Callable[[PhotoIndex, Sequence[str], Options, Echo], tuple[Progress, dict[str, Any]]]


def read_list(path: Path, redact: bool = False) -> Iterator[tuple[str, str]]:
    """Pairs of address and photo id from JSON lines with "url" and "photo_id". Raises DataError by row; with
    ``redact``, one that repeats nothing of what the row says."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    url, photo_id = row["url"], row["photo_id"]
                except (ValueError, RecursionError, TypeError, KeyError) as error:
                    found = "" if redact else f" {line[:80]!r}"
                    raise DataError(f'{path}, row {number}: expected an object with "photo_id" and "url", '
                                    f"found{found} ({type(error).__name__})") from None
                for key, value in (("photo_id", photo_id), ("url", url)):
                    if not isinstance(value, str) or key == "photo_id" and not value:
                        found = type(value).__name__ if redact else f"{value!r:.80}"
                        raise DataError(f"{path}, row {number}, {key}: expected a string, found {found}")
                yield _storable(url), _storable(photo_id)
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror}); expected JSON lines with "photo_id" and '
                        '"url", such as photos.jsonl, which `e2e data build` writes') from None


def _storable(text: str) -> str:
    """Without halves of characters, which cannot be kept in the index."""
    return text.encode("utf-8", "replace").decode()


def fetch(rows: Iterable[tuple[str, str]], folder: Path, echo: Echo, *, limits: Limits = LIMITS,
          size: int = 0, retry: Sequence[str] = (), second_source: str = OPEN_IMAGES, redact: bool = False,
          run: Runner | None = None) -> dict[str, Any]:
    """Fetches the photos of ``rows`` (address, or "" where none is known, and photo id) into ``folder``.

    ``size`` stores JPEG with a shorter side of at most so many pixels instead of the original bytes.
    Addresses with a status in ``retry`` ("failed" means all that may pass) are tried again. Where an address
    fails and its photo id is one of Open Images, ``second_source`` is asked ("" asks nobody). ``run`` does
    the work elsewhere than here, see ``cluster.connected``; what a killed run left in parts is taken over.
    Returns how many "photos" (addresses) there are, with which "statuses", and of the largest "hosts", which
    ``redact`` numbers instead of naming them. Raises DataError where the first addresses all fail alike, for
    an unknown status, and where another run is at work in the folder; and files.SaveError. It runs an event
    loop: call it in a thread where one runs already, as in a notebook.
    """
    again = _statuses_of(retry)
    _check_second_source(second_source)
    start, rows = time.monotonic(), iter(rows)
    first = list(itertools.islice(rows, 1))  # where the list cannot be read, nothing is made
    with locked(folder), PhotoIndex(folder) as index:
        merge_parts(index)
        _add(index, itertools.chain(first, rows))
        sweep(folder)
        options = Options(limits, size, second_source)
        progress, more = (run or run_here)(index, ("pending", *again), options, echo)
        placeholders = mark_placeholders(index)
        statuses, hosts = index.counts(), by_host(index, redact)
        drawn_beside = index.drawn_beside()
    return {"photos": sum(statuses.values()) - drawn_beside, "statuses": statuses, "fetched": progress.done,
            "placeholders_found": placeholders, "seconds": round(time.monotonic() - start, 1),
            "bytes": progress.bytes, "hosts": hosts, **more}


def _statuses_of(retry: Sequence[str]) -> list[str]:
    if unknown := set(retry) - {"failed", *STATUSES}:
        raise DataError(f"--retry {unknown.pop()!r}: expected failed, or one of {', '.join(STATUSES)}")
    return [status for name in retry for status in (PASSING if name == "failed" else (name,))]


def _check_second_source(address: str) -> None:
    try:
        address.format(photo_id="train/0")
    except (KeyError, IndexError, ValueError, AttributeError):
        raise DataError("--second-source: expected an address with {photo_id} where the id belongs, and no "
                        "other { or }") from None


def _add(index: PhotoIndex, rows: Iterable[tuple[str, str]]) -> None:
    batch: list[tuple[str, str]] = []
    for url, photo_id in rows:
        batch.append((url or f"{NO_ADDRESS}{photo_id}", photo_id))
        if len(batch) == 5000:
            index.add(batch)
            batch.clear()
    index.add(batch)


def run_here(index: PhotoIndex, statuses: Sequence[str], options: Options,
             echo: Echo) -> tuple[Progress, dict[str, Any]]:
    """Fetches what has one of the ``statuses``, in this process, and says in between how far it is."""
    last = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal last
        progress.check_network()
        if time.monotonic() - last > EVERY_SECONDS:
            last = time.monotonic()
            echo(f"photos: {', '.join(f'{count:,} {name}' for name, count in index.counts().items())}")

    progress = Progress()
    _Run(index, options, progress, tell).fetch(statuses)
    return progress, {}


def fetch_part(folder: Path, options: Options) -> None:
    """Fetches what is pending in one part of a photo folder; goes on where an earlier try of it stopped.

    Whether everything fails alike is for the one who watches all parts to see, in the progress saved here.
    """
    with locked(folder, PATIENCE), PhotoIndex(folder) as index:
        sweep(folder)
        last, progress = time.monotonic(), taken_up(index)

        def tell(progress: Progress) -> None:
            nonlocal last
            if time.monotonic() - last > SAVED_SECONDS:
                last = time.monotonic()
                progress.save(folder)

        _Run(index, options, progress, tell).fetch(("pending",))
        progress.save(folder)


def mark_placeholders(index: PhotoIndex) -> int:
    """Marks photos that are the same small bytes under many addresses as placeholders; returns how many."""
    found = 0
    for digest, count in index.repeated(REPEATED, SMALL):
        found += count
        same = index.execute("SELECT DISTINCT file FROM photos WHERE file IS NOT NULL AND sha256 = ?",
                             (digest,)).fetchall()
        for (file,) in same:
            (index.folder / file).unlink(missing_ok=True)
        index.execute("UPDATE photos SET status = 'placeholder', file = NULL, reason = ? WHERE sha256 = ?",
                      (f"the same bytes under {count} addresses", digest))
    return found


class _Run:
    """One run over the addresses of an index; ``tell`` hears of ``progress`` after each of them."""

    def __init__(self, index: PhotoIndex, options: Options, progress: Progress,
                 tell: Callable[[Progress], None]) -> None:
        self.index, self.folder, self.options = index, index.folder, options
        self.progress, self.tell = progress, tell

    def fetch(self, statuses: Sequence[str]) -> None:
        """Asks for all addresses that have one of these statuses."""
        try:
            asyncio.run(self._fetch_all(self.index.rows(statuses)))
        except ExceptionGroup as group:  # of the workers; the first is the cause
            raise group.exceptions[0] from None

    async def _fetch_all(self, rows: Iterable[PhotoRow]) -> None:
        waiting: asyncio.Queue[PhotoRow | None] = asyncio.Queue(2 * AT_ONCE)
        threads = self.options.decoders or os.cpu_count()
        with ThreadPoolExecutor(threads) as pool:  # Pillow lets other threads run while it decodes
            async with Client(self.options.limits) as client, asyncio.TaskGroup() as tasks:
                workers = [tasks.create_task(self._work(client, pool, waiting)) for _ in range(AT_ONCE)]
                for row in rows:
                    await waiting.put(row)
                for _ in workers:
                    await waiting.put(None)

    async def _work(self, client: Client, pool: ThreadPoolExecutor, waiting: asyncio.Queue[Any]) -> None:
        while (row := await waiting.get()) is not None:
            found = await self._fetch(client, pool, row)
            is_here = row.file is not None and (self.folder / row.file).is_file()
            if found.status == "ok" or not is_here:  # a photo that is here stays, whatever a retry gives
                self.index.put(replace(found, tries=row.tries + 1))
            self.progress.statuses[found.status] += 1
            self.tell(self.progress)

    async def _fetch(self, client: Client, pool: ThreadPoolExecutor, row: PhotoRow) -> PhotoRow:
        """The row with what became of its address, or else of its second source."""
        found = await self._one(client, pool, row, row.url, "downloaded")
        template = self.options.second_source
        if found.status != "ok" and template and _OPEN_IMAGES_ID.fullmatch(row.photo_id):
            other = await self._one(client, pool, row, template.format(photo_id=row.photo_id),
                                    "second source")
            if other.status == "ok":
                return replace(other, reason=f"its own address: {found.status}, {found.reason}")
        return found

    async def _one(self, client: Client, pool: ThreadPoolExecutor, row: PhotoRow, address: str,
                   source: str) -> PhotoRow:
        try:
            if address.startswith(NO_ADDRESS):
                raise FetchError("bad_address", "no address of this photo is known")
            content, _ = await client.photo(address, is_own=source == "downloaded")
            kept = await asyncio.get_running_loop().run_in_executor(pool, keep, content, self.folder,
                                                                    self.options.size)
        except FetchError as error:
            return PhotoRow(row.url, row.photo_id, error.status, error.reason, licence=row.licence)
        if isinstance(kept, tuple):
            return PhotoRow(row.url, row.photo_id, *kept, licence=row.licence)
        self.progress.bytes += len(content)
        return PhotoRow(row.url, row.photo_id, "ok", "", kept.sha256, kept.width, kept.height,
                        len(kept.content), source, row.licence, kept.file)


def keep(content: bytes, folder: Path, size: int = 0) -> Kept | tuple[Status, str]:
    """As ``examine``, and writes the file as well. Raises files.SaveError."""
    kept = examine(content, size)
    if isinstance(kept, Kept):
        write_once(folder / kept.file, kept.content)
    return kept


def examine(content: bytes, size: int = 0) -> Kept | tuple[Status, str]:
    """A photo's file to keep, or its status and the reason why there is none. Decodes it whole.

    ``size`` 0 keeps the original bytes, else it is the largest shorter side in pixels of the JPEG to keep.
    """
    if not content:
        return "broken", "no bytes at all"
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as header:
            width, height = header.size
            kind, turned = str(header.format), header.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            if width * height > MAX_PIXELS:
                return "too_large", f"{width} x {height} pixels, more than {MAX_PIXELS:,}"
        if size and kind == "JPEG":
            image = _drafted(content, size)
        else:
            image = decode_photo(io.BytesIO(content), "photo")
    except Image.DecompressionBombError:
        return "too_large", f"more than {MAX_PIXELS:,} pixels"
    except Image.UnidentifiedImageError:
        return "not_a_photo", f"begins with {content[:16]!r}"
    except (PhotoError, OSError, ValueError, SyntaxError, MemoryError) as error:
        return "broken", str(getattr(error, "reason", error))[:200]
    if not size:
        width, height = (height, width) if turned else (width, height)
        return Kept(content, hashlib.sha256(content).hexdigest(), SUFFIXES.get(kind, "bin"), width, height)
    scale = size / min(image.size)
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))),
                             Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return Kept(encoded.getvalue(), hashlib.sha256(encoded.getvalue()).hexdigest(), "jpg", *image.size)


def _drafted(content: bytes, size: int) -> Image.Image:
    """A JPEG, decoded at an eighth, a quarter or half its size where that is still at least ``size``."""
    file = io.BytesIO(content)
    with Image.open(file, formats=("JPEG",)) as image:
        image.draft("RGB", (2 * size, 2 * size))
        image.load()
        return open_photo(image)


def write_once(path: Path, content: bytes) -> None:
    """Writes a file named after its content, whole or not at all, unless it is there. Raises files.SaveError.
    """
    if path.exists() and path.stat().st_size == len(content):  # one that was cut short is written again
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        with open(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise files.SaveError(error.errno, f"could not save {path}: {error.strerror}. Nothing is lost: free "
                              "some space, and the same command goes on") from error
