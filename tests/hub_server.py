"""A model hub of a few repositories on loopback, as far as the hub's own client asks: names, revisions, files, refusals."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


class HubServer(ThreadingHTTPServer):
    """Serves ``folders`` (name of a repository to folder); ``refused`` are names that answer with an error code."""

    def __init__(self, folders: dict[str, Path], refused: dict[str, tuple[int, str]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders, self.refused, self.asked = folders, refused, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self):
        self._answer()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass

    def _answer(self):
        self.server.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
        else:
            name, rest = "/".join(parts[:2]), parts[2:]
        folder = self.server.folders.get(name)
        if name in self.server.refused:
            code, word = self.server.refused[name]
            return self._send(code, b"{}", **{"X-Error-Code": word, "X-Error-Message": word})
        if not self.path.strip("/"):
            return self._send(200, b"a hub")
        if folder is None:
            return self._send(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["resolve"]:
            path = folder.joinpath(*rest[2:])
            if not path.is_file():
                return self._send(404, b"", **{"X-Error-Code": "EntryNotFound"})
            content = path.read_bytes()
            return self._send(200, content, **{"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            return self._send(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if rest[:1] == ["tree"]:
            rows = [{"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": "0" * 40} for path in files]
            return self._send(200, json.dumps(rows).encode())
        row = {"id": name, "modelId": name, "sha": COMMIT, "siblings": [{"rfilename": str(path.relative_to(folder))} for path in files],
               "private": False, "downloads": 0, "likes": 0, "tags": []}
        return self._send(200, json.dumps(row).encode())

    def _send(self, code, content, **headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
