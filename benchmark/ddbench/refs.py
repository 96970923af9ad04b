"""References to plugins: by name with all settings, what they resolve to, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from ddbench import registry
from ddbench.entry_points import NOUNS
from ddbench.errors import BenchError, ConfigError, PluginError
from ddbench.files import digest
from ddbench.identity import describe

OURS = "ddbench"  # the distribution whose plugins share processes
T = TypeVar("T")


class PluginRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """A plugin by name with all its settings, what it resolves to, and where it comes from."""

    kind: str
    name: str
    settings: dict[str, Any]
    distribution: str
    version: str
    label: str  # the name, or `family/member`, with the settings that differ from the plugin's defaults
    what: dict[str, Any]  # its identity, see ddbench.identity: the part that keys are made of
    resolved: dict[str, Any]  # every setting of what the name and its settings make
    distributions: tuple[str, ...]  # of it and of the plugins that are settings of it

    @classmethod
    def resolve(cls, kind: str, name: str, given: Mapping[str, Any]) -> PluginRef:
        """Look a plugin up, check its settings and fill in its defaults. Raises ConfigError or PluginError.

        A member of a family, however it is written, has the family's name and `family/member` as its label.
        """
        made, origin = describe(kind, name, given), registry.REGISTRIES[kind].origin(name)
        place = (origin.distribution, origin.version)
        return cls(kind, origin.name, made.settings, *place, made.label, made.what, made.resolved, made.distributions)

    @property
    def written(self) -> str:
        """The name as suites and `--only` write it: `family/member`, or the plain name."""
        return self.label.partition("(")[0]

    def __hash__(self) -> int:
        """By what it is."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.kind, digest(self.what)))

    def make(self) -> Any:
        """The plugin itself."""
        return registry.REGISTRIES[self.kind].make(self.name, self.settings)

    def pinned(self, pins: Mapping[str, Any]) -> PluginRef:
        """The same plugin with settings that what lies in the data folder decides: what it is counts them, its label does not
        show them. Raises as `resolve`."""
        plain = {name: value for name, value in self.settings.items() if name not in pins}
        label = PluginRef.resolve(self.kind, self.name, plain).label
        return msgspec.structs.replace(PluginRef.resolve(self.kind, self.name, plain | dict(pins)), label=label)

    def ask(self, question: Callable[[Any], T]) -> T:
        """What the plugin answers. Raises PluginError for whatever a stranger's code raises; BenchErrors pass as they are."""
        plugin = self.make()
        try:
            return question(plugin)
        except BenchError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            source = f"{NOUNS[self.kind]} '{self.name}' (from {self.distribution} {self.version})"
            raise PluginError(f"{source} is broken: {what}.") from error


def require(ref: PluginRef | None, role: str) -> PluginRef:
    """The plugin of a role that a step cannot do without."""
    if ref is None:
        raise ConfigError(f"the plan names no {role}.")
    return ref


def foreign(*refs: PluginRef) -> tuple[str, ...]:
    """The distributions other than ddbench whose code these plugins run."""
    return tuple(sorted({name for ref in refs for name in ref.distributions} - {OURS}))
