"""The generator that a suite names: with what its files decide, and whether it can make a data set's images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddbench.entry_points import NOUNS
from ddbench.errors import BenchError, ConfigError, DataError, PluginError
from ddbench.protocols import Protocol
from ddbench.refs import PluginRef
from ddbench.suite.findings import Findings
from ddbench.suite.stages import PlanningRun


class Generators:
    """The generators of a suite, each looked at once."""

    def __init__(self, raw: Mapping[str, Any], protocol: Protocol, data_root: Path | None, findings: Findings) -> None:
        """`raw` is the suite's TOML."""
        self.raw, self.protocol, self.data_root, self.findings = raw, protocol, data_root, findings
        self._fits: dict[tuple[PluginRef, ...], bool] = {}

    def of(self, owner: PluginRef, dataset: PluginRef, settings: Mapping[str, Any]) -> PluginRef | None:
        """The suite's generator, where it can make such images and the owner, a space or a baseline, live in it."""
        if "generator" not in self.raw:
            told = f"{NOUNS[owner.kind]} '{owner.name}' needs a generator"
            self.findings.fault(f'{told}: add generator = "cvae", or another, to the suite.')
            return None
        generator = self.findings.plugin("generators", self.raw["generator"], settings)
        generator = self.findings.pinned(generator, self.data_root) if generator else None
        if generator is None or generator in self.findings.missing:
            return generator
        key = (owner, generator, dataset)
        if key not in self._fits:
            self._fits[key] = self._fit(owner, generator, dataset)
        return generator if self._fits[key] else None

    def _fit(self, owner: PluginRef, generator: PluginRef, dataset: PluginRef) -> bool:
        """Whether the generator can make such images, a space live in it, and the protocol's constants normalise them."""
        try:
            depth = self.depth(generator, dataset)
            if owner.kind == "spaces":
                owner.ask(lambda plugin: plugin.check(depth))
        except PluginError as error:
            self.findings.broke(error)
            return False
        except DataError as error:
            self.findings.lacks(generator, error)
            return self.findings.lenient
        except BenchError as error:
            whose = f"{NOUNS[owner.kind]} '{owner.label}' with generator '{generator.label}'"
            self.findings.fault(f"{whose} on '{dataset.label}': {error}")
            return False
        try:
            self.protocol.check_constants(dataset.make().spec())
        except ConfigError as error:
            self.findings.fault(error)
        return True

    def depth(self, generator: PluginRef, dataset: PluginRef) -> int:
        """How many layers it has for such images. Raises what a plugin raises."""
        run = PlanningRun(dataset.make().spec(), 0, None, self.data_root)
        return generator.ask(lambda plugin: plugin.depth(run))
