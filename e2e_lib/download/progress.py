"""How far fetching is: what a run shows while it works, and what ends one whose network fails."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from e2e_lib.data.dialogue import DataError
from e2e_lib.data.photo_index import PASSING, PhotoIndex

ALIKE = 30  # so many first addresses failing alike stop a run: it is the network, not the photos
PROGRESS = "progress.json"


@dataclass
class Progress:
    """How many addresses a run asked for, with which ``statuses``, and the ``bytes`` that came."""

    statuses: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def done(self) -> int:
        return self.statuses.total()

    def check_network(self) -> None:
        """Raises DataError where all so far, and enough of them, failed in ways that may pass."""
        if self.done >= ALIKE and all(status in PASSING for status in self.statuses):
            found = ", ".join(f"{count} as {name}" for name, count in self.statuses.most_common())
            raise DataError(f"the first {self.done} addresses all failed ({found}): it seems to be this "
                            "machine's network, name service or proxy and not the photos. Nothing is "
                            "lost: the same command with --retry failed goes on")

    def save(self, folder: Path) -> None:
        """Leaves these counts in a part's folder for those who watch it, who see the old or the new ones."""
        path = folder / PROGRESS
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps({"statuses": self.statuses, "bytes": self.bytes}))
        os.replace(beside, path)


def saved(folders: Iterable[Path]) -> Progress:
    """What was done so far in all of these parts."""
    total = Progress()
    for folder in folders:
        with contextlib.suppress(FileNotFoundError, ValueError):  # not begun, or just being replaced
            found = json.loads((folder / PROGRESS).read_text())
            total.statuses.update(found["statuses"])
            total.bytes += found["bytes"]
    return total


def taken_up(index: PhotoIndex) -> Progress:
    """What was done in a part before its task, on another node perhaps, ended too early."""
    statuses = Counter(index.counts())
    del statuses["pending"]
    return Progress(statuses, saved([index.folder]).bytes)
