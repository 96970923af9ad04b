"""Reading a suite's TOML into plans, with every fault of it named at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import torch

from ddbench import protocols
from ddbench.data.subsets import expanded
from ddbench.errors import BenchError, ConfigError, Faults, PluginError, did_you_mean
from ddbench.plan import BASELINES, Plan, PluginRef
from ddbench.protocols import synthetic_spec
from ddbench.suite import presets

MAX_CELLS = 100_000
SUITE_SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")

TOP = (
    "schema", "name", "description", "protocol", "seeds", "ipc", "subsets", "losses", "spaces", "generator",
    "backbone", "networks", "baselines", "threads", "data_root", "proxy", "preset", "distill", "override",
)  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """A grid, resolved: its cells in the order of the file."""

    name: str
    description: str
    plans: tuple[Plan, ...]
    text: str  # the TOML itself
    data_root: Path | None
    broken: tuple[str, ...] = ()  # a sentence for every plugin of the grid that cannot be loaded; its cells are left out


Identify = Callable[[PluginRef, Path | None], str]
"""(data set, data root) -> content hash; raises DataError where the data are missing."""


class SuiteReader:
    """Collects faults while it reads, so that a user mends them all at once."""

    def __init__(self, source: str, raw: dict[str, Any], identify: Identify, data_root: Path | None) -> None:
        """`source` names the suite in messages."""
        self.source, self.raw, self.identify = source, raw, identify
        self.faults: list[str] = []
        self.broken: list[str] = []
        given = self._value("data_root", str, "")
        self.data_root = data_root
        try:
            self.data_root = expanded(given) if given else data_root
        except ConfigError as error:
            self.fault(error)
        self.used: set[int] = set()  # overrides that matched a cell
        self.families: list[presets.Family] | None = None

    def fault(self, sentence: str | BenchError) -> None:
        """Remember it, once."""
        several = sentence.faults if isinstance(sentence, Faults) else (str(sentence),)
        self.faults.extend(one for one in several if one not in self.faults)

    def suite(self, text: str) -> Suite:
        """Read it all. Raises Faults with every fault found."""
        for key in self.raw:
            if key not in TOP:
                self.fault(f"a suite has no key '{key}'.{did_you_mean(key, TOP)} It takes: {', '.join(TOP)}.")
        if type(self.raw.get("schema")) is not int or self.raw["schema"] != SUITE_SCHEMA:
            got = self.raw.get("schema")
            self.fault(f"a suite must say schema = {SUITE_SCHEMA}; got {got!r}. Update ddbench if it is newer.")
        plans = tuple(self._plans())
        for number, entry in enumerate(self._overrides()):
            if number not in self.used and not self.faults and not self.broken:
                where = entry.get("where")
                self.fault(f"override {number + 1} (where = {where}) matches no cell: mend its 'where' or remove it.")
        if not self.faults:
            for key, num in Counter(plan.key for plan in plans).items():
                if num > 1:
                    name = next(plan.name for plan in plans if plan.key == key)
                    self.fault(f"the grid holds the cell '{name}' {num} times: name each loss, space, subset and baseline once.")
        if not plans and not self.faults and not self.broken:
            self.fault("the grid is empty: name at least one loss and space, or one baseline.")
        name, description = self._value("name", str, Path(self.source).stem), self._value("description", str, "")
        if not NAME.fullmatch(name):
            allowed = "letters, digits, '.', '-' and '_'"
            self.fault(f"'name' must be made of {allowed} and not begin with '.', for it names folders; got '{name}'.")
        if self.faults:
            raise Faults([f"suite '{self.source}': {fault}" for fault in self.faults])
        return Suite(name, description, plans, text, self.data_root, tuple(self.broken))

    def _value(self, key: str, kind: type, default: Any) -> Any:
        return self._typed(self.raw.get(key, default), kind, f"'{key}'", default)

    def _typed(self, value: Any, kind: type, where: str, default: Any) -> Any:
        if fault := presets.misfit(value, kind, where):
            self.fault(fault)
            return default
        return float(value) if kind is float else value

    def _overrides(self) -> list[dict[str, Any]]:
        entries = []
        for number, entry in enumerate(self._value("override", list, []), start=1):
            entries.append(self._typed(entry, dict, f"override {number}", {}))
            for key in entries[-1].keys() - {"where", "set"}:
                self.fault(f"override {number} has no key '{key}'.{did_you_mean(key, ('where', 'set'))} It takes: where, set.")
        return entries

    def _plugin(self, kind: str, entry: Any, extra: Mapping[str, Any] | None = None) -> PluginRef | None:
        """A name, or a table of a name and settings; `extra` settings go on top. A fault makes it None."""
        if isinstance(entry, str):
            entry = {"name": entry}
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            self.fault(f"an entry of {kind} must be a name or a table with a name, got {entry!r}.")
            return None
        settings = {key: value for key, value in entry.items() if key != "name"} | dict(extra or {})
        try:
            ref = PluginRef.resolve(kind, entry["name"], settings)
            ref.make()  # what it refuses is a fault of the suite, found now
            return ref
        except PluginError as error:  # broken, not misnamed: it takes only its own cells with it
            self._break(error)
        except BenchError as error:
            self.fault(error)
        return None

    def _numbers(self, key: str, default: list[int], least: int) -> list[int]:
        values = self._value(key, list, default)
        for value in values:
            if type(value) is not int or value < least:
                self.fault(f"'{key}' holds {value!r}; each entry must be a whole number of at least {least}.")
        if len(set(map(str, values))) < len(values):
            self.fault(f"'{key}' names a value twice: {values}.")
        return [value for value in values if type(value) is int and value >= least]

    def _plans(self) -> Iterator[Plan]:
        try:
            protocol = protocols.load(self._value("protocol", str, "glad-1"))
        except ConfigError as error:
            self.fault(error)
            protocol = protocols.load("glad-1")
        seeds, ipcs = self._numbers("seeds", [0], 0), self._numbers("ipc", [1], 1)
        wanted = self._value("networks", list, ["convnet"])
        networks = tuple(filter(None, (self._plugin("architectures", entry) for entry in wanted)))
        backbone = self._plugin("architectures", self.raw.get("backbone", "convnet"))
        threads = self._value("threads", int, 1)
        teacher = self._plugin("architectures", protocol.teacher.network) if protocol.teacher else None
        common: dict[str, Any] = {"protocol": protocol, "networks": networks, "backbone": backbone, "threads": threads}
        common["teacher"] = teacher
        if len({ref.label for ref in networks}) < len(networks) or not wanted:
            self.fault("'networks' must name at least one network, and none twice.")
        baselines = self._value("baselines", list, list(BASELINES))
        for baseline in baselines:
            if baseline not in BASELINES:
                near = did_you_mean(str(baseline), BASELINES)
                self.fault(f"unknown baseline {baseline!r}.{near} Known: {', '.join(BASELINES)}.")
        subsets = [ref for ref in (self._plugin("datasets", entry) for entry in self._value("subsets", list, [])) if ref]
        if not self.raw.get("subsets"):
            self.fault("'subsets' must name at least one data set.")
        hashes = {ref.label: self._hash(ref) for ref in subsets}
        subsets = [ref for ref in subsets if hashes[ref.label]]  # a broken one takes its cells with it
        for ref, network in product(subsets, {ref.label: ref for ref in (*networks, backbone, teacher) if ref}.values()):
            self._check_side(ref, network)
        for ref in subsets:
            self._told(ref, lambda plugin: synthetic_spec(protocol, plugin.spec()))  # its constants must fit the channels
        broken = backbone is None or len(networks) < len(wanted) or (protocol.teacher and teacher is None)
        if broken:  # every cell is its own
            return
        grid = list(product(self._value("losses", list, []), self._value("spaces", list, []), subsets, ipcs, seeds))
        if len(grid) > MAX_CELLS:
            self.fault(f"the grid has {len(grid)} cells; at most {MAX_CELLS} are run from one suite.")
            return
        for dataset in subsets:
            shared = common | {"dataset": dataset, "data_hash": hashes[dataset.label]}
            if "random" in baselines:
                for ipc, seed in product(ipcs, seeds):
                    yield self._checked(Plan(**shared, ipc=ipc, seed=seed, baseline="random"))
            if "full-data" in baselines and seeds:
                yield self._checked(Plan(**shared, ipc=1, seed=seeds[0], baseline="full-data"))
        self.families = self._families()
        if self.families is None:  # broken
            return
        for loss, space, dataset, ipc, seed in grid:
            plan = self._cell(common, loss, space, dataset, hashes[dataset.label], ipc, seed)
            if plan:
                yield plan

    def _check_side(self, dataset: PluginRef, network: PluginRef) -> None:
        """Whether the network takes such images; it is built to see, for their size is not all that it may ask."""
        spec, arch = self._told(dataset, lambda plugin: plugin.spec()), network.make()
        if spec is None:
            return
        if min(spec.shape[1:]) < arch.min_size:
            sides = " x ".join(map(str, spec.shape[1:]))
            needs = f"architecture '{network.label}' needs images of at least {arch.min_size} px"
            self.fault(f"{needs}; those of '{dataset.label}' are {sides}.")
            return
        try:
            with torch.device("meta"):  # where tensors have shapes and no memory
                arch.build(spec)
        except Exception:  # it refuses the images, or cannot be built there: then in earnest
            self._told(network, lambda made: made.build(spec))

    def _hash(self, ref: PluginRef) -> str:
        try:
            return self.identify(ref, self.data_root)
        except PluginError as error:
            self._break(error)
        except BenchError as error:
            self.fault(error)
        return ""

    def _cell(
        self, common: dict[str, Any], loss: Any, space: Any, dataset: PluginRef, data_hash: str, ipc: int, seed: int
    ) -> Plan | None:
        """One cell: the suite's [distill] table, then every override whose `where` matches, later ones on top."""
        have = {
            "loss": loss.get("name") if isinstance(loss, dict) else loss,
            "space": space.get("name") if isinstance(space, dict) else space,
            "subset": dataset.written, "ipc": str(ipc), "seed": str(seed),
        }  # fmt: skip
        values: dict[str, Any] = {"rates": {}, "loss": {}, "space": {}, "generator": {}}
        self._merge(values, self._value("distill", dict, {}), "[distill]")
        for number, entry in enumerate(self._overrides()):
            where = self._typed(entry.get("where", {}), dict, f"override {number + 1}: 'where'", {})
            for key in where.keys() - have.keys():
                near = did_you_mean(key, have)
                self.fault(f"override {number + 1}: 'where' has no key '{key}'.{near} It takes: {', '.join(have)}.")
            if all(have.get(key) == str(value) for key, value in where.items()):
                self.used.add(number)
                new = self._typed(entry.get("set", {}), dict, f"override {number + 1}: 'set'", {})
                self._merge(values, new, f"override {number + 1}")
        below = self._under(values, have, loss, space, dataset)
        if below is None:
            return None
        values = below
        refs: dict[str, Any] = {"loss": self._plugin("losses", loss, values.pop("loss"))}
        refs["space"] = self._plugin("spaces", space, values.pop("space"))
        if refs["loss"] is None or refs["space"] is None:
            return None
        generator_settings = values.pop("generator")
        if refs["space"].make().needs_generator:
            if "generator" not in self.raw:
                self.fault(f"space '{refs['space'].name}' needs a generator: add generator = \"cvae\", or another, to the suite.")
                return None
            refs["generator"] = self._plugin("generators", self.raw["generator"], generator_settings)
            if refs["generator"] is None:
                return None
            if not self._check_layers(refs["space"], refs["generator"], dataset):
                return None
        proxy = self._plugin("architectures", self.raw.get("proxy", self.raw.get("backbone", "convnet")))
        if proxy is None:
            return None
        self._check_twice(refs["loss"], common["backbone"])
        if values.get("labels") == "teacher" and refs["loss"].make().relabels == "never":
            self.fault(f"loss '{refs['loss'].name}' has no teacher to give labels: set labels to hard or learned.")
        rates = self._rates(refs["loss"], refs["space"], values.pop("rates"), values.get("labels", "hard"))
        if rates is None:
            return None
        values |= common | refs | {"rates": rates, "proxy": proxy}
        plan = Plan(**values, dataset=dataset, data_hash=data_hash, ipc=ipc, seed=seed)
        return self._checked(plan).without_idle_settings()

    def _checked(self, plan: Plan) -> Plan:
        for sentence in plan.check():
            self.fault(sentence)
        return plan

    def _check_layers(self, space: PluginRef, generator: PluginRef, dataset: PluginRef) -> bool:
        """Whether the generator can make such images, and the space live in it; a broken plugin takes its cells with it."""
        try:
            depth = generator.ask(lambda plugin: plugin.depth(dataset.make().spec()))
            space.ask(lambda plugin: plugin.check(depth))
        except PluginError as error:
            self._break(error)
            return False
        except BenchError as error:
            self.fault(f"space '{space.label}' with generator '{generator.label}' on '{dataset.label}': {error}")
        return True

    def _break(self, error: PluginError) -> None:
        self.broken.extend([str(error)] if str(error) not in self.broken else [])

    def _told(self, ref: PluginRef, question: Callable[[Any], Any]) -> Any:
        """What a plugin answers; None, and it is broken, where it raises."""
        try:
            return ref.ask(question)
        except PluginError as error:
            self._break(error)
        except BenchError as error:
            self.fault(error)
        return None

    def _check_twice(self, loss: PluginRef, backbone: PluginRef) -> None:
        if loss.make().order > 1 and not backbone.make().double_backward:
            twice = f"loss '{loss.name}' differentiates the backbone twice"
            self.fault(f"{twice}, and '{backbone.label}' cannot be: name another backbone.")

    def _merge(self, values: dict[str, Any], new: Mapping[str, Any], where: str) -> None:
        for sentence in presets.merge(values, new, where):
            self.fault(sentence)

    def _families(self) -> list[presets.Family] | None:
        """The families of presets that the suite names; None: one is broken, and every distilled cell with it."""
        given, found = self.raw.get("preset", []), []
        for name in [given] if isinstance(given, str) else self._typed(given, list, "'preset'", []):
            try:
                if isinstance(self._typed(name, str, "an entry of 'preset'", None), str):
                    found.append(presets.load(name))
            except PluginError as error:
                self._break(error)
                return None
            except BenchError as error:
                self.fault(error)
        return found

    def _under(
        self, values: dict[str, Any], have: Mapping[str, Any], loss: Any, space: Any, dataset: PluginRef
    ) -> dict[str, Any] | None:
        """The values of a cell with those of its preset below them; None: the preset is broken."""
        if not self.families:
            return values
        place = {**have, "side": self._told(dataset, lambda plugin: str(plugin.spec().shape[-1]))}
        if not all(isinstance(value, str) for value in place.values()):  # told where it is read
            return values
        listed = {"loss": loss, "space": space, "generator": self.raw.get("generator")}
        try:
            return presets.under(self.families, place, listed, values)
        except PluginError as error:
            self._break(error)
            return None
        except BenchError as error:
            self.fault(error)
        return values

    def _rates(self, loss: PluginRef, space: PluginRef, given: Mapping[str, Any], labels: str) -> dict[str, float] | None:
        """The learning rate of every tensor that the space, the loss or learned labels may optimise; None: one is broken."""
        defaults = self._told(loss, lambda made: {name: float(rate) for name, rate in made.rates.items()})
        learned = self._told(loss, lambda made: set(made.learned))
        tensors = self._told(space, lambda made: set(made.tensors))
        if defaults is None or learned is None or tensors is None:
            return None
        names = tensors | learned | ({"labels"} if labels == "learned" else set())
        rates = {name: rate for name, rate in defaults.items() if name in names}
        for name, rate in given.items():
            known = {*defaults, *names}
            if type(rate) not in (int, float):
                self.fault(f"rate '{name}' must be a number, got {rate!r}.")
                continue
            rate = float(rate)
            if name not in known:
                near = did_you_mean(name, known)
                self.fault(f"there is no tensor '{name}' to give a rate.{near} Known: {', '.join(sorted(known))}.")
            elif not 0 < rate < inf:
                self.fault(f"rate '{name}' must be a number above 0, got {rate}.")
            elif name in names:
                rates[name] = rate
        for name in sorted(names - rates.keys()):
            self.fault(f"loss '{loss.name}' in space '{space.name}' needs a rate for '{name}': add rates = {{ {name} = ... }}.")
        return rates
