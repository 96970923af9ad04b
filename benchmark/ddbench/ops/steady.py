"""Files that are hashed and then read: one open file, and a look afterwards whether it is still the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from ddbench.errors import DataError


class ChangedError(DataError):
    """A file that became another one while it was read."""


@contextmanager
def steady(path: Path) -> Iterator[BufferedReader]:
    """The file, open. What was read while it is open counts only once it is closed: raises ChangedError where the path leads
    to another file by then, or something has written to this one."""
    with path.open("rb") as file:
        before = _state(os.fstat(file.fileno()))
        yield file
        try:
            states = _state(os.fstat(file.fileno())), _state(path.stat())
        except FileNotFoundError:
            states = ((), ())
        if states != (before, before):
            raise ChangedError(f"{path} was changed while it was read: run again once it is in place.")


def sha256_of(file: BufferedReader) -> str:
    """The SHA-256 of an open file, from its beginning, in hex; it stands at its beginning again afterwards."""
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return found


def _state(told: os.stat_result) -> tuple[int, ...]:
    """What is another after a swap, though names, size and time are set back: the kernel sets the last one itself."""
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns
