"""Killing what a run on a cluster is made of, from outside, as crashes and queues do."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from grid_runs import until


def processes(store: Path, words: str) -> list[psutil.Process]:
    """Those whose command line has these words, and that work for a store: themselves, or a process above them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if words in " ".join(process.cmdline()):
                family = [process, *process.parents()]
                if any(str(store) in " ".join(each.cmdline()) for each in family):
                    found.append(process)
    return found


def workers(store: Path) -> list[psutil.Process]:
    """Of batches."""
    return processes(store, "ddbench.grid.worker")


def batches(store: Path) -> list[psutil.Process]:
    """The commands of batches."""
    return processes(store, "ddbench work")


def at_work(store: Path) -> list[psutil.Process]:
    """Those of them that have workers."""
    return list({above for each in workers(store) if (above := each.parent())})


def noticed(store: Path) -> int:
    """How many attempts are recorded to have failed."""
    return len(list(store.glob("failed/*/*.json")))


def kill_until_noticed(store: Path, process: subprocess.Popen[str], act: Callable[[], bool]) -> None:
    """Kill, again and again, for what has just done its job is not missed, until an attempt more is recorded."""
    before = noticed(store)
    while noticed(store) == before:
        until(act, process)
        assert process.poll() is None, "it ended before anything was hit"
        patience = time.monotonic() + 6
        while noticed(store) == before and time.monotonic() < patience:
            time.sleep(0.1)


def kill(found: list[psutil.Process]) -> bool:
    """The first of them; whether there was one."""
    for process in found[:1]:
        with suppress(psutil.Error):
            process.kill()
            return True
    return False


def kill_driver(process: subprocess.Popen[str]) -> bool:
    """Whether it still ran."""
    is_running = process.poll() is None
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return is_running
