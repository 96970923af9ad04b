"""The iterates that a suite asks for beside every distilled set: `iterates = { steps = [0, 100], seconds = [10, 60] }`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from ddbench.errors import did_you_mean
from ddbench.suite.findings import Findings

MAX_ITERATES = 1000  # of a set
FIELDS = ("steps", "seconds")


@dataclass(frozen=True)
class Asked:
    """Sorted, none twice."""

    steps: tuple[int, ...] = ()  # before which an iterate is kept
    seconds: tuple[float, ...] = ()  # of distilling and ranking, after which one is


def read_iterates(raw: Any, findings: Findings) -> Asked:
    """The table of a suite; what is wrong with it is among the findings."""
    if not isinstance(raw, Mapping):
        findings.fault(f"'iterates' must be a table, as in iterates = {{ steps = [0, 100], seconds = [60] }}; got {raw!r}.")
        return Asked()
    for name in raw:
        if name not in FIELDS:
            findings.fault(f"'iterates' has no key '{name}'.{did_you_mean(name, FIELDS)} It takes: {', '.join(FIELDS)}.")
    lists = {name: findings.typed(raw.get(name, []), list, f"'iterates.{name}'", []) for name in FIELDS}
    for name, values in lists.items():
        if len(values) > MAX_ITERATES:
            findings.fault(f"'iterates.{name}' names {len(values)} iterates; at most {MAX_ITERATES} are kept of a set.")
            lists[name] = []
    steps = [step for step in lists["steps"] if _is_right(step, (int,), "steps", "a whole number of steps", findings)]
    seconds = [float(each) for each in lists["seconds"] if _is_right(each, (int, float), "seconds", "a number", findings)]
    return Asked(tuple(sorted(set(steps))), tuple(sorted(set(seconds))))


def _is_right(value: Any, kinds: tuple[type, ...], name: str, what: str, findings: Findings) -> bool:
    if type(value) in kinds and 0 <= value < inf:
        return True
    findings.fault(f"'iterates.{name}' holds {value!r}; each entry must be {what}, at least 0.")
    return False
