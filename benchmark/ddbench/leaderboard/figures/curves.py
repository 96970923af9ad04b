"""Accuracy against steps and against seconds, and the loss of every step.

Like Figures 4 and 8 of H-PD (Zhong et al., Hierarchical Features Matter, CVPR 2025).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ddbench.leaderboard.figures.drawing import Drawn, legend_below, plain, rendered, style
from ddbench.leaderboard.habits import mean_of
from ddbench.leaderboard.join import Result
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import Section
from ddbench.leaderboard.tables import ALL, CROSS, columns, same_column
from ddbench.leaderboard.trajectory import Point, points_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 200  # along the steps, in which losses are summed up
LOG_FROM = 50.0  # the largest loss over the smallest, from which on their axis is logarithmic
Line = list[dict[str, Any]]
"""Points, in order."""


def accuracy_figure(section: Section, title: str) -> Drawn | None:
    """Of a section of iterates; None where no panel has anything."""
    wanted = [column for column in columns(section.rows[0], section) if column in (CROSS, ALL, same_column(section))]
    panels = {column: {row.name: _line(row, section, column) for row in section.rows} for column in wanted}
    panels = {column: lines for column, lines in panels.items() if any(lines.values())}
    if not panels:
        return None

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(panels), 2, squeeze=False, sharey="row")
        for axes, (column, lines) in zip(grid, panels.items(), strict=True):
            for axis, x in zip(axes, ("steps", "seconds"), strict=True):
                _draw_lines(axis, lines, x)
                axis.set_xlabel("steps" if x == "steps" else "seconds of distilling and ranking")
            axes[0].set_ylabel(f"accuracy (%)\n{plain(column)}")
        legend_below(figure, grid[0][0], list(next(iter(panels.values()))))

    machines = {machine for row in section.rows for machine in row.makers}
    several = " The sets were made on different hardware: their seconds do not compare." if len(machines) > 1 else ""
    caption = (
        "Mean over distillation seeds; bands are the standard deviation over seeds, and none is drawn for one seed. The last "
        f"point of a line is the finished set. Seconds are those of the hardware the sets were made on.{several}"
    )
    png, svg = rendered((9.6, 3.0 * len(panels) + 0.3 + 0.2 * len(section.rows)), draw)
    return Drawn(title, caption, png, svg, {"kind": "accuracy", "panels": panels})


def _draw_lines(axis: Axes, lines: Mapping[str, Line], x: str) -> None:
    for number, (name, line) in enumerate(lines.items()):
        points = sorted((point for point in line if point[x] is not None), key=lambda point: (point[x], point["accuracy"]))
        at = [point[x] for point in points]
        mean = np.array([100 * point["accuracy"] for point in points])
        std = np.array([100 * (point["std"] or 0.0) for point in points])
        look = style(number)
        axis.plot(at, mean, label=plain(name), **look)
        if std.any():
            axis.fill_between(at, mean - std, mean + std, color=look["color"], alpha=0.15, linewidth=0)


def _line(row: Row, section: Section, column: str) -> Line:
    """What a row's points are in a column; empty where no network of it has judged them."""
    networks = columns(row, section).get(column, ())
    line = []
    for point in points_of(row):
        mean = mean_of(point.reading, networks)
        if mean is not None:
            at = {"label": point.label, "steps": _mean(_steps(point, row)), "seconds": _mean(_seconds(point, row))}
            line.append(at | {"accuracy": mean.mean, "std": mean.std_seeds})
    return line


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _steps(point: Point, row: Row) -> list[float | None]:
    return [result.record.steps if step is None else step for step, result in zip(point.steps, row.results, strict=True)]


def _seconds(point: Point, row: Row) -> list[float | None]:
    """When each seed was there; a moment that was asked for is what it is."""
    if point.seconds is not None:
        return [point.seconds] * len(row.results)
    return [seconds_at(result, step) for step, result in zip(point.steps, row.results, strict=True)]


def seconds_at(result: Result, step: int | None) -> float | None:
    """The seconds of distilling and ranking before a step, by the record's timeline, straight between its points; of the finished
    set, all of them. None where the record has no timeline."""
    measured = result.record.measured
    if step is None:
        return measured.seconds.get("distill", 0.0) + measured.seconds.get("rank", 0.0)
    if not measured.timeline:
        return None
    steps, seconds = zip(*measured.timeline, strict=True)
    return float(np.interp(step, steps, seconds))


@dataclass(frozen=True)
class Losses:
    """Of a set: the loss of every `every`-th step from 0 on."""

    every: int
    values: np.ndarray


def loss_figure(rows: Sequence[Row], losses: Mapping[str, Losses], loss: str, title: str) -> Drawn | None:
    """Of rows of one loss, whose sets' losses are given by key; None without any."""
    lines = {row.name: made for row in rows if (made := _binned(row, losses))}
    if not lines:
        return None
    borders = {row.name: _borders(row) for row in rows if row.name in lines}

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for number, (method, (steps, low, middle, high)) in enumerate(lines.items()):
            look = style(number) | {"marker": "", "linewidth": 1.1}
            axis.plot(steps, middle, label=plain(method), **look)
            axis.fill_between(steps, low, high, color=look["color"], alpha=0.2, linewidth=0)
            height = [0.97 - 0.04 * number] * len(borders[method])
            strokes = {"linestyle": "", "marker": "|", "markersize": 9, "markeredgewidth": 2.0, "color": look["color"]}
            axis.plot(borders[method], height, transform=axis.get_xaxis_transform(), **strokes)
        least, most = min(min(line[1]) for line in lines.values()), max(max(line[3]) for line in lines.values())
        if least > 0 and most / least > LOG_FROM:
            axis.set_yscale("log")
        axis.margins(x=0.01)
        axis.set_xlabel("step")
        axis.set_ylabel(f"loss {plain(loss)}")
        legend_below(figure, axis, list(lines))

    caption = (
        f"The loss of steps, over all seeds: lines are the median of each of at most {BINS} stretches of steps, bands go from "
        "the 5th to the 95th percentile. Strokes at the top are the steps at which a walk began another stage. Losses of "
        "different spaces are of the same formula; of different stages too."
    )
    png, svg = rendered((9.6, 3.9 + 0.2 * len(lines)), draw)
    values = {method: {"steps": list(line[0]), "median": list(line[2])} for method, line in lines.items()}
    return Drawn(title, caption, png, svg, {"kind": "loss", "loss": loss, "lines": values})


def _binned(row: Row, losses: Mapping[str, Losses]) -> tuple[list[float], list[float], list[float], list[float]] | None:
    """(steps, 5th percentile, median, 95th percentile) over the seeds of a row; None where none of them has losses."""
    known = [losses[result.key] for result in row.results if result.key in losses]
    if not known:
        return None
    steps = np.concatenate([np.arange(len(each.values)) * each.every for each in known])
    values = np.concatenate([each.values for each in known])
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    if not len(values):
        return None
    total = int(steps.max()) + 1
    where = steps * min(BINS, total) // total
    made: tuple[list[float], ...] = ([], [], [], [])
    for one in np.unique(where):
        own = values[where == one]
        numbers = (float(steps[where == one].mean()), *(float(each) for each in np.percentile(own, (5, 50, 95))))
        for column, number in zip(made, numbers, strict=True):
            column.append(number)
    return made[0], made[1], made[2], made[3]


def _borders(row: Row) -> list[int]:
    """The first steps of the stages after the first."""
    return [row.plan.stage_start(stage) for stage in range(1, len(row.results[0].record.stages))]
