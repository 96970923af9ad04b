"""A store's accuracies as a small file that later stores are compared with."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from ddbench.errors import DataError, Faults
from ddbench.files import digest, read_json, write_json
from ddbench.leaderboard.join import Result
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import Section, sections
from ddbench.leaderboard.statistics import std
from ddbench.plan import SetPlan, short
from ddbench.schema import Count, Share, Some

BASELINE_SCHEMA = 3
_APART = ("threads", "train_hash", "engine")  # fields of a plan that its group leaves out
Lists = Annotated[tuple[Annotated[tuple[Share, ...], msgspec.Meta(min_length=1)], ...], msgspec.Meta(min_length=1)]


class BaselineRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row on one network, as the file keeps it."""

    group: str  # what the row is, see `group_of`
    name: str  # for people
    protocol: str
    protocol_hash: str  # of the numbers of judging
    table_hash: str  # of those of its table, which full data share with distilled sets although they have numbers of their own
    data: str  # label
    data_hash: str  # of both splits
    network: str
    num_test: Some
    selected: bool  # a baseline of a few images a class
    seeds: tuple[Count, ...]
    accuracies: Lists  # of each seed, one a repeat
    keys: tuple[str, ...]  # short ones, of each seed's set

    @property
    def identity(self) -> tuple[str, ...]:
        """Entries of equal identity are compared."""
        return self.group, self.protocol_hash, self.data_hash, self.network

    @property
    def pool(self) -> tuple[object, ...]:
        """Entries of equal pool share one variance. Baselines of a few images have their own: these differ from seed to seed far
        more than sets that were distilled from all of them do."""
        return self.table_hash, self.data_hash, self.network, self.selected

    @property
    def num_repeats(self) -> int:
        """That every seed has."""
        return min(map(len, self.accuracies))

    @property
    def means(self) -> tuple[float, ...]:
        """Of each seed's networks."""
        return tuple(map(statistics.fmean, self.accuracies))

    @property
    def stds(self) -> tuple[float | None, ...]:
        """Over each seed's networks."""
        return tuple(map(std, self.accuracies))

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.means)

    @property
    def floor(self) -> float:
        """The binomial variance of a seed mean; one image right and one wrong are added, so that it is never 0."""
        p = (self.mean * self.num_test + 1) / (self.num_test + 2)
        return p * (1 - p) / (self.num_test * self.num_repeats)

    def only(self, seeds: Sequence[int], num_repeats: int) -> BaselineRow:
        """The same with some of its seeds, and the first repeats of these."""
        at = [self.seeds.index(seed) for seed in seeds]
        accuracies = tuple(self.accuracies[i][:num_repeats] for i in at)
        return replace(self, seeds=tuple(seeds), accuracies=accuracies, keys=tuple(self.keys[i] for i in at))


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: int
    rows: Annotated[tuple[BaselineRow, ...], msgspec.Meta(min_length=1)]


def group_of(plan: SetPlan) -> str:
    """What a row is, whatever its versions: a digest of the plan, so that one row of two releases can be compared.

    Left out are the seed and threads; the data's hash, which entries hold apart, so that a difference has a name; of plugins all
    but the name and the settings that differ from their defaults, so that raised `numerics` compare; and the data set's
    settings, which may be paths.
    """

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            named = {"plugin", "type"} & value.keys() if "settings" in value else ()
            kept = (*named, "settings") if named else value.keys()
            return {key: strip(value[key]) for key in kept}
        return [strip(entry) for entry in value] if isinstance(value, list | tuple) else value

    kept = {name: value for name, value in plan.stem.items() if name not in _APART}
    return digest([strip(kept), plan.dataset.written])


def entries(results: Iterable[Result]) -> list[BaselineRow]:
    """A store's entries, in the order of the leaderboard. A row that stands in several tables there, as full data do, comes once,
    under a protocol that asked for it; what a habit of published code changes, never: what it is worth is no promise to keep."""
    ranked = [section for section in sections(result for result in results if result.is_ranked) if section.kind == "ranked"]
    rows = [(row, section) for section in ranked for row in section.rows]
    made: dict[tuple[object, ...], BaselineRow] = {}
    for row, section in sorted(rows, key=lambda each: set(each[1].protocols).isdisjoint(each[0].results[0].protocols)):
        for network in row.networks:
            entry, first = _entry(row, section, network), row.results[0]
            made.setdefault((entry.identity, entry.keys, first.judging.key, *first.software.items()), entry)
    return list(made.values())


def _entry(row: Row, section: Section, network: str) -> BaselineRow:
    results = row.judged_by(network)
    first = results[0]
    return BaselineRow(
        group=group_of(row.plan) if first.other_draw is None else digest([group_of(row.plan), first.other_draw]),
        name=_name(row, section),
        protocol=section.protocol,
        protocol_hash=digest(first.judging.numbers.identity),
        table_hash=digest(section.numbers.identity),
        data=first.test.label,
        data_hash=digest([first.record.data.hash, first.test.hash]),
        network=network,
        num_test=first.num_test,
        selected=bool(row.plan.baseline) and not row.plan.everything,
        seeds=tuple(result.seed for result in results),
        accuracies=tuple(result.accuracies[network] for result in results),
        keys=tuple(short(result.key) for result in results),
    )


def _name(row: Row, section: Section) -> str:
    """`dm / glad, cifar10, ipc 1, quick-1`."""
    plan = row.plan
    ipc = [] if row.is_full_data else [f"ipc {plan.ipc}" + (" in bytes" if plan.budget == "bytes" else "")]
    labels = [] if plan.labels == "hard" else [f"{plan.labels} labels"]
    return ", ".join([row.name, section.test.label, *ipc, *labels, section.protocol])


def write_baseline(path: Path, results: Sequence[Result]) -> int:
    """Write a store's entries; gives their number. Raises Faults if there is none, or one row under two versions."""
    known: dict[tuple[str, ...], BaselineRow] = {}
    found = entries(results)
    faults = [] if found else ["the store has no judged set to write a baseline of, or none is ranked. Run a suite first."]
    for entry in found:
        other = known.setdefault(entry.identity, entry)
        if other is not entry:
            both = f"'{other.name}' and '{entry.name}' on {entry.network}"
            faults.append(f"{both} differ in versions, threads or paths alone: use a store that has one of them.")
    if faults:
        raise Faults(faults)
    write_json(path, msgspec.to_builtins(_File(schema=BASELINE_SCHEMA, rows=tuple(known.values()))))
    return len(known)


def read_baseline(path: Path) -> list[BaselineRow]:
    """A baseline's entries. Raises DataError, naming the file, where it is missing, damaged, older or newer."""
    again = f"Write it anew with: ddbench check STORE --write-baseline {path}"
    value = read_json(path, "baseline", again)
    schema = value.get("schema")
    if schema != BASELINE_SCHEMA or isinstance(schema, bool):
        older = isinstance(schema, int) and schema < BASELINE_SCHEMA
        advice = again if older else f"Update ddbench, or make another. {again}"
        raise DataError(f"baseline {path} has schema {schema!r}, this ddbench reads {BASELINE_SCHEMA}. {advice}")
    try:
        rows = msgspec.convert(value, _File).rows
    except msgspec.ValidationError as error:
        raise DataError(f"baseline {path} is damaged ({error}). {again}") from error
    for number, row in enumerate(rows, start=1):
        if len(set(row.seeds)) < len(row.seeds) or not len(row.seeds) == len(row.accuracies) == len(row.keys):
            raise DataError(f"baseline {path} is damaged: row {number} has not one value for each of its seeds. {again}")
    return list(rows)
