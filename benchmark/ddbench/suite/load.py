"""Suites: a TOML file that spans a grid of cells, shipped or a user's own; whole, or `NAME:reduced`.

A suite may have a table [reduced], whose keys replace those of the suite: the same comparison, small enough to be tried on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddbench.errors import ConfigError
from ddbench.files import parse_toml
from ddbench.suite.bases import read as read
from ddbench.suite.bases import whole
from ddbench.suite.reader import Identify, Suite, SuiteReader
from ddbench.suite.tuning import GRIDS
from ddbench.suites import shipped as shipped

REDUCED = "reduced"


def load(name: str, identify: Identify, data_root: Path | None, lenient: bool = False, trials: int | None = None) -> Suite:
    """Resolve a suite into cells. Raises Faults with a sentence for every fault of the file, found before any step; `lenient`:
    missing files of data sets and generators are none; `trials` stands above those of its table [tune]."""
    path, _, form = name.rpartition(":") if name.endswith(f":{REDUCED}") else (name, "", "")
    raw, text = whole(path)
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
