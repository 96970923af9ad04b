"""A command as another machine's queue runs it: it ends with whoever began it, and of what it says the end is kept.

Imports nothing heavy: processes that only wait for a command import this module.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

WITH_PARENT = "--with-parent"  # the command ends when its standard input does
DEATH_SECONDS = 10.0
KEPT = 20  # lines of the standard error


@dataclass(frozen=True)
class Said:
    """How a command has ended."""

    code: int
    last: str  # lines of its standard error


def run_command(words: list[str]) -> Said:
    """Run it to its end; its lines go to this process's standard error too. However this call ends, the command does as well."""
    kept: deque[str] = deque(maxlen=KEPT)
    process = subprocess.Popen([*words, WITH_PARENT], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")

    def listen() -> None:
        assert process.stderr
        for line in process.stderr:
            kept.append(line.rstrip("\n"))
            print(line, end="", file=sys.stderr, flush=True)

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    try:
        code = process.wait()
    finally:
        stop(process)
    reader.join(DEATH_SECONDS)
    return Said(code, "\n".join(kept))


def stop(process: subprocess.Popen[str]) -> None:
    """End a process, kindly at first."""
    with suppress(OSError):
        if process.stdin:
            process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
