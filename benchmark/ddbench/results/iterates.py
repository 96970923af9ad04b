"""Which iterates of a set's distillation were asked for, by steps or by seconds, and which of them are there."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

from ddbench.errors import DataError
from ddbench.plan import Judging, SetPlan, short
from ddbench.schema import IterateRecord, SetRecord


class Scored(NamedTuple):
    """What is known of an iterate without judging it."""

    step_score: float | None = None  # the step ranker's
    loss: float | None = None  # of the step that began with it


Scores = Mapping[int, Scored]
"""By step."""
UNSCORED: Scores = {}


def iterate_record(key: str, set_sha256: str, step: int, content: bytes, scored: Scored) -> IterateRecord:
    """The record of an iterate whose file has that content."""
    sha256 = hashlib.sha256(content).hexdigest()
    return IterateRecord(key=key, set_sha256=set_sha256, step=step, sha256=sha256, step_score=scored.step_score, loss=scored.loss)


def step_at(plan: SetPlan, record: SetRecord, seconds: float) -> int | None:
    """The step of the iterate after so many seconds: the first point of the record's timeline at which they had passed. None
    stands for the finished set, where it was finished before. Raises DataError for a record without a timeline."""
    timeline = record.measured.timeline
    if record.steps and not timeline:
        told = f"set {short(plan.key)} ({plan.name}) was made without noting which step it took when"
        raise DataError(f"{told}: ask for its iterates by steps, or remove its folder and run again.")
    return next((step for step, passed in timeline if passed >= seconds), None)


def step_of(plan: SetPlan, record: SetRecord, judging: Judging) -> int | None:
    """The step of the iterate that a judging of this set is of; None for the finished set. Raises DataError as `step_at`."""
    return judging.iterate if judging.iterate_seconds is None else step_at(plan, record, judging.iterate_seconds)


def lacking(
    plan: SetPlan, record: SetRecord, there: Collection[int], steps: Collection[int], seconds: Collection[float]
) -> list[int]:
    """The steps of the iterates of this set that were asked for and are not there, sorted. Raises DataError as `step_at`."""
    wanted = {*steps, *(step_at(plan, record, each) for each in seconds)}
    return sorted(step for step in wanted if step is not None and step not in there)
