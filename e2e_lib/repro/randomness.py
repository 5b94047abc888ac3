"""Randomness that is always explicit: every draw comes from a generator made from a key.

A key is a seed and the names of what is drawn, such as ``(seed, "noise", step)``. Because the generator of step k does
not depend on what was drawn before step k, a run that was killed goes on exactly where it was without saved
random states.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*key: object) -> int:
    """A seed between 0 and 2**63 - 1 that depends on every part of ``key`` and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh ``torch.Generator`` for ``key``."""
    return torch.Generator(device=device).manual_seed(seed_of(*key))


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Runs what draws from torch's global state, as new weights do, on the seed of ``key``, and puts the global state back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(*key))
        yield


def python_random(*key: object) -> random.Random:
    """A fresh ``random.Random`` for ``key``."""
    return random.Random(seed_of(*key))
