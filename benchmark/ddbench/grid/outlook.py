"""What a grid still takes: its missing jobs by kind, with hours and memory as far as anybody can say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ddbench.api import Request
from ddbench.evaluate.cost import flops_of_step
from ddbench.files import digest
from ddbench.grid.estimates import Estimates
from ddbench.grid.planning import Planned, counting_run
from ddbench.plan import Cell, Judging, SetPlan
from ddbench.refs import PluginRef
from ddbench.results.contents import Contents
from ddbench.results.store import Store
from ddbench.schema import JobFile

ASSUMED_SHARE = 0.4  # of the device's peak that training steps reach: a guess for wide networks; narrow ones stay far below
MEASURED, COUNTED = "measured", "counted"

Counts = Callable[[SetPlan], Sequence[int] | None]
"""The training images of a plan's data set by class; None where these are not there."""


@dataclass
class Line:
    """The missing jobs of one kind."""

    jobs: str
    missing: int = 0
    unknown: int = 0  # of which nobody can say how long they take
    seconds: float = 0.0  # of the others, one after the other
    memory_bytes: int | None = None  # the most that one has taken
    known_by: str = ""

    def add(self, seconds: float | None, memory_bytes: int | None, known_by: str) -> None:
        """One more job."""
        self.missing += 1
        self.memory_bytes = max(filter(None, (self.memory_bytes, memory_bytes)), default=None)
        if seconds is None:
            self.unknown += 1
        else:
            self.seconds, self.known_by = self.seconds + seconds, known_by

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        about: dict[str, Any] = {"jobs": self.jobs, "missing": self.missing, "unknown": self.unknown, "seconds": self.seconds}
        return about | {"memory_bytes": self.memory_bytes, "known_by": self.known_by}


class Outlook:
    """Of a grid and a store.

    What jobs of the same kind took in the store counts first. Else the seconds of a judgement, and of a resource that says what
    it takes, are their floating-point operations over a share of the device's peak. What a distillation takes depends on loss,
    space and generator at once: nobody says it beforehand, and one that has been done in the store says it for all its seeds.
    """

    def __init__(self, planned: Planned, store: Store | None, contents: Contents, counts: Counts, peak: float) -> None:
        """`peak`: the operations a second of the best matrix product on the device."""
        self.planned, self.store, self.contents, self.counts, self.peak = planned, store, contents, counts, peak
        self.estimates = Estimates(planned, store, contents) if store else None
        self.flops: dict[str, int] = {}

    def lines(self) -> list[Line]:
        """Resources, sets, judgements; only kinds of which one is missing."""
        made: dict[str, Line] = {}
        for name, seconds, memory, known_by in (*self._resources(), *self._sets(), *self._judgements()):
            made.setdefault(name, Line(name)).add(seconds, memory, known_by)
        return list(made.values())

    def _sets(self) -> Iterator[tuple[str, float | None, int | None, str]]:
        for plan in {cell.set.key: cell.set for cell in self.planned.cells}.values():
            if plan.key not in self.contents.sets:
                file = JobFile(kind="set", name="", suite="", plan=plan)
                yield (f"sets: {plan.method}", *self._asked(file, 0.0 if plan.baseline else None))

    def _judgements(self) -> Iterator[tuple[str, float | None, int | None, str]]:
        seen = set()
        for cell in self.planned.cells:
            for judging in cell.all_judgings():
                lacking = set(range(cell.repeats)) - self.contents.repeats(cell.set.key, judging.key)
                if lacking and (cell.set.key, judging.key) not in seen:
                    seen.add((cell.set.key, judging.key))
                    last = len(lacking) - 1
                    file = JobFile(kind="judgement", name="", suite="", plan=cell.set, judging=judging, last=last)
                    seconds = self._seconds_to_judge(cell, judging, len(lacking))
                    yield (f"judgements: {judging.network.label}", *self._asked(file, seconds))

    def _seconds_to_judge(self, cell: Cell, judging: Judging, repeats: int) -> float | None:
        """Of training so many networks."""
        spec = judging.dataset.make().spec()
        images: int | None = spec.num_classes * cell.set.ipc
        if cell.set.everything:
            counts = self.counts(cell.set)
            images = None if counts is None else sum(counts)
        return self._seconds(judging.network, judging.dataset, images and images * judging.numbers.epochs * repeats)

    def _resources(self) -> Iterator[tuple[str, float | None, int | None, str]]:
        for key, need in self.planned.needs.items():
            if self.store and self.store.resources.is_built(key):
                continue
            plan, seconds = self.planned.owners[key], None
            counts = self.counts(plan)
            effort = None if counts is None else need.resource.effort(counting_run(plan, counts))
            if effort and need.backbone:
                seconds = self._seconds(need.backbone, plan.dataset, effort.images)
            name = need.resource.group().replace("the backbone", need.backbone.label if need.backbone else "the backbone")
            yield (f"shared: {name}", *self._asked(JobFile(kind="resource", name="", suite="", plan=plan, resource=key), seconds))

    def _asked(self, file: JobFile, counted: float | None) -> tuple[float | None, int | None, str]:
        """The seconds and the memory of a job, and how they are known."""
        request = self.estimates.request(file) if self.estimates else Request()
        if request.seconds is not None:
            return request.seconds, request.memory_bytes, MEASURED
        return counted, request.memory_bytes, COUNTED

    def _seconds(self, network: PluginRef, dataset: PluginRef, images: int | None) -> float | None:
        """Of training a network on so many images, an epoch's as often as there are epochs."""
        if images is None or not self.peak:
            return None
        spec = dataset.make().spec()
        key = digest([network.what, spec.shape, spec.num_classes])
        if key not in self.flops:
            self.flops[key] = flops_of_step(network, spec)
        return images * self.flops[key] / (self.peak * ASSUMED_SHARE)
