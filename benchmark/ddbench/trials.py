"""Tuning of learning rates: which rates a method is tried at, how a trial is scored, and which of them is chosen.

A trial distils a set at one point of a grid of rates, from random streams that no reported set draws from, and scores it on
training images that nothing of the trial has trained on. No test image has a part in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ddbench.files import digest
from ddbench.protocols import Numbers

UNTUNED = "untuned"  # what the record of a set says where its suite is tuned and nothing has been chosen yet
DECADES = (-2.0, 2.0)  # that the powers of ten of the default factors lie in, without the last
MAX_TRIALS = 64


class Scoring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the set of a trial is scored: networks of the kind that distilled it are trained on it, and read on real images."""

    numbers: Numbers  # the protocol's, without its teacher
    repeats: int  # networks of each set
    training: int  # the `numerics` of training

    @property
    def identity(self) -> dict[str, Any]:
        """What keys are made of."""
        return msgspec.to_builtins(self) | {"numbers": self.numbers.identity}


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a method is tuned. Every method of a suite has as many trials."""

    grid: tuple[dict[str, float], ...]  # the rates of all tensors, a trial each
    seeds: int  # sets distilled at each point of the grid
    share: float  # of the method's steps that a trial takes
    held_out: float  # of the training images of every class that validation leaves: those that score
    scoring: Scoring

    @property
    def budget(self) -> tuple[int, int, float]:
        """What rows of one table must have had alike: trials, seeds of each, and the share of the steps."""
        return len(self.grid), self.seeds, self.share


def default_factors(trials: int) -> tuple[float, ...]:
    """Evenly spaced powers of ten, from a hundredth on up to below a hundred: 8 lie half a decade apart, 4 a decade. An even
    number has 1 among them, the method's own rates. To four digits, so that no machine's rounding enters keys."""
    low, high = DECADES
    return tuple(float(f"{10 ** (low + (high - low) * number / trials):.4g}") for number in range(trials))


def trial_key(set_key: str, scoring: Scoring) -> str:
    """64 hex digits: of a set and how it is scored."""
    return digest({"kind": "trial", "set": set_key, "scoring": scoring.identity})


def tuning_key(method: Mapping[str, Any], tuning: Tuning) -> str:
    """64 hex digits; `method`: the stem of the method's plan at its own rates."""
    told = msgspec.to_builtins(tuning) | {"scoring": tuning.scoring.identity}
    return digest({"kind": "tuning", "method": method, "tuning": told})


def choose(grid: Sequence[Mapping[str, float]], errors: Sequence[Sequence[float]], diverged: Sequence[bool]) -> int | None:
    """The trial with the smallest mean error; of equal ones that of the smallest rates. None where all have diverged."""
    scores = [
        (statistics.fmean(errors[number]), [rates[name] for name in sorted(rates)], number)
        for number, rates in enumerate(grid)
        if not diverged[number]
    ]
    return min(scores)[2] if scores else None
