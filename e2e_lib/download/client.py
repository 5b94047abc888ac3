"""One photo from one address: limits, redirects, robots, and what went wrong when it did.

A photo has a deadline and a byte limit as a whole, however slowly it comes. Passing troubles (a busy server)
are tried again after the pause that the server asks for; lasting ones are not.
"""

import asyncio
import contextlib
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.robotparser import RobotFileParser

import aiohttp
from yarl import URL

from e2e_lib.data.photo_index import Status
from e2e_lib.download.addresses import CheckedResolver, FetchError, host_of, parse

AGENT = "e2e-photo-dialogue"
USER_AGENT = f"{AGENT}/0.1 (research; collects published photo-dialogue corpora; honours robots.txt)"
REFUSALS = {"noai", "noimageai", "noindex", "noimageindex", "noml", "none"}  # of X-Robots-Tag
# Where addresses of dead photos lead, with status 200.
PLACEHOLDERS = ("photo_unavailable", "photo-unavailable", "image_not_found", "no_image_available")
ROBOTS_BYTES = 500_000  # as RFC 9309 has it
MOST_REDIRECTS = 5


@dataclass(frozen=True)
class Limits:
    """What one photo may cost: ``seconds`` in all, ``bytes``, ``tries`` at a busy server; and the pace:
    ``per_host`` connections at once and ``host_rate`` photos per second from one host.

    Where ``clients`` work at once, each with hosts of its own, they share the pace at all other hosts (where
    redirects lead, and second sources), so that together they stay below twice the pace at any."""

    seconds: float = 30.0
    bytes: int = 40_000_000
    tries: int = 3
    per_host: int = 8
    host_rate: float = 20.0
    longest_pause: float = 20.0
    allow_loopback: bool = False
    robots: bool = True
    clients: int = 1


class Client:
    """Fetches photos; used as ``async with Client(limits) as client``."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.robots: dict[str, asyncio.Task[RobotFileParser]] = {}
        self.next_turn: defaultdict[str, float] = defaultdict(float)  # of each host, on the monotonic clock
        self.slots: dict[str, asyncio.Semaphore] = {}
        self.own = set[str]()  # hosts that no other client has

    async def __aenter__(self) -> "Client":
        # Names are resolved anew for each connection: a cache would outlive a change between two checks.
        connector = aiohttp.TCPConnector(resolver=CheckedResolver(self.limits.allow_loopback), limit=0,
                                         use_dns_cache=False)
        self.session = aiohttp.ClientSession(
            connector=connector, headers={"User-Agent": USER_AGENT, "Accept": "image/*;q=1.0,*/*;q=0.1"},
            cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.robots.values():
            task.cancel()
        await asyncio.gather(*self.robots.values(), return_exceptions=True)  # or they are told on stderr
        await self.session.close()

    async def photo(self, address: str, is_own: bool = True) -> tuple[bytes, str]:
        """The bytes behind ``address`` and where they came from in the end. Raises FetchError.

        ``is_own`` says that no other client (see ``Limits``) has addresses of its host.
        """
        if is_own:
            self.own.add(host_of(address))
        for attempt in range(self.limits.tries):
            try:
                return await self._follow(address)
            except Busy as busy:
                last, pause = busy, min(busy.pause or 0.5 * 2**attempt, self.limits.longest_pause)
            if attempt + 1 < self.limits.tries:
                await asyncio.sleep(pause)
        raise FetchError("server_error", last.reason)

    async def _follow(self, address: str) -> tuple[bytes, str]:
        url, deadline = parse(address, self.limits.allow_loopback), Deadline(self.limits.seconds)
        for _ in range(MOST_REDIRECTS + 1):
            if any(name in url.path.lower() for name in PLACEHOLDERS):
                raise FetchError("placeholder", f"leads to {url}")
            await self._ask_robots(url)
            content, target = await self._request(url, self.limits.bytes, deadline)
            if not target:
                return content, str(url)
            url = parse(str(url.join(URL(target))), self.limits.allow_loopback)
        raise FetchError("redirect_loop", f"more than {MOST_REDIRECTS} redirects, the last to {url}")

    async def _request(self, url: URL, most: int, deadline: "Deadline") -> tuple[bytes, str]:
        """The body behind a web address, or where it redirects to. Raises FetchError and Busy."""
        host = url.host or ""
        sharing = 1 if host in self.own else self.limits.clients
        if host not in self.slots:
            self.slots[host] = asyncio.Semaphore(max(1, self.limits.per_host // sharing))
        async with self.slots[host]:
            await self._wait_for_turn(host, sharing / self.limits.host_rate)
            try:
                async with deadline.running(), self.session.get(url, allow_redirects=False) as response:
                    target = response.headers.get("Location", "")
                    if response.status in (301, 302, 303, 307, 308) and target:
                        return b"", target
                    _check_status(response)
                    return await _read(response, most), ""
            except TimeoutError:
                raise FetchError("timeout", f"not complete after {self.limits.seconds:g} s") from None
            except aiohttp.ClientError as error:
                raise _explained(error) from None
            except ValueError as error:  # a Location or header that is not one
                raise FetchError("network", f"an answer that is not HTTP ({error})") from None

    async def _wait_for_turn(self, host: str, seconds: float) -> None:
        """Waits until the last request to this host was ``seconds`` ago."""
        now = time.monotonic()
        turn = max(now, self.next_turn[host])
        self.next_turn[host] = turn + seconds
        await asyncio.sleep(turn - now)

    async def _ask_robots(self, url: URL) -> None:
        """Raises FetchError where the host's robots.txt does not want this address fetched."""
        if not self.limits.robots:
            return
        origin = str(url.origin())
        if origin not in self.robots or self.robots[origin].done() and self.robots[origin].exception():
            self.robots[origin] = asyncio.create_task(self._read_robots(url.origin()))
        rules = await asyncio.shield(self.robots[origin])
        if not rules.can_fetch(AGENT, str(url)):
            raise FetchError("refused", f"robots.txt of {url.host} does not allow it")

    async def _read_robots(self, origin: URL) -> RobotFileParser:
        rules, url, deadline = RobotFileParser(), origin / "robots.txt", Deadline(self.limits.seconds)
        try:
            for _ in range(MOST_REDIRECTS + 1):
                content, target = await self._request(url, ROBOTS_BYTES, deadline)
                if not target:
                    rules.parse(content.decode("utf-8", "replace").splitlines())
                    return rules
                url = parse(str(url.join(URL(target))), self.limits.allow_loopback)
        except FetchError as error:
            if error.status not in ("missing", "refused", "too_large"):
                raise
        rules.parse([])  # no rules, no restrictions
        return rules


class Deadline:
    """The ``seconds`` left for a photo, counted while it is asked for and not while it waits its turn."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Counts; raises TimeoutError once no time is left."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.seconds):
                yield
        finally:
            self.seconds -= time.monotonic() - began


class Busy(FetchError):
    """A server that may answer later, and the ``pause`` in seconds that it asks for (0: it does not say)."""

    def __init__(self, reason: str, pause: float) -> None:
        super().__init__("server_error", reason)
        self.pause = pause


def _check_status(response: aiohttp.ClientResponse) -> None:
    """Raises FetchError for an answer that is no photo to keep, by its status and headers alone."""
    status, reason = response.status, f"HTTP {response.status}"
    if status == 429 or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise Busy(reason, float(after) if after.isdigit() else 0)
    if status in (401, 402, 403, 451):
        raise FetchError("refused", reason)
    if status != 200:
        raise FetchError("missing", reason)
    for line in response.headers.getall("X-Robots-Tag", []):
        agent, colon, tags = line.rpartition(":")
        if not colon or agent.strip().lower() in ("", "*", AGENT):
            if found := REFUSALS & {tag.strip().lower() for tag in tags.split(",")}:
                raise FetchError("refused", f"X-Robots-Tag: {', '.join(sorted(found))}")


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    if (response.content_length or 0) > most:
        raise FetchError("too_large", f"{response.content_length:,} bytes, more than {most:,}")
    content = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        content += chunk
        if len(content) > most:
            raise FetchError("too_large", f"more than {most:,} bytes")
    return bytes(content)


def _explained(error: aiohttp.ClientError) -> FetchError:
    """What went wrong with a connection, by kind."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FetchError):  # of the resolver
            return cause
        cause = cause.__cause__ or cause.__context__
    kinds: list[tuple[type[BaseException], Status]] = [
        (aiohttp.ClientConnectorDNSError, "dns"), (aiohttp.ServerTimeoutError, "timeout"),
        (aiohttp.ClientPayloadError, "broken")]
    status: Status = next((status for kind, status in kinds if isinstance(error, kind)), "network")
    if isinstance(getattr(error, "os_error", None), socket.gaierror):
        status = "dns"
    return FetchError(status, f"{type(error).__name__}: {str(error)[:160]}")
