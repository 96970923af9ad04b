"""How a suite wants learning rates tuned: its table [tune].

    [tune]
    trials = 8           # points of the grid: factors from 0.01 up to below 100, on all rates of a method's space together
    factors = [0.1, 1]   # instead of `trials`: other factors
    rates = { f = [1, 10], w = [0.01, 0.1] }   # or the rates themselves; the trials take the first of each, then the second, ...
    steps = 0.33         # the share of a method's steps that a trial takes; left out: all of them
    seeds = 1            # sets at each point
    repeats = 2          # networks that score a set
    epochs = 100         # of each; left out: the protocol's
    held_out = 0.1       # the share of the training images that score, of those that validation leaves

Every key may be left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from ddbench.errors import did_you_mean
from ddbench.plan import NUMERICS, SetPlan
from ddbench.protocols import Protocol
from ddbench.suite.findings import Findings
from ddbench.trials import MAX_TRIALS, Scoring, Tuning, default_factors

WHOLE = {"seeds": (1, 100), "repeats": (1, 100), "epochs": (1, 100_000)}  # key to the least and the most
GRIDS = ("trials", "factors", "rates")
FIELDS = (*GRIDS, "steps", *WHOLE, "held_out")


@dataclass(frozen=True)
class Tune:
    """The table, read."""

    factors: tuple[float, ...]  # of the rates of a space's tensors
    rates: Mapping[str, tuple[float, ...]]  # by tensor; where there are any, factors do not count
    share: float
    seeds: int
    held_out: float
    scoring: Scoring

    def tuning(self, plan: SetPlan, tensors: Sequence[str]) -> Tuning:
        """How the method of a plan is tuned, whose space has these tensors. Rates of what a loss learns, and of labels, are left
        alone unless the table names them."""
        if self.rates:
            num = len(next(iter(self.rates.values())))
            own = {name: rates for name, rates in self.rates.items() if name in plan.rates}
            grid = tuple(plan.rates | {name: rates[number] for name, rates in own.items()} for number in range(num))
        else:
            scaled = [name for name in plan.rates if name in tensors]
            grid = tuple(plan.rates | {name: plan.rates[name] * factor for name in scaled} for factor in self.factors)
        return Tuning(grid=grid, seeds=self.seeds, share=self.share, held_out=self.held_out, scoring=self.scoring)


def read_tune(raw: Any, protocol: Protocol, findings: Findings) -> Tune:
    """The table of a suite; what is wrong with it is among the findings."""
    table = findings.typed(raw, dict, "'tune'", {})
    for name in table:
        if name not in FIELDS:
            findings.fault(f"'tune' has no key '{name}'.{did_you_mean(name, FIELDS)} It takes: {', '.join(FIELDS)}.")
    given = [name for name in GRIDS if name in table]
    if len(given) > 1:
        findings.fault(f"'tune' has {' and '.join(given)}, which exclude one another: keep one of them.")
    whole = {name: _whole(table, name, findings) for name in WHOLE}
    share = findings.typed(table.get("steps", 1.0), float, "'tune.steps'", 1.0)
    if not 0 < share <= 1:
        findings.fault(f"'tune.steps' is a share of a method's steps, above 0 and at most 1, got {share}.")
    held_out = findings.typed(table.get("held_out", 0.1), float, "'tune.held_out'", 0.1)
    if not 0 < held_out < 1:
        findings.fault(f"'tune.held_out' must lie between 0 and 1, got {held_out}.")
    numbers = protocol.judging.own_labels()
    numbers = numbers.shortened(whole["epochs"] or numbers.epochs)
    scoring = Scoring(numbers=numbers, repeats=whole["repeats"] or 2, training=NUMERICS["training"])
    return Tune(_factors(table, findings), _rates(table, findings), share, whole["seeds"] or 1, held_out, scoring)


def _whole(table: Mapping[str, Any], name: str, findings: Findings) -> int:
    """0 where it is left out, or wrong."""
    least, most = WHOLE[name]
    value = table.get(name, 0)
    if name in table and not (type(value) is int and least <= value <= most):
        findings.fault(f"'tune.{name}' must be a whole number from {least} to {most}, got {value!r}.")
        return 0
    return int(value)


def _factors(table: Mapping[str, Any], findings: Findings) -> tuple[float, ...]:
    if "factors" in table:
        return _numbers(table["factors"], "'tune.factors'", findings)
    trials = table.get("trials", 8)
    if type(trials) is not int or trials % 2 or not 2 <= trials <= MAX_TRIALS:
        told = "so that a method's own rates are one of them"
        findings.fault(f"'tune.trials' must be an even number from 2 to {MAX_TRIALS}, {told}, got {trials!r}.")
        return default_factors(8)
    return default_factors(trials)


def _rates(table: Mapping[str, Any], findings: Findings) -> dict[str, tuple[float, ...]]:
    given = findings.typed(table.get("rates", {}), dict, "'tune.rates'", {})
    if "rates" in table and not given:
        findings.fault("'tune.rates' names no tensor, as in rates = { pixels = [0.1, 1, 10] }.")
    rates = {name: _numbers(values, f"'tune.rates.{name}'", findings) for name, values in given.items()}
    if len({len(values) for values in rates.values()}) > 1:
        told = ", ".join(f"{name} {len(values)}" for name, values in rates.items())
        findings.fault(f"'tune.rates' must have as many values for every tensor, one a trial; it has {told}.")
        return {}
    return rates


def _numbers(values: Any, where: str, findings: Findings) -> tuple[float, ...]:
    if not isinstance(values, list) or not 2 <= len(values) <= MAX_TRIALS:
        findings.fault(f"{where} must be a list of 2 to {MAX_TRIALS} numbers, got {values!r}.")
        return (1.0, 1.0)
    for value in values:
        if type(value) not in (int, float) or not 0 < value < inf:
            findings.fault(f"{where} holds {value!r}; each entry must be a number above 0.")
            return (1.0, 1.0)
    return tuple(map(float, values))
