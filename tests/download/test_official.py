"""Official files from a loopback server: whole, cut off, changed, and not what it says they are."""

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from e2e_lib import __main__ as cli
from e2e_lib.data.dialogue import DataError
from e2e_lib.download import official
from e2e_lib.repro import files

NAMES = official.OFFICIAL["dialogcc"].names


class Server:
    """Serves ``content`` by name; ``cut`` ends the first so many answers early, ``etag`` is told of every file."""

    def __enter__(self):
        outer = self
        self.content, self.cut, self.ranges, self.etag, self.status, self.asked = {}, 0, True, "", {}, []
        self.linked = None  # the hash that a redirect names, of a file's content

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                name = self.path.strip("/")
                content, start = outer.content.get(name, b""), 0
                outer.asked.append((name, self.headers["Range"]))
                if name in outer.status:
                    return self.send_error(outer.status[name])
                if outer.linked and not name.startswith("storage/"):  # as a hub does
                    self.send_response(302)
                    for key, value in (("Location", f"/storage/{name}"), ("X-Linked-Etag", f'"{outer.linked(content)}"'),
                                       ("X-Repo-Commit", "0123abc"), ("Content-Length", "0")):
                        self.send_header(key, value)
                    return self.end_headers()
                content = outer.content.get(name.removeprefix("storage/"), b"")
                if self.headers["Range"] and outer.ranges:
                    start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                    if start >= len(content):
                        return self.send_error(416)
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                else:
                    self.send_response(200)
                body, outer.cut = content[start:], outer.cut - 1
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", outer.etag or f'"{hashlib.md5(content).hexdigest()}"')
                self.end_headers()
                self.wfile.write(body[:len(body) // 2] if outer.cut >= 0 else body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(official.time, "sleep", lambda _: None)
    with Server() as running:
        running.content = {name: bytes(range(256)) * 40 * (i + 1) for i, name in enumerate(NAMES)}
        yield running


def get(server, folder):
    return official.get("dialogcc", folder, lambda _: None, server.url)


def whole(server, folder):
    manifest = files.read_json(folder / "manifest.json", "")
    for name, content in server.content.items():
        assert (folder / name).read_bytes() == content and not (folder / f"{name}.part").exists()
        entry = manifest["files"][name]
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    return True


def test_files_are_fetched_recorded_and_not_fetched_again(server, tmp_path):
    manifest = get(server, tmp_path)
    assert whole(server, tmp_path) and len(manifest["licences"]) > 1
    asked = len(server.asked)
    get(server, tmp_path)
    assert len(server.asked) == asked == 3


def test_a_file_that_is_cut_off_goes_on_where_it_stopped(server, tmp_path):
    server.cut = 3
    get(server, tmp_path)
    assert whole(server, tmp_path)
    assert [int(start[6:-1]) for name, start in server.asked if start] == [5120, 7680, 8960]


def test_a_file_goes_on_in_another_run_and_begins_anew_if_it_changed_meanwhile(server, tmp_path, monkeypatch):
    def interrupted_run():
        server.cut = 10**6
        monkeypatch.setattr(official, "TRIES", 1)
        monkeypatch.setattr(official._Download, "_size", lambda self: 0)  # no try gets further
        with pytest.raises(DataError, match="goes on from there"):
            get(server, tmp_path)
        monkeypatch.undo()
        server.cut = 0

    interrupted_run()
    part = (tmp_path / f"{NAMES[0]}.part").stat().st_size
    get(server, tmp_path)
    assert server.asked[1] == (NAMES[0], f"bytes={part}-") and whole(server, tmp_path)
    (tmp_path / NAMES[0]).unlink()
    server.asked.clear()
    interrupted_run()
    server.content[NAMES[0]] = b"another, longer file" * 2000
    get(server, tmp_path)
    assert whole(server, tmp_path)


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.cut, server.ranges = 2, False
    get(server, tmp_path)
    assert whole(server, tmp_path)


def test_what_has_not_the_hash_that_its_server_names_is_not_kept(server, tmp_path):
    server.etag = '"' + "0" * 64 + '"'
    with pytest.raises(DataError, match="damaged on its way"):
        get(server, tmp_path)
    assert not list(tmp_path.glob("train.json*"))


def test_the_hash_that_a_hub_names_in_its_redirect_is_compared(server, tmp_path):
    server.linked, server.cut = lambda content: hashlib.sha256(content).hexdigest(), 2
    assert get(server, tmp_path)["files"][NAMES[0]]["commit"] == "0123abc" and whole(server, tmp_path)
    server.linked = lambda content: "1" * 64
    with pytest.raises(DataError, match="damaged on its way"):
        get(server, tmp_path / "again")


def test_the_command_states_the_licences_and_what_comes_next(server, tmp_path, monkeypatch):
    monkeypatch.setitem(official.OFFICIAL, "dialogcc", replace(official.OFFICIAL["dialogcc"], base=server.url))
    done = CliRunner().invoke(cli.app, ["data", "get", "dialogcc", "--out", str(tmp_path)])
    assert done.exit_code == 0 and whole(server, tmp_path)
    for words in ("3 of 3  test.json: 30,720 bytes", "CC BY-NC-SA 4.0", "MIT", "e2e data build dialogcc --source"):
        assert words in done.stdout


@pytest.mark.parametrize("change, message", [(lambda old: old[:-1], "bytes, not"), (lambda old: old[:-1] + b"x", "another SHA-256")])
def test_a_file_that_was_changed_on_disk_is_told(change, message, server, tmp_path):
    get(server, tmp_path)
    (tmp_path / NAMES[1]).write_bytes(change(server.content[NAMES[1]]))
    with pytest.raises(DataError, match=f"valid.json: the file was changed since .*{message}"):
        get(server, tmp_path)


def test_a_file_that_is_not_there_ends_the_run_and_a_busy_server_is_asked_again(server, tmp_path):
    server.status[NAMES[2]] = 404
    with pytest.raises(DataError, match="test.json: HTTP 404 .*by hand"):
        get(server, tmp_path)
    server.status[NAMES[2]] = 503
    with pytest.raises(DataError, match="HTTP 503, 5 times in a row"):
        get(server, tmp_path)
    assert [name for name, _ in server.asked].count(NAMES[0]) == 1


def test_a_folder_of_another_corpus_is_refused(server, tmp_path):
    get(server, tmp_path)
    with pytest.raises(DataError, match="these are files of dialogcc"):
        official.get("photochat", tmp_path, lambda _: None, server.url)
    with pytest.raises(DataError, match="expected one of photochat, dialogcc"):
        official.get("other", tmp_path, lambda _: None)


def test_the_official_files_are_a_pinned_commits_and_come_over_https():
    photochat, dialogcc = official.OFFICIAL["photochat"], official.OFFICIAL["dialogcc"]
    assert len(photochat.names) == 25 and photochat.names[20] == "train/train_20.json"
    assert all(source.base.startswith("https://") for source in (photochat, dialogcc)) and official._PHOTOCHAT in photochat.base
    assert any("NC" in line for line in dialogcc.licences) and any("MIT" in line for line in dialogcc.licences)
