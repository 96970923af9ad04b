"""The errors that a user's mistake, a broken plugin or bad data raise. Only the command line catches them.

Each message says what is wrong, where, and what to do, in one sentence or two, without a traceback.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import ClassVar


class BenchError(Exception):
    """Base of all errors that the command line prints as a sentence and answers with exit code 2."""

    comes_again: ClassVar[bool] = False  # whether the same job fails so whenever it is done: its numbers are the reason


class ConfigError(BenchError):
    """A plan, a suite, a setting or an argument is wrong."""


class PluginError(BenchError):
    """A plugin cannot be found, loaded, or does not keep its contract."""


class DivergedError(PluginError):
    """A distillation stopped being a number. A run fails by it; tuning counts the trial as the worst."""

    comes_again = True


class DataError(BenchError):
    """Real data, a resource, a record or a distilled set is missing or damaged."""


class UntrainableError(DataError):
    """A network cannot be trained on a set: its loss stopped being a number, or the rate that the set has learned is none."""

    comes_again = True


class Faults(ConfigError):
    """Several faults found at once; `faults` holds a sentence each."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


def command(*words: object) -> str:
    """A command of ddbench as a shell takes it, whatever is in a path or a name; words such as STORE stand for the user's own."""
    return shlex.join(["ddbench", *map(str, words)])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'dm'?` with a leading space where something known is near, else an empty string."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""
