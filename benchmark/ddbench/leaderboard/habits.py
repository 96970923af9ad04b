"""What a habit of published code is worth, on the very seeds of the results.

Of a distillation whose iterates were judged, the finished set and the iterates are candidates, and each seed chooses for itself
on the test split. A set whose generated images have other constants is held against the set of the same plan without. Repeats
of a network draw equal numbers in all of these, so differences are paired.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from msgspec.structs import replace

from ddbench.files import digest
from ddbench.leaderboard.join import Accuracies, Result
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import Section
from ddbench.leaderboard.statistics import Mean, cross_mean
from ddbench.leaderboard.tables import ALL, CROSS, NOTHING, columns, fewer, frame, plain, points, with_error

Reading = Sequence[Accuracies]
"""One for each seed."""


def mean_of(reading: Reading, networks: Sequence[str]) -> Mean | None:
    """The unweighted mean over these networks, over the seeds that all of them have judged; None without any."""
    seeds = [seed for seed in reading if all(name in seed for name in networks)]
    return cross_mean([[seed[name] for seed in seeds] for name in networks]) if seeds and networks else None


def gain(after: Reading, before: Reading) -> Reading:
    """after - before, repeat by repeat."""
    both = zip(after, before, strict=True)
    made = []
    for new, old in both:
        names = [name for name in new if name in old]
        made.append({name: tuple(a - b for a, b in zip(new[name], old[name], strict=False)) for name in names})
    return made


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
    for result in row.results:
        candidates: list[tuple[int | None, Accuracies]] = [(None, result.accuracies), *result.iterates.items()]
        step, best = max(candidates, key=lambda entry: statistics.fmean(map(statistics.fmean, entry[1].values())))
        steps.append(step)
        one.append(best)
        names = result.accuracies
        each.append({name: max((made[name] for _, made in candidates), key=statistics.fmean) for name in names})
    return Choice([result.accuracies for result in row.results], one, tuple(steps), each)


def choice_table(section: Section) -> pd.DataFrame:
    """Five lines a row."""
    lines = []

    def add(row: Row, name: str, reading: Reading, is_gain: bool = False, steps: str = NOTHING) -> None:
        line = {"method": row.name, "reading": name}
        for column, networks in columns(row, section).items():
            value = mean_of(reading, networks)
            line[column] = (points if is_gain else with_error)(value) + (fewer(row, section) if column in (CROSS, ALL) else "")
        lines.append(line | {"seeds": str(len(row.results)), "chosen step": steps})

    for row in section.rows:
        made = choice(row)
        add(row, "final set", made.final)
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
        rows[f"steps {', '.join(map(str, row.results[0].iterates))}"].append(row.name)
    if len(rows) == 1:
        return next(iter(rows))
    return "; ".join(f"{steps} ({', '.join(names)})" for steps, names in rows.items())


def described(section: Section) -> str:
    """What the habit is."""
    if section.kind == "choice":
        return "the finished set and iterates of its distillation are judged, and the best on the test split is reported"
    plan = section.lead.plan
    parts = []
    for noun, values in (("mean", plan.synthetic_mean), ("standard deviation", plan.synthetic_std)):
        parts.append(f"{noun} {', '.join(f'{value:g}' for value in values)}" if values else f"the data set's own {noun}")
    return f"images of generators are normalised by {' and '.join(parts)}, real images by the data set's own constants"


Bases = Mapping[str, Result]


def bases(results: Iterable[Result]) -> Bases:
    """The results of sets without a habit, by what they share with those that have one."""
    return {_twin(result.plan.key, result): result for result in results if result.is_ranked}


def _base_of(result: Result, known: Bases) -> Result | None:
    """That of the same plan without other constants, in all else equal."""
    plan = replace(result.plan, synthetic_mean=(), synthetic_std=())
    return known.get(_twin(plan.key, result))


def _twin(key: str, result: Result) -> str:
    judging = result.judging
    return digest([key, judging.stem, judging.resources, judging.draw, result.software])


@dataclass(frozen=True)
class Difference:
    """A row's accuracies less those without the habit, on the seeds that both have."""

    gains: Reading
    seeds: tuple[int, ...]
    protocols: tuple[str, ...]  # the base


def difference(row: Row, known: Bases) -> Difference:
    """Empty where the base is not in the store."""
    pairs = [(result, base) for result in row.results if (base := _base_of(result, known))]
    ids = sorted({base.protocols[0] for _, base in pairs})
    gains = gain([result.accuracies for result, _ in pairs], [base.accuracies for _, base in pairs])
    return Difference(gains, tuple(result.seed for result, _ in pairs), tuple(ids))


def difference_table(section: Section, known: Bases) -> pd.DataFrame:
    """A line a row."""
    lines = []
    for row in section.rows:
        made = difference(row, known)
        line = {"method": row.name}
        line |= {column: points(mean_of(made.gains, networks)) for column, networks in columns(row, section).items()}
        line["against"] = " or ".join(made.protocols) or "n/a: not in this store"
        line["seeds"] = str(len(made.seeds)) if made.seeds else NOTHING
        lines.append(line)
    return frame(lines)


def as_json(section: Section, row: Row, known: Bases) -> dict[str, Any]:
    """What a habit is worth in a row, as plain values; fractions."""

    def values(reading: Reading) -> dict[str, Any]:
        both = {"same_architecture": (row.backbone,) if row.backbone in row.networks else (), "cross_architecture": row.others}
        means = {name: plain(mean_of(reading, networks)) for name, networks in both.items()}
        return means | {"networks": {name: plain(mean_of(reading, (name,))) for name in row.networks}}

    told: dict[str, Any] = {"habit": described(section)}
    if section.kind == "choice":
        made = choice(row)
        readings = {"one_iterate": made.one, "each_network": made.each}
        told |= {name: values(reading) for name, reading in readings.items()}
        told |= {f"{name}_gain": values(gain(reading, made.final)) for name, reading in readings.items()}
        return told | {"iterates": list(row.results[0].iterates), "chosen_steps": list(made.steps)}
    held = difference(row, known)
    return told | {"difference": values(held.gains), "difference_to": list(held.protocols), "difference_seeds": list(held.seeds)}
