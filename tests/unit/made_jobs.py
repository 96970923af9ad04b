"""Grids of made-up sets, and an executor that starts no process: what a job does is a function of the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace
from stores import CONVNET, judgement, judging_of, set_bytes, set_contents, set_record

from ddbench.api import Executor, ExecutorConfig, Job, JobState, Request, Resource, Run, Site
from ddbench.compute.resources import Need, need_of
from ddbench.grid.do_set import iterate_files
from ddbench.grid.jobs import Work
from ddbench.grid.planning import Planned
from ddbench.grid.progress import Outcome, Progress
from ddbench.grid.runner import Options, run
from ddbench.plan import Cell, SetPlan
from ddbench.results.contents import read_contents
from ddbench.results.layout import judgement_job
from ddbench.results.store import Store
from ddbench.schema import SetRecord


def cell(
    plan: SetPlan, *networks: Any, repeats: int = 1, iterates: tuple[int, ...] = (), iterate_seconds: tuple[float, ...] = (),
    **judging: Any,
) -> Cell:  # fmt: skip
    judgings = tuple(judging_of(network, **judging) for network in networks or (CONVNET,))
    return Cell(plan, judgings, repeats, "smoke-1", iterates, iterate_seconds)


def judged(plan: SetPlan, network: Any = CONVNET, first: int = 0, last: int = 0, **judging: Any) -> str:
    return judgement_job(plan.key, judging_of(network, **judging).key, first, last)


@dataclass(frozen=True)
class Noise(Resource):
    size: int = 3

    def build(self, run: Run) -> dict[str, Any]:
        raise AssertionError("nobody builds it here")


def shared(*cells: Cell, owner: Any = None, resource: Resource | None = None) -> tuple[Planned, Need]:
    """Cells whose sets need one resource."""
    need = need_of(resource or Noise(), owner, cells[0].set)
    made = tuple(Cell(replace(each.set, resources=(need.key,)), each.judgings, each.repeats, each.protocol) for each in cells)
    return Planned(made, {need.key: need}, {need.key: cells[0].set}), need


@dataclass
class Made(Executor):
    """Does jobs when it is polled: `act(job)` publishes, and gives how the job ended."""

    act: Callable[[str], JobState | None]
    window: int | None = None
    survives: bool = False
    submitted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    requests: dict[str, Request] = field(default_factory=dict)
    closed: bool = False

    def submit(self, jobs: Sequence[Job], request: Request) -> list[str]:
        self.submitted += [job.name for job in jobs]
        self.requests |= {job.name: request for job in jobs}
        return [f"handle of {job.name}" for job in jobs]

    def poll(self, handles: Sequence[str], seconds: float) -> list[JobState]:
        return [self.act(handle.removeprefix("handle of ")) or JobState("ended", detail="done") for handle in handles]

    def cancel(self, handles: Sequence[str]) -> None:
        self.cancelled += handles

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Config(ExecutorConfig):
    executor: Any

    def open(self, site: Site) -> Executor:
        return self.executor


class Told(Progress):
    def __init__(self) -> None:
        self.ends: list[tuple[str, str]] = []

    def finish(self, job: Job, end: str, seconds: float) -> None:
        self.ends.append((job.kind, end))


def go(
    store: Store, executor: Made, *cells: Cell, planned: Planned | None = None, choose: Callable[[Work], bool] | None = None,
    again: bool = False,
) -> tuple[Outcome, Told]:  # fmt: skip
    told = Told()
    options = Options("toy", Site(store.root, ("cpu",)), Config(executor), "made", choose=choose, again=again)
    outcome = run(planned or Planned(cells), store, read_contents(store), options, told)
    assert executor.closed or not executor.submitted
    return outcome, told


def publish(store: Store, name: str, **record: Any) -> JobState | None:
    """Do a job as its file in the store says."""
    file = store.read_job(name)
    if file.kind == "set":
        files = {**set_contents(file.plan)}
        made: SetRecord = set_record(file.plan, **record)
        if store.has_set(file.plan.key):
            store.add_iterates(file.plan.key, made.set_sha256, {step: set_bytes(step) for step in file.iterates})
        else:
            iterates = {step: set_bytes(step) for step in file.iterates}
            store.publish_set(file.plan, made, files | iterate_files(file.plan.key, made.set_sha256, iterates))
    else:
        assert file.judging
        num = file.last - file.first + 1
        store.publish_judgement(judgement(file.plan, file.judging, [0.5] * num, file.first))
    return None
