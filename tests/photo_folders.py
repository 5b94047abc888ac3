"""What the tests of photo folders share: a server under several hosts' names, and what a folder has in the end."""

import hashlib
from dataclasses import asdict

from aiohttp import web
from fault_server import FaultServer

from e2e_lib.data.photo_index import PhotoIndex


class ManyHosts(FaultServer):
    """The server of faults, under as many addresses of this machine, ``urls``, as there are hosts."""

    def __init__(self, hosts=4):
        self.hosts = [f"127.0.0.{i + 1}" for i in range(hosts)]

    async def _start(self):
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        port = 0
        for host in self.hosts:
            site = web.TCPSite(runner, host, port)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]
        self.urls = [f"http://{host}:{port}/" for host in self.hosts]
        self.url = self.urls[0]

    def rows(self, paths):
        """Addresses of these paths, one host after the other, and photo ids."""
        return [(self.urls[i % len(self.urls)] + path, path) for i, path in enumerate(paths)]


def content_of(folder, *without):
    """The index's rows, in order, and the hash of each file, as they are after any way of fetching the same."""
    with PhotoIndex(folder) as index:
        rows = [{name: value for name, value in asdict(row).items() if name not in without} for row in index.rows()]
    files = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
             for path in folder.rglob("*") if path.is_file() and path.name not in ("index.sqlite", ".lock")}
    return rows, files
