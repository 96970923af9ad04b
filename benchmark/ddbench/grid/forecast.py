"""How long a run still takes: from what such jobs took in the store, what the run itself has finished, and how far running jobs
are; of the rest it says that nobody knows."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ddbench.durations import duration
from ddbench.grid.estimates import Estimates
from ddbench.grid.jobs import Work

ENOUGH = 0.05  # of a job that must have been seen to pass before its speed says how long it takes


@dataclass(frozen=True)
class Left:
    """What a run still takes."""

    jobs: int
    seconds: float = 0.0  # of those whose length is known, on all workers together
    unknown: int = 0  # jobs of unknown length

    def __str__(self) -> str:
        """`about 4 min left`, and of how many jobs nobody can say."""
        if not self.jobs:
            return "nothing left"
        if self.unknown == self.jobs:
            return "time left: unknown"
        rest = f" and {self.unknown} job{'s' if self.unknown > 1 else ''} of unknown length" if self.unknown else ""
        return f"about {duration(self.seconds)}{rest} left"


@dataclass
class _Running:
    """A job under way."""

    started: float
    first: tuple[float, float] | None = None  # the fraction that it first told, and when; another process may have done that
    fraction: float = 0.0

    @property
    def was_begun(self) -> bool:
        """Whether another process has done a part of it."""
        return self.first is not None and self.first[0] > ENOUGH


class Forecast:
    """Of the jobs of a run, told of their begins, progress and ends."""

    def __init__(
        self, work: Iterable[Work], estimates: Estimates, workers: int, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        """`workers`: how many jobs run at the same time."""
        self.estimates, self.workers, self.clock = estimates, workers, clock
        self.place = {each.job.name: (estimates.kind(each.file), estimates.units(each.file)) for each in work}
        self.jobs, self.units = Counter[str](), Counter[str]()  # by kind, of what is left
        for kind, units in self.place.values():
            self.jobs[kind] += 1
            self.units[kind] += units
        self.running: dict[str, _Running] = {}
        self.walls: dict[str, float] = {}  # seconds a unit by kind, from begin to end: more than records count; of the quickest

    def begin(self, name: str) -> None:
        """A job has begun."""
        self.running[name] = _Running(self.clock())

    def update(self, name: str, fraction: float) -> None:
        """A running job is so far."""
        if job := self.running.get(name):
            job.first = job.first or (fraction, self.clock())
            job.fraction = fraction

    def stop(self, name: str) -> None:
        """A job runs no more, and is not done."""
        self.running.pop(name, None)

    def finish(self, name: str) -> None:
        """A job is done, or has failed."""
        job = self.running.pop(name, None)
        if name in self.place:
            kind, units = self.place.pop(name)
            if job and not job.was_begun:
                self.walls[kind] = min(self.walls.get(kind, math.inf), (self.clock() - job.started) / units)
            self.jobs[kind] -= 1
            self.units[kind] -= units

    def left(self) -> Left:
        """As far as anybody can say now."""
        known, unknown, seen = 0.0, 0, self._seen()
        for kind, num in self.jobs.items():
            rate = max(filter(None, (self.estimates.seconds_a_unit(kind), self.walls.get(kind))), default=seen.get(kind))
            if rate is None:
                unknown += num
            elif num:
                known += rate * self.units[kind] - self._passed(kind, rate)
        jobs = self.jobs.total()
        return Left(jobs, known / max(1, min(self.workers, jobs)), unknown)

    def _seen(self) -> dict[str, float]:
        """Seconds a unit by kind, as running jobs show them."""
        found: dict[str, float] = {}
        for name, job in self.running.items():
            kind, units = self.place[name]
            if job.first and job.fraction - job.first[0] >= ENOUGH:
                rate = (self.clock() - job.first[1]) / (job.fraction - job.first[0]) / units
                found[kind] = max(rate, found.get(kind, 0.0))
        return found

    def _passed(self, kind: str, rate: float) -> float:
        """Seconds of work that running jobs of a kind have behind them; one that does not tell, as long as it has run."""
        passed = 0.0
        for name, job in self.running.items():
            whole = rate * self.place[name][1]
            if self.place[name][0] == kind:
                passed += whole * job.fraction if job.first else min(whole, self.clock() - job.started)
        return passed
