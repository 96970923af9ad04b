"""Tuning a suite's rates: its methods and their trials, what is missing of these, the choice, and cells at the chosen rates."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_cell
from functools import cached_property

from msgspec.structs import replace

from ddbench.api import Job
from ddbench.files import digest
from ddbench.grid.counts import Counts
from ddbench.grid.jobs import Lister, Todo, Work
from ddbench.grid.planning import Planned, with_needs
from ddbench.plan import Cell, SetPlan
from ddbench.refs import foreign
from ddbench.results.contents import NOTHING
from ddbench.results.layout import trial_job
from ddbench.results.store import Store
from ddbench.schema import JobFile, TrialRecord, Tried, TuningRecord
from ddbench.trials import UNTUNED, Tuning, choose, trial_key, tuning_key


@dataclass(frozen=True)
class Method:
    """A loss in a space on a data set and ipc, whose rates are tuned."""

    plan: SetPlan  # at its own rates, of seed 0, without the keys of resources
    tuning: Tuning
    trials: tuple[tuple[SetPlan, ...], ...] = ()  # by point of the grid and seed, with the keys of resources; empty: not planned

    @cached_property
    def key(self) -> str:
        """Of what is chosen."""
        return tuning_key(self.plan.stem, self.tuning)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.plan.method}, {self.plan.dataset.label}, ipc {self.plan.ipc}"

    def trial(self, number: int, seed: int) -> SetPlan:
        """The plan of a trial, without the keys of resources. A stage has one step at least, where it has any."""
        steps = min(self.plan.steps, max(1, round(self.plan.steps * self.tuning.share)))
        extra = round(self.plan.extra_steps * self.tuning.share)
        each = tuple(max(1, round(num * self.tuning.share)) for num in self.plan.stage_steps)
        how = {"steps": steps, "extra_steps": extra, "stage_steps": each, "seed": seed, "tuning": self.tuning.held_out}
        return replace(self.plan, rates=self.tuning.grid[number], **how)

    def keys(self) -> list[list[str]]:
        """Of its trials, by point and seed."""
        return [[trial_key(plan.key, self.tuning.scoring) for plan in point] for point in self.trials]


def methods_of(cells: Iterable[Cell]) -> list[Method]:
    """Those that are to be tuned, each once."""
    found: dict[str, Method] = {}
    for cell in cells:
        if cell.tuning:
            method = Method(replace(cell.set, seed=0, resources=()), cell.tuning)
            found.setdefault(method.key, method)
    return list(found.values())


def trial_cells(methods: Iterable[Method]) -> list[Cell]:
    """Their trials as cells that nobody judges."""
    return [
        Cell(method.trial(number, seed), (), 0, "")
        for method in methods
        for number in range(len(method.tuning.grid))
        for seed in range(method.tuning.seeds)
    ]


def plan_trials(methods: Sequence[Method]) -> tuple[list[Method], Planned]:
    """The methods with their trials, and what these need; those of a broken plugin are left out."""
    planned = with_needs(trial_cells(methods))
    resolved = {_place(cell.set): cell.set for cell in planned.cells}
    made = []
    for method in methods:
        seeds, points = range(method.tuning.seeds), range(len(method.tuning.grid))
        plans = [[resolved.get(_place(method.trial(number, seed))) for seed in seeds] for number in points]
        trials = tuple(tuple(plan for plan in point if plan) for point in plans)
        if all(len(point) == len(seeds) for point in trials):
            made.append(replace_cell(method, trials=trials))
    return made, planned


def _place(plan: SetPlan) -> tuple[str, int]:
    """Equal for plans that differ in the keys of resources alone."""
    return digest(plan.stem), plan.seed


def missing(methods: Iterable[Method], planned: Planned, store: Store, there: Mapping[str, TrialRecord], suite: str) -> Todo:
    """The trials that are not there, as jobs, and what must be built before. Damaged ones are named by whoever read the store,
    and left alone."""
    lister, work, total, present = Lister(planned, store, NOTHING, suite), dict[str, Work](), 0, 0
    for method in methods:
        scoring = method.tuning.scoring
        for plan in (plan for point in method.trials for plan in point):
            key, total = trial_key(plan.key, scoring), total + 1
            present += key in there
            name = trial_job(key)
            if key in there or store.is_done(name):
                continue
            needs = () if store.has_set(plan.key) else lister.waits_for(plan.resources)
            file = JobFile(kind="trial", name=name, suite=suite, needs=needs, plan=plan, scoring=scoring)
            work[name] = Work(Job("trial", name, plan.named(planned.subset(plan.dataset)), needs, foreign(*plan.refs)), file)
    return Todo((*lister.resources.values(), *work.values()), Counts(trial=present), Counts(trial=total))


def chosen(method: Method, there: Mapping[str, TrialRecord], suite: str) -> TuningRecord | None:
    """What its trials choose; None where one is missing, or all have diverged."""
    keys = method.keys()
    if not keys or not all(key in there for point in keys for key in point):
        return None
    tried = tuple(_tried(method, number, [there[key] for key in point]) for number, point in enumerate(keys))
    choice = choose(method.tuning.grid, [point.errors for point in tried], [point.diverged for point in tried])
    if choice is None:
        return None
    return TuningRecord(key=method.key, suite=suite, method=method.plan, tuning=method.tuning, tried=tried, choice=choice)


def _tried(method: Method, number: int, records: Sequence[TrialRecord]) -> Tried:
    return Tried(
        rates=method.tuning.grid[number],
        trials=tuple(record.key for record in records),
        errors=tuple(error for record in records for error in record.errors),
        diverged=any(record.diverged for record in records),
        seconds=sum(sum(record.measured.seconds.values()) for record in records),
    )


def spread(point: Tried) -> float | None:
    """The standard deviation of a point's errors over all of its networks; None for one."""
    return statistics.stdev(point.errors) if len(point.errors) > 1 else None


def at_chosen_rates(cells: Iterable[Cell], tunings: Mapping[str, TuningRecord]) -> tuple[Cell, ...]:
    """The cells at the rates that were chosen for their methods: by the tuning that their suite asks for, else by that of most
    trials. Those without any keep their own rates, and say so."""
    by_method: dict[str, list[TuningRecord]] = {}
    for record in tunings.values():
        by_method.setdefault(digest(record.method.stem), []).append(record)
    made = []
    for cell in cells:
        if cell.tuning is None:
            made.append(cell)
            continue
        wanted = tuning_key(cell.set.stem, cell.tuning)
        found = by_method.get(digest(cell.set.stem), [])
        best = max(found, key=lambda record: (record.key == wanted, record.tuning.budget, record.key), default=None)
        if best:
            made.append(replace_cell(cell, set=replace(cell.set, rates=best.plan.rates), rates_from=best.key))
        else:
            made.append(replace_cell(cell, rates_from=UNTUNED))
    return tuple(made)


def untuned(cells: Iterable[Cell]) -> list[str]:
    """A sentence where some methods keep their own rates."""
    names = dict.fromkeys(cell.set.method for cell in cells if cell.rates_from == UNTUNED)
    if not names:
        return []
    told = f"not tuned yet, and made at their own rates, which boards do not rank: {', '.join(names)}"
    return [f"{told}. Tune them before with: ddbench tune SUITE"]
