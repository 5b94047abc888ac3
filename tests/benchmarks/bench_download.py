"""How fast photos are fetched from a server on this machine, against decoding the same photos alone, and threads of urllib.

The server is a process of its own and its photos are noise of 480 x 360 pixels, all different (E2E_DOWNLOAD_PHOTOS of them,
400 if nothing is said). "Decoding alone" is what each photo has to go through to be kept, on as many threads as fetching
has; urllib's threads keep the bytes and look at nothing. Prints one JSON line.
"""

import hashlib
import io
import json
import multiprocessing
import os
import resource
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from e2e_lib.download.client import Limits
from e2e_lib.download.photos import AT_ONCE, examine, fetch, write_once

COUNT = int(os.environ.get("E2E_DOWNLOAD_PHOTOS", "400"))
ROUNDS = 3
SIZE = 256  # of the photos kept, where they are made smaller


def photos(count):
    noise = np.random.default_rng(0)
    for _ in range(count):
        small = Image.fromarray(noise.integers(0, 256, (45, 60, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((480, 360), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        yield file.getvalue()


def serve(port):
    """Sends the port through ``port``, and photos to whoever asks, for ever."""
    content = list(photos(COUNT))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            body = content[int(self.path.rpartition("/")[2])]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer.request_queue_size = 2 * AT_ONCE  # or it resets connections when busy
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_address[1])
    server.serve_forever()


def timed(work):
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def measure(base, content, folder):
    urls = [f"{base}{i}" for i in range(COUNT)]
    limits = Limits(host_rate=1e6, per_host=AT_ONCE, allow_loopback=True, robots=False)

    def fetching(name, size):
        def work():
            report = fetch([(url, url) for url in urls], folder / name, lambda _: None, limits=limits, size=size)
            assert report["statuses"] == {"ok": COUNT}
        return work

    def decoding(size):
        def work():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                assert all(kept.content for kept in pool.map(lambda photo: examine(photo, size), content))
        return work

    def urllib_threads():
        def one(url):
            with urllib.request.urlopen(url) as answer:
                body = answer.read()
            write_once(folder / "urllib" / hashlib.sha256(body).hexdigest(), body)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(one, urls))

    return {"fetch": timed(fetching("whole", 0)), "fetch_smaller": timed(fetching("smaller", SIZE)),
            "decoding": timed(decoding(0)), "decoding_smaller": timed(decoding(SIZE)), "urllib": timed(urllib_threads)}


def main() -> None:
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    content, base, best = list(photos(COUNT)), f"http://127.0.0.1:{here.recv()}/", {}
    for _ in range(ROUNDS):  # all in turn: what else the machine does is the same for each
        with tempfile.TemporaryDirectory() as folder:
            for name, found in measure(base, content, Path(folder)).items():
                best[name] = min(best.get(name, found), found)
    server.terminate()
    wall = {name: seconds for name, (seconds, _) in best.items()}
    print(json.dumps({
        "benchmark": "download", "photos": COUNT, "mean_bytes": sum(map(len, content)) // COUNT,
        "photos_per_second": {name: round(COUNT / seconds) for name, seconds in wall.items()},
        "photos_per_cpu_second": {name: round(COUNT / cpu) for name, (_, cpu) in best.items()},
        "over_decoding_alone": round(wall["fetch"] / wall["decoding"], 2),
        "over_decoding_alone_smaller": round(wall["fetch_smaller"] / wall["decoding_smaller"], 2),
        "over_urllib_threads": round(wall["fetch"] / wall["urllib"], 2),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


if __name__ == "__main__":
    main()
