"""The executor `local`: a pool of worker processes on this machine, one for each entry of `Site.devices`.

A process runs the code of one set of distributions alone: jobs with plugins of others share no process with jobs that have none,
or with jobs of still others. A worker that dies takes its own job with it and is replaced.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ddbench.api import Executor, ExecutorConfig, Job, JobState, Request, Site

AHEAD = 32  # jobs in the queue: enough to find one for a worker that has run the code of a distribution already
DEATH_SECONDS = 5.0  # that a worker whose pipe has closed may take to die

# The parent's lines come on a pipe that plugins, which may read their standard input, do not see. The first one says where
# modules lie, so that a worker finds what its parent found, and never imports the parent's script.
BOOTSTRAP = """
import json, os, sys
source = os.fdopen(os.dup(0), encoding="utf-8")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
sys.path[:] = json.loads(source.readline())
from ddbench.grid.worker import main
main(source)
"""

# glibc gives large tensors back to the system at once and faults them in again at the next step; keeping them makes the
# steps of small networks on a CPU about a fifth faster.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_TOP_PAD_": str(1 << 26)}


@dataclass(frozen=True)
class Local(ExecutorConfig):
    """local: worker processes on this machine, one a device, or as many as cores allow on a CPU."""

    def open(self, site: Site) -> LocalExecutor:
        """Processes start with the first jobs."""
        return LocalExecutor(site)


class Worker:
    """A process, its pipes, the distributions whose code it has run, and the job it has."""

    def __init__(self, site: Site, slot: int, lane: tuple[str, ...]) -> None:
        self.slot, self.lane, self.handle = slot, lane, ""
        environment = os.environ | MALLOC | {"OMP_NUM_THREADS": str(site.threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOTSTRAP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            process_group=0,
        )  # fmt: skip
        self.rest = b""
        about = {
            "store": str(site.store), "device": site.devices[slot], "checkpoint_seconds": site.checkpoint_seconds,
            "data_root": str(site.data_root) if site.data_root else None,
        }  # fmt: skip
        self.send([entry for entry in sys.path if isinstance(entry, str)])
        self.send(about)

    def send(self, value: object) -> None:
        """One line; a dead worker is noticed where it is read."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(json.dumps(value).encode() + b"\n")
            self.process.stdin.flush()

    def fileno(self) -> int:
        """Of the pipe that it answers on."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def read(self) -> tuple[list[dict[str, object]], bool]:
        """What it has said, and whether it is dead."""
        content = os.read(self.fileno(), 1 << 16)
        *lines, self.rest = (self.rest + content).split(b"\n")
        return [message for message in map(_message, lines) if message], not content

    def stop(self) -> int:
        """End it, wait, and give its exit code."""
        with suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        self.process.terminate()
        try:
            self.process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        return self.process.returncode

    def fate(self) -> str:
        """How it died, as a sentence."""
        try:
            code = self.process.wait(DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            code = self.stop()
        hint = " (signal 9: the system may have run out of memory)" if code == -9 else ""
        return f"its worker process died with exit code {code}{hint}"


def _message(line: bytes) -> dict[str, object] | None:
    """None for what a worker's interpreter prints before the pipe is out of reach."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class LocalExecutor(Executor):
    """Queues jobs and gives them to its workers while it is polled."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.window = AHEAD + 2 * len(site.devices)
        self.workers: list[Worker | None] = [None] * len(site.devices)
        self.queue: list[tuple[str, Job]] = []
        self.states: dict[str, JobState] = {}
        self.count = 0
        self.selector = selectors.DefaultSelector()

    def submit(self, jobs: Sequence[Job], request: Request) -> list[str]:
        """Handles hold for this process only: its workers end with it. Every job gets one of the site's devices whole, so that
        nothing hangs on the request."""
        handles = []
        for job in jobs:
            self.count += 1
            handle = f"local-{os.getpid()}-{self.count}"
            self.queue.append((handle, job))
            self.states[handle] = JobState("waiting")
            handles.append(handle)
        self._hand_out()
        return handles

    def poll(self, handles: Sequence[str], seconds: float) -> list[JobState]:
        """Waits for a message or a death, hands out what is queued."""
        if self.selector.get_map():
            for key, _ in self.selector.select(seconds):
                self._hear(key.data)
        for worker in self.workers:  # whose pipe a process that its plugin has started may hold open
            if worker and worker.process.poll() is not None and not self.selector.select(0):
                self._lose(worker)
        self._hand_out()
        lost = JobState("lost", detail="the process that ran it is gone")
        states = [self.states.get(handle, lost) for handle in handles]
        for handle, state in zip(handles, states, strict=True):
            if state.state in ("ended", "lost"):
                self.states.pop(handle, None)
        return states

    def cancel(self, handles: Sequence[str]) -> None:
        """Queued jobs go; a running one goes with its worker."""
        wanted = set(handles)
        self.queue = [(handle, job) for handle, job in self.queue if handle not in wanted]
        for worker in self.workers:
            if worker and worker.handle in wanted:
                self._drop(worker)
        for handle in wanted:
            self.states[handle] = JobState("ended", detail="cancelled")

    def close(self) -> None:
        """Stop all workers."""
        for worker in self.workers:
            if worker:
                self._drop(worker)
        self.selector.close()

    def _hand_out(self) -> None:
        """Give each idle worker the next job of its own distributions; what is then left goes to new ones, in the place of
        nobody or of those that stayed idle."""
        for worker in self.workers:
            if worker and not worker.handle:
                number = next((n for n, (_, job) in enumerate(self.queue) if job.distributions == worker.lane), None)
                if number is not None:
                    self._give(worker, *self.queue.pop(number))
        free = [slot for slot, worker in enumerate(self.workers) if worker is None or not worker.handle]
        for slot in sorted(free, key=lambda slot: self.workers[slot] is not None):
            if self.queue:
                handle, job = self.queue.pop(0)
                if old := self.workers[slot]:
                    self._drop(old)
                worker = self.workers[slot] = Worker(self.site, slot, job.distributions)
                self.selector.register(worker, selectors.EVENT_READ, worker)
                self._give(worker, handle, job)

    def _give(self, worker: Worker, handle: str, job: Job) -> None:
        worker.handle = handle
        self.states[handle] = JobState("running")
        worker.send({"job": job.name})

    def _hear(self, worker: Worker) -> None:
        messages, dead = worker.read()
        for message in messages if worker.handle else ():
            if "phase" in message:
                self.states[worker.handle] = JobState("running", str(message["phase"]), float(str(message["fraction"])))
            elif "unrecorded" in message:
                self.states[worker.handle] = JobState("running", detail=str(message["unrecorded"]))
            elif "ended" in message:
                detail = self.states[worker.handle].detail or str(message["ended"])
                self.states[worker.handle] = JobState("ended", detail=detail)
                worker.handle = ""
                if message["stained"]:
                    self._drop(worker)
                    return
        if dead:
            self._lose(worker)

    def _lose(self, worker: Worker) -> None:
        fate, handle = worker.fate(), worker.handle
        self._drop(worker)
        if handle:
            self.states[handle] = JobState("lost", detail=fate)

    def _drop(self, worker: Worker) -> None:
        """Stop it. Ctrl-C may have come between any two lines here or where it began, so this can be done twice, or half."""
        with suppress(KeyError):
            self.selector.unregister(worker)
        worker.stop()
        self.workers[worker.slot] = None
