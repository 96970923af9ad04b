"""What a plugin is: the part of it that decides numbers, in JSON, for keys; and a hash of its source, for records.

Two ways of writing the same plugin have the same identity: `glad(layer=4)` and `layered(first=4, last=4)` make equal objects.
It holds the settings that differ from their defaults and `numerics`, so that a new setting changes no key, and a changed
default changes the key only of those who raise `numerics`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from ddbench import registry
from ddbench.files import canonical
from ddbench.settings import REQUIRED, as_json, plugin_kind

MAX_SOURCE_FILES = 2_000
OURS = ("ddbench", "ddbench_plugins")


class NoIdentityError(Exception):
    """A value that JSON cannot tell apart from others: a lambda, a closure, a tensor."""


def identity_of(plugin: Any) -> dict[str, Any]:
    """What decides the numbers of a dataclass: its class, `numerics`, and the fields that differ from their defaults.

    A class that an entry point names is called by that name, so that it may move to another module. Raises NoIdentityError.
    """
    return _named(plugin) | {"numerics": _numerics(plugin), "settings": fields_of(plugin, all_of_them=False)}


def fields_of(plugin: Any, all_of_them: bool = True) -> dict[str, Any]:
    """The fields of a dataclass as JSON; or only those that differ from their defaults. Raises NoIdentityError."""
    values = {}
    for field in dataclasses.fields(plugin):
        value = getattr(plugin, field.name)
        default = field.default if field.default_factory is REQUIRED else field.default_factory()
        if field.init and (all_of_them or default is REQUIRED or not _equal(value, default)):
            values[field.name] = encode(value)
    return values


def _equal(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def encode(value: Any) -> Any:
    """A value as JSON, so that values that act differently differ. Raises NoIdentityError."""
    if hasattr(value, "what") and isinstance(value.what, Mapping):  # a PluginRef
        return value.what
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return identity_of(value)
    if isinstance(value, functools.partial):
        return {"call": encode(value.func), "arguments": encode(list(value.args)), "settings": encode(value.keywords)}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, type) or inspect.isroutine(value):
        name = f"{value.__module__}:{value.__qualname__}"
        if "<" in name:
            raise NoIdentityError(name)
        return {"code": name}
    try:
        return as_json(value)
    except ValueError as error:
        raise NoIdentityError(repr(type(value))) from error


def _named(plugin: Any) -> dict[str, Any]:
    kind, owner = plugin_kind(type(plugin)), type(plugin)
    offered = registry.REGISTRIES[kind].offered(owner) if kind else None
    if offered:
        return {"plugin": offered.name, "from": offered.distribution}
    return {"type": f"{owner.__module__}:{owner.__qualname__}"}


def _numerics(plugin: Any) -> int:
    return int(getattr(plugin, "numerics", 1))


@dataclasses.dataclass(frozen=True)
class Described:
    """A plugin by name and settings, and what it resolves to."""

    settings: dict[str, Any]  # all of them, as a user writes them
    what: dict[str, Any]  # its identity
    resolved: dict[str, Any]  # every field of what was made
    distributions: tuple[str, ...]  # of it and of the plugins that are settings of it
    label: str


def describe(kind: str, name: str, given: Mapping[str, Any]) -> Described:
    """Look a plugin up, check its settings, make it, and say what it is. Raises ConfigError or PluginError."""
    source = registry.REGISTRIES[kind]
    settings, origin = source.resolve(name, given), source.origin(name)
    member, known, plain = source.member(name), source.known(name), source.settings(origin.name)
    written = f"{origin.name}/{settings[member]}" if member else origin.name
    defaults = plain | ({member: settings[member]} if member else {})
    changed = {key: value for key, value in settings.items() if value != defaults.get(key)}
    told = [f"{key}={_shown(value, known[key].annotation)}" for key, value in changed.items()]
    label = f"{written}({', '.join(told)})" if told else written
    parts = {part.distribution for part, _ in parts_of(kind, origin.name, settings)}
    named = {"plugin": origin.name, "from": origin.distribution}
    own = {key: value for key, value in settings.items() if value != plain.get(key)}
    plugin = source.make(origin.name, settings)
    if kind == "architectures":  # a factory's: its object holds code
        facts = {"numerics": plugin.numerics, "lr": float(plugin.lr), "software": list(plugin.software)}
        what, resolved = named | {"settings": own} | facts, settings | facts
    else:
        try:
            what, resolved = identity_of(plugin), {"type": _named(plugin), **fields_of(plugin)}
        except NoIdentityError:  # a stranger's, known by how it is written alone
            what, resolved = named | {"settings": own, "numerics": _numerics(plugin)}, dict(settings)
    return Described(settings, what, resolved, tuple(sorted(parts)), label)


def _shown(value: Any, annotation: Any) -> str:
    """A setting as labels show it; a plugin as its own label."""
    kind = _kind_in(annotation)
    if kind and isinstance(value, Mapping) and "name" in value:
        return describe(kind, value["name"], {key: item for key, item in value.items() if key != "name"}).label
    return value if isinstance(value, str) else canonical(value)


def parts_of(kind: str, name: str, settings: Mapping[str, Any]) -> Iterator[tuple[registry.Origin, Any]]:
    """A plugin and those that are settings of it, at any depth: where each comes from, and its class or factory."""
    source = registry.REGISTRIES[kind]
    yield source.origin(name), source.target(name)
    for key, setting in source.known(name).items():
        value = settings.get(key)
        for inner in value if isinstance(value, list | tuple) else [value]:
            if isinstance(inner, Mapping) and (inner_kind := _kind_in(setting.annotation)) and "name" in inner:
                rest = {key: item for key, item in inner.items() if key != "name"}
                yield from parts_of(inner_kind, inner["name"], rest)


def _kind_in(annotation: Any) -> str | None:
    """The kind of plugin that an annotation holds, at any depth."""
    found = (plugin_kind(annotation), *map(_kind_in, get_args(annotation)))
    return next((kind for kind in found if kind), None)


# ---------------------------------------------------------------- source


def sources_of(kind: str, name: str, settings: Mapping[str, Any], digest: Callable[[Path], str]) -> dict[str, str]:
    """By `kind name`, the SHA-256 of the source of a plugin and of those that are settings of it: the module, and, for a
    package of a distribution of its own, all Python files of that package. `digest` hashes a file, and may remember."""
    return {origin.label: _source_hash(target, digest) for origin, target in parts_of(kind, name, settings)}


def _source_hash(target: Any, digest: Callable[[Path], str]) -> str:
    module = sys.modules.get(target.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return ""
    paths = [Path(file)]
    top = target.__module__.partition(".")[0]
    package = getattr(sys.modules.get(top), "__path__", None)
    if top not in OURS and package:
        paths = sorted(path for folder in package for path in Path(folder).rglob("*.py"))[:MAX_SOURCE_FILES]
    sha = hashlib.sha256()
    for path in paths:
        if path.is_file():
            sha.update(f"{path.name}\0{digest(path)}\0".encode())
    return sha.hexdigest()
