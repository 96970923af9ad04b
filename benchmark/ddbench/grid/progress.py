"""What a run tells while it works, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ddbench.api import Job, JobState
from ddbench.grid.counts import Counts
from ddbench.grid.forecast import Forecast


class Progress:
    """What the runner tells while it works; the command line shows it."""

    def start(self, total: Counts, done: Counts, forecast: Forecast | None = None) -> None:
        """What was asked for, by kind, and what of it is there already; `forecast` says at any time how long the rest takes."""

    def begin(self, job: Job) -> None:
        """A job has begun."""

    def update(self, job: Job, state: JobState) -> None:
        """A running job's progress."""

    def finish(self, job: Job, end: str, seconds: float) -> None:
        """A job is done, found (another runner has done it), busy (another is at it, and it is looked at again), again
        (it was lost, and is tried once more) or failed."""

    def end(self, outcome: Outcome) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """The run is over."""


@dataclass
class Outcome:
    """What became of a run."""

    wanted: Counts = field(default_factory=Counts)  # what was asked for, by kind
    there: Counts = field(default_factory=Counts)  # of that, what was there already, or what another run computed meanwhile
    computed: list[str] = field(default_factory=list)  # names of the jobs of sets and judgements that this run did
    built: list[str] = field(default_factory=list)  # likewise, of resources
    failed: dict[str, str] = field(default_factory=dict)  # name to sentence

    @property
    def total(self) -> int:
        """How much was asked for."""
        return self.wanted.total()

    @property
    def present(self) -> int:
        """How much of it was there already, or was computed by another run meanwhile."""
        return self.there.total()
