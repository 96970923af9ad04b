"""The progress bar of `ddbench run`, on stderr: finished cells as lines, running ones with their phase, all with an ETA."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from ddbench.grid import runner
from ddbench.grid.worker import Job, Message


class Bar(runner.Progress):
    """A line for every finished job; on a terminal, bars below them."""

    def __init__(self, noun: str = "cells") -> None:
        self.noun = noun
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
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
        if done < total:
            self.console.print(f"{total} {self.noun}, {done} already there")
            self.whole = self.bars.add_task(f"all {self.noun}", total=total, completed=done)
            self.bars.start()

    def update(self, job: Job, message: Message) -> None:
        """Move a job's bar, and the whole by as much."""
        name = self._name(job)
        if name not in self.running:
            self.running[name] = (self.bars.add_task(name, total=1.0), 0.0)
        task, before = self.running[name]
        self.bars.update(task, completed=message.fraction, description=f"{name}: {message.phase}")
        if self._counts(job):
            self.bars.advance(self.whole, message.fraction - before)
        self.running[name] = (task, message.fraction)

    def finish(self, job: Job, message: Message, seconds: float) -> None:
        """Say what became of it."""
        name = self._name(job)
        task, before = self.running.pop(name, (None, 0.0))
        if task is not None:
            self.bars.remove_task(task)
        if message.kind == "busy":
            if name not in self.waiting:
                self.console.print(f"{name}: another run is computing it; waiting", markup=False)
                self.waiting.add(name)
            return
        if self._counts(job):
            self.finished += 1
            self.bars.advance(self.whole, 1.0 - before)
        count = f"{self.finished}/{self.total}" if self._counts(job) else "shared"
        what = "another run computed it" if message.kind == "found" else f"{message.kind} in {seconds:.1f} s"
        self.console.print(f"[{count}] {name}: {what}", markup=False)

    def close(self) -> None:
        """Take the bars away."""
        self.bars.stop()

    def _counts(self, job: Job) -> bool:
        """Whether it is one of what the whole is made of."""
        return bool(job.resource) == (self.noun == "resources")

    @staticmethod
    def _name(job: Job) -> str:
        return f"resource {job.resource[:8]} for {job.plan.method}" if job.resource else job.plan.name
