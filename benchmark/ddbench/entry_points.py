"""Entry points as they are installed, in the groups `ddbench.<kind>`; reading them imports no plugin.

`entrypoints.get_group_all` only warns of a malformed line, and `iter_files_distros` stops at a file it cannot parse and
loses the rest of the folder; so folders are read here, one distribution at a time, with the parsers of that package.
"""

from __future__ import annotations

import configparser
import dataclasses
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import entrypoints

from ddbench.errors import PluginError

NOUNS: Mapping[str, str] = {
    "losses": "loss",
    "spaces": "space",
    "generators": "generator",
    "architectures": "architecture",
    "proxies": "proxy",
    "rankers": "ranker",
    "datasets": "dataset",
    "baselines": "baseline",
    "presets": "preset",
    "protocols": "protocol",
    "executors": "executor",
    "assets": "asset",
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
class Scan:
    """What the entry points of one kind say."""

    offers: dict[str, list[Origin]]  # by name
    faults: list[PluginRow]  # one for each line or file that cannot be read


def scan(kind: str) -> Scan:
    """Read the entry points of a kind. Imports nothing."""
    offers: dict[str, list[Origin]] = {}
    faults, group = [], f"ddbench.{kind}"
    for distribution, version, found in _distributions(group):
        if isinstance(found, Exception):
            status = f"the entry points of {distribution} {version} cannot be read: {cause_of(found)}"
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
    return Scan(offers, faults)


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


def twice() -> list[str]:
    """A sentence for each distribution with plugins that lies on the path several times, such as beside a stale egg-info: the
    first one counts."""
    places: dict[str, list[tuple[str, str, bool]]] = {}
    for folder in dict.fromkeys(str(Path(entry).absolute()) for entry in sys.path if isinstance(entry, str)):
        for distro, found in _read(folder, "ddbench."):
            name = re.sub(r"[-_.]+", "-", distro.name).lower()
            places.setdefault(name, []).append((_version(distro), folder, found is not None))
    told = []
    for name, each in places.items():
        if len(each) > 1 and any(offers for *_, offers in each):
            (version, folder, _), *others = each
            rest = "; ".join(f"{other} in {where} does not" for other, where, _ in others)
            told.append(f"{name} is found {_times(len(each))}: {version} in {folder} counts, {rest}. Uninstall what is stale.")
    return told


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"


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


def the_only(offers: list[Origin]) -> Origin:
    """The one offer of a name."""
    if len(offers) > 1:
        ordered = sorted(offers, key=lambda origin: origin.distribution)
        owners = [f"{origin.distribution} ({origin.target.partition(':')[0]})" for origin in ordered]
        times = _times(len(offers))
        by = f"{', '.join(owners[:-1])} and {owners[-1]}"
        raise PluginError(f"{offers[0].label} is offered {times}: by {by}. Uninstall one or rename it.")
    return offers[0]


def cause_of(error: BaseException) -> str:
    """An exception as the end of a sentence."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text.rstrip('.')}."
