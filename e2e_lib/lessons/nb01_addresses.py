"""Notebook 01's web server, on this machine: photos as their addresses age, each of a known fate.

It stands in for the web, so that the real downloader can be watched without asking anybody for anything.
"""

import functools
import io
import random
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from PIL import Image

from e2e_lib.data.minichat.chats import photo_seed
from e2e_lib.data.minichat.scenes import draw_scene
from e2e_lib.data.photo_index import INDEX, PhotoIndex
from e2e_lib.download.client import Limits
from e2e_lib.download.photos import fetch
from e2e_lib.lessons.nb01_corpus import scene_of

# Two tries at a busy server and 4 s for a photo; all of one machine, so that no pace has to be kept.
LIMITS = Limits(seconds=4.0, tries=2, per_host=64, host_rate=10_000.0, allow_loopback=True)
PHOTO_SIDE = 64  # pixels


@dataclass(frozen=True)
class Fate:
    """What the server does at an address: in ``words``, of ``share`` in 100 addresses; the HTTP status that
    ``ends`` it for who follows redirects (0: none in time), and the index's status after the ``first`` visit
    and ``later``, when passing failures were asked for again."""

    words: str
    share: int
    ends: int
    first: str
    later: str


FATES = {
    "good": Fate("a photo", 58, 200, "ok", "ok"),
    "hiccup": Fate("500 once, then a photo", 4, 500, "ok", "ok"),
    "busy": Fate("503 on the first day, later a photo", 6, 503, "server_error", "ok"),
    "down": Fate("503 always", 2, 503, "server_error", "server_error"),
    "slow": Fate("no answer on the first day, later a photo", 4, 0, "timeout", "ok"),
    "missing": Fate("404, not found", 7, 404, "missing", "missing"),
    "gone": Fate("410, gone", 3, 410, "missing", "missing"),
    "placeholder": Fate("200 and the picture “photo unavailable”", 5, 200, "placeholder", "placeholder"),
    "moved": Fate("302 to the picture “photo unavailable”", 4, 200, "placeholder", "placeholder"),
    "page": Fate("200 and an HTML page", 3, 200, "not_a_photo", "not_a_photo"),
    "cut": Fate("200 and a JPEG cut in the middle", 2, 200, "broken", "broken"),
    "private": Fate("robots.txt asks programs to stay away", 2, 200, "refused", "refused")}
UNAVAILABLE = "/photo_unavailable.png"
ROBOTS = b"User-agent: *\nDisallow: /private/\n"


def choose_fates(photo_ids: Sequence[str], seed: int = 0) -> dict[str, str]:
    """A fate for each photo, in the shares of ``FATES``, mixed."""
    names = [name for name, fate in FATES.items() for _ in range(fate.share)]
    mixed = [names[i * len(names) // len(photo_ids)] for i in range(len(photo_ids))]
    random.Random(seed).shuffle(mixed)
    return dict(zip(photo_ids, mixed, strict=True))


@functools.cache
def photo_bytes(photo_id: str) -> bytes:
    """The JPEG file of a made-up photo: a drawing of its scene."""
    return _encoded(draw_scene(scene_of(photo_id), photo_seed(photo_id, 0), PHOTO_SIDE), "JPEG")


@functools.cache
def placeholder_bytes() -> bytes:
    """The picture that stands for every photo that is gone."""
    return _encoded(Image.new("RGB", (PHOTO_SIDE, PHOTO_SIDE), "#dddddd"), "PNG")


def _encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


class PhotoServer:
    """Serves on loopback from its making until ``close``, with the fate that an address names.

    It is the first day until ``next_day`` is called.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.is_first_day, self.closed = True, threading.Event()
        self.http = _Http(("127.0.0.1", 0), functools.partial(_Answer, self))
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def address(self, photo_id: str, fate: str) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/{fate}/{quote(photo_id)}.jpg"

    def addresses(self, fates: Mapping[str, str]) -> list[tuple[str, str]]:
        """Pairs of address and photo id, as ``fetch`` takes them."""
        return [(self.address(photo_id, fate), photo_id) for photo_id, fate in fates.items()]

    def next_day(self) -> None:
        self.is_first_day = False

    def close(self) -> None:
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path: str) -> tuple[int, bytes]:
        """The HTTP status and body for a path. Says nothing for as long as the server lives where it is
        slow."""
        fate, _, name = path.strip("/").partition("/")
        photo = photo_bytes(unquote(name).removesuffix(".jpg")) if fate in FATES else b""
        self.asked[path] += 1
        if fate == "slow" and self.is_first_day:
            self.closed.wait()
        if fate == "down" or fate == "busy" and self.is_first_day:
            return 503, b""
        if fate == "hiccup" and self.asked[path] == 1:
            return 500, b""
        bodies = {"placeholder": placeholder_bytes(), "page": b"<html>This photo has moved.</html>",
                  "cut": photo[:len(photo) // 2], "robots.txt": ROBOTS, UNAVAILABLE[1:]: placeholder_bytes()}
        if fate in bodies:
            return 200, bodies[fate]
        return {"missing": 404, "gone": 410, "moved": 302}.get(fate, 200 if photo else 404), photo


class _Http(ThreadingHTTPServer):
    request_queue_size, daemon_threads, block_on_close = 128, True, False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a visitor that left before the answer is no trouble of the lesson's."""


class _Answer(BaseHTTPRequestHandler):
    def __init__(self, server: PhotoServer, *arguments: Any) -> None:
        self.photos = server
        super().__init__(*arguments)

    def do_GET(self) -> None:
        status, body = self.photos.answer(self.path)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", UNAVAILABLE)
        self.send_header("Content-Type", "image/jpeg")  # also before the page: servers do that
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: who visits is no part of the notebook."""


def visit(addresses: Iterable[tuple[str, str]], folder: Path, retry: Sequence[str] = ()) -> Counter[str]:
    """Fetches with the project's own downloader; returns how many addresses have which status then.

    A notebook's own event loop is running already, so that the downloader's gets a thread to itself.
    """
    with ThreadPoolExecutor(1) as thread:
        thread.submit(fetch, list(addresses), folder, lambda line: None, limits=LIMITS, retry=retry,
                      second_source="").result()
    return statuses(folder)


def statuses(folder: Path) -> Counter[str]:
    """How many addresses of a photo folder have which status; none where nothing was asked for."""
    if not (folder / INDEX).is_file():
        return Counter()
    with PhotoIndex(folder) as index:
        return Counter(index.counts())


def as_made(folder: Path, fates: Mapping[str, str]) -> int:
    """Of how many addresses the status is, after both visits, the one that their fate is made for."""
    with PhotoIndex(folder) as index:
        return sum(row.status == FATES[fates[row.photo_id]].later for row in index.rows())
