import hashlib
import os
import random
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from fault_server import FAULTS, FaultServer, jpeg
from PIL import Image

from e2e_lib.data.dialogue import DataError
from e2e_lib.data.photo_index import PhotoIndex
from e2e_lib.download.client import Limits
from e2e_lib.download.photos import examine, fetch, read_list, write_once
from e2e_lib.download.progress import ALIKE

LIMITS = Limits(seconds=2, bytes=3_000_000, tries=2, host_rate=1000, longest_pause=0.1, allow_loopback=True)


@pytest.fixture(scope="module")
def server():
    with FaultServer() as running:
        yield running


def get(server, folder, paths, **options):
    options = {"limits": LIMITS, **options}
    return fetch([(server.url + path, path) for path in paths], folder, lambda _: None, **options)


def rows_of(folder):
    with PhotoIndex(folder) as index:
        return {row.photo_id: row for row in index.rows()}


def test_every_fault_ends_in_a_status_of_its_own_and_every_good_photo_is_there(server, tmp_path):
    report = get(server, tmp_path, FAULTS)
    rows = rows_of(tmp_path)
    assert {path: row.status for path, row in rows.items()} == FAULTS
    assert report["statuses"] == {status: list(FAULTS.values()).count(status) for status in set(FAULTS.values())}
    for row in rows.values():
        assert row.reason or row.status == "ok", row
        assert (row.file is not None) == (row.status == "ok")
        if row.file:
            content = (tmp_path / row.file).read_bytes()
            assert row.sha256 == hashlib.sha256(content).hexdigest() in row.file and row.bytes == len(content)
            with Image.open(tmp_path / row.file) as image:
                image.load()
                assert {row.width, row.height} == set(image.size)
    assert (rows["turned.jpg"].width, rows["turned.jpg"].height) == (48, 64)  # as it is looked at
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
    assert kept == {row.file for row in rows.values() if row.file}


def test_a_second_run_asks_for_nothing_and_a_retry_only_for_what_may_pass(server, tmp_path):
    paths = ["good.jpg", "missing", "always-503"]
    get(server, tmp_path, paths)
    before = dict(server.asked)
    assert get(server, tmp_path, paths)["fetched"] == 0
    assert server.asked == before
    assert get(server, tmp_path, paths, retry=["failed"])["fetched"] == 1
    assert server.asked["missing"] == before["missing"] and server.asked["always-503"] > before["always-503"]
    assert rows_of(tmp_path)["always-503"].tries == 2


def test_one_address_is_fetched_once_and_one_content_is_kept_once(server, tmp_path):
    before = server.asked.get("good.jpg", 0)
    url = server.url + "good.jpg"
    fetch([(url, "a"), (url, "b"), (url + "?again", "c")], tmp_path, lambda _: None, limits=LIMITS)
    assert server.asked["good.jpg"] == before + 2
    with PhotoIndex(tmp_path) as index:
        assert len({index.find(name).file for name in "abc"}) == 1
    assert len(list(tmp_path.glob("*/*.jpg"))) == 1


def test_a_photo_of_open_images_that_is_gone_comes_from_the_second_source(server, tmp_path):
    name = "train/4beacc71024f8b08"
    fetch([(server.url + "missing", name), (server.url + "gone", "flickr/1_a")], tmp_path, lambda _: None,
          limits=LIMITS, second_source=server.url + "good.jpg?{photo_id}")
    rows = rows_of(tmp_path)
    assert (rows[name].status, rows[name].source) == ("ok", "second source") and "missing" in rows[name].reason
    assert rows["flickr/1_a"].status == "missing"


def test_a_run_ends_early_where_everything_fails_alike(tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # asking the machine's own takes seconds
    rows = [(f"http://photos{i}.invalid/{i}.jpg", str(i)) for i in range(3 * ALIKE)]
    with pytest.raises(DataError, match="all failed .30 as dns.*network"):
        fetch(rows, tmp_path, lambda _: None, limits=replace(LIMITS, robots=False))
    with PhotoIndex(tmp_path) as index:
        assert index.counts()["dns"] >= ALIKE


@pytest.mark.parametrize("address", [
    "ftp://example.org/a.jpg", "data:image/png;base64,xx", "file:///etc/passwd", "", "example.org/a.jpg", "http://",
    "http://user:word@example.org/a.jpg", "https://images.example.company%20by/a.jpg", "http://999.1.1.1/a.jpg",
    "http://[::1", "http://example.org:99999/a.jpg"])
def test_what_is_no_address_is_told_before_any_request(address, tmp_path):
    fetch([(address, "x")], tmp_path, lambda _: None, limits=LIMITS)
    assert rows_of(tmp_path)["x"].status == "bad_address", rows_of(tmp_path)["x"]


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "[::1]", "0.0.0.0",
                                  "[::ffff:127.0.0.1]", "[fe80::1]", "[64:ff9b::7f00:1]", "localhost", "0x7f.1",
                                  "224.0.0.1", "100.64.0.1", "[2002:7f00:1::]"])
def test_a_machine_of_ones_own_network_is_never_asked(host, tmp_path):
    fetch([(f"http://{host}/a.jpg", "x")], tmp_path, lambda _: None, limits=replace(LIMITS, allow_loopback=False))
    assert rows_of(tmp_path)["x"].status == "private_address", rows_of(tmp_path)["x"]


def test_a_smaller_photo_is_upright_and_of_the_size_asked_for():
    exif = Image.Exif()
    exif[0x0112] = 6
    kept = examine(jpeg((900, 600), exif=exif, quality=95), 200)
    assert (kept.width, kept.height, kept.suffix) == (200, 300, "jpg")
    assert examine(jpeg((90, 60)), 200).width == 90  # never made larger


@pytest.mark.parametrize("line, message", [
    ("[1]", "row 2"), ('{"photo_id": "a"}', "row 2"), ('{"photo_id": 3, "url": "x"}', "row 2, photo_id"),
    ('{"photo_id": "a", "url": null}', "row 2, url"), ("{", "row 2"), ("[" * 100_000, "row 2")])
def test_a_row_of_a_list_that_is_none_is_named(line, message, tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"photo_id": "a", "url": "http://x/1"}\n' + line + "\n")
    with pytest.raises(DataError, match=f"list.jsonl, {message}"):
        list(read_list(path))


def test_a_list_may_have_a_byte_order_mark_blank_lines_and_half_characters(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"photo_id": "a", "url": "u"}\r\n\r\n{"photo_id": "\\ud83d", "url": "v"}')
    assert list(read_list(path)) == [("u", "a"), ("v", "?")]


# Imports once, runs one download to its end, and then each in a fork of its own, which it kills after a part of the time
# that the first one took, and prints how it ended. The one that kills is the one that waits: until then the number
# belongs to the fork, even if it has ended by itself.
RUNNER = """
import os, signal, sys, time, types
from pathlib import Path
# Photos may also come as tensors, but not here, and importing torch takes longer than all downloads.
sys.modules["torch"] = types.ModuleType("torch")
sys.modules["torch"].Tensor = type("Tensor", (), {})
from e2e_lib.download.client import Limits
from e2e_lib.download.photos import fetch
base, count = sys.argv[1], int(sys.argv[2])
whole = 0
for line in sys.stdin:
    moment, folder = line.rstrip().split(" ", 1)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        fetch([(f"{base}good/{i}", str(i)) for i in range(count)], Path(folder), lambda _: None,
              limits=Limits(host_rate=800, allow_loopback=True))
        os._exit(0)
    if whole:
        time.sleep(float(moment) * whole)
        os.kill(child, signal.SIGKILL)
    ended = os.waitpid(child, 0)[1]
    whole = whole or time.monotonic() - began
    print(ended, flush=True)
"""
KILLS, PHOTOS = int(os.environ.get("E2E_KILLS", "20")), 40


def test_kills_at_any_moment_lose_nothing_and_leave_no_half_file(server, tmp_path):
    """Killed again and again at random moments, a run still ends with every photo, each whole."""
    rng, kills, rounds, folder = random.Random(0), 0, 0, tmp_path / "0"
    with subprocess.Popen([sys.executable, "-c", RUNNER, server.url, str(PHOTOS)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as runner:
        while kills < KILLS:
            runner.stdin.write(f"{rng.random()} {folder}\n")
            runner.stdin.flush()
            was_killed = int(runner.stdout.readline()) != 0
            kills, rounds = kills + was_killed, rounds + 1
            for path in folder.glob("*/[0-9a-f]*.jpg"):
                assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
            if (folder / "index.sqlite").exists():
                for row in rows_of(folder).values():
                    assert row.status in ("pending", "ok") and (row.status == "pending" or (folder / row.file).exists())
            if not was_killed or kills == KILLS:
                get(server, folder, [f"good/{i}" for i in range(PHOTOS)])
                rows = rows_of(folder)
                assert len(rows) == PHOTOS and all(row.status == "ok" for row in rows.values())
                assert not list(folder.glob("*/.*.part"))
                folder = tmp_path / str(rounds)
        runner.stdin.close()


def test_a_photo_cut_short_on_disk_is_written_again(tmp_path):
    path = tmp_path / "ab" / "abc.jpg"
    write_once(path, b"whole")
    inode = path.stat().st_ino
    write_once(path, b"whole")
    assert path.stat().st_ino == inode
    path.write_bytes(b"who")
    write_once(path, b"whole")
    assert path.read_bytes() == b"whole"
