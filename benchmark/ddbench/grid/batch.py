"""Doing a batch of jobs on the machine that an executor has sent it to: with workers of its own, telling the store how far it is.

Nothing else is told: whatever becomes of this process, the store says what is done. Before any work the machine shows that it
sees the store that the batch belongs to, by a word that stands in both the command and the store.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from ddbench.api import Job, JobKind, JobState, Request, Site
from ddbench.errors import BenchError, DataError
from ddbench.grid.local import LocalExecutor
from ddbench.grid.sites import devices_of
from ddbench.ops.batches import Orders, Told, append, folder_of
from ddbench.refs import foreign
from ddbench.results.layout import is_job
from ddbench.results.store import Store

TELL_SECONDS = 2.0  # between two lines on one running job
BUSY_SECONDS, BUSY_LOOKS = 1.0, 60  # between two looks at a job that another process is at, and so many: such jobs may soon end
TERM_SECONDS = 0.5  # what ends all processes of a batch may reach a worker first, and then its job is not lost


def read_orders(root: Path, wave: str, number: int, nonce: str) -> Orders:
    """What a batch is to do. Raises DataError where this machine does not see the store that it belongs to, or must not write."""
    folder, here = folder_of(root, wave), platform.node()
    remedy = "Name a store that lies under the same path on all machines, with --store."
    if not (wave.isalnum() and root.is_absolute()):
        raise DataError(f"'{wave}' in '{root}' names no batch.")
    try:
        orders = Orders.read(folder)
    except DataError as error:
        raise DataError(f"{here} does not see the store {root}: {error} {remedy}") from error
    if orders.nonce != nonce:
        raise DataError(f"{here} sees another store at {root} than the machine that submitted the batch: {remedy}")
    if not 0 <= number < len(orders.batches) or not all(map(is_job, orders.batches[number])):
        raise DataError(f"{folder / 'orders.json'} holds no batch {number} of jobs.")
    try:
        append(folder / f"{number}.log", {"begun": here})
    except OSError as error:
        raise DataError(
            f"{here} cannot write in the store {root}: {error.strerror}. Check its rights and its free space."
        ) from error
    return orders


def work_off(root: Path, wave: str, number: int, nonce: str) -> None:
    """Do the jobs of a batch that have not ended. Raises DataError, like `read_orders`, before any work."""
    orders = read_orders(root, wave, number, nonce)
    for name in ("SIGUSR1", "SIGUSR2"):  # some queues send them to all processes of a job before its time is over
        with suppress(AttributeError):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    store, log = Store(root, create=False), folder_of(root, wave) / f"{number}.log"
    told = Told.read(log).states
    names = [name for name in orders.batches[number] if name not in told or told[name].state == "running"]
    devices = tuple(devices_of(orders.device, orders.workers, orders.threads))
    data_root = Path(orders.data_root) if orders.data_root else None
    executor = LocalExecutor(Site(root, devices, orders.threads, data_root, orders.checkpoint_seconds))
    try:
        Batch(store, log, executor).work_off(names)
    finally:
        executor.close()


class Batch:
    """Jobs of a store, given to workers of this machine."""

    def __init__(self, store: Store, log: Path, executor: LocalExecutor) -> None:
        self.store, self.log, self.executor = store, log, executor
        self.looks = Counter[str]()  # at jobs that another process is at
        self.last: dict[str, tuple[float, str]] = {}  # when a line on a job was written, and of which phase

    def work_off(self, names: list[str]) -> None:
        """Until all have ended."""
        handles = self._submitted(names)
        while handles:
            states, busy = self.executor.poll(list(handles.values()), 0.5), []
            for name, state in zip(list(handles), states, strict=True):
                if state.state == "running":
                    self._follow(name, state)
                if state.state not in ("ended", "lost"):
                    continue
                del handles[name]
                if state.detail == "busy" and self.looks[name] < BUSY_LOOKS:
                    self.looks[name] += 1
                    busy.append(name)
                    continue
                if state.state == "lost":
                    time.sleep(TERM_SECONDS)
                self._tell(name, state.state, detail=state.detail)
            if busy:
                time.sleep(BUSY_SECONDS)
                handles |= self._submitted(busy)

    def _submitted(self, names: list[str]) -> dict[str, str]:
        """The handles of those jobs that can be done, by job."""
        jobs = [job for job in map(self._job, names) if job]
        return dict(zip((job.name for job in jobs), self.executor.submit(jobs, Request()), strict=True))

    def _job(self, name: str) -> Job | None:
        """None where it cannot be done, which is told."""
        if self.store.is_done(name):
            self._tell(name, "ended", detail="done")
            return None
        try:
            file = self.store.read_job(name)
        except BenchError as error:
            self._tell(name, "ended", detail=str(error))
            return None
        lacking = [need for need in file.needs if not self.store.is_done(need)]
        if lacking:
            self._tell(name, "ended", detail=f"it needs {lacking[0]}, which is not there: give the command again.")
            return None
        return Job(cast(JobKind, file.kind), name, name, (), foreign(*file.refs))

    def _follow(self, name: str, state: JobState) -> None:
        when, phase = self.last.get(name, (0.0, ""))
        if name not in self.last or time.monotonic() - when >= TELL_SECONDS or (phase != state.phase and not phase):
            self.last[name] = (time.monotonic(), state.phase)
            self._tell(name, "running", phase=state.phase, fraction=state.fraction)

    def _tell(self, name: str, state: str, **more: object) -> None:
        append(self.log, {"job": name, "state": state, **more})


def end_with(parent: Callable[[int], bytes] = lambda size: os.read(0, size)) -> None:
    """End this process when the standard input does: whoever started it is gone, and may start another."""

    def listen() -> None:
        while parent(1 << 10):
            pass
        print("ddbench: whoever began this batch is gone; it ends.", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
