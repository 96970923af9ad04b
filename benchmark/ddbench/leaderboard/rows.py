"""Cells to rows and sections: grouped by what makes numbers comparable; no two rows of a table have one name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ddbench.leaderboard.cells import Cell
from ddbench.leaderboard.statistics import Accuracy, accuracy, cross_accuracy
from ddbench.plan import canonical, digest
from ddbench.results.store import group_key, short

FULL_DATA = "full-data"
PHASES = ("resources", "distill", "rank", "evaluate")  # of a cell's seconds


@dataclass(frozen=True)
class Row:
    """The cells of one plan, whatever their seed, that ran under the same versions."""

    name: str
    cells: tuple[Cell, ...]  # sorted by seed

    @property
    def plan(self) -> Mapping[str, Any]:
        """Of the first seed."""
        return self.cells[0].plan

    @property
    def is_full_data(self) -> bool:
        """Whether this is the upper baseline, which belongs to every ipc."""
        return self.plan["baseline"] == FULL_DATA

    @property
    def backbone(self) -> str:
        """The label of the network that distilled."""
        return self.plan["backbone"]["label"]

    @property
    def networks(self) -> tuple[str, ...]:
        """The labels of the networks that judged, sorted."""
        return tuple(sorted(self.cells[0].accuracies))

    def label(self, role: str) -> str | None:
        """The label of a plugin by role, or None where the plan has none."""
        ref = self.plan[role]
        return ref["label"] if ref else None

    @cached_property
    def accuracies(self) -> dict[str, Accuracy]:
        """By network."""
        num_test = self.cells[0].num_test
        return {name: accuracy([cell.accuracies[name] for cell in self.cells], num_test) for name in self.networks}

    @property
    def same(self) -> Accuracy | None:
        """On the backbone, where that is among the networks."""
        return self.accuracies.get(self.backbone)

    @cached_property
    def others(self) -> tuple[str, ...]:
        """The networks that the cross-architecture mean is taken over."""
        return tuple(name for name in self.networks if name != self.backbone)

    @cached_property
    def cross(self) -> Accuracy | None:
        """The unweighted mean over the networks that are not the backbone."""
        by_network = [[cell.accuracies[name] for cell in self.cells] for name in self.others]
        return cross_accuracy(by_network, self.cells[0].num_test) if by_network else None

    def seconds(self, *phases: str) -> float:
        """The mean over the seeds of these phases together."""
        return sum(cell.seconds.get(phase, 0.0) for cell in self.cells for phase in phases) / len(self.cells)

    @property
    def machines(self) -> tuple[str, ...]:
        """The hardware its cells ran on."""
        return tuple(sorted({cell.machine for cell in self.cells}))

    @property
    def pythons(self) -> tuple[str, ...]:
        """The versions of Python its cells ran under."""
        return tuple(sorted({str(cell.versions.get("python")) for cell in self.cells}))

    @property
    def is_mixed(self) -> bool:
        """Whether its cells ran under different circumstances, so that a reader must be told."""
        return len(self.machines) > 1 or len(self.pythons) > 1


@dataclass(frozen=True)
class Section:
    """Rows that may share a table: of one protocol, one data set by hash, one kind of labels, one ipc."""

    protocol: Mapping[str, Any]
    data: Mapping[str, Any]
    labels: str  # that the networks learn: hard, learned, stored (a teacher's, once) or teacher (a teacher's, for every batch)
    ipc: int | None  # None: nothing but full data
    rows: tuple[Row, ...]

    @property
    def is_ranked(self) -> bool:
        """Whether its protocol is for results, and no habit of published code."""
        return self.rows[0].cells[0].is_ranked

    @property
    def networks(self) -> tuple[str, ...]:
        """Of all rows, sorted."""
        return tuple(sorted({name for row in self.rows for name in row.networks}))

    @property
    def backbones(self) -> tuple[str, ...]:
        """Of all rows, sorted."""
        return tuple(sorted({row.backbone for row in self.rows}))


def sections(cells: Iterable[Cell]) -> tuple[Section, ...]:
    """Every table's rows, in the order of the page, whatever the order of the cells. Full data stand in every ipc."""
    groups: dict[tuple[tuple[str, ...], str], list[Cell]] = defaultdict(list)
    for cell in sorted(cells, key=lambda cell: (cell.seed, cell.key)):
        groups[_table(cell), digest([group_key(cell.plan), software(cell)])].append(cell)
    tables: dict[tuple[str, ...], dict[int | None, list[list[Cell]]]] = defaultdict(lambda: defaultdict(list))
    for (table, _), group in sorted(groups.items()):
        plan = group[0].plan
        tables[table][None if plan["baseline"] == FULL_DATA else plan["ipc"]].append(group)
    made = []
    for table in sorted(tables):
        full = tables[table].pop(None, [])
        for ipc, rows in sorted(tables[table].items()) or [(None, [])]:
            first = (rows + full)[0][0]
            made.append(Section(first.plan["protocol"], first.data, labels_of(first.plan), ipc, _named(rows + full)))
    return tuple(made)


def _table(cell: Cell) -> tuple[str, ...]:
    protocol = cell.plan["protocol"]
    return protocol["id"], digest(protocol), cell.data["label"], cell.data["hash"], labels_of(cell.plan)


def labels_of(plan: Mapping[str, Any]) -> str:
    """What the networks that judge learn: a protocol's teacher goes before the set's own labels, which then do not count."""
    if plan["protocol"].get("teacher"):
        return "teacher"
    return "stored" if plan["labels"] == "teacher" else plan["labels"]


def software(cell: Cell) -> dict[str, str]:
    """The versions that part rows. Python's own does not: it has no part in the numbers."""
    return {name: value for name, value in cell.versions.items() if name != "python"}


def method_name(plan: Mapping[str, Any]) -> str:
    """`dm / glad / cvae`, or the baseline's name."""
    refs = (plan[role] for role in ("loss", "space", "generator"))
    return plan["baseline"] or " / ".join(ref["label"] for ref in refs if ref)


def _named(groups: Sequence[list[Cell]]) -> tuple[Row, ...]:
    """Rows in the order of a table. Those of equal name get the settings in which they differ behind it."""
    several = len({group[0].plan["backbone"]["label"] for group in groups}) > 1
    alike: dict[str, list[list[Cell]]] = defaultdict(list)
    for group in groups:
        plan = group[0].plan
        alike[method_name(plan) + (f" on {plan['backbone']['label']}" if several else "")].append(group)
    rows = []
    for name, same in alike.items():
        suffixes = _differences([group[0] for group in same])
        rows += [Row(name + suffix, tuple(group)) for suffix, group in zip(suffixes, same, strict=True)]
    return tuple(sorted(rows, key=_place))


def _place(row: Row) -> tuple[Any, ...]:
    """Baselines first, full data last, between them by loss, space and generator."""
    rank = 2 if row.is_full_data else 0 if row.plan["baseline"] else 1
    return rank, *(row.label(role) or "" for role in ("loss", "space", "generator")), row.name


def _differences(cells: Sequence[Cell]) -> list[str]:
    """For each cell, ` [steps=20]`: the settings that are not the same in all; its key too where these look alike."""
    if len(cells) == 1:
        return [""]
    flat = [dict(_flatten(group_key(cell.plan))) | software(cell) for cell in cells]
    names = sorted(name for name in set().union(*flat) if len({entry.get(name) for entry in flat}) > 1)
    texts = [", ".join(f"{name}={entry.get(name, 'unset')}" for name in names) for entry in flat]
    if len(set(texts)) < len(texts):
        texts = [f"{text}; {short(cell.key)}".removeprefix("; ") for text, cell in zip(texts, cells, strict=True)]
    return [f" [{text}]" for text in texts]


def _flatten(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, text) of every setting; a plugin is its label and its version."""
    for name, value in plan.items():
        refs = value if name == "networks" else [value]
        if all(isinstance(ref, Mapping) and "label" in ref for ref in refs):
            yield name, ", ".join(ref["label"] for ref in refs)
            yield f"{name} version", ", ".join(f"{ref['distribution']} {ref['version']}" for ref in refs)
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{key}", canonical(entry)) for key, entry in value.items())
        elif value is not None:
            yield name, value if isinstance(value, str) else canonical(value)
