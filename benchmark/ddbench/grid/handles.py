"""The handles of jobs that run somewhere, kept in the store, so that a driver that is started again polls the old ones."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from ddbench.api import Executor
from ddbench.files import write_bytes


class DriverFile(msgspec.Struct):
    """What a driver keeps: its executor, with the settings that it was given, and the handles of its jobs, by job."""

    executor: str
    jobs: dict[str, str]
    settings: dict[str, Any] = {}


class Handles:
    """A driver's file of handles, `work/drivers/<any name>.json`, and the lock beside it that it holds while it lives. Without
    `survives`, when handles mean nothing to another process, there is none.
    """

    def __init__(self, store_root: Path, executor: Executor, name: str, settings: Mapping[str, Any] | None = None) -> None:
        """`name` and `settings` are the executor's."""
        self.executor, self.name, self.settings = executor, name, dict(settings or {})
        self.path = store_root / "work" / "drivers" / f"{uuid.uuid4().hex}.json"

    @contextmanager
    def held(self, is_left: bool = False) -> Iterator[None]:
        """While the driver works; its file goes with it, unless it is killed, or its jobs are left to go on without it."""
        if not self.executor.survives:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_suffix(".lock")
        try:
            with FileLock(lock):
                try:
                    yield
                finally:
                    if not is_left:
                        self.path.unlink(missing_ok=True)
        finally:
            lock.unlink(missing_ok=True)

    def remember(self, handles: Mapping[str, str]) -> None:
        """Put down the handles of all jobs that are submitted and have not ended, by job."""
        if self.executor.survives:
            write_bytes(self.path, msgspec.json.encode(DriverFile(self.name, dict(handles), self.settings)))

    def adopt(self, wanted: set[str]) -> dict[str, str]:
        """The handles of wanted jobs that dead drivers have left, as far as these jobs still run somewhere. Those of other jobs
        stay for a run that wants them."""
        adopted: dict[str, str] = {}
        if not self.executor.survives:
            return adopted
        for path in sorted(self.path.parent.glob("*.json")):
            lock = FileLock(path.with_suffix(".lock"))
            try:
                with lock.acquire(timeout=0):
                    old = read(path)
                    if old and old.executor != self.name:
                        continue
                    alive = self._alive(old.jobs) if old else {}
                    adopted |= {job: handle for job, handle in alive.items() if job in wanted}
                    self.remember(adopted)
                    if left := {job: handle for job, handle in alive.items() if job not in wanted}:
                        write_bytes(path, msgspec.json.encode(DriverFile(self.name, left, old.settings if old else {})))
                        continue
                    path.unlink(missing_ok=True)
            except Timeout:
                continue  # its driver lives
            path.with_suffix(".lock").unlink(missing_ok=True)
        return adopted

    def _alive(self, jobs: Mapping[str, str]) -> dict[str, str]:
        states = self.executor.poll(list(jobs.values()), 0.0) if jobs else []
        pairs = zip(jobs.items(), states, strict=True)
        return {job: handle for (job, handle), state in pairs if state.state in ("waiting", "running")}


def read(path: Path) -> DriverFile | None:
    """A driver's file; None where there is none, or another."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DriverFile)
    except (OSError, msgspec.MsgspecError):
        return None
