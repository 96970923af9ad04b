"""Which executor a run takes, with which settings: of the command, of the suite, of the user's own file, in this order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddbench import registry
from ddbench.errors import BenchError, ConfigError, did_you_mean
from ddbench.files import parse_toml
from ddbench.settings import Setting, convert

MAX_BYTES = 1 << 20  # of the user's file


def user_file() -> Path:
    """Where a user's own settings lie: the file that DDBENCH_CONFIG names, else ddbench/config.toml under XDG_CONFIG_HOME or
    ~/.config. It need not be there."""
    if named := os.environ.get("DDBENCH_CONFIG"):
        return Path(named).expanduser()
    folder = os.environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "ddbench" / "config.toml"


def settings_of(name: str, options: Sequence[str], of_suite: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is said of an executor: `options`, as in key=value, stand above the suite's table, that above the user's file. Raises
    ConfigError."""
    known = registry.executors.known(name)
    own = _tables(user_file()).get(name, {})
    return {**own, **of_suite.get(name, {}), **dict(_option(text, known) for text in options)}


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    """The tables [executor.NAME] of the user's file."""
    if not path.is_file():
        if "DDBENCH_CONFIG" in os.environ:
            raise ConfigError(f"DDBENCH_CONFIG names {path}, which is no file: correct it, or unset it.")
        return {}
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        values = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"your settings {path} cannot be read: {error}.") from error
    for key in values:
        if key != "executor":
            near = did_you_mean(key, ["executor"])
            raise ConfigError(f"your settings {path} have no key '{key}'.{near} They take tables [executor.NAME].")
    try:
        return tables(values.get("executor", {}))
    except BenchError as error:
        raise ConfigError(f"your settings {path}: {error}") from error


def tables(value: object) -> dict[str, dict[str, Any]]:
    """Settings by the executor's name, checked. Raises ConfigError, and PluginError."""
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise ConfigError("'executor' must hold tables, as in [executor.NAME].")
    for name, table in value.items():
        registry.executors.make(name, table)
    return value


def _option(text: str, known: Mapping[str, Setting]) -> tuple[str, Any]:
    """key=value: a TOML value, or a bare word, which is text; text also where a setting takes nothing else, as in account=123."""
    key, equals, raw = text.partition("=")
    if not equals:
        raise ConfigError(f"--executor-option takes key=value, got '{text}'.")
    try:
        value = parse_toml(f"value = {raw}")["value"]
    except ValueError:
        value = raw
    if key in known and not isinstance(value, str):
        try:
            convert(value, known[key].annotation)
        except ValueError:
            value = raw
    return key, value
