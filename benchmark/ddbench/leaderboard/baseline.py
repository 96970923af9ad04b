"""A store's accuracies as a small file that later stores are compared with."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ddbench.errors import DataError, Faults
from ddbench.files import read_json, write_json
from ddbench.leaderboard.cells import Cell
from ddbench.leaderboard.rows import Row, sections
from ddbench.leaderboard.statistics import std
from ddbench.plan import Plan, digest
from ddbench.results.store import short

BASELINE_SCHEMA = 1
_TEXTS = ("group", "name", "protocol", "protocol_hash", "data", "data_hash", "network")
_COUNTS = ("num_test", "num_repeats")
_APART = ("seed", "threads", "protocol", "data_hash", "dataset")  # fields of a plan that its group leaves out


@dataclass(frozen=True)
class Entry:
    """A row on one network, as the file keeps it."""

    group: str  # what the row is, see `group_of`
    name: str  # for people
    protocol: str
    protocol_hash: str
    data: str  # label
    data_hash: str
    network: str
    num_test: int
    num_repeats: int
    seeds: tuple[int, ...]
    means: tuple[float, ...]  # of each seed's networks
    stds: tuple[float | None, ...]  # over each seed's networks
    keys: tuple[str, ...]  # short ones, of each seed's cell

    @property
    def identity(self) -> tuple[str, ...]:
        """Entries of equal identity are compared."""
        return self.group, *self.pool

    @property
    def pool(self) -> tuple[str, ...]:
        """Entries of equal pool share one variance."""
        return self.protocol_hash, self.data_hash, self.network

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.means)

    @property
    def floor(self) -> float:
        """The binomial variance of a seed mean; one image right and one wrong are added, so that it is never 0."""
        p = (self.mean * self.num_test + 1) / (self.num_test + 2)
        return p * (1 - p) / (self.num_test * self.num_repeats)

    def only(self, seeds: Sequence[int]) -> Entry:
        """The same with some of its seeds."""
        at = [self.seeds.index(seed) for seed in seeds]
        lists = {name: tuple(getattr(self, name)[i] for i in at) for name in ("seeds", "means", "stds", "keys")}
        return Entry(**(vars(self) | lists))


def group_of(plan: Mapping[str, Any]) -> str:
    """What a row is, whatever its versions: a digest of the plan, so that one row of two releases can be compared.

    Left out are seed and threads; protocol and data hash, which entries hold apart, so that a difference has a name;
    of plugins all but name and settings; of the data set all but the name, as its settings may be paths, and its
    contents have their hash; and fields at their default, so that a release may add one.
    """

    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            plugin = {"kind", "name", "settings"}
            return {key: strip(entry) for key, entry in value.items() if not plugin <= value.keys() or key in plugin}
        return [strip(entry) for entry in value] if isinstance(value, list | tuple) else value

    defaults = {entry.name: entry.default for entry in fields(Plan)}
    kept = {key: value for key, value in plan.items() if key not in _APART and value not in (defaults.get(key), {})}
    return digest(strip(kept) | {"dataset": plan["dataset"]["name"]})


def entries(cells: Iterable[Cell]) -> list[Entry]:
    """A store's entries, in the order of the leaderboard. Full data, which stand in several tables there, come once; cells
    under protocols that are not ranked, never: what a habit of published code is worth is no promise to keep."""
    made: dict[tuple[str, ...], Entry] = {}
    for section in sections(cell for cell in cells if cell.is_ranked):
        for row in section.rows:
            for network in row.networks:
                made.setdefault((*(cell.key for cell in row.cells), network), _entry(row, network))
    return list(made.values())


def _entry(row: Row, network: str) -> Entry:
    cells, plan, data = row.cells, row.plan, row.cells[0].data
    values = [cell.accuracies[network] for cell in cells]
    return Entry(
        group=group_of(plan),
        name=_name(row),
        protocol=plan["protocol"]["id"],
        protocol_hash=digest(plan["protocol"]),
        data=data["label"],
        data_hash=data["hash"],
        network=network,
        num_test=cells[0].num_test,
        num_repeats=min(map(len, values)),
        seeds=tuple(cell.seed for cell in cells),
        means=tuple(map(statistics.fmean, values)),
        stds=tuple(map(std, values)),
        keys=tuple(short(cell.key) for cell in cells),
    )


def _name(row: Row) -> str:
    """`dm / glad, cifar10, ipc 1, quick-1`."""
    plan = row.plan
    ipc = [] if row.is_full_data else [f"ipc {plan['ipc']}"]
    labels = [] if plan["labels"] == "hard" else [f"{plan['labels']} labels"]
    return ", ".join([row.name, row.cells[0].data["label"], *ipc, *labels, plan["protocol"]["id"]])


def write_baseline(path: Path, cells: Sequence[Cell]) -> int:
    """Write a store's entries; gives their number. Raises Faults if there is none, or one row under two versions."""
    known: dict[tuple[str, ...], Entry] = {}
    found = entries(cells)
    faults = [] if found else ["the store has no finished cell to write a baseline of, or none is ranked. Run a suite first."]
    for entry in found:
        other = known.setdefault(entry.identity, entry)
        if other is not entry:
            both = f"'{other.name}' and '{entry.name}' on {entry.network}"
            faults.append(f"{both} differ in versions, threads or paths alone: use a store that has one of them.")
    if faults:
        raise Faults(faults)
    write_json(path, {"schema": BASELINE_SCHEMA, "rows": [vars(entry) for entry in known.values()]})
    return len(known)


def read_baseline(path: Path) -> list[Entry]:
    """A baseline's entries. Raises DataError, naming the file, where it is missing, damaged or newer."""
    again = f"Write it anew with: ddbench check STORE --write-baseline {path}"
    value = read_json(path, "baseline", again)
    schema, rows = value.get("schema"), value.get("rows")
    if type(schema) is not int or schema > BASELINE_SCHEMA:
        known = f"this ddbench knows {BASELINE_SCHEMA}"
        raise DataError(f"baseline {path} has schema {schema!r}, {known}. Update ddbench, or make another. {again}")
    if not isinstance(rows, list) or not rows:
        raise DataError(f"baseline {path} is damaged: it holds no rows. {again}")
    made = []
    for number, row in enumerate(rows, start=1):
        try:
            made.append(_read_entry(row))
        except (KeyError, TypeError, ValueError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise DataError(f"baseline {path} is damaged: row {number} cannot be read ({what}). {again}") from error
    return made


def _read_entry(row: Any) -> Entry:
    texts, counts = {name: row[name] for name in _TEXTS}, {name: row[name] for name in _COUNTS}
    seeds, means, stds, keys = (tuple(row[name]) for name in ("seeds", "means", "stds", "keys"))
    if not all(isinstance(text, str) for text in (*texts.values(), *keys)):
        raise ValueError("a name is no text")
    if not all(type(number) is int for number in (*counts.values(), *seeds)) or min(counts.values()) < 1:
        raise ValueError("a count or a seed is no whole number")
    if not seeds or len(set(seeds)) < len(seeds) or {len(means), len(stds), len(keys)} != {len(seeds)}:
        raise ValueError("its lists do not have one value for each seed")
    if not all(0 <= value <= 1 for value in (*means, *(value for value in stds if value is not None))):
        raise ValueError("an accuracy or its spread is no fraction")
    return Entry(**texts, **counts, seeds=seeds, means=means, stds=stds, keys=keys)
