"""A board's rows as CSV, a line each, for spreadsheets and other programs; the columns are the keys of its JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(column, cell): `same_architecture.mean` for what lies deeper, texts of a list with semicolons between them."""
    for key, part in value.items():
        if isinstance(part, Mapping):
            yield from flat(part, f"{above}{key}.")
        elif isinstance(part, list | tuple):
            yield f"{above}{key}", "; ".join(map(str, part))
        else:
            yield f"{above}{key}", part


def lines(ranked: Sequence[Mapping[str, Any]], not_ranked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A flat one for each row."""
    sides = ((ranked, True), (not_ranked, False))
    return [dict(flat({"ranked": is_ranked, **row})) for rows, is_ranked in sides for row in rows]


def to_csv(ranked: Sequence[Mapping[str, Any]], not_ranked: Sequence[Mapping[str, Any]]) -> str:
    """All rows. A column that a row has not is empty in it; accuracies are fractions."""
    made = lines(ranked, not_ranked)
    columns = dict.fromkeys(name for line in made for name in line)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(made)
    return file.getvalue()
