"""`--only key=value,...`: some cells of a grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ddbench.errors import ConfigError, did_you_mean
from ddbench.plan import Cell
from ddbench.suite.coordinates import WHERE, coordinates, exact, plugin_at


def select(cells: tuple[Cell, ...], only: str | None) -> tuple[Cell, ...]:
    """The cells that `key=value,...` names; keys: those of `WHERE`. A plugin is named as suites name it, which takes all its
    variants, or by its whole label: `loss=dc(batch_real=8)`, `loss=dc()` for the one without settings. Raises ConfigError if
    nothing fits."""
    if not only:
        return cells
    where: dict[str, str] = {}
    for part in _parts(only):
        key, equals, value = part.partition("=")
        if not equals and key in WHERE:
            raise ConfigError(f"--only: '{part}' lacks a value. Write it as in {key}=VALUE.")
        if not equals or key not in WHERE:
            raise ConfigError(f"--only takes key=value,... with keys {', '.join(WHERE)}; got '{part}'.{did_you_mean(key, WHERE)}")
        if key in where:
            raise ConfigError(f"--only names '{key}' twice: a cell has one. Give the command once for each.")
        where[key] = value
    chosen = tuple(cell for cell in cells if _matches(cell, where))
    if not chosen:
        near = "".join(_nearest(cells, key, value) for key, value in where.items())
        raise ConfigError(f"--only {only} matches none of the {len(cells)} cells.{near} Look at them with: ddbench plan SUITE")
    return chosen


def _parts(only: str) -> Iterator[str]:
    """The text, split at commas outside of brackets."""
    depth, part = 0, ""
    for character in only:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth <= 0:
            yield part
            part = ""
        else:
            part += character
    yield part


def _matches(cell: Cell, where: Mapping[str, str]) -> bool:
    have = coordinates(cell.set)
    for key, value in where.items():
        ref = plugin_at(cell.set, key)
        if key not in have or value not in (have[key], exact(ref) if ref else have[key]):
            return False
    return True


def _nearest(cells: tuple[Cell, ...], key: str, value: str) -> str:
    """What the grid has for a key, where it does not have that value."""
    known = dict.fromkeys(have[key] for have in (coordinates(cell.set) for cell in cells) if key in have)
    if value in known:
        return ""
    return f" There is no {key} '{value}'.{did_you_mean(value, known)} It has: {', '.join(known) or 'none'}."
