"""What fetching photos made, in words and as one object, with the hosts' names or without them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2e_lib.data.photo_index import INDEX, PASSING, PhotoIndex

HOSTS = 20  # that a report names
MEANINGS = {
    "ok": "here, whole and decoded", "drawn": "not to be had, drawn from its caption",
    "pending": "not asked for yet", "placeholder": "a picture that says that the photo is gone",
    "missing": "the server has none (404, 410)",
    "refused": "not allowed (robots.txt, X-Robots-Tag, 401, 403, 451)",
    "bad_address": "no web address", "private_address": "leads to a private network, not asked",
    "timeout": "not complete in time", "too_large": "too many bytes or pixels",
    "broken": "cut short, or cannot be decoded", "not_a_photo": "something else, such as a page",
    "dns": "its host's name was not found", "network": "the connection failed",
    "redirect_loop": "redirects without end",
    "server_error": "the server was busy or failed, several times"}


def by_host(index: PhotoIndex, redact: bool = False) -> dict[str, dict[str, int]]:
    """How many addresses of the ``HOSTS`` largest hosts have each status; ``redact`` numbers the hosts."""
    hosts: dict[str, Counter[str]] = {}
    for row in index.rows():
        host = row.url.partition("://")[2].partition("/")[0].rpartition("@")[2] or "(no address)"
        hosts.setdefault(host, Counter())[row.status] += 1
    largest = sorted(hosts, key=lambda host: -hosts[host].total())[:HOSTS]
    return {f"host {number}" if redact else host: dict(hosts[host].most_common())
            for number, host in enumerate(largest, 1)}


def report_lines(made: Mapping[str, Any]) -> list[str]:
    """What ``fetch`` returned, in words."""
    total, statuses = made["photos"], made["statuses"]
    lines = [f"{total:,} addresses, {made['fetched']:,} asked for in this run, in {made['seconds']:,} s"]
    rows = sum(statuses.values()) or 1  # a photo drawn beside its address has a row of its own
    lines += [f"  {count:>9,}  {100 * count / rows:5.1f} %  {name}: {MEANINGS[name]}"
              for name, count in statuses.items()]
    lines += [f"  {host}: {counts.get('ok', 0):,} of {sum(counts.values()):,} fetched"
              for host, counts in made.get("hosts", {}).items()]
    if "parts" in made:
        lines.append(f"fetched in {made['parts']:,} parts, a fair one having {made['fair_part']:,} addresses")
        lines += [f"  {count:,} addresses of one host, which is never divided, were in the largest part"
                  for count in made["large_hosts"]]
    passing = sum(statuses.get(name, 0) for name in PASSING)
    if passing:
        lines.append(f"{passing:,} may succeed another time: --retry failed asks for them again")
    if statuses.get("dns", 0) + statuses.get("network", 0) > 0.2 * total:
        lines.append("More than a fifth failed by name service or connection: it may be this machine's "
                     "network, and not the photos")
    return lines


def kept_in(folder: Path) -> str:
    """What a photo folder has, in words, after an interruption."""
    if not (folder / INDEX).is_file():
        return "nothing was fetched yet"
    with PhotoIndex(folder) as index:
        counts = index.counts()
    kept, waiting = counts.get("ok", 0), counts.get("pending", 0)
    return f"{kept:,} photos are kept in {folder}, {waiting:,} addresses were not asked for yet"
