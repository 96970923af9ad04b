"""An executor for machines elsewhere: it puts jobs into batches, has them started, and reads in the store what they tell.

For a cluster of your own write an `Engine`, which starts commands somewhere and says which of them live, and nothing else.
"""

from __future__ import annotations

import shutil
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ddbench.api import Executor, Job, JobState, Request, Site
from ddbench.errors import ConfigError, DataError
from ddbench.ops.batches import BLIND, Orders, Told, folder_of

LOCK = "driver.lock"
LEAVE_SECONDS = 20.0  # that batches whose jobs have all ended are given to leave the queue


@dataclass(frozen=True)
class Fate:
    """How a batch has ended, as far as an engine knows."""

    sentence: str = ""  # without a full stop
    code: int | None = None


class Engine(ABC):
    """Starts commands on other machines. Batches are named by their wave and their number in it."""

    survives: bool = False  # whether they go on when this process has ended

    @abstractmethod
    def check(self) -> int:
        """Called before the first batch is started; how many may run at the same time. Raises ConfigError where the engine or its
        settings cannot work."""

    @abstractmethod
    def start(self, wave: str, commands: Sequence[Sequence[str]], after: str) -> bool:
        """Start, or queue, a command for each batch of a wave, not before all batches of the wave `after` have ended, where one
        is named. False where the engine does not answer, and is to be asked again. Raises ConfigError where it refuses."""

    @abstractmethod
    def live(self, waves: Collection[str]) -> Mapping[tuple[str, int], str] | None:
        """The batches of these waves that wait or run, with what people are told of it (as `JobState.where`); None where the
        engine does not answer."""

    @abstractmethod
    def fate(self, wave: str, number: int) -> Fate:
        """Of a batch that lives no more."""

    @abstractmethod
    def stop(self, batches: Collection[tuple[str, int]]) -> None:
        """Stop them, or take them out of the queue."""

    def close(self) -> None:
        """Nothing is started or asked any more."""
        return


@dataclass(frozen=True)
class Shape:
    """How jobs are put into batches, and looked at."""

    device: str = "cpu"
    workers: int = 1  # jobs of a batch side by side
    seconds: float = 600.0  # that a batch should take
    retries: int = 2
    poll_seconds: float = 10.0  # between two looks
    python: str = sys.executable  # on the machines


def pack(jobs: Sequence[tuple[Job, float | None]], shape: Shape, parallel: int) -> list[list[Job]]:
    """Jobs, and the seconds that each takes, into batches. Those of known length fill batches of `shape.seconds`; the others are
    divided among as many as may run at once, `parallel`. Jobs of strangers' code stand together, for they need processes of their
    own."""
    batches: list[list[Job]] = []
    ordered = sorted(jobs, key=lambda each: each[0].distributions)
    unknown = [job for job, seconds in ordered if seconds is None]
    size = -(-len(unknown) // parallel) if unknown else 1
    batches += [unknown[start : start + size] for start in range(0, len(unknown), size)]
    room = 0.0
    for job, seconds in ordered:
        if seconds is not None:
            if room <= 0:
                batches.append([])
                room = shape.seconds * shape.workers
            batches[-1].append(job)
            room -= seconds
    return batches


class BatchExecutor(Executor):
    """Jobs in batches, by an engine. Handles are `<wave>/<job>`."""

    def __init__(self, site: Site, engine: Engine, shape: Shape) -> None:
        self.site, self.engine, self.shape = site, engine, shape
        self.survives, self.retries = engine.survives, shape.retries
        self.wave = uuid.uuid4().hex[:16]  # that what is submitted now will belong to
        self.pending: list[tuple[Job, float | None]] = []
        self.orders: dict[str, Orders] = {}  # of waves that were started
        self.numbers: dict[str, tuple[str, int]] = {}  # by handle: wave, and number of its batch
        self.states: dict[str, JobState] = {}  # by handle, as last seen
        self.locks: dict[str, FileLock] = {}  # of waves that end with this process
        self.over: set[str] = set()  # waves that nobody needs any more
        self.looked = float("-inf")
        self.parallel = 0  # batches that may run at the same time; the engine has not been asked

    def submit(self, jobs: Sequence[Job], request: Request) -> list[str]:
        """They are started when they are polled, so that jobs of several kinds share batches."""
        if jobs and not self.parallel:
            self.parallel = self.engine.check()
        self.pending += [(job, request.seconds) for job in jobs]
        return [f"{self.wave}/{job.name}" for job in jobs]

    def detach(self, stages: Sequence[Sequence[tuple[Job, Request]]]) -> list[list[str]]:
        """A wave for each stage."""
        if not self.survives:
            return super().detach(stages)
        handles, after = [], ""
        for stage in stages:
            handles.append([handle for job, request in stage for handle in self.submit([job], request)])
            wave = self.wave
            if not self._start(after):
                raise DataError("the cluster does not answer: give the command again when it does.")
            after = wave
        self.orders, self.numbers = {}, {}  # what is left to itself is not waited for
        return handles

    def poll(self, handles: Sequence[str], seconds: float) -> list[JobState]:
        """Starts what is pending, and looks when it is time."""
        self._start("")
        is_known = all(handle in self.states for handle in handles)
        wait = self.looked + self.shape.poll_seconds - time.monotonic()
        if is_known and wait > 0:
            time.sleep(max(0.0, min(wait, seconds)))
        if not is_known or time.monotonic() >= self.looked + self.shape.poll_seconds:
            self._look(handles)
            self.looked = time.monotonic()
        return [self.states.get(handle, JobState("waiting")) for handle in handles]

    def cancel(self, handles: Sequence[str]) -> None:
        """Pending jobs go; a batch is stopped when all of its jobs that have not ended are cancelled."""
        gone = set(handles)
        self.pending = [each for each in self.pending if f"{self.wave}/{each[0].name}" not in gone]
        batches = {place for handle in handles if (place := self._place(handle))}
        if stopped := [place for place in batches if self._unended(*place) <= gone]:
            self.engine.stop(stopped)
        for handle in handles:
            self.states[handle] = JobState("ended", detail="cancelled")

    def close(self) -> None:
        """The folders of waves that have ended go, as soon as their batches have left the queue."""
        until = time.monotonic() + LEAVE_SECONDS
        at_work = {handle.partition("/")[0] for handle, state in self.states.items() if state.state in ("waiting", "running")}
        ended = (set(self.orders) | self._left()) - at_work
        while ended and (live := self.engine.live(ended)) is not None:
            left = {wave for wave, _ in live} & ended
            for wave in ended - left:
                self._forget(wave)
            ended = left if time.monotonic() < until else set()
            time.sleep(min(1.0, self.shape.poll_seconds) if ended else 0.0)
        self.engine.close()

    def _left(self) -> set[str]:
        """Waves that have told everything, or that a process has left which was killed, and whose batches have ended with it."""
        found = set()
        for path in (self.site.store / "work" / "batches").glob("*/orders.json"):
            with suppress(DataError, Timeout):
                if (path.parent / LOCK).exists():
                    FileLock(path.parent / LOCK).acquire(timeout=0).lock.release()
                    found.add(path.parent.name)
                logs = [(path.parent / f"{number}.log", names) for number, names in enumerate(Orders.read(path.parent).batches)]
                if all(_unended(log, names) == set() for log, names in logs):
                    found.add(path.parent.name)
        return found

    def _forget(self, wave: str) -> None:
        """Remove its folder, and that of all waves when it was the last one."""
        self.over.discard(wave)
        self.locks.pop(wave, None)
        self.orders.pop(wave, None)
        folder = folder_of(self.site.store, wave)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.parent.is_dir() and not any(folder.parent.iterdir()):
            folder.parent.rmdir()

    def _start(self, after: str) -> bool:
        """Start what is pending; it stays so where the engine does not answer."""
        if not self.pending:
            return True
        for over in list(self.over):
            self._forget(over)
        site, wave, folder = self.site, self.wave, folder_of(self.site.store, self.wave)
        batches = pack(self.pending, self.shape, self.parallel)
        names = tuple(tuple(job.name for job in batch) for batch in batches)
        root = str(site.data_root) if site.data_root else None
        orders = Orders(
            uuid.uuid4().hex, names, self.shape.device, self.shape.workers, site.threads, root, site.checkpoint_seconds
        )
        orders.write(folder)
        if not self.survives:
            self.locks[wave] = FileLock(folder / LOCK)
            self.locks[wave].acquire()
        commands = [self._command(wave, number, orders.nonce) for number in range(len(batches))]
        is_started = False
        try:
            is_started = self.engine.start(wave, commands, after)
        finally:
            if not is_started:
                shutil.rmtree(folder, ignore_errors=True)
        if is_started:
            self._know(wave, orders)
            self.pending, self.wave, self.looked = [], uuid.uuid4().hex[:16], float("-inf")
        return is_started

    def _command(self, wave: str, number: int, nonce: str) -> list[str]:
        return [self.shape.python, "-P", "-m", "ddbench", "work", str(self.site.store), wave, str(number), nonce]

    def _know(self, wave: str, orders: Orders) -> None:
        self.orders[wave] = orders
        for number, names in enumerate(orders.batches):
            self.numbers |= {f"{wave}/{name}": (wave, number) for name in names}

    def _place(self, handle: str) -> tuple[str, int] | None:
        """The batch of a handle, of this process or of an earlier one; None where nobody knows it."""
        wave = handle.partition("/")[0]
        if handle not in self.numbers and wave.isalnum() and wave not in self.orders:
            try:
                self._know(wave, Orders.read(folder_of(self.site.store, wave)))
            except DataError:
                return None
        return self.numbers.get(handle)

    def _unended(self, wave: str, number: int) -> set[str]:
        """The handles of a batch whose jobs have not ended."""
        log = folder_of(self.site.store, wave) / f"{number}.log"
        return {f"{wave}/{name}" for name in _unended(log, self.orders[wave].batches[number])}

    def _look(self, handles: Sequence[str]) -> None:
        """Ask the engine which batches live, then read what they have told: in this order, for a batch tells before it ends."""
        pending = {f"{self.wave}/{job.name}" for job, _ in self.pending}
        asked = defaultdict[tuple[str, int], list[str]](list)
        for handle in handles:
            if place := self._place(handle):
                asked[place].append(handle)
            else:
                lost = JobState("lost", detail="nobody knows it any more")
                self.states[handle] = JobState("waiting") if handle in pending else lost
        live = self.engine.live({wave for wave, _ in asked}) if asked else {}
        for (wave, number), mine in asked.items():
            here = None if live is None else live.get((wave, number))
            told = Told.read(folder_of(self.site.store, wave) / f"{number}.log")
            ended = None if live is None or here is not None else self._ended(wave, number, told)
            for handle in mine:
                state = told.states.get(handle.partition("/")[2])
                if state is None or state.state == "running":
                    state = ended or _at(state or JobState("waiting"), here or "")
                self.states[handle] = state
        if live is not None:
            self.over |= {wave for wave, _ in asked} - {wave for wave, _ in live}

    def _ended(self, wave: str, number: int, told: Told) -> JobState:
        """What is said of the jobs that a batch leaves when it ends."""
        fate = self.engine.fate(wave, number)
        if not told.machine and fate.code == BLIND:
            return JobState("ended", detail=f"{fate.sentence}.")
        where = f" on {told.machine}" if told.machine else ""
        sentence = f": {fate.sentence}" if fate.sentence else ""
        return JobState("lost", detail=f"the batch that did it has ended{where}{sentence}")


def _unended(log: Path, names: Sequence[str]) -> set[str]:
    """The jobs of a batch that has not told their end."""
    told = Told.read(log).states
    return {name for name in names if name not in told or told[name].state == "running"}


def _at(state: JobState, here: str) -> JobState:
    """With what the engine says of its place."""
    where = "; ".join(filter(None, (state.where, here)))
    return JobState(state.state, state.phase, state.fraction, state.detail, where)


def check_least(settings: object, least: Mapping[str, int]) -> None:
    """Raise ConfigError where one of these settings is below its least value."""
    for name, number in least.items():
        if getattr(settings, name) < number:
            raise ConfigError(f"setting '{name}' must be at least {number}, got {getattr(settings, name)}.")
