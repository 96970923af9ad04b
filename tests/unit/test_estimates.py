"""What jobs ask of an executor: the memory and the seconds that jobs of their kind have taken before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from made_jobs import Made, Noise, cell, go, judged, publish, shared
from msgspec.structs import replace
from stores import CONVNET, FINISHED, PLACE, VIT, judgement, judging_of, plan_of, set_contents, set_record, write_store

from ddbench.api import Request
from ddbench.grid.estimates import Estimates
from ddbench.grid.jobs import Lister
from ddbench.grid.planning import Planned
from ddbench.plan import Cell, SetPlan
from ddbench.results.contents import read_contents
from ddbench.results.layout import resource_job, set_job
from ddbench.results.store import Store
from ddbench.schema import JudgementRecord, SetMeasured, SetRecord

DONE = plan_of("dm")


def took(plan: SetPlan, memory_bytes: int, **seconds: float) -> SetRecord:
    measured = SetMeasured(seconds=seconds, peak_memory_bytes=memory_bytes, commit=None, finished=FINISHED)
    return set_record(plan, measured=measured)


def cost(plan: SetPlan, repeats: int, seconds: float, **judging: Any) -> JudgementRecord:
    """All repeats of a judgement together took so many seconds, one of them testing."""
    record = judgement(plan, judging_of(**judging), [0.5] * repeats)
    measured = replace(record.measured, seconds_train=seconds - 1, seconds_test=1.0, peak_memory_bytes=50)
    return replace(record, measured=measured)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A set of ten steps, made in 3 s of distilling and 1 s of ranking and judged twice in 10 s; and another seed of it."""
    store = write_store(tmp_path / "store", [])
    for seed, (memory, seconds) in enumerate([(100, 3.0), (70, 2.0)]):
        plan = replace(DONE, seed=seed)
        store.publish_set(plan, took(plan, memory, distill=seconds, rank=1.0), set_contents(plan))
        store.publish_judgement(cost(plan, 2, 10.0 - seed, draw=seed))
    return store


def requests(store: Store, *cells: Cell, planned: Planned | None = None) -> dict[str, Request]:
    """By job, before any has been done."""
    planned = planned or Planned(cells)
    contents = read_contents(store)
    estimates = Estimates(planned, store, contents)
    work = Lister(planned, store, contents, "toy").todo().work
    return {each.job.name: estimates.request(each.file) for each in work}


def test_a_set_takes_what_its_other_seeds_took_at_most_and_more_steps_take_longer(store: Store) -> None:
    seed, longer = replace(DONE, seed=7), replace(DONE, seed=7, steps=25)
    found = requests(store, Cell(seed, (), 1, ""), Cell(longer, (), 1, ""))
    assert found == {set_job(seed.key): Request(1, 100, 4.0), set_job(longer.key): Request(1, 100, 10.0)}


@pytest.mark.parametrize("change", [{"loss": "dc"}, {"space": "glad"}, {"ipc": 2}, {"train_hash": "e" * 64}, {"chunk": 2}])
def test_what_another_kind_of_set_takes_is_unknown(store: Store, change: dict[str, Any]) -> None:
    assert set(requests(store, Cell(plan_of(**change), (), 1, "")).values()) == {Request()}


def test_judging_takes_longer_with_more_repeats_whatever_made_the_set(store: Store) -> None:
    other = plan_of("dc", seed=3)
    found = requests(store, cell(other, CONVNET, repeats=3, draw=3), cell(plan_of("dc", ipc=2)), cell(DONE, VIT))
    assert found[judged(other, CONVNET, last=2, draw=3)] == Request(1, 50, 15.0)
    assert found[judged(plan_of("dc", ipc=2))] == Request()  # of more images
    assert found[judged(DONE, VIT)] == Request()


def test_another_resource_of_a_group_takes_as_long(tmp_path: Path) -> None:
    cells = (cell(DONE), cell(plan_of("dc")))
    planned, need = shared(*cells)
    more, other = shared(*cells, resource=Noise(2))
    store = Store(tmp_path / "store")
    store.resources.publish(need.identity, {"x": torch.zeros(1)}, "Noise", PLACE, seconds=7.0)
    found = requests(store, planned=Planned(more.cells, planned.needs | more.needs, planned.owners | more.owners))
    assert found[resource_job(other.key)] == Request(1, None, 7.0)


def test_a_run_learns_from_its_own_jobs_and_submits_those_that_ask_for_the_same_together(tmp_path: Path) -> None:
    store, plans = Store(tmp_path / "store"), [replace(DONE, seed=seed) for seed in range(4)]
    calls: list[tuple[int, Request]] = []

    class Counted(Made):
        def submit(self, jobs: Any, request: Request) -> list[str]:
            calls.append((len(jobs), request))
            return super().submit(jobs, request)

    measured = SetMeasured(seconds={"distill": 6.0}, peak_memory_bytes=9, commit=None, finished=FINISHED)
    executor = Counted(lambda name: publish(store, name, measured=measured), window=3)
    outcome, _ = go(store, executor, *(Cell(plan, (), 1, "") for plan in plans))
    assert outcome.computed == [set_job(plan.key) for plan in plans]
    assert calls == [(3, Request()), (1, Request(1, 9, 6.0))]


def test_what_cannot_be_read_teaches_nothing(store: Store) -> None:
    plan = replace(DONE, seed=7)
    contents = read_contents(store)
    estimates = Estimates(Planned(()), store, contents)
    file = Lister(Planned((Cell(plan, (), 1, ""),)), store, contents, "toy").todo().work[0].file
    estimates.learn(file)  # nothing is there
    assert estimates.request(file) == Request(1, 100, 4.0)
