"""Plugins by name; the one module that reads entry points, in the groups `ddbench.<kind>`.

A plugin with one required setting, a text, is a *family*: the name `family/member` means the plugin `family` with that
setting = `member`. Every method takes such names.

Names resolve when they are used, not before: listing them imports no plugin and no torch, and a plugin that cannot be
loaded breaks its own runs only.

`entrypoints.get_group_all` only warns of a malformed line, and `iter_files_distros` stops at a file it cannot parse and
loses the rest of the folder; so folders are read here, one distribution at a time, with the parsers of that package.
"""

from __future__ import annotations

import configparser
import dataclasses
import inspect
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import entrypoints

from ddbench.errors import ConfigError, PluginError, did_you_mean
from ddbench.settings import REQUIRED, Setting, check, in_json, member_of, settings_of, shown

NOUNS: Mapping[str, str] = {
    "losses": "loss",
    "spaces": "space",
    "generators": "generator",
    "architectures": "architecture",
    "datasets": "dataset",
    "presets": "preset",
}
"""The kinds of plugins, and what messages call one of them."""


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from."""

    kind: str
    name: str
    target: str  # module:object
    distribution: str
    version: str

    def __str__(self) -> str:
        """As messages name a plugin whose author has to act: `loss 'x' (gamma.x:make, from gamma)`."""
        return f"{self.label} ({self.target}, from {self.distribution})"

    @property
    def label(self) -> str:
        """As messages name a plugin whose user has to act: `loss 'x'`."""
        return f"{NOUNS[self.kind]} '{self.name}'"


@dataclass(frozen=True)
class PluginRow:
    """A line of `ddbench plugins`."""

    kind: str
    name: str  # "?" where the distribution's entry points cannot be read at all
    distribution: str
    version: str
    description: str  # the first line of the docstring
    status: str  # "ok", or a sentence saying what is wrong
    target: str = ""  # module:object
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # with their defaults; "required" for none


@dataclass(frozen=True)
class _Scan:
    """What the entry points of one kind say."""

    offers: dict[str, list[Origin]]  # by name
    faults: list[PluginRow]  # one for each line or file that cannot be read


class Registry:
    """The installed plugins of one kind."""

    def __init__(self, kind: str) -> None:
        """Of a kind in `NOUNS`; nothing is read before it is asked for."""
        self.kind = kind
        self._scanned: tuple[object, _Scan] | None = None

    def names(self) -> list[str]:
        """All names on offer, sorted; without looking whether the plugins work."""
        return sorted(self._scan().offers)

    def origin(self, name: str) -> Origin:
        """Where the plugin comes from. Raises ConfigError for an unknown name, PluginError for one offered twice."""
        scan, own = self._scan(), self._parted(name)[0]
        if own not in scan.offers:
            near, installed = did_you_mean(name.partition("/")[0], scan.offers), ", ".join(self.names()) or "none"
            unknown = f"unknown {NOUNS[self.kind]} '{name}'.{near} Installed: {installed}."
            raise ConfigError(" ".join([unknown, *(fault.status for fault in scan.faults)]))
        return _only(scan.offers[own])

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
        """All settings, defaults included, as JSON holds them: what goes in a plan's key. Raises like `make`."""
        origin = self.origin(name)
        given = self._checked(name, origin, _load(origin)[1], settings)
        return self.settings(name) | in_json(given, origin.label, ConfigError)

    def make(self, name: str, settings: Mapping[str, object] | None = None) -> Any:
        """The plugin with these settings: an instance of `api.PLUGIN_TYPES[kind]`.

        Raises: ConfigError for an unknown name, an unknown, missing or mistyped setting (`Faults` for several), or what
        the plugin itself refuses; PluginError for a plugin that is offered twice, fails, or is not what it should be.
        """
        origin = self.origin(name)
        target, known = _load(origin)
        given = self._checked(name, origin, known, settings)
        try:
            plugin = target(**given)
        except ConfigError as error:
            named = str(error).startswith(origin.label)  # by the plugin itself
            raise ConfigError(str(error) if named else f"{origin.label}: {error}") from error
        except Exception as error:
            raise PluginError(f"{origin} cannot be made: {_cause(error)}") from error
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
        self, name: str, origin: Origin, known: Mapping[str, Setting], given: Mapping[str, object] | None
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
        return check(origin.label, known, {filled: member, **given} if member and filled else given, example)

    def _row(self, origin: Origin, offers: list[Origin]) -> PluginRow:
        description, status, settings = "", "ok", dict[str, Any]()
        try:
            target, known = _load(_only(offers))
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

    def _scan(self) -> _Scan:
        """The entry points, read again when the path or one of its folders has changed (a scan takes milliseconds)."""
        folders = [Path(entry).absolute() for entry in sys.path if isinstance(entry, str)]
        key = [(folder, folder.stat().st_mtime_ns) for folder in folders if folder.exists()]
        if self._scanned is None or self._scanned[0] != key:
            self._scanned = key, _scan(self.kind)
        return self._scanned[1]


losses, spaces, generators = Registry("losses"), Registry("spaces"), Registry("generators")
architectures, datasets, presets = Registry("architectures"), Registry("datasets"), Registry("presets")
REGISTRIES: Mapping[str, Registry] = {
    registry.kind: registry for registry in (losses, spaces, generators, architectures, datasets, presets)
}


def _scan(kind: str) -> _Scan:
    """Read the entry points of a kind. Imports nothing."""
    offers: dict[str, list[Origin]] = {}
    faults, group = [], f"ddbench.{kind}"
    for distribution, version, found in _distributions(group):
        if isinstance(found, Exception):
            status = f"the entry points of {distribution} {version} cannot be read: {_cause(found)}"
            faults.append(PluginRow(kind, "?", distribution, version, "", status))
            continue
        for name, spec in found.items(group, raw=True) if group in found else ():
            try:
                entry = entrypoints.EntryPoint.from_string(spec, name)
                if not entry.object_name:
                    raise entrypoints.BadEntryPoint(spec)
            except entrypoints.BadEntryPoint:
                line = f"{name} = {spec}"
                status = f"{NOUNS[kind]} '{name}' of {distribution} {version} cannot be read: its entry point {line!r} "
                status += "is not of the form 'name = module:object'."
                faults.append(PluginRow(kind, name, distribution, version, "", status))
            else:
                target = f"{entry.module_name}:{entry.object_name}"
                offers.setdefault(name, []).append(Origin(kind, name, target, distribution, version))
    return _Scan(offers, faults)


def _distributions(group: str) -> Iterator[tuple[str, str, configparser.ConfigParser | Exception]]:
    """Name, version and entry points, or why they cannot be read, of each distribution whose file mentions the group.
    Of a distribution found twice on the path the first counts, as it does for `import`."""
    seen = set()
    for folder in dict.fromkeys(entry for entry in sys.path if isinstance(entry, str)):
        for distro, found in _read(folder, group):
            name = re.sub(r"[-_.]+", "-", distro.name).lower()
            if name not in seen and found is not None:
                yield name, _version(distro), found
            seen.add(name)


def _read(folder: str, group: str) -> Iterator[tuple[Any, configparser.ConfigParser | Exception | None]]:
    """The distributions in a folder of the path, and their entry points; `entrypoints` reads eggs and zip files."""
    if Path(folder).is_dir() and not folder.endswith(".egg"):
        for suffix in ("dist-info", "egg-info"):
            for info in sorted(Path(folder).glob(f"*.{suffix}")):
                if not info.name.startswith("~"):  # left behind by an interrupted pip
                    distro = entrypoints.Distribution.from_name_version(info.stem)
                    yield distro, _parse(info / "entry_points.txt", group)
        return
    try:
        yield from [(distro, parser) for parser, distro in entrypoints.iter_files_distros([folder])]
    except (OSError, ValueError, configparser.Error, zipfile.BadZipFile) as error:
        yield entrypoints.Distribution.from_name_version(Path(folder).stem), error


def _parse(path: Path, group: str) -> configparser.ConfigParser | Exception | None:
    """The entry points in a file, or why it cannot be read; None where there is no file or it has none of the group."""
    try:
        content = path.read_bytes()
        if group.encode() not in content:
            return None
        parser = entrypoints.CaseSensitiveConfigParser(delimiters=("=",))
        parser.read_string(content.decode(), source=str(path))
        return parser
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, configparser.Error) as error:  # ValueError: not UTF-8
        return error


def _version(distro: Any) -> str:
    """The version in the folder's name, else (setuptools' egg-info of a checkout) in its metadata."""
    if distro.version:
        return distro.version.partition("-")[0]  # 1.0-py3.11
    try:
        return metadata.version(distro.name) or "unknown"
    except metadata.PackageNotFoundError:
        return "unknown"


def _only(offers: list[Origin]) -> Origin:
    """The one offer of a name."""
    if len(offers) > 1:
        ordered = sorted(offers, key=lambda origin: origin.distribution)
        owners = [f"{origin.distribution} ({origin.target.partition(':')[0]})" for origin in ordered]
        times = "twice" if len(offers) == 2 else f"{len(offers)} times"
        by = f"{', '.join(owners[:-1])} and {owners[-1]}"
        raise PluginError(f"{offers[0].label} is offered {times}: by {by}. Uninstall one or rename it.")
    return offers[0]


def _load(origin: Origin) -> tuple[Any, dict[str, Setting]]:
    """What the entry point names, a frozen dataclass or a function that makes one, and its settings."""
    try:
        target = entrypoints.EntryPoint.from_string(origin.target, origin.name).load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{origin} cannot be imported: {_cause(error)}") from error
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
        raise PluginError(f"the settings of {origin} cannot be read: {_cause(error)}") from error


def _base(kind: str) -> type[Any]:
    from ddbench.api import PLUGIN_TYPES  # imports torch

    return PLUGIN_TYPES[kind]


def _is_frozen(kind: type[Any]) -> bool:
    return dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _refusal(origin: Origin, found: Any) -> str:
    noun = "class" if isinstance(found, type) else "function" if inspect.isroutine(found) else None
    got = f"<{noun} {found.__name__}>" if noun else shown(found)
    return f"{origin} must be a frozen dataclass deriving from {_base(origin.kind).__name__}, got {got}."


def _cause(error: BaseException) -> str:
    """An exception as the end of a sentence."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text.rstrip('.')}."
