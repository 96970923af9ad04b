"""Rows to tables: pandas frames of texts, accuracy in percent, and the markdown of a frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from ddbench.leaderboard.cells import HARDWARE, Cell
from ddbench.leaderboard.rows import PHASES, Row, Section
from ddbench.leaderboard.statistics import Accuracy, Mean

REFERENCE = "glad"  # the space that others' seconds are divided by, where the caller names no other
NOTHING = "–"
ONE_SEED = "†"
MIXED = "‡"
CROSS = "cross-arch. mean"


def escape(text: str) -> str:
    """Text that cannot break a markdown table or start a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def markdown(frame: pd.DataFrame, left: Sequence[str]) -> str:
    """A pipe table; the columns named in `left` are aligned left, all others, which hold numbers, right."""
    safe = frame.map(escape).rename(columns=escape)
    align = ["left" if name in left else "right" for name in frame.columns]
    return safe.to_markdown(index=False, tablefmt="pipe", colalign=align, disable_numparse=True)


def percent(value: float | None) -> str:
    """`61.2` for 0.612."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def with_error(value: Mean | None) -> str:
    """`61.2 ± 0.8`: the standard deviation over seeds, or, marked, that over networks where there is one seed."""
    return NOTHING if value is None else percent(value.mean) + _error(value)


def points(value: Mean | None) -> str:
    """`+1.2 ± 0.8` for a difference, with the same error."""
    return NOTHING if value is None else f"{round(100 * value.mean, 1) + 0.0:+.1f}" + _error(value)  # + 0.0: no -0.0


def _error(value: Mean) -> str:
    if value.std_seeds is not None:
        return f" ± {percent(value.std_seeds)}"
    spread = "" if value.std_networks is None else f" ± {percent(value.std_networks)}"
    return f"{spread} {ONE_SEED}"


def fewer(row: Row, section: Section) -> str:
    """What stands behind the cross-architecture mean of a row judged by fewer networks than others of its table."""
    missing = [name for name in section.networks if name not in (*row.networks, row.backbone)]
    return f" ({len(row.others)} of {len(row.others) + len(missing)} networks)" if missing and row.others else ""


def _networks(section: Section) -> tuple[str, ...]:
    """Those with a column of their own: a backbone that all rows share has the column of the same architecture."""
    return tuple(name for name in section.networks if section.backbones != (name,))


def _same(section: Section) -> str:
    return "same arch." + (f" ({section.backbones[0]})" if len(section.backbones) == 1 else "")


def columns(row: Row, section: Section) -> dict[str, tuple[str, ...]]:
    """The columns of accuracies, and for each the row's networks that its number is the mean over: none, no number."""
    own = (row.backbone,) if row.backbone in row.networks else ()
    alone = {name: (name,) if name in row.networks else () for name in _networks(section)}
    return {_same(section): own, CROSS: row.others} | alone


def frame(rows: list[dict[str, str]]) -> pd.DataFrame:
    """Texts, a line a row."""
    return pd.DataFrame(rows, dtype=str)


def accuracy_table(section: Section) -> pd.DataFrame:
    """A line a row: accuracies by network, and what they were bought with."""
    lines = []
    for row in section.rows:
        name = row.name + (f" {MIXED}" if row.is_mixed else "")
        line = {"method": name, _same(section): with_error(row.same), CROSS: with_error(row.cross) + fewer(row, section)}
        line |= {name: with_error(row.accuracies.get(name)) for name in _networks(section)}
        repeats = sorted({len(values) for cell in row.cells for values in cell.accuracies.values()})
        line["seeds"] = NOTHING if row.is_full_data else str(len(row.cells))
        line["networks per seed"] = "–".join(map(str, dict.fromkeys((repeats[0], repeats[-1]))))
        line["KiB"] = f"{max(cell.num_bytes for cell in row.cells) / 1024:,.1f}"
        line["s to distil"] = NOTHING if row.plan["baseline"] else seconds(row, "distill", "rank")
        lines.append(line)
    return frame(lines)


def spread_table(section: Section) -> pd.DataFrame:
    """The rest of the uncertainty: 95 % interval of the mean / over networks / of the test set."""

    def parts(value: Accuracy | None) -> str:
        if value is None:
            return NOTHING
        return " / ".join(map(percent, (value.half_width, value.std_networks, value.test_error)))

    return frame(
        [
            {"method": row.name, _same(section): parts(row.same), CROSS: parts(row.cross)}
            | {name: parts(row.accuracies.get(name)) for name in _networks(section)}
            for row in section.rows
        ]
    )


def seconds(row: Row, *phases: str) -> str:
    """The mean over seeds; marked where the seeds ran on different hardware."""
    return f"{row.seconds(*phases):,.1f}" + (f" {MIXED}" if len(row.machines) > 1 else "")


def ratio(row: Row, section: Section, reference: str = REFERENCE) -> float | str:
    """Seconds to distil over those of the reference space with the same loss in this table, or why there is none."""
    rows = [other for other in section.rows if not other.plan["baseline"] and other.label("loss") == row.label("loss")]
    found = [other for other in rows if other.plan["space"]["name"] == reference]
    if row in found:
        found = [row]
    elif len(found) > 1:
        found = [other for other in found if other.cells[0].versions == row.cells[0].versions] or found
    if len(found) != 1:
        return f"n/a: {'several' if found else 'no'} {reference} {'rows' if found else 'row'}"
    if len({*row.machines, *found[0].machines}) > 1:
        return "n/a: hardware differs"
    below = found[0].seconds("distill", "rank")
    return row.seconds("distill", "rank") / below if below > 0 else f"n/a: {reference} took no time"


def timing_table(section: Section, reference: str = REFERENCE) -> pd.DataFrame:
    """A line for each distilled row: where the seconds went, and how they compare with the reference space."""
    lines = []
    for row in section.rows:
        if row.plan["baseline"]:
            continue
        line = {"method": row.name} | {f"{phase} s": seconds(row, phase) for phase in PHASES}
        line["distill + rank s"] = seconds(row, "distill", "rank")
        value = ratio(row, section, reference)
        line[f"/ {reference}"] = value if isinstance(value, str) else f"{value:.2f}"
        line["steps"] = " or ".join(map(str, sorted({cell.steps for cell in row.cells})))
        line["peak MiB"] = f"{max(cell.peak_bytes for cell in row.cells) / 2**20:,.0f}"
        line[_same(section)] = with_error(row.same)
        lines.append(line)
    return frame(lines)


def machines_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """A line for each combination of hardware and versions, with its number of cells."""
    versions = ("python", "torch", "numpy", "ddbench")
    places = ([*map(cell.hardware.get, HARDWARE), *map(cell.versions.get, versions)] for cell in cells)
    count = Counter(tuple(map(str, place)) for place in places)
    names = (*HARDWARE, *versions)
    return frame([dict(zip(names, key, strict=True)) | {"cells": str(num)} for key, num in sorted(count.items())])


def plain(value: Mean | None) -> dict[str, Any] | None:
    """For JSON; fractions."""
    return None if value is None else asdict(value)


def as_json(section: Section, row: Row, reference: str = REFERENCE) -> dict[str, Any]:
    """A row as plain values; accuracies are fractions."""
    return {
        "protocol": section.protocol["id"],
        "data": section.data["label"],
        "data_hash": section.data["hash"],
        "ipc": section.ipc,
        "labels": section.labels,
        "method": row.name,
        "baseline": row.plan["baseline"],
        "loss": row.label("loss"),
        "space": row.label("space"),
        "generator": row.label("generator"),
        "backbone": row.backbone,
        "seeds": [cell.seed for cell in row.cells],
        "cells": [cell.key for cell in row.cells],
        "same_architecture": plain(row.same),
        "cross_architecture": plain(row.cross),
        "networks": {name: plain(value) for name, value in row.accuracies.items()},
        "bytes": max(cell.num_bytes for cell in row.cells),
        "steps": max(cell.steps for cell in row.cells),
        "seconds": {phase: row.seconds(phase) for phase in PHASES},
        "seconds_distil": row.seconds("distill", "rank"),
        "reference_space": reference,
        "seconds_ratio": None if row.plan["baseline"] else ratio(row, section, reference),
        "peak_bytes": max(cell.peak_bytes for cell in row.cells),
        "hardware": list(row.machines),
        "versions": dict(row.cells[0].versions),
    }
