"""Suites: a TOML file that spans a grid of plans, read with every fault named at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ddbench.errors import ConfigError, did_you_mean
from ddbench.plan import WHERE, Plan, coordinates
from ddbench.suite.reader import Identify, Suite, SuiteReader

MAX_SUITE_BYTES = 1 << 20


def shipped() -> list[str]:
    """The suites that come with ddbench."""
    return sorted(entry.name.removesuffix(".toml") for entry in files("ddbench.suites").iterdir() if entry.name.endswith(".toml"))


def read(name: str) -> str:
    """The TOML text of a shipped suite, or of a file. Raises ConfigError if there is none."""
    if name in shipped():
        return (files("ddbench.suites") / f"{name}.toml").read_text()
    path = Path(name)
    if not path.is_file():
        known = ", ".join(shipped())
        raise ConfigError(f"unknown suite '{name}'.{did_you_mean(name, shipped())} It is neither a file nor one of: {known}.")
    if path.stat().st_size > MAX_SUITE_BYTES:
        raise ConfigError(f"suite '{name}' is larger than {MAX_SUITE_BYTES} bytes: it is hardly a suite.")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"suite '{name}' cannot be read as text: {error}.") from error


def load(name: str, identify: Identify, data_root: Path | None) -> Suite:
    """Resolve a suite into plans. Raises Faults with a sentence for every fault of the file, found before any step."""
    text = read(name)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"suite '{name}' is not valid TOML: {error}.") from error
    return SuiteReader(name, raw, identify, data_root).suite(text)


def select(plans: tuple[Plan, ...], only: str | None) -> tuple[Plan, ...]:
    """The plans that `key=value,...` names; keys: loss, space, subset, ipc, seed, baseline. Raises ConfigError if none does."""
    if not only:
        return plans
    where: dict[str, str] = {}
    for part in only.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in WHERE:
            raise ConfigError(f"--only takes key=value,... with keys {', '.join(WHERE)}; got '{part}'.{did_you_mean(key, WHERE)}")
        if key in where:
            raise ConfigError(f"--only names '{key}' twice: a cell has one. Give the command once for each.")
        where[key] = value
    chosen = tuple(plan for plan in plans if _matches(plan, where))
    if not chosen:
        near = "".join(_nearest(plans, key, value) for key, value in where.items())
        raise ConfigError(f"--only {only} matches none of the {len(plans)} cells.{near} Look at them with: ddbench plan SUITE")
    return chosen


def _nearest(plans: tuple[Plan, ...], key: str, value: str) -> str:
    """What the grid has for a key, where it does not have that value."""
    known = dict.fromkeys(coordinates(plan)[key] for plan in plans if key in coordinates(plan))
    if value in known:
        return ""
    return f" There is no {key} '{value}'.{did_you_mean(value, known)} It has: {', '.join(known) or 'none'}."


def _matches(plan: Plan, where: Mapping[str, Any]) -> bool:
    have = coordinates(plan)
    return all(have.get(key) == str(value) for key, value in where.items())
