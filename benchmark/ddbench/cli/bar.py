"""The progress bar of `ddbench run`, on stderr: finished jobs as lines, running ones with their phase, all with an ETA."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from ddbench.api import Job, JobState
from ddbench.cli.terminal import plain, steered
from ddbench.grid import runner


class Bar(runner.Progress):
    """A line for every finished job; on a terminal, bars below them."""

    def __init__(self, noun: str = "sets and judgements") -> None:
        """`noun`: what the whole is made of."""
        self.noun = noun
        self.console = Console(file=steered(), highlight=False, soft_wrap=True)
        shown = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
        columns = (*shown, MofNCompleteColumn(), *times)
        hidden = not self.console.is_terminal
        self.bars = RichProgress(*columns, console=self.console, transient=True, disable=hidden)
        self.running: dict[str, tuple[TaskID, float]] = {}
        self.waiting: set[str] = set()
        self.finished = self.total = 0

    def start(self, total: int, done: int) -> None:
        """Show the whole."""
        self.finished, self.total = done, total
        self.whole = self.bars.add_task(f"all {self.noun}", total=total, completed=done)
        if done < total:
            self.console.print(f"{total} {self.noun}, {done} already there")
            self.bars.start()

    def update(self, job: Job, state: JobState) -> None:
        """Move a job's bar, and the whole by as much."""
        if job.name not in self.running:
            self.running[job.name] = (self.bars.add_task(plain(job.title), total=1.0), 0.0)
        task, before = self.running[job.name]
        self.bars.update(task, completed=state.fraction, description=plain(f"{job.title}: {state.phase}"))
        if self._counts(job):
            self.bars.advance(self.whole, state.fraction - before)
        self.running[job.name] = (task, state.fraction)

    def finish(self, job: Job, end: str, seconds: float) -> None:
        """Say what became of it."""
        task, before = self.running.pop(job.name, (None, 0.0))
        if task is not None:
            self.bars.remove_task(task)
        if end == "busy":
            if job.name not in self.waiting:
                self.console.print(plain(f"{job.title}: another run is computing it; waiting"), markup=False)
                self.waiting.add(job.name)
            return
        if self._counts(job):
            self.finished += 1
            self.bars.advance(self.whole, 1.0 - before)
        count = f"{self.finished}/{self.total}" if self._counts(job) else "shared"
        what = "another run computed it" if end == "found" else f"{end} in {seconds:.1f} s"
        self.console.print(plain(f"[{count}] {job.title}: {what}"), markup=False)

    def close(self) -> None:
        """Take the bars away."""
        self.bars.stop()

    def _counts(self, job: Job) -> bool:
        """Whether it is one of what the whole is made of."""
        return (job.kind == "resource") == (self.noun == "resources")
