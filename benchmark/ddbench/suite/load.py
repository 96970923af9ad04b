"""Suites: a TOML file that spans a grid of cells, shipped or a user's own; whole, or `NAME:reduced`.

A suite may have a table [reduced], whose keys replace those of the suite: the same comparison, small enough to be tried on a CPU.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from ddbench.errors import ConfigError, did_you_mean
from ddbench.files import parse_toml
from ddbench.suite.reader import Identify, Suite, SuiteReader
from ddbench.suite.tuning import GRIDS
from ddbench.suites import shipped as shipped

MAX_SUITE_BYTES = 1 << 20
REDUCED = "reduced"


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


def load(name: str, identify: Identify, data_root: Path | None, lenient: bool = False, trials: int | None = None) -> Suite:
    """Resolve a suite into cells. Raises Faults with a sentence for every fault of the file, found before any step; `lenient`:
    missing files of data sets and generators are none; `trials` stands above those of its table [tune]."""
    path, _, form = name.rpartition(":") if name.endswith(f":{REDUCED}") else (name, "", "")
    text = read(path)
    try:
        raw = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"suite '{name}' is not valid TOML: {error}.") from error
    if form:
        raw = reduced(raw, path)
    if trials is not None:
        table = raw.get("tune", {})
        kept = {key: value for key, value in table.items() if key not in GRIDS} if isinstance(table, dict) else {}
        raw["tune"] = kept | {"trials": trials}
    return SuiteReader(name, raw, identify, data_root, lenient).suite(text)


def reduced(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """The suite with what its table [reduced] says instead, under a name, and so a folder of results, of its own. Raises
    ConfigError where it has none."""
    table = raw.get(REDUCED)
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"suite '{name}' has no table [{REDUCED}]: name it without ':{REDUCED}'.")
    whole = {key: value for key, value in raw.items() if key != REDUCED}
    return whole | {"name": f"{raw.get('name', Path(name).stem)}-{REDUCED}"} | table


def named(path: Path) -> str:
    """The name that a suite's file gives to it; empty where it says none, or cannot be read."""
    try:
        return str(parse_toml(path.read_text(encoding="utf-8")).get("name", ""))
    except (OSError, ValueError):
        return ""
