"""Accuracy on the way: the judged iterates of a distillation, by the steps or the seconds after which they were kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ddbench.leaderboard.habits import Reading, mean_of
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import Section
from ddbench.leaderboard.tables import CROSS, columns, fewer, frame, plain, with_error
from ddbench.results.iterates import step_at

FINISHED = "finished"


@dataclass(frozen=True)
class Point:
    """A moment that was asked for, and what its iterates do."""

    step: int | None  # that was asked for
    seconds: float | None  # likewise; None for both: the finished set
    steps: tuple[int | None, ...]  # of the iterate, by seed; None: it was the finished set by then
    reading: Reading  # by seed

    @property
    def label(self) -> str:
        """`step 20`, `10 s`, `finished`."""
        if self.seconds is not None:
            return f"{self.seconds:g} s"
        return FINISHED if self.step is None else f"step {self.step}"


def points_of(row: Row) -> Iterator[Point]:
    """By steps, then by seconds, then the finished set."""
    results = row.results
    for step in results[0].iterates:
        yield Point(step, None, (step,) * len(results), [result.iterates[step] for result in results])
    for seconds in results[0].by_seconds:
        steps = tuple(step_at(result.plan, result.record, seconds) for result in results)
        yield Point(None, seconds, steps, [result.by_seconds[seconds] for result in results])
    yield Point(None, None, (None,) * len(results), [result.accuracies for result in results])


def trajectory_table(section: Section) -> pd.DataFrame:
    """A line for each point of each row."""
    lines = []
    for row in section.rows:
        for point in points_of(row):
            line = {"method": row.name, "iterate": point.label}
            line["steps"] = ", ".join(dict.fromkeys(FINISHED if step is None else str(step) for step in point.steps))
            for column, networks in columns(row, section).items():
                more = fewer(row, section) if column == CROSS else ""
                line[column] = with_error(mean_of(point.reading, networks)) + more
            lines.append(line | {"seeds": str(len(row.results))})
    return frame(lines)


def as_json(row: Row) -> list[dict[str, Any]]:
    """The points as plain values; fractions."""
    told = []
    for point in points_of(row):
        networks = {name: plain(mean_of(point.reading, (name,))) for name in row.networks}
        cross = plain(mean_of(point.reading, row.others))
        about = {"step": point.step, "seconds": point.seconds, "steps": list(point.steps)}
        told.append(about | {"networks": networks, "cross_architecture": cross})
    return told
