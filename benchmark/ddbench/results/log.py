"""The log of a store: what was done there, and when, a line an event. Nothing reads it but people.

It is appended to, and bounded: a file that has grown too long becomes the older one, in whose place it comes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

NAME, OLDER = "log.txt", "log.older.txt"
MOST_BYTES = 1 << 20  # of each of the two files
MOST_CHARACTERS = 2000  # of a line


class Log:
    """Of a store. A line that cannot be written is left out: no run fails for it."""

    def __init__(self, root: Path, most_bytes: int = MOST_BYTES) -> None:
        self.path, self.older, self.most_bytes = root / NAME, root / OLDER, most_bytes

    def add(self, text: str) -> None:
        """One event, with the date, the time in UTC and the process, of which several may write here."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        plain = "".join(character if character.isprintable() else " " for character in text)[:MOST_CHARACTERS]
        line = f"{now} [{os.getpid()}] {plain}\n".encode(errors="replace")
        with suppress(OSError):
            if self.path.exists() and self.path.stat().st_size + len(line) > self.most_bytes:
                self.path.replace(self.older)
            with self.path.open("ab") as file:
                file.write(line)
