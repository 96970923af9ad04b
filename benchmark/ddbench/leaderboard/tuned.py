"""How the learning rates of rows were chosen: what that took, and what every trial came to."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import Section
from ddbench.schema import Tried

ERROR = "held-out error (%)"


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
    """The trials of every tuned row: rates and held-out error in percent, the chosen one in bold; its own rates, where none of
    the trials had them, come first."""
    found = []
    for row in section.rows:
        record = row.tuning
        if record is None:
            continue
        own = record.method.rates
        if all(point.rates != own for point in record.tried):
            found.append({"method": row.name, "rates": _rates(own), ERROR: "not tried", "s": "–", "which": "own"})
        for number, point in enumerate(record.tried):
            is_choice = number == record.choice
            which = ", ".join(["own"] * (point.rates == own) + ["chosen"] * is_choice)
            error = f"**{_error(point)}**" if is_choice else _error(point)
            line = {"method": row.name, "rates": _rates(point.rates), ERROR: error}
            found.append(line | {"s": f"{point.seconds:,.1f}", "which": which})
    return found


def _rates(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())


def _error(point: Tried) -> str:
    if point.diverged:
        return "diverged"
    std = f" ± {100 * statistics.stdev(point.errors):.1f}" if len(point.errors) > 1 else ""
    return f"{100 * statistics.fmean(point.errors):.1f}{std}"


def as_json(row: Row) -> dict[str, Any] | None:
    """The same as plain values; errors are fractions. None where its rates were not chosen."""
    if row.tuning is None:
        return None
    record = row.tuning
    trials, seeds, share = record.tuning.budget
    tried = [{"rates": each.rates, "errors": list(each.errors), "diverged": each.diverged} for each in record.tried]
    about = {"key": record.key, "trials": trials, "seeds": seeds, "steps": share, "seconds": record.seconds}
    return about | {"own_rates": record.method.rates, "rates": record.plan.rates, "tried": tried}
