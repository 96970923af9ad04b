"""How the learning rates of rows were chosen: what that took, and what every trial came to."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import Section
from ddbench.schema import TuningRecord


def concerns(section: Section) -> bool:
    """Whether some row of it was tuned, or waits for that."""
    return any(row.tuning or row.results[0].awaits_tuning for row in section.rows)


def spent(row: Row) -> str:
    """`8 trials, 312 s`."""
    if row.tuning is None:
        return "untuned" if row.is_distilled else "–"
    trials, seeds, share = row.tuning.tuning.budget
    times = f" x {seeds} seeds" if seeds > 1 else ""
    short = f" of {share:.0%} of the steps" if share < 1 else ""
    return f"{trials} trials{times}{short}, {row.tuning.seconds:,.0f} s"


def lines(section: Section) -> list[dict[str, str]]:
    """Of every tuned row: its own rates, those that were chosen, and the held-out error of every trial in percent, the chosen one
    in bold."""
    found = []
    for row in section.rows:
        record = row.tuning
        if record is not None:
            line = {"method": row.name, "own rates": _rates(record.method.rates), "chosen rates": _rates(record.plan.rates)}
            line["held-out error (%) by trial"] = ", ".join(_error(record, number) for number in range(len(record.tried)))
            found.append(line)
    return found


def _rates(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())


def _error(record: TuningRecord, number: int) -> str:
    point = record.tried[number]
    if point.diverged:
        return "diverged"
    std = f" ± {100 * statistics.stdev(point.errors):.1f}" if len(point.errors) > 1 else ""
    text = f"{100 * statistics.fmean(point.errors):.1f}{std}"
    return f"**{text}**" if number == record.choice else text


def as_json(row: Row) -> dict[str, Any] | None:
    """The same as plain values; errors are fractions. None where its rates were not chosen."""
    if row.tuning is None:
        return None
    record = row.tuning
    trials, seeds, share = record.tuning.budget
    tried = [{"rates": each.rates, "errors": list(each.errors), "diverged": each.diverged} for each in record.tried]
    about = {"key": record.key, "trials": trials, "seeds": seeds, "steps": share, "seconds": record.seconds}
    return about | {"own_rates": record.method.rates, "rates": record.plan.rates, "tried": tried}
