"""The handles of jobs that run somewhere, kept in the store, so that a driver that is started again polls the old ones."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from ddbench.api import Executor
from ddbench.files import write_bytes


class _File(msgspec.Struct):
    executor: str
    jobs: dict[str, str]


class Handles:
    """A driver's file of handles, `work/drivers/<any name>.json`, and the lock beside it that it holds while it lives. Without
    `survives`, when handles mean nothing to another process, there is none.
    """

    def __init__(self, store_root: Path, executor: Executor, name: str) -> None:
        """`name` is the executor's."""
        self.executor, self.name = executor, name
        self.path = store_root / "work" / "drivers" / f"{uuid.uuid4().hex}.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the driver works; its file goes with it, unless it is killed."""
        if not self.executor.survives:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_suffix(".lock")
        with FileLock(lock):
            try:
                yield
            finally:
                self.path.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)

    def remember(self, handles: Mapping[str, str]) -> None:
        """Put down the handles of all jobs that are submitted and have not ended, by job."""
        if self.executor.survives:
            write_bytes(self.path, msgspec.json.encode(_File(self.name, dict(handles))))

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
                    old = _read(path)
                    if old and old.executor != self.name:
                        continue
                    alive = self._alive(old.jobs) if old else {}
                    adopted |= {job: handle for job, handle in alive.items() if job in wanted}
                    self.remember(adopted)
                    if left := {job: handle for job, handle in alive.items() if job not in wanted}:
                        write_bytes(path, msgspec.json.encode(_File(self.name, left)))
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


def _read(path: Path) -> _File | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.MsgspecError):
        return None
