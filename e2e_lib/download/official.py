"""The published files of a corpus, from where their authors keep them: ``e2e data get``.

A file that was cut off goes on where it stopped. Sizes and SHA-256 are recorded in ``manifest.json``, and
files that are there already are checked against it.
"""

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_lib.data.dialogue import DataError
from e2e_lib.repro import files

# The commit that has photo ids, and the one dialogue that never shared its photo mended.
_PHOTOCHAT = "dec705a28fea05552916c0b83c52f5f23609e8ee"
CHUNK = 1 << 20  # bytes
TRIES = 5  # without a byte more than before
SECONDS = 60.0  # without a byte end a try
EVERY = 3.0  # seconds between two lines of progress
DROPPED = (TimeoutError, ConnectionError)
Echo = Callable[[str], None]


@dataclass(frozen=True)
class Official:
    """Where a corpus's files are: ``base``, the ``names`` below it, and its licences as they are stated."""

    base: str
    names: tuple[str, ...]
    licences: tuple[str, ...]


OFFICIAL = {
    "photochat": Official(
        "https://raw.githubusercontent.com/google-research/google-research/"
        f"{_PHOTOCHAT}/multimodalchat/photochat/",
        tuple(f"{split}/{split}_{shard:02d}.json" for split, count in (("train", 21), ("dev", 2), ("test", 2))
              for shard in range(count)),
        ("the corpus's own README names no licence", "PhotoChat++ calls the corpus CC BY 4.0",
         "MDSEval calls it Apache-2.0, the licence of the repository that it stands in",
         "each photo has a licence of its own, its owner's")),
    "dialogcc": Official(
        "https://huggingface.co/datasets/passing2961/dialogcc/resolve/main/",
        ("train.json", "valid.json", "test.json"),
        ("the data set's card says CC BY-NC-SA 4.0, because of DailyDialog",
         "the LICENSE file of its authors' code repository is MIT's",
         "each photo has a licence of its own, its owner's")),
}


def get(name: str, folder: Path, echo: Echo, base: str = "") -> dict[str, Any]:
    """Fetches the official files of "photochat" or "dialogcc" into ``folder``; returns its manifest.

    ``base`` is another place of the same files. Raises DataError where a file cannot be fetched, or is not
    what the manifest, or the server, says that it is; what came is kept, and the same command goes on.
    """
    if name not in OFFICIAL:
        raise DataError(f"corpus {name!r}: expected one of {', '.join(OFFICIAL)}")
    official, path = OFFICIAL[name], folder / "manifest.json"
    base = base or official.base
    manifest: dict[str, Any] = {"corpus": name, "source": base, "licences": [*official.licences], "files": {}}
    if path.is_file():
        manifest = files.read_json(path, f"e2e data get {name}", {"source": str, "files": {"*": {}}})
        if manifest.get("corpus") != name or manifest["source"] != base:
            raise DataError(f"{path}: these are files of {manifest.get('corpus')} from {manifest['source']}; "
                            "name another folder with --out")
    for number, file in enumerate(official.names, 1):
        entry, target = manifest["files"].setdefault(file, {"url": base + file}), folder / file
        if target.is_file() and "sha256" in entry:
            _check(target, entry)
            echo(f"{number} of {len(official.names)}  {file}: as recorded")
            continue
        _Download(target, entry, lambda: files.write_json(path, manifest), echo).run()
        count = f"{number} of {len(official.names)}"
        echo(f"{count}  {file}: {entry['bytes']:,} bytes, SHA-256 {entry['sha256']}")
    return manifest


def _check(path: Path, entry: dict[str, Any]) -> None:
    """Raises DataError unless a file has the size and hash that were recorded."""
    size = path.stat().st_size
    if size != entry["bytes"] or files.sha256(path) != entry["sha256"]:
        found = f"{size:,} bytes, not {entry['bytes']:,}" if size != entry["bytes"] else "another SHA-256"
        raise DataError(f"{path}: the file was changed since it was fetched ({found}); delete it, and the "
                        "same command fetches it again")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps what their headers say of the file (a hub's do, its storage's do not)."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.headers |= {key.lower(): value for key, value in headers.items()}
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Download:
    """One file, fetched into ``<name>.part`` and moved into place once it is whole."""

    def __init__(self, target: Path, entry: dict[str, Any], save: Callable[[], Any], echo: Echo) -> None:
        self.target, self.entry, self.save, self.echo = target, entry, save, echo
        self.part = target.with_name(target.name + ".part")
        self.last_line = time.monotonic()

    def run(self) -> None:
        files.make_folder(self.target.parent)
        failures = 0
        while True:
            before = self._size()
            try:
                if self._fetch():
                    break
                reason = "the connection ended early"
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in (408, 429):
                    raise DataError(f"{self.entry['url']}: HTTP {error.code} {error.reason}; the file may "
                                    "have moved: fetch it by hand, for `e2e data build`") from None
                reason = f"HTTP {error.code}"
            except (urllib.error.URLError, http.client.HTTPException, *DROPPED) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            failures = failures + 1 if self._size() <= before else 0
            if failures >= TRIES:
                raise DataError(f"{self.entry['url']}: {reason}, {TRIES} times in a row; {self._size():,} "
                                f"bytes are kept in {self.part}, and the same command goes on from there")
            self.echo(f"{self.target.name}: {reason}; going on from byte {self._size():,}")
            time.sleep(min(8.0, 0.25 * 2**failures - 0.25))
        self._finish()

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _fetch(self) -> bool:
        """Fetches what is missing; returns whether the file is whole. A changed file begins anew."""
        have, redirects = self._size(), _Redirects()
        headers = {"User-Agent": "e2e-photo-dialogue/0.1", "Accept-Encoding": "identity",
                   **({"Range": f"bytes={have}-"} if have else {})}
        request = urllib.request.Request(self.entry["url"], headers=headers)
        try:
            answer = urllib.request.build_opener(redirects).open(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not have:
                raise
            return have == self.entry.get("total") or self._begin_anew()  # nothing comes after what we have
        with answer:
            sent = {key.lower(): value for key, value in answer.headers.items()}
            version = _version(sent, redirects.headers)
            if answer.status != 206:  # the whole file: nothing was there, or the server knows no ranges
                self._begin_anew()
            elif not sent.get("content-range", "").startswith(f"bytes {have}-") \
                    or any(self.entry.get(key) != value for key, value in version.items()):
                return self._begin_anew()
            self.entry |= version
            self.save()
            self._write(answer)
        return self.entry["total"] in (None, self._size())

    def _begin_anew(self) -> bool:
        self.part.unlink(missing_ok=True)
        return False

    def _write(self, answer: Any) -> None:
        try:
            with open(self.part, "ab") as file:
                while content := answer.read1(CHUNK):
                    file.write(content)
                    if time.monotonic() - self.last_line > EVERY:
                        self.last_line = time.monotonic()
                        total = f" of {self.entry['total']:,}" if self.entry["total"] else ""
                        self.echo(f"{self.target.name}: {file.tell():,}{total} bytes")
        except OSError as error:
            if isinstance(error, DROPPED):
                raise
            raise files.SaveError(error.errno, f"could not save {self.part}: {error.strerror}. What came is "
                                  "kept: free some space, and the same command goes on") from error

    def _finish(self) -> None:
        """Moves the whole file into place, if it has the hash that its server names. Raises DataError."""
        digest, named = files.sha256(self.part), self.entry["etag"].strip('"')
        if re.fullmatch("[0-9a-f]{64}", named) and named != digest:
            self.part.unlink()
            raise DataError(f"{self.entry['url']}: its SHA-256 is {digest}, and the server names {named}: it "
                            "was damaged on its way; the same command fetches it again")
        self.entry |= {"bytes": self._size(), "sha256": digest, "fetched": time.strftime("%Y-%m-%d")}
        self.entry.pop("total")
        self.part.replace(self.target)
        self.save()


def _version(sent: dict[str, str], redirect: dict[str, str]) -> dict[str, Any]:
    """What tells one version of a file from another: its tag and whole size (None where it is not said)."""
    size = sent.get("content-range", "").rpartition("/")[2] or sent.get("content-length", "")
    version = {"etag": redirect.get("x-linked-etag") or sent.get("etag", ""),
               "total": int(size) if size.isdigit() else None}
    return {**version, **({"commit": redirect["x-repo-commit"]} if "x-repo-commit" in redirect else {})}
