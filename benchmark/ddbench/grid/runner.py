"""One call of `ddbench run`: gives an executor what a store lacks, and believes only the store of what became of it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddbench.api import Executor, ExecutorConfig, Job, JobState, Request, Site
from ddbench.errors import BenchError
from ddbench.grid.counts import Counts
from ddbench.grid.estimates import Estimates
from ddbench.grid.forecast import Forecast
from ddbench.grid.handles import Handles
from ddbench.grid.jobs import Lister, Todo, Work
from ddbench.grid.planning import Planned
from ddbench.grid.progress import Outcome, Progress
from ddbench.grid.scheduler import Schedule
from ddbench.grid.stale import kept_failure
from ddbench.grid.worker import details_of, sentence_of
from ddbench.results.contents import Contents
from ddbench.results.layout import set_job
from ddbench.results.store import Store

BUSY_SECONDS = 1.0  # between two looks at a job that another runner is at
LOST_SECONDS, MOST_LOST_SECONDS = 3.0, 60.0  # until a job that was lost is tried again; twice as long each time, up to the most
POLL_SECONDS = 0.5


class Runner:
    """Gives jobs to an executor as they become ready, and looks into the store when one has ended."""

    def __init__(
        self, todo: Todo, store: Store, executor: Executor, name: str, progress: Progress, estimates: Estimates, workers: int = 1,
        again: bool = False, settings: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`name` and `settings` are the executor's; `workers`: how many jobs run at once; `again`: failures that come again are
        tried anew."""
        self.again = again
        self.estimates = estimates
        self.work: dict[str, Work] = {work.job.name: work for work in todo.work}
        self.store, self.executor, self.progress = store, executor, progress
        self.schedule = Schedule([work.job for work in todo.work])
        self.forecast = Forecast(todo.work, estimates, workers)
        self.outcome = Outcome(todo.wanted, todo.there.copy())
        self.handles: dict[str, str] = {}  # by job
        self.started: dict[str, float] = {}
        self.attempts: dict[str, int] = {}  # failures of a job before this run
        self.written: set[str] = set()  # jobs whose files lie in the store
        self.busy: list[tuple[float, str]] = []  # jobs that another runner is at, or that were lost, and when to look again
        self.lost = Counter[str]()  # how often a job was lost in this run
        self.driver = Handles(store.root, executor, name, settings)

    def run(self) -> Outcome:
        """Until nothing is left. Failures are recorded, and the rest goes on."""
        self.progress.start(self.outcome.wanted, self.outcome.there, self.forecast)
        if not self.again:
            self._keep_failed()
        if not self.schedule.left:
            return self.outcome
        with self.driver.held():
            self._adopt()
            self._work_off()
        return self.outcome

    def _keep_failed(self) -> None:
        """Jobs that have failed by their numbers have failed, without another attempt, and so has what needs them."""
        for name, work in self.work.items():
            if name not in self.schedule.failed and (failure := kept_failure(self.store, work.file)):
                told = f"{failure.error} It failed so before, and is tried again only with --redo."
                self._fail(work.job, with_path(told, self.store.failures(name)[-1]))
                self.progress.finish(work.job, "failed", 0.0)

    def _work_off(self) -> None:
        """Submit what is ready, and settle what has ended, until nothing is left."""
        try:
            while self.schedule.left:
                window = self.executor.window
                self._submit(self.schedule.take(None if window is None else max(0, window - len(self.handles))))
                self._wait()
        finally:
            self.executor.cancel(list(self.handles.values()))
            for name in self.written:
                self.store.forget_job(name)

    def _adopt(self) -> None:
        """Take over what drivers that have died have submitted."""
        ready = self.schedule.take()
        adopted = self.driver.adopt({job.name for job in ready})
        for job in ready:
            if job.name in adopted:
                self.written.add(job.name)
                self._note(job, adopted[job.name])
            else:
                self.schedule.again(job.name)

    def _submit(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        for job in jobs:
            self.store.write_job(self.work[job.name].file)
            self.written.add(job.name)
        asked = defaultdict[Request, list[Job]](list)
        for job in jobs:
            asked[self.estimates.request(self.work[job.name].file)].append(job)
        for request, alike in asked.items():
            for job, handle in zip(alike, self.executor.submit(alike, request), strict=True):
                self._note(job, handle)
        self.driver.remember(self.handles)

    def _note(self, job: Job, handle: str) -> None:
        self.handles[job.name] = handle
        self.attempts[job.name] = len(self.store.failures(job.name))

    def _wait(self) -> None:
        """Poll once, and settle what has ended."""
        now = time.monotonic()
        due = [name for when, name in self.busy if when <= now]
        self.busy = [(when, name) for when, name in self.busy if when > now]
        for name in due:
            self.schedule.again(name)
        if not self.handles:
            if self.busy and not due:
                time.sleep(min(when for when, _ in self.busy) - now)
            return
        names = list(self.handles)
        states = self.executor.poll([self.handles[name] for name in names], 0.0 if due else POLL_SECONDS)
        for name, state in zip(names, states, strict=True):
            if state.state == "running":
                self._follow(name, state)
            elif state.state in ("ended", "lost"):
                del self.handles[name]
                self._settle(name, state)

    def _follow(self, name: str, state: JobState) -> None:
        """A job is running."""
        job = self.work[name].job
        if name not in self.started:
            self.started[name] = time.monotonic()
            self.forecast.begin(name)
            self.progress.begin(job)
        if state.phase:
            self.forecast.update(name, state.fraction)
            self.progress.update(job, state)

    def _settle(self, name: str, state: JobState) -> None:
        """A job has ended: what the store has is done, what it has not has failed."""
        job = self.work[name].job
        seconds = time.monotonic() - self.started.get(name, time.monotonic())
        if self._is_done(name):
            end = "found" if state.detail in ("found", "busy") else "done"  # another runner has just finished what was busy
            self.schedule.finish(name)
            self.estimates.learn(self.work[name].file)
            if end == "done":
                (self.outcome.built if job.kind == "resource" else self.outcome.computed).append(name)
            else:
                self.outcome.there[job.kind] += job.kind in self.outcome.wanted
        elif state.state == "lost" and self.lost[name] < self.executor.retries:
            end = "again"
            self.lost[name] += 1
            self._record(job, f"{job.title}: {state.detail or 'it was lost'}. It is tried again.", "")
            wait = min(MOST_LOST_SECONDS, LOST_SECONDS * 2 ** (self.lost[name] - 1))
            self.busy.append((time.monotonic() + wait, name))
            self.schedule.running.discard(name)
        elif state.detail in ("busy", "found"):  # found by its name, without the iterates that are wanted
            end = "busy"
            self.busy.append((time.monotonic() + BUSY_SECONDS, name))
            self.schedule.running.discard(name)
        else:
            end = "failed"
            self._fail(job, self._why(job, state))
        if name not in self.started and end in ("done", "failed"):  # it ended before anybody looked
            self.progress.begin(job)
        if end not in ("busy", "again") and name in self.written:
            self.store.forget_job(name)
            self.written.discard(name)
        if end in ("busy", "again"):
            self.forecast.stop(name)
        else:
            self.forecast.finish(name)
        self.started.pop(name, None)
        self.progress.finish(job, end, seconds)

    def _is_done(self, name: str) -> bool:
        file = self.work[name].file
        if not self.store.is_done(name):
            return False
        try:
            return file.kind != "set" or not self.store.lacking(file.plan, file.iterates, file.iterate_seconds)
        except BenchError:  # damaged, as its worker has said
            return False

    def _why(self, job: Job, state: JobState) -> str:
        """What the worker has recorded, or, where it could not, what is known of its end; that is then recorded here."""
        failures = self.store.failures(job.name)
        if len(failures) > self.attempts[job.name]:
            try:
                return with_path(self.store.read_failure(failures[-1]).error, failures[-1])
            except BenchError as damaged:
                return f"{job.title}: it failed, and why cannot be read: {damaged}"
        if state.state == "ended":
            return state.detail if state.detail not in ("", "done", "failed") else f"{job.title}: it ended without a result."
        error = f"{job.title}: {state.detail or 'it was lost'}. Give the same command again to go on from its checkpoint."
        return self._record(job, error, "")

    def _record(self, job: Job, error: str, details: str) -> str:
        try:
            self.store.fail(job.name, job.title, error, details)
        except (OSError, BenchError) as failure:
            return f"{error} (Nor could this be recorded: {failure}.)"
        return with_path(error, self.store.failures(job.name)[-1])

    def _fail(self, job: Job, error: str) -> None:
        self.outcome.failed[job.name] = error
        self.forecast.finish(job.name)
        for other in self.schedule.fail(job.name):
            self.outcome.failed[other.name] = error
            self.forecast.finish(other.name)


def with_path(error: str, record: Path) -> str:
    """The sentence of a failure, and where its record lies, which holds the traceback."""
    return f"{error} Its record: {record}"


@dataclass(frozen=True)
class Options:
    """How a run is done."""

    suite: str  # its name, for records
    site: Site
    executor: ExecutorConfig
    executor_name: str = "local"
    executor_settings: Mapping[str, Any] = field(default_factory=dict)  # that were given to it
    judgements: bool = True  # False: sets only
    resources_only: bool = False
    parts: int = 1  # into how many blocks a network's repeats are cut
    choose: Callable[[Work], bool] | None = None  # which of the jobs are done by this run: --job, --shard
    again: bool = False  # whether jobs are tried that have failed by their numbers: --redo


def list_jobs(planned: Planned, store: Store, contents: Contents, options: Options) -> Todo:
    """The jobs of a run."""
    todo = Lister(planned, store, contents, options.suite, options.parts).todo(options.judgements)
    if options.resources_only:
        work = tuple(work for work in todo.work if work.job.kind == "resource")
        return Todo(work, Counts(), Counts(resource=len(work)))
    if options.choose is None:
        return todo
    chosen = {work.job.name for work in todo.work if options.choose(work)}
    needs = {work.job.name: work.job.needs for work in todo.work}
    wanted, found = list(chosen), set(chosen)
    while wanted:
        more = set(needs.get(wanted.pop(), ())) - found
        wanted, found = [*wanted, *more], found | more
    keep = tuple(work for work in todo.work if work.job.name in found)
    return Todo(keep, Counts(), Counts(work.job.kind for work in keep if work.job.kind != "resource"))


def run(planned: Planned, store: Store, contents: Contents, options: Options, progress: Progress) -> Outcome:
    """Compute what a store lacks of some cells. Failures are recorded, and the rest goes on."""
    return run_jobs(list_jobs(planned, store, contents, options), planned, store, contents, options, progress)


def run_jobs(todo: Todo, planned: Planned, store: Store, contents: Contents, options: Options, progress: Progress) -> Outcome:
    """Do jobs of these cells. Failures are recorded, and the rest goes on."""
    outcome = Outcome(todo.wanted, todo.there.copy())
    if todo.work:
        executor = options.executor.open(options.site)
        try:
            estimates = Estimates(planned, store, contents)
            workers, again, settings = len(options.site.devices), options.again, options.executor_settings
            outcome = Runner(todo, store, executor, options.executor_name, progress, estimates, workers, again, settings).run()
        finally:
            executor.close()
    else:
        progress.start(todo.wanted, todo.there)
    for cell, error in planned.broken.values():
        name = set_job(cell.set.key)
        sentence = sentence_of(error, cell.name, store.root)
        store.fail(name, cell.name, sentence, details_of(error))
        outcome.failed[name] = with_path(sentence, store.failures(name)[-1])
    progress.end(outcome)
    return outcome
