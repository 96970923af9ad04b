"""What a suite says about a place of its grid: the table [distill], then every [[override]] that fits, above a preset; and the
variants of it, each of which is a cell of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ddbench.errors import BenchError, PluginError, did_you_mean
from ddbench.refs import PluginRef
from ddbench.suite import presets
from ddbench.suite.coordinates import WHERE
from ddbench.suite.findings import Findings

PLACES = tuple(key for key in WHERE if key != "baseline")  # what `where` of an override takes: baselines have no settings there


class Places:
    """The values of distilled cells by where they lie."""

    def __init__(self, raw: Mapping[str, Any], findings: Findings) -> None:
        """Reads the tables of the suite; what is wrong with them is a fault, whether or not a cell lies there."""
        self.findings, self.generator = findings, raw.get("generator")
        self.families: list[presets.Family] = []
        self.used: set[int] = set()  # overrides that fit a place
        self.base: dict[str, Any] = {table: {} for table in presets.TABLES}
        self._merge(self.base, findings.typed(raw.get("distill", {}), dict, "'distill'", {}), "[distill]")
        self.overrides = findings.typed(raw.get("override", []), list, "'override'", [])
        read = [self._override(entry, f"override {number}") for number, entry in enumerate(self.overrides, start=1)]
        self._where, self._set = [where for where, _ in read], [values for _, values in read]
        self.variants = findings.typed(raw.get("variant", []), list, "'variant'", [])
        self._variants = [self._override(entry, f"variant {number}") for number, entry in enumerate(self.variants, start=1)]
        self.tried: set[int] = set()  # variants that fit a place

    def _override(self, entry: Any, name: str) -> tuple[dict[str, str], dict[str, Any]]:
        """Where it fits, and what it sets."""
        table = self.findings.typed(entry, dict, name, {})
        for key in table.keys() - {"where", "set"}:
            self.findings.fault(f"{name} has no key '{key}'.{did_you_mean(key, ('where', 'set'))} It takes: where, set.")
        where = self.findings.typed(table.get("where", {}), dict, f"{name}: 'where'", {})
        for key in where.keys() - set(PLACES):
            near = did_you_mean(key, PLACES)
            self.findings.fault(f"{name}: 'where' has no key '{key}'.{near} It takes: {', '.join(PLACES)}.")
        values = self.findings.typed(table.get("set", {}), dict, f"{name}: 'set'", {})
        if not values:
            self.findings.fault(f"{name} sets nothing: give it set = {{ steps = 100 }} or the like, or remove it.")
        self._merge({}, values, name)
        return {key: str(value) for key, value in where.items()}, values

    def _merge(self, values: dict[str, Any], new: Mapping[str, Any], where: str) -> None:
        for sentence in presets.merge(values, new, where):
            self.findings.fault(sentence)

    def read_families(self, given: Any) -> bool:
        """The families of presets that the suite names; False: one is broken, and every distilled cell with it."""
        for name in [given] if isinstance(given, str) else self.findings.typed(given, list, "'preset'", []):
            try:
                if isinstance(self.findings.typed(name, str, "an entry of 'preset'", None), str):
                    self.families.append(presets.load(name))
            except PluginError as error:
                self.findings.broke(error)
                return False
            except BenchError as error:
                self.findings.fault(error)
        return True

    def fitting(self, place: Mapping[str, Any]) -> tuple[int, ...]:
        """The overrides that fit a place, from 0."""
        found = tuple(number for number, where in enumerate(self._where) if _fits(where, place))
        self.used.update(found)
        return found

    def variants_of(self, place: Mapping[str, Any]) -> tuple[int | None, ...]:
        """The variants of a place, from 0; None for the one that a place is where no variant fits."""
        found = tuple(number for number, (where, _) in enumerate(self._variants) if _fits(where, place))
        self.tried.update(found)
        return found or (None,)

    def values(
        self, place: Mapping[str, Any], fitting: Sequence[int], loss: Any, space: Any, dataset: PluginRef, variant: int | None
    ) -> tuple[dict[str, Any], tuple[str, ...]] | None:
        """What a place has: its preset, then [distill], then its overrides, later ones on top, then its variant; and the preset's
        marks of what it has from there. None: the preset is broken."""
        values = {key: dict(value) if isinstance(value, dict) else value for key, value in self.base.items()}
        for number in fitting:
            presets.merge(values, self._set[number], "")  # told already
        if variant is not None:
            presets.merge(values, self._variants[variant][1], "")
        if not self.families:
            return values, ()
        side = self.findings.answer("side", dataset, lambda plugin: str(plugin.spec().shape[-1]))
        where = {**place, "side": side}
        if not all(isinstance(value, str) for value in where.values()):  # told where it is read
            return values, ()
        try:
            listed = {"loss": loss, "space": space, "generator": self.generator}
            return presets.under(presets.choose(self.families, where), where, listed, values)
        except PluginError as error:
            self.findings.broke(error)
            return None
        except BenchError as error:
            self.findings.fault(error)
        return values, ()

    def check_used(self) -> None:
        """Every override and variant must fit a place; where a fault or a broken plugin took cells away, nobody knows."""
        complete = self.findings.complete
        for kind, entries, used in (("override", self.overrides, self.used), ("variant", self.variants, self.tried)):
            for number, entry in enumerate(entries if complete else ()):
                if number not in used:
                    where = entry.get("where")
                    self.findings.fault(f"{kind} {number + 1} (where = {where}) matches no cell: mend its 'where' or remove it.")


def _fits(where: Mapping[str, str], place: Mapping[str, Any]) -> bool:
    return all(place.get(key) == value for key, value in where.items())
