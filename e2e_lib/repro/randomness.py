"""Explicit randomness: every random number comes from a generator made from a key.

A key is a seed and names, such as ``(seed, "noise", step)``. Since the generator of step k does not depend on
the steps before it, a killed run goes on exactly where it was, without saved random states.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


def seed_of(*key: object) -> int:
    """A seed between 0 and 2**63 - 1 that depends on every part of ``key`` and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A new ``torch.Generator`` seeded with ``key``."""
    return torch.Generator(device=device).manual_seed(seed_of(*key))


def one_each(rng: torch.Generator | Sequence[torch.Generator], count: int) -> Sequence[torch.Generator]:
    """A generator for each of ``count`` things: their own, or the same one for all, in turn."""
    return [rng] * count if isinstance(rng, torch.Generator) else rng


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Seeds torch's global generator (which initialises weights) for a block, and restores it after."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(*key))
        yield


def python_random(*key: object) -> random.Random:
    """A new ``random.Random`` seeded with ``key``."""
    return random.Random(seed_of(*key))
