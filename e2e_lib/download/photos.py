"""Fetching the photos of a list: ``e2e data photos`` (section 3.1.1).

Every address ends with a status of its own in the folder's index, and a run that was cut off goes on with
what has none: at most what was in flight is fetched again. A file has its final name only once it is whole,
was decoded and is named in the index.
"""

import asyncio
import hashlib
import io
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from e2e_lib.data.dialogue import DataError
from e2e_lib.data.photo_index import INDEX, PASSING, STATUSES, PhotoIndex, PhotoRow, Status
from e2e_lib.data.photo_input import FORMATS, MAX_PIXELS, PhotoError, decode_photo, open_photo
from e2e_lib.download.addresses import FetchError
from e2e_lib.download.client import Client, Limits
from e2e_lib.repro import files

AT_ONCE = 64  # addresses in flight
REPEATED, SMALL = 5, 30_000  # as many addresses with the same so few bytes are a placeholder
ALIKE = 30  # so many first addresses failing alike stop the run: it is the network, not the photos
EVERY_SECONDS = 5.0  # between two lines of progress
JPEG_QUALITY = 95
HOSTS = 20  # that a report names
NO_ADDRESS = "photo:"  # begins the place of an address in the index, where none is known
LIMITS = Limits()
MEANINGS = {
    "ok": "here, whole and decoded", "drawn": "not to be had, drawn from its caption",
    "pending": "not asked for yet", "placeholder": "a picture that says that the photo is gone",
    "missing": "the server has none (404, 410)",
    "refused": "not allowed (robots.txt, X-Robots-Tag, 401, 403, 451)",
    "bad_address": "no web address", "private_address": "leads to a private network, not asked",
    "timeout": "not complete in time", "too_large": "too many bytes or pixels",
    "broken": "cut short, or cannot be decoded", "not_a_photo": "something else, such as a page",
    "dns": "its host's name was not found", "network": "the connection failed",
    "redirect_loop": "redirects without end",
    "server_error": "the server was busy or failed, several times"}
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


def read_list(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of address and photo id from JSON lines with "url" and "photo_id". Raises DataError by row."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    url, photo_id = row["url"], row["photo_id"]
                except (ValueError, RecursionError, TypeError, KeyError) as error:
                    raise DataError(f'{path}, row {number}: expected an object with "photo_id" and "url", '
                                    f"found {line[:80]!r} ({type(error).__name__})") from None
                for key, value in (("photo_id", photo_id), ("url", url)):
                    if not isinstance(value, str) or key == "photo_id" and not value:
                        found = f"{value!r:.80}"
                        raise DataError(f"{path}, row {number}, {key}: expected a string, found {found}")
                yield _storable(url), _storable(photo_id)
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror}); expected JSON lines with "photo_id" and '
                        '"url", such as photos.jsonl, which `e2e data build` writes') from None


def _storable(text: str) -> str:
    """Without halves of characters, which cannot be kept in the index."""
    return text.encode("utf-8", "replace").decode()


def fetch(rows: Iterable[tuple[str, str]], folder: Path, echo: Echo, *, limits: Limits = LIMITS,
          size: int = 0, retry: Sequence[str] = (), second_source: str = OPEN_IMAGES) -> dict[str, Any]:
    """Fetches the photos of ``rows`` (address, or "" where none is known, and photo id) into ``folder``.

    ``size`` stores JPEG with a shorter side of at most so many pixels instead of the original bytes.
    Addresses with a status in ``retry`` ("failed" means all that may pass) are tried again. Where an address
    fails and its photo id is one of Open Images, ``second_source`` is asked ("" asks nobody). Returns how
    many "photos" (addresses) there are, with which "statuses", and of the largest "hosts". Raises DataError
    where the first addresses all fail alike, for an unknown status, and files.SaveError.
    """
    if unknown := set(retry) - {"failed", *STATUSES}:
        raise DataError(f"--retry {unknown.pop()!r}: expected failed, or one of {', '.join(STATUSES)}")
    again = [status for name in retry for status in (PASSING if name == "failed" else (name,))]
    start = time.monotonic()
    with PhotoIndex(folder) as index:
        batch: list[tuple[str, str]] = []
        for row in rows:
            batch.append((row[0] or f"{NO_ADDRESS}{row[1]}", row[1]))
            if len(batch) == 5000:
                index.add(batch)
                batch.clear()
        index.add(batch)
        _sweep(folder)
        run = _Run(index, folder, echo, limits, size, second_source)
        try:
            asyncio.run(run.fetch_all(index.rows(("pending", *again))))
        except ExceptionGroup as group:  # of the workers; the first is the cause
            raise group.exceptions[0] from None
        placeholders = mark_placeholders(index)
        statuses, hosts = index.counts(), _by_host(index)
    return {"photos": sum(statuses.values()), "statuses": statuses, "fetched": run.done,
            "placeholders_found": placeholders, "seconds": round(time.monotonic() - start, 1),
            "bytes": run.bytes, "hosts": hosts}


def _by_host(index: PhotoIndex) -> dict[str, dict[str, int]]:
    """How many addresses of the ``HOSTS`` largest hosts have each status."""
    hosts: dict[str, Counter[str]] = {}
    for row in index.rows():
        host = row.url.partition("://")[2].partition("/")[0].rpartition("@")[2] or "(no address)"
        hosts.setdefault(host, Counter())[row.status] += 1
    largest = sorted(hosts, key=lambda host: -hosts[host].total())[:HOSTS]
    return {host: dict(hosts[host].most_common()) for host in largest}


def report_lines(made: Mapping[str, Any]) -> list[str]:
    """What ``fetch`` returned, in words."""
    total, statuses = made["photos"], made["statuses"]
    lines = [f"{total:,} addresses, {made['fetched']:,} asked for in this run, in {made['seconds']:,} s"]
    lines += [f"  {count:>9,}  {100 * count / total:5.1f} %  {name}: {MEANINGS[name]}"
              for name, count in statuses.items()]
    lines += [f"  {host}: {counts.get('ok', 0):,} of {sum(counts.values()):,} fetched"
              for host, counts in made.get("hosts", {}).items()]
    passing = sum(statuses.get(name, 0) for name in PASSING)
    if passing:
        lines.append(f"{passing:,} may succeed another time: --retry failed asks for them again")
    if statuses.get("dns", 0) + statuses.get("network", 0) > 0.2 * total:
        lines.append("More than a fifth failed by name service or connection: it may be this machine's "
                     "network, and not the photos")
    return lines


def kept_in(folder: Path) -> str:
    """What a photo folder has, in words, after an interruption."""
    if not (folder / INDEX).is_file():
        return "nothing was fetched yet"
    with PhotoIndex(folder) as index:
        counts = index.counts()
    kept, waiting = counts.get("ok", 0), counts.get("pending", 0)
    return f"{kept:,} photos are kept in {folder}, {waiting:,} addresses were not asked for yet"


def _sweep(folder: Path) -> None:
    """Removes files that a killed run left half written."""
    for path in folder.glob("*/.*.part"):
        path.unlink(missing_ok=True)


def mark_placeholders(index: PhotoIndex) -> int:
    """Marks photos that are the same small bytes under many addresses as placeholders; returns how many."""
    found = 0
    for digest, count in index.repeated(REPEATED, SMALL):
        found += count
        same = index.execute("SELECT DISTINCT file FROM photos WHERE sha256 = ?", (digest,)).fetchall()
        for (file,) in same:
            (index.folder / file).unlink(missing_ok=True)
        index.execute("UPDATE photos SET status = 'placeholder', file = NULL, reason = ? WHERE sha256 = ?",
                      (f"the same bytes under {count} addresses", digest))
    return found


class _Run:
    """One run over the addresses that have no status yet."""

    def __init__(self, index: PhotoIndex, folder: Path, echo: Echo, limits: Limits, size: int,
                 second_source: str) -> None:
        self.index, self.folder, self.echo, self.limits = index, folder, echo, limits
        self.size, self.second_source = size, second_source
        self.done, self.bytes, self.last_line = 0, 0, time.monotonic()
        self.first, self.is_beginning = Counter[str](), True  # until one does not fail by the network

    async def fetch_all(self, rows: Iterable[PhotoRow]) -> None:
        waiting: asyncio.Queue[PhotoRow | None] = asyncio.Queue(2 * AT_ONCE)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets other threads run while it decodes
            async with Client(self.limits) as client, asyncio.TaskGroup() as tasks:
                workers = [tasks.create_task(self._work(client, pool, waiting)) for _ in range(AT_ONCE)]
                for row in rows:
                    await waiting.put(row)
                for _ in workers:
                    await waiting.put(None)

    async def _work(self, client: Client, pool: ThreadPoolExecutor, waiting: asyncio.Queue[Any]) -> None:
        while (row := await waiting.get()) is not None:
            found = await self._fetch(client, pool, row)
            self.index.put(replace(found, tries=row.tries + 1))
            self.done += 1
            self._report(found.status)

    async def _fetch(self, client: Client, pool: ThreadPoolExecutor, row: PhotoRow) -> PhotoRow:
        """The row with what became of its address, or else of its second source."""
        found = await self._one(client, pool, row, row.url, "downloaded")
        if found.status != "ok" and self.second_source and _OPEN_IMAGES_ID.fullmatch(row.photo_id):
            other = await self._one(client, pool, row, self.second_source.format(photo_id=row.photo_id),
                                    "second source")
            if other.status == "ok":
                return replace(other, reason=f"its own address: {found.status}, {found.reason}")
        return found

    async def _one(self, client: Client, pool: ThreadPoolExecutor, row: PhotoRow, address: str,
                   source: str) -> PhotoRow:
        try:
            if address.startswith(NO_ADDRESS):
                raise FetchError("bad_address", "no address of this photo is known")
            content, _ = await client.photo(address)
            kept = await asyncio.get_running_loop().run_in_executor(pool, examine, content, self.size)
        except FetchError as error:
            return PhotoRow(row.url, row.photo_id, error.status, error.reason, licence=row.licence)
        if isinstance(kept, tuple):
            return PhotoRow(row.url, row.photo_id, *kept, licence=row.licence)
        self.bytes += len(content)
        file = f"{kept.sha256[:2]}/{kept.sha256}.{kept.suffix}"
        write_once(self.folder / file, kept.content)
        return PhotoRow(row.url, row.photo_id, "ok", "", kept.sha256, kept.width, kept.height,
                        len(kept.content), source, row.licence, file)

    def _report(self, status: Status) -> None:
        if status in PASSING and self.is_beginning:
            self.first[status] += 1
            if self.first.total() >= ALIKE:
                found = ", ".join(f"{count} as {name}" for name, count in self.first.most_common())
                raise DataError(f"the first {ALIKE} addresses all failed ({found}): it seems to be this "
                                "machine's network, name service or proxy and not the photos. Nothing is "
                                "lost: the same command with --retry failed goes on")
        else:
            self.is_beginning = False
        if time.monotonic() - self.last_line > EVERY_SECONDS:
            self.last_line = time.monotonic()
            counts = ", ".join(f"{count:,} {name}" for name, count in self.index.counts().items())
            self.echo(f"photos: {counts}")


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
    """Writes a file named after its content, whole or not at all. Raises files.SaveError."""
    if path.exists():
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
