"""Which jobs can be done now: a pure bookkeeping of what is ready, running, done, failed and left.

It knows no process, no file and no clock. A job is ready when all jobs that it needs are done; one that fails takes with it all
that need it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from ddbench.api import Job


class Schedule:
    """The jobs of a run, each by its name."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        """`needs` that are not among the jobs count as done. Raises ValueError for two jobs of one name, or a circle."""
        self.jobs = {job.name: job for job in jobs}
        if len(self.jobs) < len(jobs):
            raise ValueError("two jobs have one name")
        self._waits: dict[str, set[str]] = {job.name: {name for name in job.needs if name in self.jobs} for job in jobs}
        self._followers: dict[str, list[str]] = {}
        for name, needs in self._waits.items():
            for need in needs:
                self._followers.setdefault(need, []).append(name)
        self._ready = deque(name for name, needs in self._waits.items() if not needs)
        self.running: set[str] = set()
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self._refuse_circles()

    def _refuse_circles(self) -> None:
        counts = {name: len(needs) for name, needs in self._waits.items()}
        reached, todo = 0, deque(self._ready)
        while todo:
            reached += 1
            for follower in self._followers.get(todo.popleft(), ()):
                counts[follower] -= 1
                if not counts[follower]:
                    todo.append(follower)
        if reached < len(self.jobs):
            raise ValueError("some jobs wait for one another in a circle")

    @property
    def left(self) -> int:
        """Jobs that have neither ended well nor failed."""
        return len(self.jobs) - len(self.done) - len(self.failed)

    def take(self, num: int | None = None) -> list[Job]:
        """The next jobs that are ready, in their order, at most `num`; they count as running from now on."""
        taken: list[Job] = []
        while self._ready and (num is None or len(taken) < num):
            name = self._ready.popleft()
            if name not in self.failed:
                self.running.add(name)
                taken.append(self.jobs[name])
        return taken

    def finish(self, name: str) -> None:
        """A job has ended well."""
        self.running.discard(name)
        self.done.add(name)
        for follower in self._followers.get(name, ()):
            self._waits[follower].discard(name)
            if not self._waits[follower]:
                self._ready.append(follower)

    def fail(self, name: str) -> list[Job]:
        """A job has failed; gives the jobs that fail with it, for they need it."""
        self.running.discard(name)
        self.failed.add(name)
        fallen = []
        for follower in self._all_followers(name):
            if follower not in self.failed:
                self.failed.add(follower)
                fallen.append(self.jobs[follower])
        return fallen

    def again(self, name: str) -> None:
        """A running job is to be taken once more, after those that are ready."""
        self.running.discard(name)
        self._ready.append(name)

    def _all_followers(self, name: str) -> Iterable[str]:
        found: dict[str, None] = {}
        todo = deque(self._followers.get(name, ()))
        while todo:
            follower = todo.popleft()
            if follower not in found:
                found[follower] = None
                todo.extend(self._followers.get(follower, ()))
        return found
