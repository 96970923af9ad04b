"""Decoding many images side by side: processes of their own, as many as there are cores, that write into one file."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ddbench.errors import DataError
from ddbench.ops import pictures
from ddbench.ops.pictures import Place

WORTH_A_PROCESS = 200  # images; fewer are decoded sooner than a process has started
MOST_PROCESSES = 32

# Not multiprocessing, which would import the caller's script again.
BOOTSTRAP = """
import json, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
source = os.fdopen(os.dup(0), encoding="utf-8")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
sys.path[:] = json.loads(source.readline())
from ddbench.ops.pictures import main
main(source)
"""

Jobs = Mapping[int, tuple[int, Sequence[Place]]]
"""By the byte at which images begin in the file: their side, and where each is read from."""
Faults = dict[int, list[tuple[int, str]]]
"""By the same byte: rows that could not be read, and why."""


def usable_cores() -> int:
    """The cores that this process may use: those it may run on, and no more than its container is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        work, _, period = Path("/sys/fs/cgroup/cpu.max").read_text().partition(" ")
        if work != "max":
            cores = min(cores, int(work) // int(period))
    return max(1, cores)


def decode_into(target: Path, jobs: Jobs, done: Callable[[int], None]) -> Faults:
    """Decode images into a file that has room for them. `done(n)` is called when n more are finished. Raises DataError where a
    process dies."""
    num = sum(len(places) for _, places in jobs.values())
    processes = min(usable_cores(), MOST_PROCESSES, num // WORTH_A_PROCESS)
    faults: Faults = {start: [] for start in jobs}
    if processes < 2:
        for start, (side, places) in jobs.items():
            for row, why in pictures.fill(target, start, side, list(enumerate(places))):
                faults[start] += [(row, why)] if why else []
                done(1)
        return faults
    shares = [
        [(start, side, list(enumerate(places))[own::processes]) for start, (side, places) in jobs.items()]
        for own in range(processes)
    ]
    workers = [_start() for _ in shares]
    try:
        for worker, share in zip(workers, shares, strict=True):
            _give(worker, target, share)
        for start, finished, unread in _told(workers):
            faults[start] += unread
            done(finished)
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    if any(codes):
        code = next(filter(None, codes))
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise DataError(f"a process that decodes images has died ({reason}): give the command again; does memory suffice?")
    return {start: sorted(rows) for start, rows in faults.items()}


def _start() -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", BOOTSTRAP]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")


def _give(worker: subprocess.Popen[str], target: Path, share: object) -> None:
    assert worker.stdin is not None
    with suppress(OSError):  # a dead one is noticed by its exit code
        worker.stdin.write(json.dumps([entry for entry in sys.path if isinstance(entry, str)]) + "\n")
        worker.stdin.write(json.dumps([str(target), share]) + "\n")
        worker.stdin.close()


def _told(workers: Sequence[subprocess.Popen[str]]) -> Iterator[tuple[int, int, list[tuple[int, str]]]]:
    """What they say, as it comes, until all have ended."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read(worker: subprocess.Popen[str]) -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            lines.put(line)
        lines.put(None)

    for worker in workers:
        threading.Thread(target=read, args=(worker,), daemon=True).start()
    left = len(workers)
    while left:
        line = lines.get()
        if line is None:
            left -= 1
            continue
        start, finished, unread = json.loads(line)
        yield start, finished, [(row, why) for row, why in unread]
