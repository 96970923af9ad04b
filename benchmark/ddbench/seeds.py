"""Random streams by name. This module alone seeds generators; nothing reads the clock.

A stream's seed is a hash of its whole name, so a new consumer of random numbers shifts nobody else's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch

StreamName = tuple[str | int, ...]
"""What a stream, or all those under it, are called."""


def seed_of(*name: str | int) -> int:
    """A 63-bit seed for a name: the first 8 bytes of the SHA-256 of its JSON."""
    digest = hashlib.sha256(json.dumps(name).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(*name: str | int, device: torch.device | None = None) -> torch.Generator:
    """A generator at the start of the stream of that name. It draws on the CPU, and the numbers are equal on every device;
    or on `device`, where they are too many to be moved, and then another kind of device gives others."""
    return torch.Generator(device or "cpu").manual_seed(seed_of(*name))


@contextmanager
def global_stream(*name: str | int) -> Iterator[None]:
    """Lend torch's global generators, seeded by name, to code that knows no other (initialisers, dropout); then put them back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_of(*name))
        yield
