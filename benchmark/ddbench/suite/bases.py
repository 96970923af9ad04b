"""Suites that stand on another: `base = "NAME"` takes over what a suite does not say itself."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w

from ddbench.errors import ConfigError, did_you_mean
from ddbench.files import parse_toml
from ddbench.suite.presets import displaced
from ddbench.suites import shipped

MAX_SUITE_BYTES = 1 << 20
MAX_BASES = 8
BASE = "base"
MERGED = ("distill", "iterates", "tune", "reduced")
"""Tables that are merged key by key; all else replaces what the base says: a list, an override or a plugin is taken whole."""


def read(name: str) -> str:
    """The TOML text of a shipped suite, or of a file. Raises ConfigError if there is none."""
    if name in shipped():
        return (files("ddbench.suites") / f"{name}.toml").read_text(encoding="utf-8")
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


def whole(name: str) -> tuple[dict[str, Any], str]:
    """A suite with what it takes from others, and the TOML text that says all of it: its own text where it has no base. Raises
    ConfigError for a suite or a base that is not there or no TOML, and for one that stands on itself."""
    names, text = [name], read(name)
    own = raw = _parsed(name, text)
    while BASE in own:
        base = own[BASE]
        if not isinstance(base, str):
            raise ConfigError(f"suite '{names[-1]}': 'base' must be the name of a suite, got {base!r}.")
        base = _beside(names[-1], base)
        if base in names or len(names) > MAX_BASES:
            chain = " -> ".join([*names, base])
            raise ConfigError(f"suite '{name}' stands on itself, or on more than {MAX_BASES} others: {chain}. Mend its 'base'.")
        names.append(base)
        own = _parsed(base, read(base))
        raw = on_top(own, raw)
    if len(names) == 1:
        return raw, text
    raw = {key: value for key, value in raw.items() if key != BASE}
    return raw, f"# {names[0]}, on top of {', '.join(names[1:])}\n{tomli_w.dumps(raw)}"


def on_top(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A suite's tables and values over those of its base. Of ways to say how long, the
    one on top counts."""
    made = {key: value for key, value in base.items() if key not in displaced(own)}
    for key, value in own.items():
        both = key in MERGED and isinstance(value, dict) and isinstance(made.get(key), dict)
        made[key] = on_top(made[key], value) if both else value
    return made


def _beside(name: str, base: str) -> str:
    """A base that is no shipped suite is a file, named from the folder of the suite that names it."""
    return base if base in shipped() or name in shipped() else str(Path(name).parent / base)


def _parsed(name: str, text: str) -> dict[str, Any]:
    try:
        return parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"suite '{name}' is not valid TOML: {error}.") from error
