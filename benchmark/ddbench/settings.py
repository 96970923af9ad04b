"""Settings: what a plugin takes, read off its annotations, and whether the values that a user wrote fit.

The settings of a dataclass are its fields, those of a factory function its parameters. Values come from TOML or JSON:
lists become tuples, integers floats and text paths where annotations ask for them; `as_json` is the way back. A setting may
be a plugin itself (`inner: Space`): users write its name, or a table of its name and settings. Integers have an upper bound,
for most are sizes, and one that nobody can mean would only show when memory is gone.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from ddbench.errors import BenchError, ConfigError, Faults, did_you_mean

REQUIRED: Final = dataclasses.MISSING
"""Stands where a default would, for a setting without one."""

MOST: Final = 1_000_000
"""The most that an integer setting may be, or the integers in it, where its annotation says no other by `api.AtMost`."""

_LISTS = (tuple, list, Sequence, frozenset)
_WANTED = {bool: "true or false", int: "an integer", float: "a number", str: "text", NoneType: "none"}
_PLURALS = {bool: "booleans", int: "integers", float: "numbers", str: "texts"}
_NOUNS = {bool: "boolean", int: "integer", float: "number", str: "text", list | tuple: "list", Mapping: "table"}


Nested = Callable[[str, str, Mapping[str, Any]], Any]
"""(kind, name, settings) -> what stands for a plugin that is a setting of another."""


@dataclass(frozen=True)
class Setting:
    """One setting of a plugin."""

    annotation: Any  # Any where there is none: takes everything
    default: Any = REQUIRED
    most: int = MOST  # of integers


def settings_of(target: Any) -> dict[str, Setting]:
    """The settings of a dataclass or a function, in order; ValueError where a default does not fit its annotation."""
    hints, marked = get_type_hints(target), get_type_hints(target, include_extras=True)
    if isinstance(target, type):
        defaults = {field.name: _default(field) for field in dataclasses.fields(target) if field.init}
    else:
        parameters = inspect.signature(target).parameters.values()
        named = [item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
        defaults = {item.name: REQUIRED if item.default is item.empty else item.default for item in named}
    settings = {}
    for name, default in defaults.items():
        wanted, most = hints.get(name, Any), min(_bounds(marked.get(name)), default=MOST)
        try:
            settings[name] = Setting(wanted, default if default is REQUIRED else convert(default, wanted), most)
        except ValueError:
            raise ValueError(f"the default of '{name}' must be {_words(wanted)}, and is {shown(default)}") from None
        if _largest(default) > most:
            raise ValueError(f"the default of '{name}' must be at most {most}, unless AtMost says more, and is {shown(default)}")
    return settings


def member_of(known: Mapping[str, Setting]) -> str | None:
    """The setting that the second half of a name `family/member` fills: the one required setting, where that is text."""
    required = [name for name, setting in known.items() if setting.default is REQUIRED]
    return required[0] if len(required) == 1 and known[required[0]].annotation is str else None


def check(
    owner: str, known: Mapping[str, Setting], given: Mapping[str, object], example: str = "", nested: Nested | None = None
) -> dict[str, Any]:
    """The given settings as their annotations ask. `owner` begins each message, as in `loss 'dm'`; `example` shows how to
    write one that lacks a required setting; `nested` makes a setting that is a plugin.

    Raises: ConfigError if one is unknown, missing or of another type; `Faults`, a ConfigError too, if several are.
    """
    faults, checked = [], {}
    takes = f"It takes: {', '.join(known)}." if known else "It takes none."
    for name, value in given.items():
        if name not in known:
            faults.append(f"{owner} has no setting '{name}'.{did_you_mean(name, known)} {takes}")
            continue
        wanted = known[name].annotation
        try:
            checked[name] = convert(value, wanted, nested)
        except ValueError:
            fault = f"{owner}: setting '{name}' must be {_words(wanted)}, got {shown(value)}."
            faults.append(fault + _nearest(value, wanted))
            continue
        if _largest(checked[name]) > known[name].most:
            faults.append(f"{owner}: setting '{name}' must be at most {known[name].most}, got {shown(value)}.")
    missing = [name for name, setting in known.items() if setting.default is REQUIRED and name not in given]
    faults += [f"{owner} needs setting '{name}', which has no default. {example}{takes}" for name in missing]
    if faults:
        raise Faults(faults) if len(faults) > 1 else ConfigError(faults[0])
    return checked


def convert(value: Any, wanted: Any, nested: Nested | None = None) -> Any:
    """The value as the annotation `wanted` asks; ValueError where it does not fit. `nested` makes a setting that is a plugin,
    and may raise what making that raises.

    Annotations of what TOML cannot say (callables, type variables) are not looked at.
    """
    base, args = get_origin(wanted) or wanted, get_args(wanted)
    if base is Any:
        return value
    if nested and (kind := plugin_kind(base)) and (table := _nested_table(value)):
        return nested(kind, table["name"], {key: item for key, item in table.items() if key != "name"})
    if base in (Union, UnionType):
        for alternative in args:
            with suppress(ValueError):
                return convert(value, alternative, nested)
    elif base is Literal:
        if any(type(choice) is type(value) and choice == value for choice in args):  # True == 1
            return value
    elif base in _LISTS:
        if isinstance(value, list | tuple | frozenset):
            items = [convert(item, kind, nested) for item, kind in zip(value, _item_kinds(base, args, len(value)), strict=True)]
            return base(items) if base in (list, frozenset) else tuple(items)
    elif base in (dict, Mapping):
        if isinstance(value, Mapping):
            of_keys, of_values = args or (Any, Any)
            return {convert(key, of_keys): convert(item, of_values, nested) for key, item in value.items()}
    elif base is float and type(value) is int:
        return float(value)
    elif base is Path and isinstance(value, str):
        return Path(value)
    elif base is int and isinstance(value, bool):
        raise ValueError
    elif args or not isinstance(base, type) or isinstance(value, base):
        return value
    raise ValueError


def plugin_kind(wanted: Any) -> str | None:
    """The kind of plugin that an annotation asks for; None where it asks for something else."""
    return getattr(wanted, "plugin_kind", None) if isinstance(wanted, type) else None


def _nested_table(value: Any) -> dict[str, Any] | None:
    """A plugin as users write it: a name, or a table with one."""
    table = {"name": value} if isinstance(value, str) else value
    return dict(table) if isinstance(table, Mapping) and isinstance(table.get("name"), str) else None


def in_json(values: Mapping[str, object], owner: str, kind: type[BenchError]) -> dict[str, Any]:
    """Settings as JSON holds them; raises `kind`, which says whether author or user has to act, where it cannot."""
    for name, value in values.items():
        try:
            as_json(value)
        except ValueError as error:
            fault = f"{owner}: setting '{name}' must be something that JSON can hold, got {shown(value)}."
            raise kind(fault) from error
    return as_json(values)


def as_json(value: Any) -> Any:
    """The value as JSON gives it back; ValueError where JSON cannot hold it."""
    if value is None or isinstance(value, int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, frozenset) and all(isinstance(item, str) for item in value):
        return sorted(value)
    raise ValueError


def shown(value: object) -> str:
    """A value as messages quote it: `'abc' (text)`."""
    if value is None:
        return "none"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    for kind, noun in _NOUNS.items():
        if isinstance(value, kind):
            return f"{text if len(text) <= 60 else text[:57] + '...'} ({noun})"
    return f"<{type(value).__name__} object>"


def _bounds(annotation: Any) -> list[int]:
    """What the marks `AtMost` in an annotation say, at any depth."""
    from ddbench.api import AtMost  # imports torch, as the plugin has

    marks = annotation.__metadata__ if get_origin(annotation) is Annotated else ()
    own = [mark.most for mark in marks if isinstance(mark, AtMost)]
    return own + [most for inner in get_args(annotation) if not isinstance(inner, AtMost) for most in _bounds(inner)]


def _largest(value: Any) -> int:
    """The largest integer of a setting's value, at least 0; plugins that are settings of others have been looked at."""
    if isinstance(value, list | tuple | dict):
        return max(map(_largest, value.values() if isinstance(value, dict) else value), default=0)
    return max(value, 0) if type(value) is int else 0


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is REQUIRED else field.default_factory()


def _item_kinds(base: Any, args: tuple[Any, ...], num: int) -> tuple[Any, ...]:
    """The annotations of a list's items, one each; as many as there are arguments for tuple[int, int]."""
    if base is tuple and args and args[-1] is not Ellipsis:
        return args
    return (args[0] if args else Any,) * num


def _words(wanted: Any) -> str:
    """What an annotation asks for, in words."""
    base, args = get_origin(wanted) or wanted, get_args(wanted)
    if base in (Union, UnionType):
        return " or ".join(_words(alternative) for alternative in args)
    if base is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if base in _LISTS:
        kinds = set(_item_kinds(base, args, 1))
        num = f"{len(args)} " if base is tuple and args and args[-1] is not Ellipsis else ""
        only = kinds.pop() if len(kinds) == 1 else Any
        if get_origin(only) is Literal:
            return f"a list of {num}words among {', '.join(map(repr, get_args(only)))}"
        return f"a list of {num}{_PLURALS.get(only, 'values')}"
    if base in (dict, Mapping):
        return f"a table of {_PLURALS.get(args[-1], 'values') if args else 'values'}"
    if kind := plugin_kind(base):
        return f"the name of one of the {kind}, or a table with it"
    return _WANTED.get(base, f"of type {getattr(base, '__name__', base)}")


def _nearest(value: object, wanted: Any) -> str:
    """A guess which of the choices was meant."""
    if get_origin(wanted) is not Literal or not isinstance(value, str):
        return ""
    return did_you_mean(value, [choice for choice in get_args(wanted) if isinstance(choice, str)])
