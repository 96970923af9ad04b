"""What the sets of a table take, and how many images they make of it: floats, and bytes with and without their decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from ddbench.leaderboard.join import Result
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import Section
from ddbench.leaderboard.tables import NOTHING, frame, kib, most

TOLD = {
    "images": "IPC counts images, as the papers do, whatever they take",
    "bytes": "IPC counts bytes: every set is delivered in those of IPC float32 images a class",
}
"""What a budget means, for a section's facts."""
BYTES: dict[str, tuple[str, Callable[[Result], int | None]]] = {
    "stored KiB": ("bytes_without_decoder", lambda result: result.bytes_without_decoder),
    "with decoder KiB": ("bytes_with_decoder", lambda result: result.bytes_with_decoder),
    "rendered KiB": ("bytes_rendered", lambda result: result.record.bytes_images),
    "delivered KiB": ("bytes", lambda result: result.num_bytes),
}
"""By column: the name in JSON, and the number of a result; None where nobody knows it."""


def budget_table(section: Section) -> pd.DataFrame:
    """A line a row, of the seed that has most of each."""
    lines = []
    for row in section.rows:
        line = {"method": row.name, "images a class": f"{max(result.images_per_class for result in row.results):,g}"}
        floats = most(row, lambda result: result.floats)
        line["floats optimised"] = NOTHING if floats is None else f"{floats:,}"
        lines.append(line | {column: kib(most(row, number)) for column, (_, number) in BYTES.items()})
    return frame(lines)


def as_json(section: Section, row: Row) -> dict[str, Any]:
    """The same as plain values."""
    made: dict[str, Any] = {"budget": section.budget, "images_per_class": max(each.images_per_class for each in row.results)}
    made["floats"] = most(row, lambda result: result.floats)
    return made | {name: most(row, number) for name, number in BYTES.values()}
