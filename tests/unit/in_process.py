"""The grid's jobs in this process: so that tests can look on, and no process starts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from ddbench.errors import BenchError
from ddbench.evaluate import evaluator
from ddbench.grid import do
from ddbench.grid.do import Workplace, do_job
from ddbench.grid.jobs import Todo
from ddbench.grid.planning import Planned
from ddbench.grid.progress import Outcome, Progress
from ddbench.grid.runner import Options, list_jobs
from ddbench.results.contents import Contents
from ddbench.results.store import Store
from ddbench_plugins.datasets import mnist_5k

PEAK = 1e10  # operations a second, of no device
CPU = torch.device("cpu")


def be_light(patch: pytest.MonkeyPatch) -> None:
    """The table of digits is unpacked once, and memory is not handed back to the system before each job and block."""
    patch.setattr(mnist_5k, "_read", cache(mnist_5k._read))
    for module in (do, evaluator):
        patch.setattr(module, "reset_peak_memory", lambda device: None)


def workplace(store: Store, threads: int = 1, checkpoint_seconds: float = 1e9, data_root: Path | None = None) -> Workplace:
    """Where jobs are done on this CPU, whose speed is not measured."""
    return Workplace(store, CPU, data_root, checkpoint_seconds, peaks={threads: PEAK})


def run(planned: Planned, store: Store, contents: Contents, options: Options, progress: Progress) -> Outcome:
    """Do what is missing, one job after the other. The signature is that of `ddbench.grid.runner.run`."""
    return run_jobs(list_jobs(planned, store, contents, options), planned, store, contents, options, progress)


def run_jobs(
    todo: Todo, planned: Planned, store: Store, contents: Contents, options: Options, progress: Progress
) -> Outcome:  # fmt: skip
    """Do these jobs. The signature is that of `ddbench.grid.runner.run_jobs`."""
    site = options.site
    outcome, here = Outcome(todo.wanted, todo.there), workplace(store, site.threads, data_root=site.data_root)
    for work in todo.work:
        try:
            do_job(work.file, here, lambda phase, fraction: None)
            outcome.computed.append(work.job.name)
        except BenchError as error:
            outcome.failed[work.job.name] = str(error)
    return outcome
