"""Which addresses may be fetched: http(s) only, and never a machine of one's own network.

What decides is the *resolved* address of every hop, checked where the connection is made, so that neither a
redirect nor a name that changes its address between check and connection leads inside.
"""

import ipaddress
import socket
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from e2e_lib.data.photo_index import Status

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class FetchError(Exception):
    """A photo could not be fetched: the ``status`` that its row gets, and the reason in words."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def parse(address: str, allow_loopback: bool = False) -> URL:
    """A web address. Raises FetchError for another scheme, no host, a user name, or a private address."""
    try:
        url = URL(address.strip())
        host, port = url.host or "", url.port
    except ValueError as error:
        raise FetchError("bad_address", f"not a web address ({error})") from None
    if url.scheme not in ("http", "https") or not host:
        raise FetchError("bad_address", f"expected http:// or https:// and a host, found {address[:80]!r}")
    if url.user or url.password or not port:
        raise FetchError("bad_address", "expected an address without a user name, and with a port above 0")
    if any(character.isspace() or ord(character) < 32 for character in host) or "%" in host:
        raise FetchError("bad_address", f"{host!r} is not the name of a host")
    # The connector takes digits and dots, and whatever has a colon, for an address and resolves no such name.
    if ":" in host or host.replace(".", "").isdigit():
        try:
            check(ipaddress.ip_address(host), allow_loopback)
        except ValueError:
            raise FetchError("bad_address", f"{host!r} is not an address of four numbers or IPv6") from None
    return url


def host_of(address: str) -> str:
    """The host that keeps an address, whose pace counts; "" where it is no web address."""
    try:
        return URL(address.strip()).host or ""
    except ValueError:
        return ""


def check(address: Address, allow_loopback: bool) -> None:
    """Raises FetchError unless ``address`` is on the public internet, or loopback where that is allowed."""
    inner: Any = address
    if isinstance(address, ipaddress.IPv6Address):  # an IPv4 address in one of its IPv6 forms
        nat64 = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
        teredo = (address.teredo or (None, None))[1]
        inner = address.ipv4_mapped or address.sixtofour or teredo or nat64 or address
    if allow_loopback and inner.is_loopback:
        return
    if not inner.is_global or inner.is_multicast or inner.is_reserved:
        raise FetchError("private_address", f"{address} is not on the public internet")


class CheckedResolver(AbstractResolver):
    """Resolves names, and refuses those that lead to a private address; the connection goes where it says."""

    def __init__(self, allow_loopback: bool = False) -> None:
        self.resolver, self.allow_loopback = ThreadedResolver(), allow_loopback

    async def resolve(self, host: str, port: int = 0,
                      family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await self.resolver.resolve(host, port, family)
        for result in found:
            check(ipaddress.ip_address(result["host"].partition("%")[0]), self.allow_loopback)
        return found

    async def close(self) -> None:
        await self.resolver.close()
