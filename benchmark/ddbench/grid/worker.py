"""A worker process: takes jobs from its parent over a pipe, one at a time, and reports what became of them.

Cells run in processes of their own so that the number of threads is theirs, a plugin that kills its process breaks only its
cell, and the machine's cores or devices are used side by side.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from filelock import Timeout

from ddbench.data.subsets import Identity
from ddbench.errors import BenchError
from ddbench.plan import Plan

REPORT_SECONDS = 0.2  # at most so often, progress goes to the parent


@dataclass(frozen=True)
class Job:
    """A cell, or a resource that cells wait for (`resource`: its key)."""

    plan: Plan
    suite: str
    identity: Identity
    resource: str | None = None


@dataclass(frozen=True)
class Message:
    """What a worker says: kind is progress, done, found (another run had computed it), busy or failed."""

    kind: str
    phase: str = ""
    fraction: float = 0.0
    error: str = ""
    details: str = ""


def sentence_of(error: BaseException, plan: Plan, store: Path) -> str:
    """One sentence for whatever stopped a cell."""
    if isinstance(error, BenchError):
        return str(error) if str(error).startswith(plan.name) else f"{plan.name}: {error}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disc that holds {store} is full. Free some space, then give the same command again; finished cells are kept."
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages/torch" not in frame.filename]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    text = " ".join(str(error).split())[:300].rstrip(".")
    what = f"{type(error).__name__}{where}{': ' if text else ''}{text}"
    return f"{plan.name}: {what}. The traceback is in the failure record; mend the plugin or the plan."


def work(pipe: Connection, store_root: Path, device_name: str, data_root: Path | None, checkpoint_seconds: float) -> None:
    """The worker's main function: answers each Job with Messages until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the parent blocked it while this process began
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from ddbench.compute.run import select_device
    from ddbench.grid.cell import Desk
    from ddbench.results.store import Store

    desk = Desk(Store(store_root), select_device(device_name), data_root, checkpoint_seconds)
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(job, desk, _Reporter(pipe)))


def _die_with_parent() -> None:
    """A killed parent cannot stop its workers, so they watch it: two runs must not compute side by side unseen."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


class _Reporter:
    """Sends progress, not too often."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.last, self.phase = pipe, 0.0, ""

    def __call__(self, phase: str, fraction: float) -> None:
        now = time.monotonic()
        if phase != self.phase or now - self.last >= REPORT_SECONDS:
            self.pipe.send(Message("progress", phase, fraction))
            self.last, self.phase = now, phase


def _answer(job: Job, desk, report: _Reporter) -> Message:  # type: ignore[no-untyped-def]  # Desk: imported late, it needs torch
    from ddbench.compute.run import be_deterministic
    from ddbench.grid.cell import run_cell
    from ddbench.grid.planning import needs_of_plan

    try:
        if job.resource:
            be_deterministic(job.plan.threads, job.plan.protocol.tf32)
            (need,) = (need for need in needs_of_plan(job.plan, desk.device) if need.key == job.resource)
            report("resources", 0.0)
            desk.store.resources.build(need, desk.training_data(job.plan), desk.device, desk.data_root)
            return Message("done")
        lock = desk.store.lock(job.plan.key)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            return Message("busy")
        with held:
            if desk.store.is_done(job.plan.key):
                return Message("found")
            run_cell(job.plan, job.suite, job.identity, desk, report)
        return Message("done")
    except Exception as error:
        return Message("failed", error=sentence_of(error, job.plan, desk.store.root), details=traceback.format_exc())
