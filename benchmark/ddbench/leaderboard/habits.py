"""Sections under protocols that are not ranked: what a habit of published code is worth, on the very seeds of the results.

A protocol with `snapshots` asks what choosing on the test split brings: the finished set and the iterates are candidates, and
each seed of distillation chooses for itself. Any other is held against its base: the ranked protocol that has all the same
numbers but those of HABITS. Repeats of a network draw equal numbers in all of these, so differences are paired.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ddbench.leaderboard.cells import Accuracies, Cell
from ddbench.leaderboard.rows import Row, Section, software
from ddbench.leaderboard.statistics import Mean, cross_mean
from ddbench.leaderboard.tables import CROSS, NOTHING, columns, fewer, frame, plain, points, with_error
from ddbench.plan import digest
from ddbench.results.store import group_key

HABITS = ("id", "description", "ranked", "snapshots", "synthetic_mean", "synthetic_std")  # what parts a habit from its base
Reading = Sequence[Accuracies]
"""One for each seed."""


def mean_of(reading: Reading, networks: Sequence[str]) -> Mean | None:
    """The unweighted mean over these networks; None without any, or without a seed."""
    return cross_mean([[seed[name] for seed in reading] for name in networks]) if reading and networks else None


def gain(after: Reading, before: Reading) -> Reading:
    """after - before, repeat by repeat."""
    both = zip(after, before, strict=True)
    return [{name: tuple(a - b for a, b in zip(new[name], old[name], strict=False)) for name in new} for new, old in both]


@dataclass(frozen=True)
class Choice:
    """A row's accuracies as they are, and as the choice on the test split makes them."""

    final: Reading
    one: Reading  # of the candidate of the best mean over all networks
    steps: tuple[int | None, ...]  # at which that is, by seed; None: the finished set
    each: Reading  # every network's from the candidate that is best on it


def choice(row: Row) -> Choice:
    """The best of the finished set and the iterates; of equals the finished set, then the earliest."""
    one, steps, each = [], [], []
    for cell in row.cells:
        candidates: list[tuple[int | None, Accuracies]] = [(None, cell.accuracies), *cell.snapshots.items()]
        step, best = max(candidates, key=lambda entry: statistics.fmean(map(statistics.fmean, entry[1].values())))
        steps.append(step)
        one.append(best)
        each.append({name: max((made[name] for _, made in candidates), key=statistics.fmean) for name in row.networks})
    return Choice([cell.accuracies for cell in row.cells], one, tuple(steps), each)


def choice_table(section: Section) -> pd.DataFrame:
    """Five lines a row; one for a row without iterates, which has nothing to choose."""
    lines = []

    def add(row: Row, name: str, reading: Reading, is_gain: bool = False, steps: str = NOTHING) -> None:
        line = {"method": row.name, "reading": name}
        for column, networks in columns(row, section).items():
            value = mean_of(reading, networks)
            line[column] = (points if is_gain else with_error)(value) + (fewer(row, section) if column == CROSS else "")
        lines.append(line | {"seeds": NOTHING if row.is_full_data else str(len(row.cells)), "chosen step": steps})

    for row in section.rows:
        made = choice(row)
        add(row, "final set", made.final)
        if any(cell.snapshots for cell in row.cells):
            steps = ", ".join("final" if step is None else str(step) for step in made.steps)
            add(row, "best of test, one iterate", made.one, steps=steps)
            add(row, "gain, one iterate (points)", gain(made.one, made.final), True)
            add(row, "best of test, each network by itself", made.each)
            add(row, "gain, each network by itself (points)", gain(made.each, made.final), True)
    return frame(lines)


def iterates(section: Section) -> str:
    """Which iterates are judged: `steps 0, 20, 40`, with the names of the rows where rows differ."""
    rows: dict[str, list[str]] = defaultdict(list)
    for row in section.rows:
        if row.cells[0].snapshots:
            rows[f"steps {', '.join(map(str, row.cells[0].snapshots))}"].append(row.name)
    if len(rows) == 1:
        return next(iter(rows))
    return "; ".join(f"{steps} ({', '.join(names)})" for steps, names in rows.items()) or "none"


Bases = Mapping[str, Cell]


def bases(cells: Iterable[Cell]) -> Bases:
    """The ranked cells by what they share with those of a habit."""
    found: dict[str, Cell] = {}
    for cell in sorted(cells, key=lambda cell: (cell.plan["protocol"]["id"], cell.key)):
        if cell.is_ranked:
            found.setdefault(_twin(cell), cell)
    return found


def _twin(cell: Cell) -> str:
    """Equal for cells that differ in a habit alone."""
    protocol = {name: value for name, value in cell.plan["protocol"].items() if name not in HABITS}
    return digest([group_key(cell.plan, without=("protocol",)), protocol, software(cell)])


@dataclass(frozen=True)
class Difference:
    """A row's accuracies less those under the base protocol, on the seeds that both have."""

    gains: Reading
    seeds: tuple[int, ...]
    protocols: tuple[str, ...]  # the base


def difference(row: Row, known: Bases) -> Difference:
    """Empty where the base is not in the store."""
    pairs = [(cell, known[_twin(cell)]) for cell in row.cells if _twin(cell) in known]
    ids = sorted({base.plan["protocol"]["id"] for _, base in pairs})
    gains = gain([cell.accuracies for cell, _ in pairs], [base.accuracies for _, base in pairs])
    return Difference(gains, tuple(cell.seed for cell, _ in pairs), tuple(ids))


def difference_table(section: Section, known: Bases) -> pd.DataFrame:
    """A line a row."""
    lines = []
    for row in section.rows:
        made = difference(row, known)
        line = {"method": row.name}
        line |= {column: points(mean_of(made.gains, networks)) for column, networks in columns(row, section).items()}
        line["against"] = " or ".join(made.protocols) or "n/a: not in this store"
        line["seeds"] = str(len(made.seeds)) if made.seeds and not row.is_full_data else NOTHING
        lines.append(line)
    return frame(lines)


def as_json(section: Section, row: Row, known: Bases) -> dict[str, Any]:
    """What a habit is worth in a row, as plain values; fractions."""

    def values(reading: Reading) -> dict[str, Any]:
        both = {"same_architecture": (row.backbone,) if row.backbone in row.networks else (), "cross_architecture": row.others}
        means = {name: plain(mean_of(reading, networks)) for name, networks in both.items()}
        return means | {"networks": {name: plain(mean_of(reading, (name,))) for name in row.networks}}

    told = {"description": section.protocol.get("description", "")}
    if section.protocol.get("snapshots"):
        made = choice(row)
        readings = {"one_iterate": made.one, "each_network": made.each}
        told |= {name: values(reading) for name, reading in readings.items()}
        told |= {f"{name}_gain": values(gain(reading, made.final)) for name, reading in readings.items()}
        return told | {"iterates": sorted({*row.cells[0].snapshots}), "chosen_steps": list(made.steps)}
    held = difference(row, known)
    return told | {"difference": values(held.gains), "difference_to": list(held.protocols), "difference_seeds": list(held.seeds)}
