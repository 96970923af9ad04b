"""Suites: a TOML file that spans a grid of cells, shipped or a user's own."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

from ddbench.errors import ConfigError, did_you_mean
from ddbench.suite.reader import Identify, Suite, SuiteReader
from ddbench.suite.tuning import GRIDS

MAX_SUITE_BYTES = 1 << 20


def shipped() -> list[str]:
    """The suites that come with ddbench."""
    return sorted(entry.name.removesuffix(".toml") for entry in files("ddbench.suites").iterdir() if entry.name.endswith(".toml"))


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


def load(name: str, identify: Identify, data_root: Path | None, trials: int | None = None) -> Suite:
    """Resolve a suite into cells; `trials` stands above those of its table [tune]. Raises Faults with a sentence for every fault
    of the file, found before any step."""
    text = read(name)
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"suite '{name}' is not valid TOML: {error}.") from error
    if trials is not None:
        table = raw.get("tune", {})
        kept = {key: value for key, value in table.items() if key not in GRIDS} if isinstance(table, dict) else {}
        raw["tune"] = kept | {"trials": trials}
    return SuiteReader(name, raw, identify, data_root).suite(text)
