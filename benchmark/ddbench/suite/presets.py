"""Presets: settings that papers publish, by where a cell lies; long because families are read, checked and used in one place.

It also says what a `set` table may hold.

A family of presets is a plugin of the kind `presets`: one TOML text.

    schema = 1
    description = "what these settings are"

    [[preset]]
    where = { loss = ["dc", "dsa"], space = "pixel", subset = "cifar10", side = 32, ipc = [1, 10] }
    set = { steps = 1000, rates = { pixels = 0.1 }, loss = { batch_real = 256 } }
    unknown = { "rates.labels" = "why nobody can look it up" }
    source = "paper and section, or public repository and commit; and how certain it is"
    protocol = "lineage-1"
    note = "what a reader must know besides"
    marks = { "space.layer" = "what a reader of every record and board must know of that value" }

`where` names places as suites do, each by a value or a list; a key left out fits all. `side` is that of the images, in
pixels. `set` is what a suite's [[override]] takes. A suite must give every value of `unknown` itself. `protocol`, the one that
the published numbers were judged by, is only shown. A sentence of `marks` goes into the record of each set that a suite makes
with that value of the entry, and so beside its row; it stands in no key. No two entries of a family fit the same place.

A suite that names families takes for each distilled cell the `set` of the one entry that fits, and whatever it says itself
(in the tables of its lists, in [distill], in overrides) goes on top. The plan holds the values and not where they are from.
`steps`, of every stage, `stage_steps`, of each, and `total_steps`, shared out over them, exclude one another: the one on top
counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from ddbench import registry
from ddbench.errors import BenchError, ConfigError, Faults, PluginError, did_you_mean
from ddbench.files import parse_toml

PRESET_SCHEMA = 1
MAX_CHARS = 1 << 20
MAX_ENTRIES = 1000
MAX_TOLD = 20  # faults of a family, or places that it has
PLACES = ("loss", "space", "subset", "side", "ipc")
_TOP = ("schema", "description", "preset")
_ENTRY = {"where": dict, "set": dict, "unknown": dict, "source": str, "protocol": str, "note": str, "marks": dict}

NUMBERS: Mapping[str, type] = {
    "steps": int, "total_steps": int, "momentum": float, "rank_every": int, "rank_epochs": int, "rank_repeats": int,
    "proxy_epochs": int, "chunk": int,
}  # fmt: skip
LENGTHS = ("steps", "stage_steps", "total_steps")
"""The ways to say how long a distillation is; of two that are given in two places, the one on top counts."""
WORDS = ("labels", "proxy_layer", "proxy_gradient", "optimizer", "schedule")
ROLES = {"loss": "losses", "space": "spaces", "generator": "generators"}
TABLES = ("rates", *ROLES)
PLUGINS = ("proxy", "rank_steps", "rank_stages")
"""Each a plugin by name, or a table with its name: one on top displaces the other."""
SETTABLE: Mapping[str, type] = {
    **NUMBERS, **dict.fromkeys(WORDS, str), **dict.fromkeys(TABLES, dict), **dict.fromkeys(PLUGINS, dict), "stage_steps": list,
}  # fmt: skip
"""What a `set` table takes, and of which type."""


def misfit(value: Any, kind: type, where: str) -> str:
    """A sentence where the value is not of the type; a whole number is a number too."""
    if type(value) is kind or (kind is float and type(value) is int):
        return ""
    wanted = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a table"}[kind]
    return f"{where} must be {wanted}, got {value!r}."


def displaced(values: Collection[str]) -> set[str]:
    """The ways to say how long that do not count any more where these names are given."""
    given = {name for name in LENGTHS if name in values}
    return set(LENGTHS) - given if given else set()


def merge(values: dict[str, Any], new: Mapping[str, Any], where: str) -> list[str]:
    """Put a `set` table on top of `values`, tables merged but for those of plugins that may be a name; a sentence for each key of
    it that does not fit."""
    faults = []
    if len(lengths := [f"'{name}'" for name in LENGTHS if name in new]) > 1:
        told = "'steps', of every stage, 'stage_steps', of each, or 'total_steps', shared out over the stages"
        faults.append(f"{where} has {' and '.join(lengths)}: give one of {told}.")
    for key, given in new.items():
        kind = str if key in PLUGINS and isinstance(given, str) else SETTABLE.get(key)
        if kind is None:
            faults.append(f"{where} has no key '{key}'.{did_you_mean(key, SETTABLE)} It takes: {', '.join(SETTABLE)}.")
        elif fault := misfit(given, kind, f"{where}: '{key}'"):
            faults.append(fault.replace("a table", "a name or a table with it") if key in PLUGINS else fault)
        elif key == "stage_steps" and not (given and all(type(steps) is int for steps in given)):
            faults.append(f"{where}: 'stage_steps' must be a list of whole numbers, one for each stage, got {given!r}.")
        else:
            for name in displaced(new):
                values.pop(name, None)
            values[key] = values.get(key, {}) | given if key in TABLES else kind(given)
    return faults


@dataclass(frozen=True)
class Preset:
    """Settings for some places of a grid."""

    family: str
    number: int  # in its family, from 1
    where: Mapping[str, tuple[str, ...]]  # the values of each key that fit
    set: Mapping[str, Any]
    source: str
    unknown: Mapping[str, str] = field(default_factory=dict)  # "rates.pixels" -> why
    protocol: str = ""
    note: str = ""
    marks: Mapping[str, str] = field(default_factory=dict)  # "space.layer" -> what to know of that value

    def misses(self, place: Mapping[str, str]) -> int:
        """How many keys of the place do not fit; 0: the entry is for it."""
        return sum(place[key] not in values for key, values in self.where.items())

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)


@dataclass(frozen=True)
class Family:
    """The entries of one plugin."""

    name: str
    description: str
    entries: tuple[Preset, ...]


def load(name: str) -> Family:
    """A family by name. Raises ConfigError for an unknown one, PluginError for one that is damaged."""
    made = registry.presets.make(name)
    return read(str(registry.presets.origin(name)), name, made.text)


# ---------------------------------------------------------------- reading a family


def read(label: str, name: str, text: str) -> Family:
    """A family from its TOML; `label` begins the message. Raises PluginError with every fault of it."""
    raw, faults, entries = _parsed(label, text), list[str](), list[Preset]()
    faults += [f"it has no key '{key}'.{did_you_mean(key, _TOP)} It takes: {', '.join(_TOP)}." for key in raw if key not in _TOP]
    if type(raw.get("schema")) is not int or raw["schema"] != PRESET_SCHEMA:
        faults.append(f"it must say schema = {PRESET_SCHEMA}; got {raw.get('schema')!r}. Update ddbench if it is newer.")
    description, listed = raw.get("description", ""), raw.get("preset", [])
    faults += filter(None, [misfit(description, str, "'description'"), misfit(listed, list, "'preset'")])
    if listed == [] or (isinstance(listed, list) and len(listed) > MAX_ENTRIES):
        faults.append(f"it must hold 1 to {MAX_ENTRIES} entries [[preset]], got {len(listed)}.")
    elif isinstance(listed, list):
        for number, entry in enumerate(listed, start=1):
            found = list(_faults_of(entry))
            faults += [f"entry {number}: {fault}" for fault in found]
            if not found:
                entries.append(_entry(name, number, entry))
        faults += _overlaps(entries)
    if faults:
        more = f" And {len(faults) - MAX_TOLD} more." if len(faults) > MAX_TOLD else ""
        raise PluginError(f"{label} is damaged: {' '.join(faults[:MAX_TOLD])}{more}")
    return Family(name, description, tuple(entries))


def _parsed(label: str, text: Any) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > MAX_CHARS:
        raise PluginError(f"{label} must be a text of at most {MAX_CHARS} characters.")
    try:
        return parse_toml(text)
    except ValueError as error:
        raise PluginError(f"{label} is not valid TOML: {' '.join(str(error).split())}.") from error


def _entry(family: str, number: int, raw: Mapping[str, Any]) -> Preset:
    where = {key: value if isinstance(value, list) else [value] for key, value in raw["where"].items()}
    values: dict[str, Any] = {}
    merge(values, raw["set"], "")
    rest = {key: raw[key] for key in ("unknown", "protocol", "note", "marks") if key in raw}
    return Preset(family, number, {key: tuple(map(str, these)) for key, these in where.items()}, values, raw["source"], **rest)


def _faults_of(entry: Any) -> Iterator[str]:
    """What is wrong with an entry, a sentence each."""
    if fault := misfit(entry, dict, "it"):
        yield fault
        return
    for key, value in entry.items():
        if key not in _ENTRY:
            yield f"it has no key '{key}'.{did_you_mean(key, _ENTRY)} It takes: {', '.join(_ENTRY)}."
        elif fault := misfit(value, _ENTRY[key], f"'{key}'"):
            yield fault
    for key in ("where", "set", "source"):
        if not entry.get(key) and (key != "set" or key not in entry):
            yield f"it needs '{key}'."
    where, values, unknown, marks = (_table(entry.get(key)) for key in ("where", "set", "unknown", "marks"))
    yield from _faults_of_where(where)
    yield from merge({}, values, "'set'")
    rates, named = _table(values.get("rates")), [role for role in ROLES if "name" in _table(values.get(role))]
    yield from filter(None, (misfit(rate, float, f"'set': rate '{name}'") for name, rate in rates.items()))
    yield from (f"'set': '{role}' holds settings of a plugin, not its name." for role in named)
    yield from _faults_of_unknown(unknown, values)
    for path, what in marks.items():
        if not isinstance(what, str) or not what:
            yield f"'marks': '{path}' must say what to know, got {what!r}."
        if not _has(values, path):
            yield f"'marks': '{path}' does not stand in 'set'."


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _faults_of_where(where: Mapping[str, Any]) -> Iterator[str]:
    for key, given in where.items():
        if key not in PLACES:
            yield f"'where' has no key '{key}'.{did_you_mean(key, PLACES)} It takes: {', '.join(PLACES)}."
            continue
        kind = int if key in ("side", "ipc") else str
        these = given if isinstance(given, list) else [given]
        if not these:
            yield f"'where': '{key}' is an empty list, which fits nothing: leave the key out to fit all."
        yield from filter(None, (misfit(value, kind, f"'where': '{key}'") for value in these))


def _faults_of_unknown(unknown: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    for path, why in unknown.items():
        table, dot, name = path.partition(".")
        known = table in TABLES and bool(name) if dot else path in SETTABLE and path not in TABLES
        if not known:
            yield f"'unknown': '{path}' is no setting; write steps, rates.pixels, loss.batch_real or the like."
        elif _has(values, path):
            yield f"'unknown': '{path}' stands in 'set' as well."
        if not isinstance(why, str) or not why:
            yield f"'unknown': '{path}' must say why, got {why!r}."


def _overlaps(entries: Sequence[Preset]) -> Iterator[str]:
    """Two entries for the same place."""
    for one, other in combinations(entries, 2):
        shared = one.where.keys() & other.where.keys()
        if all(set(one.where[key]) & set(other.where[key]) for key in shared):
            yield f"entries {one.number} and {other.number} fit the same place ({told(one.where)})."


# ---------------------------------------------------------------- using families


def told(where: Mapping[str, str | Sequence[str]]) -> str:
    """A place, or what fits: `loss dm, space pixel, ipc 1 or 10`."""
    values = {key: [value] if isinstance(value, str) else list(value) for key, value in where.items()}
    return ", ".join(f"{key} {' or '.join(values[key])}" for key in PLACES if values.get(key)) or "everything"


def choose(families: Sequence[Family], place: Mapping[str, str]) -> Preset:
    """The one entry for a place. Raises ConfigError, with the nearest places, where there is none, or one of each of two."""
    entries = [entry for family in families for entry in family.entries]
    found = [entry for entry in entries if not entry.misses(place)]
    if len(found) == 1:
        return found[0]
    names = " and ".join(f"'{entry.family}'" for entry in found) or " or ".join(f"'{family.name}'" for family in families)
    if found:
        raise ConfigError(f"presets {names} each have settings for {told(place)}: name one of them.")
    loss, start = place["loss"], f"preset {names} has nothing for {told(place)}."
    losses = dict.fromkeys(value for entry in entries for value in entry.where.get("loss", (loss,)))
    if loss not in losses:
        raise ConfigError(f"{start}{did_you_mean(loss, losses)} It has losses: {', '.join(losses)}.")
    same = [entry for entry in entries if loss in entry.where.get("loss", (loss,))]
    least = min(entry.misses(place) for entry in same)
    nearest = [{**entry.where, "loss": ()} for entry in same if entry.misses(place) == least]
    more = f"; and {len(nearest) - MAX_TOLD} more" if len(nearest) > MAX_TOLD else ""
    raise ConfigError(f"{start} Nearest for loss {loss}: {'; '.join(map(told, nearest[:MAX_TOLD]))}{more}.")


def under(
    entry: Preset, place: Mapping[str, str], listed: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values of a cell with those of its preset's entry below them, and the entry's marks of values that it takes from there.

    `listed`: for each role, the name or table that stands in the suite's list; its settings beat the preset's. `values`:
    what [distill] and overrides say; they beat both.
    Raises: Faults for unknown values that the suite does not give; PluginError for settings that
    the plugin of the place does not take.
    """
    written = {table: _table(listed.get(table)) for table in TABLES}
    given = {**values, **{table: written[table] | values.get(table, {}) for table in TABLES}}
    if missing := [_question(entry, path, place) for path in entry.unknown if not _has(given, path)]:
        raise Faults(missing)
    merged = {key: value for key, value in entry.set.items() if key not in displaced(values)} | dict(values)
    for table in TABLES:
        own = {key: value for key, value in entry.set.get(table, {}).items() if key not in written[table]}
        if table in ROLES and own:
            _check_plugin(entry, ROLES[table], listed.get(table), own)
        merged[table] = own | values.get(table, {})
    marks = [f"{path} is from preset '{entry.family}': {what}" for path, what in entry.marks.items() if not _has(given, path)]
    return merged, tuple(marks)


def _has(values: Mapping[str, Any], path: str) -> bool:
    """Whether there is a value at `steps` or `rates.pixels`; every way to say how long is one of `steps`."""
    table, dot, name = path.partition(".")
    return name in _table(values.get(table)) if dot else bool(values.keys() & (LENGTHS if table in LENGTHS else {table}))


def _question(entry: Preset, path: str, place: Mapping[str, str]) -> str:
    """What a suite is told that must give a value."""
    table, dot, name = path.partition(".")
    example = f"{table} = {{ {name} = ... }}" if dot else f"{table} = ..."
    told_why = (
        f"preset '{entry.family}' (entry {entry.number}) cannot know {path} of loss {place['loss']} in space {place['space']}"
    )
    return f"{told_why}: {entry.unknown[path].rstrip('.')}. Give it yourself, as in set = {{ {example} }}."


def _check_plugin(entry: Preset, kind: str, listed: Any, own: Mapping[str, Any]) -> None:
    """Raise PluginError where the plugin takes what the suite says of it, but not what the preset says."""
    table = {"name": listed} if isinstance(listed, str) else _table(listed)
    name, settings = table.get("name"), {key: value for key, value in table.items() if key != "name"}
    if not isinstance(name, str):
        return
    source = registry.REGISTRIES[kind]
    try:
        source.resolve(name, settings)
    except BenchError:
        return  # the suite's own fault, told where it is read
    try:
        source.resolve(name, settings | dict(own))
    except ConfigError as error:
        raise PluginError(f"preset '{entry.family}', entry {entry.number}: {' '.join(str(error).split())}") from error
