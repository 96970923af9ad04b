"""From cells to jobs: what a store lacks of a grid, each thing a job of its own, resources before sets before judgements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ddbench.api import Job
from ddbench.grid.counts import Counts
from ddbench.grid.planning import Planned, plan_of_need
from ddbench.plan import Block, Cell, Judging, SetPlan, short
from ddbench.refs import foreign
from ddbench.results.contents import Contents
from ddbench.results.layout import block_name, judgement_job, resource_job, set_job
from ddbench.results.store import Store
from ddbench.schema import JobFile


@dataclass(frozen=True)
class Work:
    """A job, and what stands in its file."""

    job: Job
    file: JobFile


def resources_of(work: Work) -> tuple[str, ...]:
    """The keys of the resources that a job builds or needs."""
    if work.file.resource:
        return (work.file.resource,)
    return work.file.judging.resources if work.file.judging else work.file.plan.resources


@dataclass(frozen=True)
class Todo:
    """What a store lacks of a grid."""

    work: tuple[Work, ...]
    there: Counts  # of what was asked for, by kind: sets and judgements, a block of repeats counting as one; trials; or resources
    wanted: Counts

    @property
    def present(self) -> int:
        """How much of it is there."""
        return self.there.total()

    @property
    def total(self) -> int:
        """How much was asked for."""
        return self.wanted.total()


def missing_blocks(set: SetPlan, judging: Judging, repeats: int, there: set[int], parts: int = 1) -> Iterator[Block]:
    """The runs of repeats below `repeats` that are not there, each cut into about `parts` blocks."""
    lacking = [number for number in range(repeats) if number not in there]
    while lacking:
        run = [lacking[0]]
        while len(run) < len(lacking) and lacking[len(run)] == run[-1] + 1:
            run.append(lacking[len(run)])
        lacking = lacking[len(run) :]
        size = -(-len(run) // max(1, parts))
        for start in range(0, len(run), size):
            block = run[start : start + size]
            yield Block(set, judging, block[0], block[-1])


def _once(cells: Iterable[Cell]) -> Iterable[Cell]:
    """A cell for each set, with the iterates and marks that any cell of that set has."""
    found: dict[str, Cell] = {}
    for cell in cells:
        known = found.setdefault(cell.set.key, cell)
        steps, seconds = {*known.iterates, *cell.iterates}, {*known.iterate_seconds, *cell.iterate_seconds}
        marks = tuple(dict.fromkeys((*known.marks, *cell.marks)))
        found[cell.set.key] = replace(known, iterates=tuple(sorted(steps)), iterate_seconds=tuple(sorted(seconds)), marks=marks)
    return found.values()


def _damaged_judgements(contents: Contents, store: Store) -> dict[tuple[str, str], set[int]]:
    """The repeats of files that are left out, by the short keys of set and judging: they are named, and left alone."""
    found: dict[tuple[str, str], set[int]] = {}
    for fault in contents.faults:
        block = block_name(fault.path.stem) if fault.path.parent.parent == store.root / "judgements" else None
        if block:
            key = (fault.path.parent.name, block.key16)
            found.setdefault(key, set()).update(range(block.first, block.last + 1))
    return found


class Lister:
    """Lists the jobs of a grid, each once."""

    def __init__(self, planned: Planned, store: Store, contents: Contents, suite: str, parts: int = 1) -> None:
        """`parts`: into how many blocks a network's repeats are cut, for more workers than networks."""
        self.planned, self.store, self.contents, self.suite, self.parts = planned, store, contents, suite, parts
        self.damaged = _damaged_judgements(contents, store)
        self.work: dict[str, Work] = {}
        self.resources: dict[str, Work] = {}
        self.seen: set[str] = set()
        self.there, self.wanted = Counts(), Counts()

    def todo(self, judgements: bool = True) -> Todo:
        """Everything that is missing; without `judgements`, the sets alone."""
        for cell in _once(self.planned.cells):
            self._add_set(cell)
        if judgements:
            for cell in self.planned.cells:
                for judging in cell.all_judgings():
                    self._add_judgement(cell, judging)
        return Todo((*self.resources.values(), *self.work.values()), self.there, self.wanted)

    def _add_set(self, cell: Cell) -> None:
        name = set_job(cell.set.key)
        stored = self.contents.sets.get(cell.set.key)
        steps, seconds = (cell.iterates, cell.iterate_seconds) if stored is None else (tuple(stored.lacking(cell)), ())
        self.wanted["set"] += 1
        if stored is not None and not steps:
            self.there["set"] += 1
            return
        if stored is None and self.store.has_set(cell.set.key):  # damaged: named by whoever read the store, and left alone
            return
        needs = self.waits_for(cell.set.resources)
        file = JobFile(
            kind="set", name=name, suite=self.suite, needs=needs, plan=cell.set, iterates=steps, iterate_seconds=seconds,
            marks=cell.marks,
            rates_from=cell.rates_from,
        )  # fmt: skip
        job = Job("set", name, self._title(cell.set), needs, foreign(*cell.set.refs))
        self.work[name] = Work(job, file)

    def _add_judgement(self, cell: Cell, judging: Judging) -> None:
        place = f"{cell.set.key} {judging.key}"
        if place in self.seen:
            return
        self.seen.add(place)
        maker = set_job(cell.set.key)
        if maker not in self.work and cell.set.key not in self.contents.sets:
            self.wanted["judgement"] += 1  # of a damaged set: it cannot be judged
            return
        there = self.contents.repeats(cell.set.key, judging.key)
        damaged = self.damaged.get((short(cell.set.key), short(judging.key)), set())
        blocks = list(missing_blocks(cell.set, judging, cell.repeats, there | damaged, self.parts))
        self.wanted["judgement"] += max(len(blocks), 1)
        self.there["judgement"] += not blocks and not damaged
        for block in blocks:
            self._add_block(block, maker)

    def _add_block(self, block: Block, maker: str) -> None:
        name = judgement_job(block.set.key, block.judging.key, block.first, block.last)
        waits = maker in self.work and (block.judging.is_of_iterate or block.set.key not in self.contents.sets)
        needs = (*self.waits_for(block.judging.resources), *([maker] if waits else []))
        file = JobFile(
            kind="judgement", name=name, suite=self.suite, needs=needs, plan=block.set, judging=block.judging,
            first=block.first, last=block.last,
        )  # fmt: skip
        title = f"{block.judging.network.label} on {self._title(block.set)}{block.judging.where}"
        job = Job("judgement", name, title, needs, foreign(*block.judging.refs))
        self.work[name] = Work(job, file)

    def _title(self, plan: SetPlan) -> str:
        return plan.named(self.planned.subset(plan.dataset))

    def waits_for(self, keys: Sequence[str]) -> tuple[str, ...]:
        """The names of the jobs that build those of these that are missing."""
        names = []
        for key in keys:
            if self.store.resources.is_built(key):
                continue
            name = resource_job(key)
            names.append(name)
            if name not in self.resources:
                need, judging = self.planned.needs[key], self.planned.judgings.get(key)
                owner = plan_of_need(self.planned.owners[key], need)
                file = JobFile(kind="resource", name=name, suite=self.suite, plan=owner, judging=judging, resource=key)
                refs = owner.refs if judging is None else judging.refs
                title = need.title(self.planned.subset(owner.dataset))
                self.resources[name] = Work(Job("resource", name, title, (), foreign(*refs)), file)
        return tuple(names)
