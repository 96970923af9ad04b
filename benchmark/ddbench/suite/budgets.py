"""What a suite says IPC bounds: `budget = "images"`, `"bytes"`, or a list of both, of which each has sets of its own."""

from __future__ import annotations

from typing import Any, get_args

from ddbench.api import Budget
from ddbench.errors import did_you_mean
from ddbench.suite.findings import Findings


def read_budgets(given: Any, findings: Findings) -> tuple[Budget, ...]:
    """The words of a suite; what is wrong with them is among the findings."""
    known = get_args(Budget)
    words = given if isinstance(given, list) else [given]
    odd = [word for word in words if word not in known]
    if odd or not words or len(set(words)) < len(words):
        near = "".join(did_you_mean(word, known) for word in odd[:1] if isinstance(word, str))
        findings.fault(f"'budget' must be {' or '.join(known)}, or a list of them, none twice; got {given!r}.{near}")
        return known[:1]
    return tuple(words)
