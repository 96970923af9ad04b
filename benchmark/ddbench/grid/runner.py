"""The grid: runs what a store lacks, side by side, and goes on where an earlier call stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from ddbench.compute import hardware
from ddbench.compute.run import pick_device
from ddbench.data.subsets import Identity, identify
from ddbench.errors import ConfigError, Faults
from ddbench.grid.cell import CHECKPOINT_SECONDS
from ddbench.grid.planning import needs_of_plan
from ddbench.grid.worker import Job, Message, sentence_of, work
from ddbench.plan import Plan, PluginRef
from ddbench.results.store import Store
from ddbench.suite.reader import Suite

BUSY_SECONDS = 1.0  # between two looks at a cell that another runner is computing
DEATH_SECONDS = 5.0  # that a worker whose pipe has closed may take to die


class Identities:
    """Data sets' identities, each hashed once in this process."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, Path | None], Identity] = {}

    def __call__(self, ref: PluginRef, root: Path | None) -> str:
        """The content hash, as `grid.load` wants it."""
        if (ref.label, root) not in self.known:
            self.known[ref.label, root] = identify(ref, root)
        return self.known[ref.label, root].hash

    def check_ipc(self, plans: Sequence[Plan]) -> None:
        """Raise Faults where a class has fewer real training images than IPC asks for: such a set distils nothing."""
        faults = []
        for plan in plans:
            least = min(self.of(plan).train_counts)
            least -= int(least * plan.protocol.validation_fraction)  # held out for selection
            if plan.ipc > least:
                name = plan.dataset.label
                faults.append(f"ipc {plan.ipc} is more than the {least} images that a class of '{name}' trains on: lower it.")
        if faults:
            raise Faults(list(dict.fromkeys(faults)))

    def of(self, plan: Plan) -> Identity:
        """The identity behind a plan's data hash."""
        return next(identity for identity in self.known.values() if identity.hash == plan.data_hash)


class Progress:
    """What the runner tells while it works; the command line shows it."""

    def start(self, total: int, done: int) -> None:
        """`total` cells, of which `done` are there already."""

    def update(self, job: Job, message: Message) -> None:
        """A running job's progress."""

    def finish(self, job: Job, message: Message, seconds: float) -> None:
        """A job is done, failed, or another runner's: found, or busy and looked at again later."""


@dataclass
class Outcome:
    """What became of a run."""

    present: int = 0  # cells that were there already, or that another run computed meanwhile
    computed: list[str] = field(default_factory=list)  # keys, of this run
    failed: dict[str, str] = field(default_factory=dict)  # key to sentence


@dataclass
class Worker:
    """A process, its pipe, and the job it has."""

    process: BaseProcess
    pipe: Connection
    device: str
    job: Job | None = None
    started: float = 0.0


def devices_of(device: str, workers: int | None, plans: Sequence[Plan]) -> list[str]:
    """One entry for each worker: every CUDA device once, or as many workers as cores allow. Raises ConfigError."""
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}.")
    if device == "auto" and torch.cuda.is_available():
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        return [names[number % len(names)] for number in range(workers or len(names))]
    picked = pick_device(device)
    threads = max((plan.threads for plan in plans), default=1)
    default = max(1, hardware.num_cores() // threads) if picked.type == "cpu" else 1
    return [str(picked)] * (workers or default)


class Runner:
    """One call of `ddbench run`."""

    def __init__(
        self, suite: Suite, plans: Sequence[Plan], store: Store, identities: Identities, progress: Progress,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:  # fmt: skip
        self.checkpoint_seconds = checkpoint_seconds
        self.suite, self.store, self.identities, self.progress = suite, store, identities, progress
        self.plans = list({plan.key: plan for plan in plans}.values())
        self.outcome = Outcome()
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[Worker] = []
        self.again: list[tuple[float, Job]] = []  # cells that another runner holds, and when to look again
        self.pending: set[str] = set()  # resources that a job of this run has yet to build

    def run(self, devices: Sequence[str], cells: bool = True) -> Outcome:
        """Compute what is missing with a worker for each entry of `devices`. Failures are recorded, and the rest goes on.
        Without `cells`, only the resources that missing cells need."""
        self.cells = cells
        for plan in self.plans:
            self.store.tidy(plan.key)
        todo = [plan for plan in self.plans if not self.store.is_done(plan.key)]
        self.outcome.present = len(self.plans) - len(todo)
        if cells:
            self.progress.start(len(self.plans), self.outcome.present)
        if not todo:
            return self.outcome
        self.needs = self._needs(todo, devices[0])
        self.queue = self._jobs([plan for plan in todo if plan.key in self.needs])
        if not cells:
            self.queue = [job for job in self.queue if job.resource]
            self.progress.start(len(self.queue), 0)
        try:
            for device in devices[: len(self.queue)]:
                self.workers.append(self._start(device))
            while self.queue or self.again or any(worker.job for worker in self.workers):
                self._hand_out()
                self._listen()
        finally:
            for worker in self.workers:
                worker.process.terminate()
            for worker in self.workers:
                worker.process.join()
                worker.pipe.close()
        return self.outcome

    def _needs(self, todo: Sequence[Plan], device: str) -> Mapping[str, list[str]]:
        """The resources that each cell waits for, by keys. A plugin that cannot say what it needs fails its cell."""
        kind, needs = torch.device(device), dict[str, list[str]]()
        for plan in todo:
            try:
                needs[plan.key] = [need.key for need in needs_of_plan(plan, kind)]
            except Exception as error:  # a stranger's code
                told = sentence_of(error, plan, self.store.root)
                self._fail(plan, Message("failed", error=told, details=traceback.format_exc()))
        return needs

    def _jobs(self, todo: Sequence[Plan]) -> list[Job]:
        """Shared resources first, each once; then the cells in the order of the suite."""
        resources: dict[str, Job] = {}
        cells = []
        for plan in todo:
            job = Job(plan, self.suite.name, self.identities.of(plan))
            cells.append(job)
            for key in self.needs[plan.key]:
                if not self.store.resources.is_built(key) and key not in resources:
                    resources[key] = Job(plan, self.suite.name, job.identity, key)
        self.pending = set(resources)
        return [*resources.values(), *cells]

    def _start(self, device: str) -> Worker:
        ours, theirs = self.context.Pipe()
        arguments = (theirs, self.store.root, device, self.suite.data_root, self.checkpoint_seconds)
        process = self.context.Process(target=work, args=arguments, daemon=True)
        with _environment({"OMP_NUM_THREADS": str(self.plans[0].threads), **MALLOC}), _interrupts_held_back():
            process.start()
        theirs.close()
        return Worker(process, ours, device)

    def _ready(self, job: Job) -> bool:
        return job.resource is not None or self.pending.isdisjoint(self.needs[job.plan.key])

    def _hand_out(self) -> None:
        """Give each idle worker the first job that is ready."""
        now = time.monotonic()
        due = [job for when, job in self.again if when <= now]
        self.again = [(when, job) for when, job in self.again if when > now]
        self.queue.extend(due)
        for worker in self.workers:
            job = next((job for job in self.queue if self._ready(job)), None)
            if worker.job is None and job:
                self.queue.remove(job)
                worker.job, worker.started = job, time.monotonic()
                with suppress(OSError):  # it died idle: _listen sees that
                    worker.pipe.send(job)

    def _listen(self) -> None:
        """Wait for a message, a death or the time to look again, and act on it."""
        busy = [worker for worker in self.workers if worker.job]
        waitables = [waitable for worker in busy for waitable in (worker.pipe, worker.process.sentinel)]
        ready = wait(waitables, timeout=BUSY_SECONDS)
        for worker in busy:
            if worker.pipe in ready or worker.process.sentinel in ready:
                message = self._receive(worker)
                if message.kind == "progress":
                    self.progress.update(worker.job, message)  # type: ignore[arg-type]
                else:
                    self._settle(worker, message)

    def _receive(self, worker: Worker) -> Message:
        """What a worker says, or what is to be said of a dead one; a fresh process then takes its place."""
        with suppress(EOFError, OSError):
            if worker.pipe.poll():
                return worker.pipe.recv()
        worker.process.join(DEATH_SECONDS)
        worker.process.kill()  # one that closed its pipe and lives on
        worker.process.join()
        self.workers[self.workers.index(worker)] = self._replacement(worker)
        return Message("failed", error=self._obituary(worker))

    def _obituary(self, worker: Worker) -> str:
        code = worker.process.exitcode or 0
        name = worker.job.plan.name if worker.job else "?"
        hint = " (signal 9: the system may have run out of memory)" if code == -9 else ""
        died = f"{name}: its worker process died with exit code {code}{hint}."
        return f"{died} Give the same command again to go on from its checkpoint."

    def _replacement(self, dead: Worker) -> Worker:
        dead.pipe.close()
        return self._start(dead.device)

    def _settle(self, worker: Worker, message: Message) -> None:
        """A job has ended."""
        job, worker.job = worker.job, None
        assert job is not None
        seconds = time.monotonic() - worker.started
        if job.resource:
            self.pending.discard(job.resource)
        if message.kind == "busy":
            self.again.append((time.monotonic() + BUSY_SECONDS, job))
        elif message.kind == "failed" and job.resource:
            waiting = [other for other in self.queue if job.resource in self.needs[other.plan.key] and not other.resource]
            self.queue = [other for other in self.queue if other not in waiting]
            for other in waiting:
                self._fail(other.plan, message)
            if not self.cells:
                self.outcome.failed[job.resource] = message.error
        elif message.kind == "failed":
            self._fail(job.plan, message)
        elif message.kind == "found":
            self.outcome.present += 1
        elif not job.resource:
            self.outcome.computed.append(job.plan.key)
        self.progress.finish(job, message, seconds)

    def _fail(self, plan: Plan, message: Message) -> None:
        self.outcome.failed[plan.key] = message.error
        try:
            self.store.fail(plan, message.error, message.details)
        except OSError as error:
            self.outcome.failed[plan.key] += f" (Nor could this be recorded: {error.strerror}.)"


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C reaches a process group: hold it back here, and so in a child that begins, until the child ignores it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # or starting a process starts it too, and that unblocks the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


# glibc gives large tensors back to the system at once and faults them in again at the next step; keeping them makes the
# steps of small networks on a CPU about a fifth faster.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_TOP_PAD_": str(1 << 26)}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that a child reads before its first line of Python runs, put back afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_suite(
    suite: Suite, plans: Sequence[Plan], store: Store, identities: Identities, progress: Progress, devices: Sequence[str],
    checkpoint_seconds: float = CHECKPOINT_SECONDS, cells: bool = True,
) -> Outcome:  # fmt: skip
    """Run a suite's cells with a worker for each of `devices` (of `devices_of`); without `cells`, build their resources only."""
    store.add_suite(suite)
    return Runner(suite, plans, store, identities, progress, checkpoint_seconds).run(devices, cells)
