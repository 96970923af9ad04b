"""A run's progress as lines of text: for the standard error, and for the log of the store."""

from __future__ import annotations

import time
from collections.abc import Callable

from ddbench.api import Job, JobState
from ddbench.durations import duration
from ddbench.grid.counts import Counts, counted, done_of
from ddbench.grid.do import GOES_ON
from ddbench.grid.forecast import Forecast
from ddbench.grid.progress import Outcome, Progress
from ddbench.results.log import Log

SILENCE_SECONDS = 60.0  # after so long without a line, a running job says how far it is


class Teller(Progress):
    """A line for what there is to do, for every job that begins, goes on and ends, and one a minute between."""

    def __init__(self, say: Callable[[str], None], log: Log | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`say` shows a line; the log gets the same, less those of a minute."""
        self.say, self.log, self.clock = say, log, clock
        self.total, self.done = Counts(), Counts()
        self.forecast: Forecast | None = None
        self.waiting: set[str] = set()
        self.going_on: set[str] = set()
        self.last = clock()

    def start(self, total: Counts, done: Counts, forecast: Forecast | None = None) -> None:
        """The whole; nothing where all of it is there."""
        self.total, self.done, self.forecast = total, done.copy(), forecast
        if self.done.total() < total.total():
            self._tell(f"{counted(total)} in all; there already: {counted(done)}{self._left()}")

    def begin(self, job: Job) -> None:
        """Say so."""
        self._tell(f"begins: {job.title}{self._left()}")

    def update(self, job: Job, state: JobState) -> None:
        """That a job goes on from a checkpoint; and how far it is, where nothing has been said for long."""
        if state.phase.startswith(GOES_ON) and job.name not in self.going_on:
            self.going_on.add(job.name)
            self._tell(f"{job.title}: {state.phase}")
        elif self.clock() - self.last >= SILENCE_SECONDS:
            self.last = self.clock()
            self.say(f"{job.title}: {state.phase}, {100 * state.fraction:.0f} %{self._left()}")

    def finish(self, job: Job, end: str, seconds: float) -> None:
        """What became of it."""
        if end == "busy":
            if job.name not in self.waiting:
                self.waiting.add(job.name)
                self._tell(f"{job.title}: another run is computing it; waiting")
            return
        if end == "again":
            self._tell(f"{job.title}: lost, and tried again")
            return
        counts = job.kind in self.total
        self.done[job.kind] += counts and end != "failed"
        what = "another run computed it" if end == "found" else f"{end} in {duration_of(seconds)}"
        where = f"[{done_of(self.done, self.total)}] " if counts else ""
        self._tell(f"{where}{job.title}: {what}{self._left()}")

    def end(self, outcome: Outcome) -> None:
        """Into the log, what has failed, and how much is there."""
        if self.log:
            for sentence in dict.fromkeys(outcome.failed.values()):
                self.log.add(f"failed: {sentence}")
            self.log.add(f"ended: {done_of(self.done, self.total)} there, {len(outcome.failed)} jobs failed")

    def _left(self) -> str:
        """How long the rest takes, where anybody has been asked."""
        left = self.forecast.left() if self.forecast else None
        return f" ({left})" if left and left.jobs else ""

    def _tell(self, line: str) -> None:
        self.last = self.clock()
        self.say(line)
        if self.log:
            self.log.add(line)


def duration_of(seconds: float) -> str:
    """Of something that has ended: tenths of a second where it was short."""
    return f"{seconds:.1f} s" if seconds < 90 else duration(seconds)
