"""What judging a distilled set cost, network by network, beside what it is worth."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ddbench.leaderboard.cells import COSTS, Cell
from ddbench.leaderboard.rows import Section
from ddbench.leaderboard.tables import frame


@dataclass(frozen=True)
class Cost:
    """Of judging by one network on one machine."""

    network: str
    machine: str
    numbers: dict[str, float]  # COSTS: the largest peak of memory, else the mean over cells
    way: str
    num_cells: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"network": self.network, "hardware": self.machine, **self.numbers, "way": self.way, "cells": self.num_cells}


def costs(cells: Iterable[Cell]) -> list[Cost]:
    """By network and machine: seconds of different hardware have no mean. Cells that were not measured do not count."""
    groups: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        for network in cell.costs.keys() & cell.accuracies.keys():
            groups[network, cell.machine].append(cell)
    made = []
    for (network, machine), group in sorted(groups.items()):
        found = [cell.costs[network] for cell in group]
        numbers = {name: statistics.fmean(cost[name] for cost in found) for name in COSTS}
        numbers["peak_memory_bytes"] = max(cost["peak_memory_bytes"] for cost in found)
        ways = " or ".join(sorted({cost["way"] for cost in found}))
        made.append(Cost(network, machine, numbers, ways, len(group)))
    return made


def of_section(section: Section) -> list[Cost]:
    """Of its distilled sets, the baseline `random` among them. Full data, of another size, count only where they are alone."""
    rows = [row for row in section.rows if not row.is_full_data] or section.rows
    return costs(cell for row in rows for cell in row.cells)


def cost_table(found: list[Cost]) -> pd.DataFrame:
    """A line for each network, and for each machine where there are several."""
    several = len({cost.machine for cost in found}) > 1
    lines = []
    for cost in found:
        number = cost.numbers
        line = {"network": cost.network} | ({"hardware": cost.machine} if several else {})
        line["s to train"] = f"{number['seconds_train']:,.1f}"
        line["s to test"] = f"{number['seconds_test']:,.1f}"
        line["images/s"] = f"{number['images_per_second']:,.0f}"
        line["GFLOP per image"] = f"{number['flops_per_image'] / 1e9:.3g}"
        line["% of peak"] = f"{100 * number['peak_share']:.1f}"
        line["peak MiB"] = f"{number['peak_memory_bytes'] / 2**20:,.0f}"
        line |= {"way": cost.way, "cells": str(cost.num_cells)}
        lines.append(line)
    return frame(lines)
