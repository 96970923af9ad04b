"""What a grid still takes: its missing jobs by kind, with hours and memory as far as anybody can say, or why nobody can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ddbench.api import Request
from ddbench.evaluate.cost import flops_of_step
from ddbench.files import digest
from ddbench.grid.calibration import Calibration
from ddbench.grid.estimates import Estimates
from ddbench.grid.planning import Planned, counting_run
from ddbench.plan import Cell, Judging, SetPlan
from ddbench.refs import PluginRef
from ddbench.results.contents import Contents
from ddbench.results.store import Store
from ddbench.schema import JobFile

ASSUMED_SHARE = 0.4  # of the device's peak that training steps reach: a guess for wide networks; narrow ones stay far below
MEASURED, TRIED, COUNTED = "measured", "tried", "counted"
NO_DATA = "its data are not there"
NEVER_MADE = "none like it has been made in this store"
NOT_STARTED = "none like it has been made in this store, and a plan starts no accelerator"
NOT_SEEN = "none like it has been made in this store, and it could not be tried here in a few seconds"

Known = tuple[float | None, int | None, str]
"""The seconds and the memory of a job, and how the seconds are known; or, without any, why not."""

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
    why_unknown: str = ""

    def add(self, seconds: float | None, memory_bytes: int | None, known_by: str) -> None:
        """One more job; `known_by` says why, where the seconds are unknown."""
        self.missing += 1
        self.memory_bytes = max(filter(None, (self.memory_bytes, memory_bytes)), default=None)
        if seconds is None:
            self.unknown, self.why_unknown = self.unknown + 1, known_by
        else:
            self.seconds, self.known_by = self.seconds + seconds, known_by

    @property
    def told(self) -> str:
        """How its seconds are known, and why some are not."""
        return "; ".join(filter(None, (self.known_by, self.why_unknown and f"unknown: {self.why_unknown}")))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        about: dict[str, Any] = {"jobs": self.jobs, "missing": self.missing, "unknown": self.unknown, "seconds": self.seconds}
        return about | {"memory_bytes": self.memory_bytes, "known_by": self.known_by, "why_unknown": self.why_unknown}


class Outlook:
    """Of a grid and a store.

    What jobs of the same kind took in the store counts first. Else a few epochs of the training are tried on random images, where
    there is a device to try them on. Else the seconds of a judgement, and of a resource that says what it takes, are their
    floating-point operations over a share of the device's peak. What a distillation takes depends on loss, space and generator at
    once: nobody says it beforehand, and one that has been done in the store says it for all its seeds.
    """

    def __init__(
        self, planned: Planned, store: Store | None, contents: Contents, counts: Counts, calibration: Calibration | None
    ) -> None:  # fmt: skip
        """`calibration`: of the device that would compute; None: it is not to be started."""
        self.planned, self.store, self.contents, self.counts, self.calibration = planned, store, contents, counts, calibration
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
                found = (0.0, COUNTED) if plan.baseline else (None, NEVER_MADE)
                yield (f"sets: {plan.method}", *self._asked(file, lambda found=found: found))  # type: ignore[misc]

    def _judgements(self) -> Iterator[tuple[str, float | None, int | None, str]]:
        seen = set()
        for cell in self.planned.cells:
            for judging in cell.all_judgings():
                lacking = set(range(cell.repeats)) - self.contents.repeats(cell.set.key, judging.key)
                if lacking and (cell.set.key, judging.key) not in seen:
                    seen.add((cell.set.key, judging.key))
                    last = len(lacking) - 1
                    file = JobFile(kind="judgement", name="", suite="", plan=cell.set, judging=judging, last=last)
                    ask = partial(self._seconds_to_judge, cell, judging, len(lacking))
                    yield (f"judgements: {judging.network.label}", *self._asked(file, ask))

    def _seconds_to_judge(self, cell: Cell, judging: Judging, repeats: int) -> tuple[float | None, str]:
        """Of training so many networks."""
        counts = self.counts(cell.set) if cell.set.everything else (cell.set.ipc,) * judging.dataset.make().spec().num_classes
        if counts is None:
            return None, NO_DATA
        tried = self.calibration.seconds_to_judge(judging, sum(counts)) if self.calibration else None
        if tried is not None:
            return tried * repeats, TRIED
        return self._counted(judging.network, judging.dataset, sum(counts) * judging.numbers.epochs * repeats, judging.threads)

    def _resources(self) -> Iterator[tuple[str, float | None, int | None, str]]:
        for key, need in self.planned.needs.items():
            if self.store and self.store.resources.is_built(key):
                continue
            name = need.resource.group().replace("the backbone", need.backbone.label if need.backbone else "the backbone")
            yield (f"shared: {name}", *self.of_resource(key))

    def of_resource(self, key: str) -> Known:
        """What building it takes."""
        plan = self.planned.owners[key]
        file = JobFile(kind="resource", name="", suite="", plan=plan, resource=key)
        return self._asked(file, partial(self._seconds_to_build, key))

    def _seconds_to_build(self, key: str) -> tuple[float | None, str]:
        need, plan = self.planned.needs[key], self.planned.owners[key]
        counts = self.counts(plan)
        if counts is None:
            return None, NO_DATA
        run = counting_run(plan, counts)
        tried = self.calibration.seconds_to_build(need, plan, run.class_counts) if self.calibration else None
        if tried is not None:
            return tried, TRIED
        effort = need.effort(run)
        if effort is None or need.backbone is None:
            return None, NOT_SEEN if self.calibration else NOT_STARTED
        return self._counted(need.backbone, plan.dataset, effort.images, plan.threads)

    def _asked(self, file: JobFile, otherwise: Callable[[], tuple[float | None, str]]) -> Known:
        """As the store's records have it, else as `otherwise` says."""
        request = self.estimates.request(file) if self.estimates else Request()
        if request.seconds is not None:
            return request.seconds, request.memory_bytes, MEASURED
        seconds, how = otherwise()
        return seconds, request.memory_bytes, how

    def _counted(self, network: PluginRef, dataset: PluginRef, images: int, threads: int) -> tuple[float | None, str]:
        """Of training a network on so many images, an epoch's as often as there are epochs."""
        if self.calibration is None:
            return None, NOT_STARTED
        peak = self.calibration.peak(threads)
        if not peak:
            return None, NOT_SEEN
        spec = dataset.make().spec()
        key = digest([network.what, spec.shape, spec.num_classes])
        if key not in self.flops:
            self.flops[key] = flops_of_step(network, spec)
        return images * self.flops[key] / (peak * ASSUMED_SHARE), COUNTED
