"""The grids that ship with ddbench, as TOML."""

from __future__ import annotations

from importlib.resources import files


def shipped() -> list[str]:
    """Their names."""
    return sorted(entry.name.removesuffix(".toml") for entry in files("ddbench.suites").iterdir() if entry.name.endswith(".toml"))
