"""Jobs that go on without the command that submitted them, and what is known of them later.

Their handles lie in the store, so that any later command can ask how far they are, stop them, or take them over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ddbench import registry
from ddbench.api import Executor, Job, JobState, Site
from ddbench.errors import BenchError, ConfigError, command
from ddbench.grid.estimates import Estimates
from ddbench.grid.handles import DriverFile, Handles, read
from ddbench.grid.jobs import Todo
from ddbench.grid.planning import Planned
from ddbench.grid.runner import Options
from ddbench.grid.scheduler import Schedule
from ddbench.results.contents import Contents
from ddbench.results.store import Store


def detach(todo: Todo, planned: Planned, store: Store, contents: Contents, options: Options) -> list[str]:
    """Submit all jobs, in stages of which each waits for the one before; gives their names. Raises ConfigError where the
    executor's jobs would end with this command, and while others are under way."""
    if not todo.work:
        return []
    executor = options.executor.open(options.site)
    try:
        driver = Handles(store.root, executor, options.executor_name, options.executor_settings)
        if not executor.survives:
            executor.detach([])  # which raises
        if driver.adopt({work.job.name for work in todo.work}):
            told = f"jobs that an earlier command has submitted are still under way ({command('status', store.root)})"
            raise ConfigError(f"{told}: wait for them, or stop them with: {command('cancel', store.root)}")
        return _submit(todo, store, executor, driver, Estimates(planned, store, contents))
    finally:
        executor.close()


def _submit(todo: Todo, store: Store, executor: Executor, driver: Handles, estimates: Estimates) -> list[str]:
    files = {work.job.name: work.file for work in todo.work}
    stages = [[(job, estimates.request(files[job.name])) for job in stage] for stage in _stages([work.job for work in todo.work])]
    for file in files.values():
        store.write_job(file)
    try:
        handles = executor.detach(stages)
    except BenchError:
        for name in files:
            store.forget_job(name)
        raise
    found = {
        job.name: handle
        for stage, given in zip(stages, handles, strict=True)
        for (job, _), handle in zip(stage, given, strict=True)
    }
    with driver.held(is_left=True):
        driver.remember(found)
    return list(found)


def _stages(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Each needs only jobs of those before."""
    schedule = Schedule(jobs)
    while stage := schedule.take():
        yield stage
        for job in stage:
            schedule.finish(job.name)


@dataclass(frozen=True)
class Known:
    """Jobs that one command has submitted."""

    executor: str
    is_driven: bool  # that command still runs
    states: dict[str, JobState]  # by job


def known(store: Store) -> list[Known]:
    """What is known of submitted jobs. Raises ConfigError where an executor cannot be asked here."""
    found = []
    for path, lock in _drivers(store):
        driver = read(path)
        if driver is None:
            continue
        try:
            lock.acquire(timeout=0)
            lock.release()
            is_driven = False
        except Timeout:
            is_driven = True
        executor = _opened(driver, store)
        states = executor.poll(list(driver.jobs.values()), 0.0)
        found.append(Known(driver.executor, is_driven, dict(zip(driver.jobs, states, strict=True))))
    return found


def cancel(store: Store) -> list[str]:
    """Stop what was left to go on by itself; gives the names of jobs that had not ended. Raises ConfigError while a command that
    submitted jobs still runs, for it would submit them again."""
    stopped = []
    for path, lock in _drivers(store):
        with _taken(lock):
            driver = read(path)
            if driver is None:
                continue
            executor = _opened(driver, store)
            handles = list(driver.jobs.values())
            alive = [
                (name, handle)
                for (name, handle), state in zip(driver.jobs.items(), executor.poll(handles, 0.0), strict=True)
                if state.state in ("waiting", "running")
            ]
            executor.cancel([handle for _, handle in alive])
            executor.close()
            for name in driver.jobs:
                store.forget_job(name)
            path.unlink(missing_ok=True)
            stopped += [name for name, _ in alive]
        path.with_suffix(".lock").unlink(missing_ok=True)
    return stopped


@contextmanager
def _taken(lock: FileLock) -> Iterator[None]:
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            "the command that submitted these jobs still runs: stop it with Ctrl-C, and they end with it."
        ) from None


def _drivers(store: Store) -> Iterator[tuple[Path, FileLock]]:
    for path in sorted((store.root / "work" / "drivers").glob("*.json")):
        yield path, FileLock(path.with_suffix(".lock"))


def _opened(driver: DriverFile, store: Store) -> Executor:
    opened: Executor = registry.executors.make(driver.executor, driver.settings).open(Site(store.root, ("cpu",)))
    return opened
