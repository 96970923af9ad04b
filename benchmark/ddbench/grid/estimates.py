"""What a job will take: the memory and the seconds that jobs of its kind have taken, as far as the store can tell."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from functools import cached_property

from ddbench import schema
from ddbench.api import Request
from ddbench.errors import BenchError
from ddbench.files import digest
from ddbench.grid.planning import Planned
from ddbench.plan import Judging, SetPlan
from ddbench.results.contents import Contents
from ddbench.results.store import Store
from ddbench.results.trials import read_trial
from ddbench.schema import JobFile, JudgementRecord, ResourceRecord, SetRecord, TrialRecord
from ddbench.trials import trial_key

LENGTHS = ("steps", "extra_steps", "stage_steps")  # fields of a plan that say how long it is, and not what a step costs


class Cost:
    """The most that jobs of one kind have taken."""

    def __init__(self) -> None:
        self.memory_bytes: int | None = None
        self.seconds: float | None = None  # for each unit of work

    def add(self, memory_bytes: int | None, seconds: float, units: int) -> None:
        """One that has been done."""
        if memory_bytes is not None:
            self.memory_bytes = max(memory_bytes, self.memory_bytes or 0)
        self.seconds = max(seconds / max(units, 1), self.seconds or 0.0)

    def request(self, units: int) -> Request:
        """What another of so many units asks for."""
        return Request(1, self.memory_bytes, None if self.seconds is None else self.seconds * units)


class Estimates:
    """Sets are of one kind where they differ in seed and steps alone, and take seconds in proportion to steps; judgements where
    they differ in draw, iterate and number of repeats, and the sets have as many images, in proportion to repeats; resources
    where they belong to one group, of one backbone and data set; trials of rates where they are of one method."""

    def __init__(self, planned: Planned, store: Store, contents: Contents) -> None:
        self.planned, self.store, self.contents = planned, store, contents

    def request(self, file: JobFile) -> Request:
        """What a job asks for."""
        return self._costs[self.kind(file)].request(self.units(file))

    def kind(self, file: JobFile) -> str:
        """Equal for jobs of which one says what the others take."""
        return _kind(file, self.planned)

    def units(self, file: JobFile) -> int:
        """Of a job's work: steps, repeats, or one."""
        return _units(file)

    def seconds_a_unit(self, kind: str) -> float | None:
        """The most that a unit of such a job has taken; None where none has been done."""
        return self._costs[kind].seconds if kind in self._costs else None

    def learn(self, file: JobFile) -> None:
        """A job has been done: what it took counts from now on. One whose record cannot be read teaches nothing."""
        with suppress(BenchError, OSError):
            cost = self._costs[self.kind(file)]
            if file.kind == "resource":
                _add_resource(cost, self.store.resources.record(file.resource))
            elif file.scoring is not None:
                _add_trial(cost, read_trial(self.store.trial(trial_key(file.plan.key, file.scoring))))
            elif file.judging is None:
                _add_set(cost, file.plan, self.store.read_record(file.plan.key))
            else:
                path = self.store.judgement(file.plan.key, file.judging.key, file.first, file.last)
                _add_judgement(cost, schema.read(path, JudgementRecord, "judgement"))

    @cached_property
    def _costs(self) -> defaultdict[str, Cost]:
        """By kind, from what the store held when the run began."""
        made = defaultdict[str, Cost](Cost)
        for key, need in self.planned.needs.items():
            if self.store.resources.is_built(key):
                with suppress(BenchError, OSError):
                    _add_resource(made[_resource(key, self.planned)], self.store.resources.record(need.key))
        for stored in self.contents.sets.values():
            _add_set(made[_set(stored.plan)], stored.plan, stored.record)
            if stored.plan.loss and not stored.plan.is_trial:  # as long as no trial has been made
                _add_set(made[_trial(stored.plan)], stored.plan, stored.record)
        for trial in self.contents.trials.values():
            _add_trial(made[_trial(trial.plan)], trial)
        for record in self.contents.judgements:
            _add_judgement(made[_judgement(self.contents.sets[record.set_key].plan, record.judging)], record)
        return made


def _kind(file: JobFile, planned: Planned) -> str:
    if file.kind == "resource":
        return _resource(file.resource, planned)
    if file.scoring is not None:
        return _trial(file.plan)
    return _set(file.plan) if file.judging is None else _judgement(file.plan, file.judging)


def _units(file: JobFile) -> int:
    if file.kind == "resource":
        return 1
    if file.kind in ("set", "trial"):
        return max(round(file.plan.steps_a_stage), 1)
    return file.last - file.first + 1


def _resource(key: str, planned: Planned) -> str:
    need, owner = planned.needs[key], planned.owners[key]
    return digest(["resource", need.resource.group(), need.backbone and need.backbone.what, owner.train_hash])


def _set(plan: SetPlan) -> str:
    return digest(["set", {name: value for name, value in plan.stem.items() if name not in LENGTHS}])


def _trial(plan: SetPlan) -> str:
    """Equal for all trials of a method, and its reported sets."""
    apart = (*LENGTHS, "rates", "tuning")
    return digest(["trial", {name: value for name, value in plan.stem.items() if name not in apart}])


def _judgement(plan: SetPlan, judging: Judging) -> str:
    images = plan.imported.sha256 if plan.imported else [plan.ipc, plan.train_hash]
    return digest(["judgement", judging.stem, judging.network.what, images])


def _add_resource(cost: Cost, record: ResourceRecord) -> None:
    """The memory that it took stands in no record."""
    cost.add(None, record.measured.seconds, 1)


def _add_set(cost: Cost, plan: SetPlan, record: SetRecord) -> None:
    cost.add(record.measured.peak_memory_bytes, sum(record.measured.seconds.values()), round(plan.steps_a_stage))


def _add_trial(cost: Cost, record: TrialRecord) -> None:
    cost.add(record.measured.peak_memory_bytes, sum(record.measured.seconds.values()), round(record.plan.steps_a_stage))


def _add_judgement(cost: Cost, record: JudgementRecord) -> None:
    took = record.measured
    cost.add(took.peak_memory_bytes, took.seconds_train + took.seconds_test, len(record.repeats))
