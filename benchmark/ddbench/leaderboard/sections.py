"""Results to sections: grouped by what makes numbers comparable; no two rows of a table have one name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from ddbench.api import Budget
from ddbench.files import digest
from ddbench.leaderboard import knowledge
from ddbench.leaderboard.join import Result
from ddbench.leaderboard.naming import suffixes
from ddbench.leaderboard.rows import Row
from ddbench.protocols import FullData, Numbers
from ddbench.schema import Data

FULL_DATA_ALONE = (*FullData.__struct_fields__, "learned_rate")  # the numbers that differ for all real training images
Kind = Literal["ranked", "untuned", "trajectory", "constants", "choice"]
"""Results; those whose rates were not tuned as the others' of their table; accuracy on the way to results; sets whose generated
images have other constants; what choosing among iterates on the test split brings."""
LOOKS = ("trajectory", "choice")  # the kinds that are made of judgements of iterates
Groups = Mapping[str, list[Result]]
"""Rows to be, by what their results share."""


@dataclass(frozen=True)
class Section:
    """Rows that may share a table: of one protocol's numbers, one data set by hash, one kind of labels, one ipc and budget."""

    kind: Kind
    protocols: tuple[str, ...]  # the ids that were asked for, sorted: equal numbers may have several
    labels: str  # that the networks learn: hard, learned, stored (a teacher's, once), teacher (for every batch), file's own
    ipc: int | None  # None: nothing but full data
    budget: Budget  # what ipc bounds
    rows: tuple[Row, ...]

    @property
    def protocol(self) -> str:
        """The id that the section is called by."""
        return self.protocols[0]

    @cached_property
    def lead(self) -> Result:
        """A result whose numbers and data are the section's: of full data only where there is nothing else."""
        return next((row.results[0] for row in self.rows if not row.is_full_data), self.rows[0].results[0])

    @property
    def numbers(self) -> Numbers:
        """The protocol's."""
        return self.lead.judging.numbers

    @property
    def test(self) -> Data:
        """The split that all were judged on."""
        return self.lead.test

    @property
    def train(self) -> Data:
        """The split that all were made from."""
        return self.lead.record.data

    @cached_property
    def networks(self) -> tuple[str, ...]:
        """Of all rows, sorted."""
        return tuple(sorted({name for row in self.rows for name in row.networks}))

    @cached_property
    def backbones(self) -> tuple[str, ...]:
        """Of all rows, sorted."""
        return tuple(sorted({row.backbone for row in self.rows if row.backbone}))

    @cached_property
    def kinds(self) -> frozenset[knowledge.Kind]:
        """What the sets of its rows saw: several where that is not the same for all."""
        return frozenset(row.saw for row in self.rows)

    @cached_property
    def distilled(self) -> Mapping[tuple[str | None, str], list[Row]]:
        """Its distilled rows by the label of their loss and the name of their space."""
        found = defaultdict(list)
        for row in self.rows:
            if row.is_distilled and row.plan.space:
                found[row.label("loss"), row.plan.space.name].append(row)
        return dict(found)


def labels_of(result: Result) -> str:
    """What the networks that judge learn: a protocol's teacher goes before the set's own labels, which then do not count."""
    plan = result.plan
    if result.judging.numbers.teacher:
        return "teacher"
    if plan.imported:
        return "hard" if plan.imported.labels == "indices" else "file"
    return "stored" if plan.labels == "teacher" else plan.labels


def sections(results: Iterable[Result]) -> tuple[Section, ...]:
    """Every table's rows, in the order of the page, whatever the order of the results. Full data stand in every ipc; sets that
    were not distilled, which are the same under every budget, beside the distilled ones of each.

    The finished set of a distillation whose iterates were judged too is a result like any other; these, and the choice among
    them, stand apart.
    """
    ordered = sorted(results, key=lambda result: (result.seed, result.key, result.judging.key))
    finished = [replace(result, iterates={}, by_seconds={}, looks=()) for result in ordered]
    ranked = [result for result in finished if result.is_ranked]
    late = _not_tuned_alike(ranked)
    made = [
        *_tables("ranked", [result for result in ranked if id(result) not in late]),
        *_tables("untuned", [result for result in ranked if id(result) in late]),
        *_tables("trajectory", [result for result in ordered if result.looks]),
        *_tables("constants", [result for result in finished if not result.is_ranked]),
        *_tables("choice", [made for result in ordered if (made := result.candidates())]),
    ]
    return tuple(sorted(made, key=_order))


def _not_tuned_alike(results: Iterable[Result]) -> set[int]:
    """The ids of distilled results in tables with tuned rows, or rows that await it, whose rates were chosen by fewer trials than
    others of the table, or by none."""
    tables: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.plan.is_distilled:
            tables[_table(result, result.plan.budget)].append(result)
    late = set()
    for own in tables.values():
        budgets = {id(result): result.tuning.tuning.budget if result.tuning else () for result in own}
        most = max(budgets.values())
        if most or any(result.awaits_tuning for result in own):
            late |= {number for number, budget in budgets.items() if budget != most or not budget}
    return late


def _order(section: Section) -> tuple[Any, ...]:
    plan, data = section.lead.plan, (section.test.label, section.train.hash, section.test.hash)
    rest = section.kind, plan.synthetic_mean, plan.synthetic_std, digest(section.lead.judging.stem)
    where = section.labels, section.ipc or 0, section.budget != "images"
    return section.kind != "ranked", section.kind != "untuned", section.protocol, *data, *where, *rest


def _tables(kind: Kind, results: Sequence[Result]) -> list[Section]:
    tables: dict[tuple[str, Budget], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    budgets = defaultdict[str, set[Budget]](set)
    for result in results:
        budgets[_table(result)] |= {result.plan.budget} if result.plan.is_distilled else set()
    full: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if result.plan.everything:
            full[_shape(result)][_row(result)].append(result)
        else:
            alike = (result.plan.budget,) if result.plan.is_distilled else budgets[_table(result)] or ("images",)
            for budget in alike:
                tables[_table(result), budget][_row(result)].append(result)
    made, placed = [], set()
    for (_, budget), groups in tables.items():
        shape, ids = _shape(next(iter(groups.values()))[0]), _protocols(kind, groups)
        placed.add(shape)
        made.append(_section(kind, budget, ids, groups, _full_data(full.get(shape, {}), ids)))
    left = full.keys() - placed
    return made + [_section(kind, "images", _protocols(kind, full[shape]), {}, full[shape]) for shape in left]


def _table(result: Result, budget: str = "") -> str:
    """Equal for what may share a table, but for its budget."""
    plan = result.plan
    constants = plan.synthetic_mean, plan.synthetic_std
    return digest([_judging(result), plan.train_hash, labels_of(result), plan.ipc, constants, budget])


def _shape(result: Result) -> str:
    """Equal for the judging of distilled sets and that of full data under one protocol."""
    judging = _judging(result)
    numbers = {name: value for name, value in judging["numbers"].items() if name not in FULL_DATA_ALONE}
    return digest([judging | {"numbers": numbers}, result.plan.train_hash, labels_of(result)])


def _judging(result: Result) -> dict[str, Any]:
    return {name: value for name, value in result.judging.stem.items() if name != "threads"}


def _row(result: Result) -> str:
    """Equal for the seeds of a row."""
    looks = [*result.iterates, *result.by_seconds]
    return digest([result.plan.stem, result.judging.stem, result.other_draw, result.software, result.sources, looks])


def _protocols(kind: Kind, groups: Groups) -> set[str]:
    results = [result for group in groups.values() for result in group]
    records = [record for result in results for record in (result.looks if kind in LOOKS else result.judged)]
    return {record.judging.protocol for record in records}


def _full_data(groups: Groups, ids: set[str]) -> Groups:
    """Those that a section's protocols asked for; else those of others, which may have the same numbers: what is special to full
    data stands in no record of a distilled set."""
    asked = {key: group for key, group in groups.items() if any(ids & set(result.protocols) for result in group)}
    return asked or groups


def _section(kind: Kind, budget: Budget, ids: set[str], groups: Groups, full: Groups) -> Section:
    parts = [part for group in (*groups.values(), *full.values()) for part in _parted(group)]
    first = parts[0][0]
    return Section(kind, tuple(sorted(ids)), labels_of(first), first.plan.ipc if groups else None, budget, _named(parts, ids))


def _parted(group: list[Result]) -> list[list[Result]]:
    """A group, or, where it has a seed twice, its parts by the resources that were used."""
    if len({result.seed for result in group}) == len(group):
        return [group]
    parts = defaultdict(list)
    for result in group:
        parts[result.plan.resources, result.judging.resources].append(result)
    return list(parts.values())


def _named(groups: Sequence[list[Result]], ids: set[str]) -> tuple[Row, ...]:
    """Rows in the order of a table. Those of equal name get the settings in which they differ behind it."""
    backbones = tuple(sorted({group[0].backbone for group in groups if group[0].backbone}))
    alike: dict[tuple[str, str | None], list[list[Result]]] = defaultdict(list)
    for group in groups:
        first = group[0]
        name = first.plan.method + ("" if first.other_draw is None else f" [draw {first.other_draw}]")
        if first.plan.everything and ids.isdisjoint(first.protocols):  # full data that another protocol asked for
            name += f" [protocol {first.protocols[0]}]"
        for backbone in (first.backbone,) if first.backbone else backbones or (None,):
            alike[name + (f" on {backbone}" if len(backbones) > 1 else ""), backbone].append(group)
    rows = []
    for (name, backbone), same in alike.items():
        behind = suffixes([group[0] for group in same])
        rows += [Row(name + suffix, tuple(group), backbone) for suffix, group in zip(behind, same, strict=True)]
    return tuple(sorted(rows, key=_place))


def _place(row: Row) -> tuple[Any, ...]:
    """Baselines first, full data last; between them distilled sets, then imported ones; those of a sort by what they saw, then by
    loss, space and generator."""
    rank = 3 if row.is_full_data else 2 if row.plan.imported else 0 if row.plan.baseline else 1
    return rank, knowledge.order(row.saw), *(row.label(role) or "" for role in ("loss", "space", "generator")), row.name
