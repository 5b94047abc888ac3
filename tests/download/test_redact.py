"""``e2e data photos --redact``: no address, host or photo id on any path of its output."""

import json
import os
import re
import signal
import socket
import threading
import time

import pytest
from fault_server import FaultServer
from typer.testing import CliRunner

from e2e_lib import __main__ as cli
from e2e_lib.data.photo_index import PhotoIndex
from e2e_lib.download import photos
from e2e_lib.download.progress import ALIKE

CANARY = "canary"
PATHS = ["good.jpg", "missing", "forbidden", "noai", "robots/private.jpg", "loop", "to-dead-photo", "to-inside",
         "to-file", "page.jpg", "empty", "cut.jpg", "reset", "announced", "gzipped"]


@pytest.fixture(scope="module")
def server():
    with FaultServer() as running:
        yield running


@pytest.fixture
def run(server, tmp_path, monkeypatch):
    """Runs the command on rows of a list, every host's name but the server's unknown, and looks for what is not to be told."""
    def resolve(host, *arguments, **options):
        if CANARY not in host:
            return real(host, *arguments, **options)
        if "dead" in host:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} is not known")
        return real("127.0.0.1", *arguments, **options)

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(photos, "EVERY_SECONDS", 0)

    def do(lines, *options):
        path = tmp_path / "list.jsonl"
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        done = CliRunner().invoke(cli.app, ["data", "photos", "--list", str(path), "--out", str(tmp_path / "photos"),
                                            "--allow-loopback", "--seconds", "0.5", "--redact", *options])
        for output in (done.stdout, done.stderr, str(done.exception)):
            assert CANARY not in output and "127.0.0.1" not in output and "train/" not in output, output
        return done
    return do


def rows_of(server, paths, host=f"{CANARY}.example"):
    port = server.url.split(":")[2]
    return [{"photo_id": f"train/{CANARY}-{i}", "url": f"http://{host}:{port}{path}?{CANARY}"} for i, path in enumerate(paths)]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_progress_and_report(options, run, server, tmp_path):
    rows = rows_of(server, PATHS) + [{"photo_id": CANARY + name, "url": url} for name, url in (
        ("a", f"ftp://{CANARY}.example/"), ("b", f"http://{CANARY}@x/"), ("c", f"http://[{CANARY}"), ("d", ""),
        ("e", f"http://dead.{CANARY}.example/"), ("f", "http://10.0.0.1/" + CANARY))]
    done = run(rows, *options, "--second-source", f"http://{CANARY}.example:1/{{photo_id}}")
    assert done.exit_code == 0
    if options:
        report = json.loads(done.stdout)
        assert report["photos"] == len(rows) and len(report["statuses"]) > 10
        assert sum(sum(counts.values()) for counts in report["hosts"].values()) == len(rows) and "host 1" in report["hosts"]
    else:
        assert "host 1: " in done.stdout and "photos: " in done.stdout  # progress as well
    with PhotoIndex(tmp_path / "photos") as index:  # where it does stand
        assert sum(CANARY in row.reason for row in index.rows()) > 3 and all(CANARY in row.photo_id for row in index.rows())


@pytest.mark.parametrize("line, message", [
    ({"photo_id": [CANARY], "url": CANARY}, "row 2, photo_id: expected a string, found list"), ([CANARY], "row 2: .*TypeError"),
    ({"photo_id": CANARY, "url": {"a": CANARY}}, "row 2, url: expected a string, found dict"), ({CANARY: 1}, "row 2: .*KeyError"),
    (f'{{"photo_id": "{CANARY}", "url": "http://{CANARY}', "row 2: .*JSONDecodeError"),
    (f'{{"url": "{CANARY}", "photo_id": ""}}', "row 2, photo_id")])
def test_errors_name_file_row_and_field_alone(line, message, run, server):
    done = run([rows_of(server, ["missing"])[0], line])
    assert done.exit_code == 1
    assert re.search(f"list.jsonl, {message}", done.stderr), done.stderr


def test_an_early_end(run, server):
    rows = [{"photo_id": f"{CANARY}{i}", "url": f"http://dead{i}.{CANARY}.example/{i}"} for i in range(2 * ALIKE)]
    done = run(rows)
    assert done.exit_code == 1 and "all failed" in done.stderr and "Task exception" not in done.stderr


def test_a_second_source_that_is_none(run, server):
    done = run(rows_of(server, ["missing"]), "--second-source", f"http://{CANARY}/{{other}}")
    assert done.exit_code == 1 and "{photo_id}" in done.stderr


def test_an_interruption(run, server, tmp_path):
    def interrupt():
        while not list(tmp_path.glob("photos/*/*.jpg")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    done = run(rows_of(server, ["good.jpg", *["silent"] * 5, "missing"]), "--seconds", "60")
    assert done.exit_code == 130 and "photos are kept in" in done.stderr
