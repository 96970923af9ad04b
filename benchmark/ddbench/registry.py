"""Plugins by name, in the groups `ddbench.<kind>` of installed distributions (`ddbench.entry_points` reads them).

A plugin with one required setting, a text, is a *family*: the name `family/member` means the plugin `family` with that
setting = `member`. Every method takes such names.

Names resolve when they are used, not before: listing them imports no plugin and no torch, and a plugin that cannot be
loaded breaks its own runs only.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import entrypoints

from ddbench.entry_points import NOUNS, Origin, PluginRow, Scan, cause_of, scan, the_only
from ddbench.errors import ConfigError, PluginError, did_you_mean
from ddbench.settings import REQUIRED, Nested, Setting, check, in_json, member_of, settings_of, shown


class Registry:
    """The installed plugins of one kind."""

    def __init__(self, kind: str) -> None:
        """Of a kind in `NOUNS`; nothing is read before it is asked for."""
        self.kind = kind
        self._scanned: tuple[object, Scan] | None = None

    def names(self) -> list[str]:
        """All names on offer, sorted; without looking whether the plugins work."""
        return sorted(self._scan().offers)

    def offers(self, name: str) -> bool:
        """Whether a plugin, or a family with such a member, is on offer under that name."""
        return self._parted(name)[0] in self._scan().offers

    def origin(self, name: str) -> Origin:
        """Where the plugin comes from. Raises ConfigError for an unknown name, PluginError for one offered twice."""
        scan, own = self._scan(), self._parted(name)[0]
        if own not in scan.offers:
            near, installed = did_you_mean(name.partition("/")[0], scan.offers), ", ".join(self.names()) or "none"
            unknown = f"unknown {NOUNS[self.kind]} '{name}'.{near} Installed: {installed}."
            raise ConfigError(" ".join([unknown, *(fault.status for fault in scan.faults)]))
        return the_only(scan.offers[own])

    def offered(self, target: type[Any]) -> Origin | None:
        """The plugin whose entry point names this class itself, and no factory of it."""
        wanted = f"{target.__module__}:{target.__qualname__}"
        found = [origin for offers in self._scan().offers.values() for origin in offers if origin.target == wanted]
        return min(found, key=lambda origin: (origin.distribution, origin.name), default=None)

    def distributions(self) -> set[str]:
        """The distributions that offer one."""
        return {origin.distribution for offers in self._scan().offers.values() for origin in offers}

    def offered_by(self, distribution: str) -> list[str]:
        """The names that a distribution offers, sorted."""
        offers = self._scan().offers.items()
        return sorted(name for name, origins in offers if any(origin.distribution == distribution for origin in origins))

    def target(self, name: str) -> Any:
        """The class or the factory that the entry point names. Raises like `make`."""
        return _load(self.origin(name))[0]

    def known(self, name: str) -> dict[str, Setting]:
        """Its settings with their annotations. Raises like `make`."""
        return _load(self.origin(name))[1]

    def member(self, name: str) -> str | None:
        """The setting that the second half of `family/member` fills; None for a plugin that is no family."""
        return member_of(_load(self.origin(name))[1])

    def settings(self, name: str) -> dict[str, Any]:
        """The plugin's settings and their defaults, as JSON holds them; `REQUIRED` for one without."""
        origin = self.origin(name)
        known = _load(origin)[1]
        optional = {key: setting.default for key, setting in known.items() if setting.default is not REQUIRED}
        return dict.fromkeys(known, REQUIRED) | in_json(optional, str(origin), PluginError)

    def resolve(self, name: str, settings: Mapping[str, object] | None = None) -> dict[str, Any]:
        """All settings, defaults included, as JSON holds them; a plugin among them is a table of its name and all its settings.
        Raises like `make`."""
        origin = self.origin(name)
        given = self._checked(name, origin, _load(origin)[1], settings, _resolve_nested)
        return self.settings(name) | in_json(given, origin.label, ConfigError)

    def make(self, name: str, settings: Mapping[str, object] | None = None) -> Any:
        """The plugin with these settings: an instance of `api.PLUGIN_TYPES[kind]`.

        Raises: ConfigError for an unknown name, an unknown, missing or mistyped setting (`Faults` for several), or what
        the plugin itself refuses; PluginError for a plugin that is offered twice, fails, or is not what it should be.
        """
        origin = self.origin(name)
        target, known = _load(origin)
        given = self._checked(name, origin, known, settings, _make_nested)
        try:
            plugin = target(**given)
        except ConfigError as error:
            named = str(error).startswith(origin.label)  # by the plugin itself
            raise ConfigError(str(error) if named else f"{origin.label}: {error}") from error
        except Exception as error:
            raise PluginError(f"{origin} cannot be made: {cause_of(error)}") from error
        if not (isinstance(plugin, _base(self.kind)) and _is_frozen(type(plugin))):
            raise PluginError(_refusal(origin, plugin))
        return plugin

    def rows(self) -> list[PluginRow]:
        """Every offer, sorted, and whether it works: imports all plugins, and makes those without required settings."""
        scan = self._scan()
        rows = [self._row(origin, offers) for offers in scan.offers.values() for origin in offers]
        return sorted(rows + scan.faults, key=lambda row: (row.name, row.distribution))

    def refresh(self) -> None:
        """Forget what was read. A new or another version of a distribution is seen without; an edited file is not."""
        self._scanned = None

    def _parted(self, name: str) -> tuple[str, str]:
        """The plugin's own name, and the member; that is empty where there is none."""
        own, _, member = name.partition("/")
        offers = self._scan().offers
        return (own, member) if member and name not in offers and own in offers else (name, "")

    def _checked(
        self, name: str, origin: Origin, known: Mapping[str, Setting], given: Mapping[str, object] | None, nested: Nested
    ) -> dict[str, Any]:
        """What the name and the user say of the settings, as their annotations ask."""
        member, filled, given = self._parted(name)[1], member_of(known), given or {}
        if member and filled is None:
            required = ", ".join(key for key, setting in known.items() if setting.default is REQUIRED) or "none"
            raise ConfigError(
                f"{origin.label} has no member '{member}': {origin.name}/MEMBER would fill its one required setting, a text, and "
                f"required here are: {required}. Write '{origin.name}' and give its settings by name."
            )
        if member and filled in given:
            raise ConfigError(f"{origin.label}: the name '{name}' gives the setting '{filled}' already. Remove one of the two.")
        example = f"Write {origin.name}/{filled.upper()}. " if filled else ""
        return check(origin.label, known, {filled: member, **given} if member and filled else given, example, nested)

    def _row(self, origin: Origin, offers: list[Origin]) -> PluginRow:
        description, status, settings = "", "ok", dict[str, Any]()
        try:
            target, known = _load(the_only(offers))
            doc = (target.__doc__ or "").strip()  # a dataclass without a docstring has its signature there
            description = "" if doc.startswith(f"{target.__name__}(") else doc.partition("\n")[0]
            own = self.settings(origin.name)
            settings = {key: "required" if value is REQUIRED else value for key, value in own.items()}
            if all(setting.default is not REQUIRED for setting in known.values()):
                self.resolve(origin.name)
                self.make(origin.name)
        except (ConfigError, PluginError) as error:
            status = str(error)
        about = (origin.distribution, origin.version, description, status, origin.target, settings)
        return PluginRow(self.kind, origin.name, *about)

    def _scan(self) -> Scan:
        """The entry points, read again when the path or one of its folders has changed (a scan takes milliseconds)."""
        folders = [Path(entry).absolute() for entry in sys.path if isinstance(entry, str)]
        key = [(folder, folder.stat().st_mtime_ns) for folder in folders if folder.exists()]
        if self._scanned is None or self._scanned[0] != key:
            self._scanned = key, scan(self.kind)
        return self._scanned[1]


losses, spaces, generators = Registry("losses"), Registry("spaces"), Registry("generators")
architectures, datasets, baselines = Registry("architectures"), Registry("datasets"), Registry("baselines")
proxies, rankers = Registry("proxies"), Registry("rankers")
presets, protocols, executors = Registry("presets"), Registry("protocols"), Registry("executors")
assets = Registry("assets")
REGISTRIES: Mapping[str, Registry] = {
    each.kind: each
    for each in (
        losses, spaces, generators, architectures, proxies, rankers, datasets, baselines, presets, protocols, executors, assets,
    )
}  # fmt: skip


def _resolve_nested(kind: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, **REGISTRIES[kind].resolve(name, settings)}


def _make_nested(kind: str, name: str, settings: Mapping[str, Any]) -> Any:
    return REGISTRIES[kind].make(name, settings)


def _load(origin: Origin) -> tuple[Any, dict[str, Setting]]:
    """What the entry point names, a frozen dataclass or a function that makes one, and its settings."""
    try:
        target = entrypoints.EntryPoint.from_string(origin.target, origin.name).load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{origin} cannot be imported: {cause_of(error)}") from error
    if isinstance(target, type):
        if not (issubclass(target, _base(origin.kind)) and _is_frozen(target)):
            raise PluginError(_refusal(origin, target))
        if inspect.isabstract(target):
            missing = ", ".join(sorted(getattr(target, "__abstractmethods__", ())))
            raise PluginError(f"{origin} does not define what every {NOUNS[origin.kind]} must: {missing}.")
    elif not inspect.isroutine(target):
        raise PluginError(_refusal(origin, target))
    try:
        return target, settings_of(target)
    except Exception as error:  # an annotation imported for type checkers only
        raise PluginError(f"the settings of {origin} cannot be read: {cause_of(error)}") from error


def _base(kind: str) -> type[Any]:
    from ddbench.api import PLUGIN_TYPES  # imports torch

    return PLUGIN_TYPES[kind]


def _is_frozen(kind: type[Any]) -> bool:
    return dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _refusal(origin: Origin, found: Any) -> str:
    noun = "class" if isinstance(found, type) else "function" if inspect.isroutine(found) else None
    got = f"<{noun} {found.__name__}>" if noun else shown(found)
    return f"{origin} must be a frozen dataclass deriving from {_base(origin.kind).__name__}, got {got}."
