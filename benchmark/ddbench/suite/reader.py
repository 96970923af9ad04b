"""Reading a suite's TOML into cells, with every fault of it named at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from ddbench import protocols
from ddbench.api import Budget
from ddbench.data.subsets import expanded
from ddbench.errors import BenchError, ConfigError, DataError, Faults, PluginError, did_you_mean
from ddbench.files import canonical, digest
from ddbench.plan import Cell, Judging, SetPlan
from ddbench.refs import PluginRef
from ddbench.suite import executors
from ddbench.suite.budgets import read_budgets
from ddbench.suite.building import check_network
from ddbench.suite.distilled import Common, Distilled
from ddbench.suite.findings import Findings
from ddbench.suite.generators import Generators
from ddbench.suite.iterates import read_iterates
from ddbench.suite.places import Places
from ddbench.suite.tuning import read_tune

MAX_CELLS = 100_000
MAX_REPEATS = 10_000  # of a network on a set
MAX_THREADS = 1024  # of a process
SUITE_SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
BASELINES = ("random", "full-data")  # unless told otherwise

TOP = (
    "schema", "name", "description", "protocol", "seeds", "ipc", "budget", "subsets", "losses", "spaces", "generator",
    "backbone", "networks", "repeats", "baselines", "threads", "data_root", "proxy", "preset", "distill", "override", "variant",
    "iterates", "reduced", "tune", "executor",
)  # fmt: skip


class Identified(Protocol):
    """What is asked of a data set's identity."""

    @property
    def train_hash(self) -> str:
        """Of the training images and what normalises them."""
        ...

    @property
    def test_hash(self) -> str:
        """Of the official evaluation images and what normalises them."""
        ...


Identify = Callable[[PluginRef, Path | None], Identified]
"""(data set, data root) -> its identity; raises DataError where the data are missing."""


@dataclass(frozen=True)
class Suite:
    """A grid, resolved: its cells in the order of the file. Their plans name no resources yet."""

    name: str
    description: str
    cells: tuple[Cell, ...]
    text: str  # the TOML itself
    data_root: Path | None
    broken: tuple[str, ...]  # a sentence for every plugin of the grid that cannot be used; its cells are left out
    protocol: protocols.Protocol | None  # None for a grid that no suite spans
    missing: Mapping[PluginRef, str] = field(default_factory=dict)  # what a lenient reader went on without, a sentence each
    executors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings, by the executor's name

    def lacks(self, plan: SetPlan) -> bool:
        """Whether something is missing without which the plan's numbers, and its key, cannot be known."""
        return any(ref in self.missing for ref in plan.refs)


@dataclass(frozen=True)
class Unseen:
    """Stands for the identity of data that are not there: keys that are made of it are nobody's."""

    train_hash: str
    test_hash: str


@dataclass(frozen=True)
class Axes:
    """The resolved lists of a suite."""

    seeds: tuple[int, ...]
    ipcs: tuple[int, ...]
    networks: tuple[PluginRef, ...]
    budgets: tuple[Budget, ...]  # baselines are the same in each
    subsets: tuple[tuple[PluginRef, Identified], ...]
    baselines: tuple[PluginRef, ...]
    teacher: PluginRef | None


class SuiteReader:
    """Reads one suite."""

    def __init__(
        self, source: str, raw: dict[str, Any], identify: Identify, data_root: Path | None, lenient: bool = False
    ) -> None:
        """`source` names the suite in messages. `lenient`: files that are missing are no fault, see `Suite.missing`."""
        self.source, self.raw, self.identify = source, raw, identify
        self.findings = Findings(lenient)
        self.fault = self.findings.fault
        given = self._value("data_root", str, "")
        self.data_root = data_root
        try:
            self.data_root = expanded(given) if given else data_root
        except ConfigError as error:
            self.fault(error)
        self.places = Places(raw, self.findings)
        self._judgings: dict[tuple[Any, ...], tuple[Judging, ...]] = {}

    def suite(self, text: str) -> Suite:
        """Read it all. Raises Faults with every fault found."""
        for key in self.raw:
            if key not in TOP:
                self.fault(f"a suite has no key '{key}'.{did_you_mean(key, TOP)} It takes: {', '.join(TOP)}.")
        if type(self.raw.get("schema")) is not int or self.raw["schema"] != SUITE_SCHEMA:
            got = self.raw.get("schema")
            self.fault(f"a suite must say schema = {SUITE_SCHEMA}; got {got!r}. Update ddbench if it is newer.")
        self._value("reduced", dict, {})  # read instead of the suite where it is asked for
        asked = self._executors()
        self.protocol = self._protocol()
        self.threads = self._value("threads", int, 1)
        self.repeats = self._value("repeats", int, self.protocol.repeats)
        if not 1 <= self.repeats <= MAX_REPEATS:
            self.fault(f"'repeats' must lie in 1..{MAX_REPEATS}, got {self.repeats}.")
        cells = tuple(self._cells())
        self.places.check_used()
        if not self.findings.faults:
            self._check_once(cells)
        if not cells and self.findings.complete:
            self.fault("the grid is empty: name at least one loss and space, or one baseline.")
        name, description = self._value("name", str, Path(self.source).stem), self._value("description", str, "")
        if not NAME.fullmatch(name):
            allowed = "letters, digits, '.', '-' and '_'"
            self.fault(f"'name' must be made of {allowed} and not begin with '.', for it names folders; got '{name}'.")
        if self.findings.faults:
            raise Faults([f"suite '{self.source}': {fault}" for fault in self.findings.faults])
        broken, missing = tuple(self.findings.broken), self.findings.missing
        return Suite(name, description, cells, text, self.data_root, broken, self.protocol, missing, asked)

    def _value(self, key: str, kind: type, default: Any) -> Any:
        return self.findings.typed(self.raw.get(key, default), kind, f"'{key}'", default)

    def _executors(self) -> dict[str, dict[str, Any]]:
        """The tables [executor.NAME], which decide no number."""
        try:
            return executors.tables(self._value("executor", dict, {}))
        except BenchError as error:
            self.fault(error)
            return {}

    def _protocol(self) -> protocols.Protocol:
        """The suite's, or, where that is a fault, another to read on with."""
        try:
            return protocols.load(self._value("protocol", str, "glad-1"))
        except BenchError as error:  # a damaged one takes the whole suite with it
            self.fault(error)
            return protocols.load("glad-1")

    def _numbers(self, key: str, default: list[int], least: int) -> tuple[int, ...]:
        values = self._value(key, list, default)
        for value in values:
            if type(value) is not int or value < least:
                self.fault(f"'{key}' holds {value!r}; each entry must be a whole number of at least {least}.")
        if not values:
            self.fault(f"'{key}' is an empty list: name at least one, or leave it out for {default}.")
        if len(set(map(str, values))) < len(values):
            self.fault(f"'{key}' names a value twice: {values}.")
        good = tuple(value for value in values if type(value) is int and value >= least)
        return good or (() if not values else tuple(default))  # read on, for the faults of the rest

    def _plugins(self, kind: str, entries: list[Any]) -> tuple[PluginRef, ...]:
        """Those that can be made."""
        return tuple(filter(None, (self.findings.plugin(kind, entry) for entry in entries)))

    # ------------------------------------------------------------ the grid

    def _cells(self) -> Iterator[Cell]:
        seeds, ipcs = self._numbers("seeds", [0], 0), self._numbers("ipc", [1], 1)
        budgets = read_budgets(self.raw.get("budget", "images"), self.findings)
        wanted = self._value("networks", list, ["convnet"])
        networks = self._plugins("architectures", wanted)
        backbone = self.findings.plugin("architectures", self.raw.get("backbone", "convnet"))
        asked = self.protocol.judging.teacher
        teacher = self.findings.plugin("architectures", asked.network) if asked else None
        if len({canonical(ref.what) for ref in networks}) < len(networks) or not wanted:
            self.fault("'networks' must name at least one network, and none twice.")
        if not 1 <= self.threads <= MAX_THREADS:
            self.fault(f"'threads' must lie in 1..{MAX_THREADS}, got {self.threads}.")
            self.threads = 1  # read on
        baselines = self._plugins("baselines", self._value("baselines", list, list(BASELINES)))
        baselines = tuple(filter(None, (self.findings.pinned(ref, self.data_root) for ref in baselines)))
        subsets = self._subsets()
        for (ref, _), network in product(subsets, {ref.label: ref for ref in (*networks, backbone, teacher) if ref}.values()):
            check_network(self.findings, ref, network)
        losses, spaces = self._value("losses", list, []), self._value("spaces", list, [])
        whole = backbone is not None and len(networks) == len(wanted) and not (asked and teacher is None)
        if not whole or not subsets:  # no cell will be read, and with it no loss and no space
            self.findings.check_names("losses", losses)
            self.findings.check_names("spaces", spaces)
        if not whole or backbone is None:
            return  # every cell is its own
        axes = Axes(seeds, ipcs, networks, budgets, subsets, baselines, teacher)
        num_methods = len(losses) * len(spaces) * len(axes.budgets) * max(1, len(self.places.variants))
        num = (num_methods + len(baselines)) * len(subsets) * len(ipcs) * len(seeds)
        if num > MAX_CELLS:
            self.fault(f"the grid has {num} cells; at most {MAX_CELLS} are run from one suite.")
            return
        generators = Generators(self.raw, self.protocol, self.data_root, self.findings)
        for (dataset, identity), baseline in product(subsets, baselines):
            yield from self._baseline(axes, baseline, backbone, dataset, identity, generators)
        if self.places.read_families(self.raw.get("preset", [])):
            iterates = read_iterates(self.raw.get("iterates", {}), self.findings)
            tune = read_tune(self.raw["tune"], self.protocol, self.findings) if "tune" in self.raw else None
            common = Common(self.protocol, backbone, self.threads, iterates, self.data_root, generators, tune)
            distilled = Distilled(self.raw, self.places, common, self.findings)
            yield from self._distilled(axes, distilled, losses, spaces)

    def _subsets(self) -> tuple[tuple[PluginRef, Identified], ...]:
        """With their identities; a broken one takes its cells with it."""
        if not self.raw.get("subsets"):
            self.fault("'subsets' must name at least one data set.")
        found = []
        for ref in self._plugins("datasets", self._value("subsets", list, [])):
            try:
                found.append((ref, self.identify(ref, self.data_root)))
            except PluginError as error:
                self.findings.broke(error)
            except DataError as error:
                self.findings.lacks(ref, error)
                found.append((ref, Unseen(*(digest(["unseen", split, ref.label]) for split in ("train", "test")))))
            except BenchError as error:
                self.fault(error)
        return tuple(found)

    def _baseline(
        self, axes: Axes, baseline: PluginRef, backbone: PluginRef, dataset: PluginRef, identity: Identified,
        generators: Generators,
    ) -> Iterator[Cell]:  # fmt: skip
        """One cell for all real training images, else one for each number of images and seed."""
        ask = self.findings.answer
        everything = ask("everything", baseline, lambda plugin: bool(plugin.everything))
        uses_backbone = ask("uses_backbone", baseline, lambda plugin: bool(plugin.uses_backbone))
        needs_generator = ask("needs_generator", baseline, lambda plugin: bool(plugin.needs_generator))
        if everything is None or uses_backbone is None or needs_generator is None or not axes.seeds:
            return
        shared: dict[str, Any] = {"dataset": dataset, "train_hash": identity.train_hash, "baseline": baseline}
        if everything:
            plan = SetPlan(**shared, ipc=0, seed=0, held_out=0.0)
            yield self._cell(plan, self._judged(axes, dataset, identity, axes.seeds[0], everything=True))
            return
        shared |= {"backbone": backbone if uses_backbone else None, "threads": self.threads}
        shared |= {"held_out": self.protocol.set.held_out, "tf32": self.protocol.judging.tf32}
        if needs_generator:
            making = self.protocol.set  # whose constants for generated images count here too
            shared |= {"synthetic_mean": making.synthetic_mean, "synthetic_std": making.synthetic_std}
            shared["generator"] = generators.of(baseline, dataset, {})
            if shared["generator"] is None:
                return
        for ipc, seed in product(axes.ipcs, axes.seeds):
            yield self._cell(SetPlan(**shared, ipc=ipc, seed=seed), self._judged(axes, dataset, identity, seed))

    def _distilled(self, axes: Axes, distilled: Distilled, losses: list[Any], spaces: list[Any]) -> Iterator[Cell]:
        """The product of the lists, in their order."""
        grid = product(enumerate(losses), enumerate(spaces), axes.subsets, axes.ipcs, axes.budgets, axes.seeds)
        for (number, loss), (other, space), (dataset, identity), ipc, budget, seed in grid:
            for made in distilled.plans((number, other), loss, space, dataset, identity.train_hash, ipc, budget, seed):
                judgings = self._judged(axes, dataset, identity, seed)
                seconds, tuning = distilled.common.asked.seconds, distilled.tuning(made.plan)
                yield Cell(made.plan, judgings, self.repeats, self.protocol.id, made.iterates, seconds, made.marks, tuning=tuning)
        distilled.check_rated()
        distilled.check_reached()
        distilled.check_tuned()

    def _judged(
        self, axes: Axes, dataset: PluginRef, identity: Identified, draw: int, everything: bool = False
    ) -> tuple[Judging, ...]:
        """How every network judges; the same objects for all sets that are judged alike."""
        key = (dataset, draw, everything)
        if key not in self._judgings:
            held_out = self.protocol.set.held_out if axes.teacher else 0.0
            self._judgings[key] = tuple(
                Judging(
                    network=network, numbers=self.protocol.numbers(everything), dataset=dataset, test_hash=identity.test_hash,
                    draw=draw, teacher=axes.teacher, held_out=held_out, threads=self.threads, protocol=self.protocol.id,
                )
                for network in axes.networks
            )  # fmt: skip
        return self._judgings[key]

    def _cell(self, plan: SetPlan, judgings: tuple[Judging, ...]) -> Cell:
        return Cell(plan, judgings, self.repeats, self.protocol.id)

    def _check_once(self, cells: tuple[Cell, ...]) -> None:
        """No set may stand in the grid twice, however it is written, to be judged the same way."""
        seen: dict[tuple[str, ...], list[str]] = {}
        for cell in cells:
            seen.setdefault((cell.set.key, *(judging.key for judging in cell.judgings)), []).append(cell.name)
        for names in seen.values():
            if len(names) > 1:
                others = "".join(f", also as '{name}'" for name in dict.fromkeys(names) if name != names[0])
                times = f"the grid holds the cell '{names[0]}' {len(names)} times{others}"
                self.fault(f"{times}: name each loss, space, subset, baseline and variant once.")
