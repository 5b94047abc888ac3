"""A server on this machine with every fault that downloading photos meets; each path's fault is its name."""

import asyncio
import contextlib
import gzip
import io
import struct
import threading
import zlib

from aiohttp import web
from PIL import Image


def jpeg(size=(64, 48), colour=(200, 30, 30), **options):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG", **options)
    return file.getvalue()


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(side=30_000):
    """A PNG of 900 megapixels in about 0.1 MB."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    row = zlib.compress(b"\0" * ((side // 8 + 1) * side), 9)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
            + chunk(b"IDAT", row) + chunk(b"IEND", b""))


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg((64, 48), exif=exif)


GOOD = {
    "good.jpg": jpeg(), "gray.png": encoded(Image.new("L", (20, 30), 9), "PNG"),
    "cmyk.jpg": encoded(Image.new("CMYK", (20, 30)), "JPEG"), "alpha.png": encoded(Image.new("RGBA", (9, 9)), "PNG"),
    "deep.png": encoded(Image.new("I;16", (20, 30), 30000), "PNG"), "turned.jpg": turned(),
    "photo.webp": encoded(Image.new("RGB", (20, 30), "green"), "WEBP"),
    "moving.gif": encoded(Image.new("P", (20, 30)), "GIF", save_all=True, append_images=[Image.new("P", (20, 30), 3)]),
    "trailing.jpg": jpeg(colour=(1, 2, 3)) + b"more bytes", "no-extension": jpeg(colour=(4, 5, 6)),
    "wide.png": encoded(Image.new("RGB", (40_000, 10)), "PNG"), "height:160)": jpeg(colour=(8, 5, 6)),
}
BODIES = {"bomb.png": bomb(), "page.jpg": b"<html>no such photo</html>", "drawing.svg": b"<svg></svg>",
          "empty": b"", "cut.jpg": jpeg((400, 300), quality=95)[:1500], "lying-type": jpeg(colour=(9, 9, 1)),
          "flaky": jpeg(colour=(1, 1, 1)), "busy": jpeg(colour=(2, 2, 2))}
PLACEHOLDER = jpeg((30, 20), (128, 128, 128))
# path: the status that its row must end with
FAULTS = {
    "missing": "missing", "gone": "missing", "forbidden": "refused", "legal": "refused", "noai": "refused",
    "robots/private.jpg": "refused", "flaky": "ok", "busy": "ok", "always-503": "server_error", "loop": "redirect_loop",
    "to-dead-photo": "placeholder", "to-inside": "private_address", "to-file": "bad_address", "to-good": "ok",
    "silent": "timeout", "drip": "timeout", "endless": "too_large", "announced": "too_large", "bomb.png": "too_large",
    "page.jpg": "not_a_photo", "drawing.svg": "not_a_photo", "empty": "broken", "cut.jpg": "broken", "short": "broken",
    "reset": "network", "gzipped": "ok", "lying-type": "ok", **dict.fromkeys(GOOD, "ok"),
    **{f"same/{i}": "placeholder" for i in range(5)},
}


class FaultServer:
    """Serves on ``url`` while in a ``with`` block; ``asked`` counts the requests of each path."""

    def __enter__(self):
        self.asked, ready = {}, threading.Event()

        def run():
            self.loop = asyncio.new_event_loop()
            self.loop.run_until_complete(self._start())
            ready.set()
            self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        ready.wait(10)
        return self

    def __exit__(self, *_):
        async def end():
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    async def _start(self):
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"

    async def _answer(self, request):
        path = request.match_info["path"]
        self.asked[path] = count = self.asked.get(path, 0) + 1
        if path in GOOD:
            return web.Response(body=GOOD[path], content_type="image/jpeg")
        if path.startswith("good/"):  # a photo of its own for each number
            number = int(path[5:])
            return web.Response(body=jpeg((32, 32), (number % 256, number // 256 % 256, 77)))
        if path.startswith("same/"):
            return web.Response(body=PLACEHOLDER)
        if path == "robots.txt":
            return web.Response(text="User-agent: *\nDisallow: /robots/")
        simple = {"missing": 404, "gone": 410, "forbidden": 403, "legal": 451, "always-503": 503}
        if path in simple:
            return web.Response(status=simple[path])
        targets = {"loop": "/loop", "to-dead-photo": "/photo_unavailable_l.png", "to-inside": "http://10.0.0.1/x.jpg",
                   "to-file": "file:///etc/hostname", "to-good": "/good.jpg"}
        if path in targets:
            return web.Response(status=302, headers={"Location": targets[path]})
        if path in ("flaky", "busy") and count == 1:
            return web.Response(status=503 if path == "flaky" else 429,
                                headers={"Retry-After": "0"} if path == "flaky" else {"Retry-After": "1"})
        if path == "noai":
            return web.Response(body=jpeg(), headers={"X-Robots-Tag": "noai, noimageai"})
        if path == "silent":
            await asyncio.sleep(60)
        if path in ("drip", "endless"):
            response = web.StreamResponse()
            with contextlib.suppress(ConnectionError):
                await response.prepare(request)
                while True:
                    await response.write(b"\xff" * (1 if path == "drip" else 1 << 16))
                    await asyncio.sleep(0.05 if path == "drip" else 0)
        if path == "reset":
            request.transport.abort()
        if path == "short":
            response = web.StreamResponse(headers={"Content-Length": "5000"})
            await response.prepare(request)
            await response.write(jpeg()[:300])
            request.transport.close()
            return response
        if path == "gzipped":
            return web.Response(body=gzip.compress(jpeg(colour=(3, 3, 3))), headers={"Content-Encoding": "gzip"})
        if path == "announced":
            response = web.StreamResponse(headers={"Content-Length": str(10**10)})
            await response.prepare(request)
            await response.write(b"\xff")
            return response
        if path in BODIES:
            kind = "text/html" if path == "lying-type" else "image/jpeg"
            return web.Response(body=BODIES[path], content_type=kind)
        return web.Response(status=404)
