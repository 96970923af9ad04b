"""The progress of a run on stderr: lines for what begins and ends, and on a terminal bars below them."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from ddbench.api import Job, JobState
from ddbench.cli.terminal import plain, steered
from ddbench.grid.counts import Counts, done_of
from ddbench.grid.forecast import Forecast
from ddbench.grid.telling import Teller
from ddbench.results.log import Log


class Bar(Teller):
    """Shows what a run tells; on a terminal, also a bar for each running job, and one for the whole."""

    def __init__(self, log: Log | None = None, quiet: bool = False) -> None:
        """`quiet`: only the log gets anything."""
        self.console = Console(file=steered(), highlight=False, soft_wrap=True, quiet=quiet, force_jupyter=False)
        super().__init__(self._print, log)
        words = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        shown = (words, BarColumn(bar_width=10), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
        hidden = quiet or not self.console.is_terminal
        self.bars = RichProgress(*shown, console=self.console, transient=True, disable=hidden, expand=True)
        self.whole = self.bars.add_task("")
        self.running: dict[str, tuple[TaskID, float]] = {}

    def start(self, total: Counts, done: Counts, forecast: Forecast | None = None) -> None:
        """Show the whole."""
        super().start(total, done, forecast)
        self.bars.update(self.whole, total=total.total(), completed=done.total())
        self._describe()
        if done.total() < total.total():
            self.bars.start()

    def begin(self, job: Job) -> None:
        """A bar for it."""
        super().begin(job)
        self.running[job.name] = (self.bars.add_task(plain(job.title), total=1.0), 0.0)

    def update(self, job: Job, state: JobState) -> None:
        """Move a job's bar, and the whole by as much."""
        super().update(job, state)
        if job.name in self.running:
            task, before = self.running[job.name]
            self.bars.update(task, completed=state.fraction, description=plain(f"{job.title}: {state.phase}"))
            self.bars.advance(self.whole, (state.fraction - before) * (job.kind in self.total))
            self.running[job.name] = (task, state.fraction)
            self._describe()

    def finish(self, job: Job, end: str, seconds: float) -> None:
        """Take its bar away."""
        task, before = self.running.pop(job.name, (None, 0.0))
        if task is not None:
            self.bars.remove_task(task)
        super().finish(job, end, seconds)
        self.bars.advance(self.whole, ((end not in ("busy", "again")) - before) * (job.kind in self.total))
        self._describe()

    def close(self) -> None:
        """Take the bars away."""
        self.bars.stop()

    def _describe(self) -> None:
        if not self.bars.disable:
            self.bars.update(self.whole, description=f"all: {done_of(self.done, self.total)}{self._left()}")

    def _print(self, line: str) -> None:
        self.console.print(plain(line), markup=False)
