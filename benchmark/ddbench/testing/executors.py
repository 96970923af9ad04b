"""The contract of executors, as far as it can be seen without a job."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddbench.api import Executor, ExecutorConfig, Request, Site
from ddbench.compute.run import DistillRun
from ddbench.testing.checks import Check


@contextmanager
def _opened(executor: ExecutorConfig) -> Iterator[Executor]:
    with tempfile.TemporaryDirectory() as folder:
        made = executor.open(Site(Path(folder), ("cpu",)))
        try:
            yield made
        finally:
            made.close()


def executor_takes_no_jobs_too(executor: ExecutorConfig, run: DistillRun) -> None:
    """Nothing submitted, polled or cancelled is no mistake."""
    with _opened(executor) as made:
        assert made.submit([], Request()) == [], "submit([], request) must give no handles."
        assert made.poll([], 0.0) == [], "poll([]) must give no states."
        made.cancel([])


def executor_knows_no_strange_handle(executor: ExecutorConfig, run: DistillRun) -> None:
    """A handle that nobody knows any more is lost, for a driver that was started again asks for such."""
    with _opened(executor) as made:
        (state,) = made.poll(["no such handle"], 0.0)
        assert state.state == "lost", f"a handle that nobody knows must be lost, got {state.state}."


executor_checks: list[Check] = [executor_takes_no_jobs_too, executor_knows_no_strange_handle]
