"""What judging a distilled set cost, network by network, beside what it is worth."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ddbench.leaderboard.join import Result, machine
from ddbench.leaderboard.sections import Section
from ddbench.leaderboard.tables import frame
from ddbench.schema import JudgementMeasured

RATES = ("images_per_second", "flops_per_image", "peak_share")


@dataclass(frozen=True)
class Cost:
    """Of judging by one network on one machine."""

    network: str
    machine: str
    numbers: dict[str, float]  # seconds and RATES: means over sets; the largest peak of memory
    way: str
    num_sets: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"network": self.network, "hardware": self.machine, **self.numbers, "way": self.way, "sets": self.num_sets}


def costs(results: Iterable[Result]) -> list[Cost]:
    """By network and machine: seconds of different hardware have no mean."""
    groups: dict[tuple[str, str], list[list[JudgementMeasured]]] = defaultdict(list)
    for result in results:
        blocks: dict[tuple[str, str], list[JudgementMeasured]] = defaultdict(list)
        for label, records in result.judgements.items():
            for record in records:
                blocks[label, machine(record.place)].append(record.measured)
        for place, measured in blocks.items():
            groups[place].append(measured)
    made = []
    for (network, where), sets in sorted(groups.items()):
        found = [_of_one(blocks) for blocks in sets]
        numbers = {name: statistics.fmean(cost[name] for cost in found) for name in found[0]}
        numbers["peak_memory_bytes"] = max(cost["peak_memory_bytes"] for cost in found)
        ways = " or ".join(sorted({_way(measured) for blocks in sets for measured in blocks}))
        made.append(Cost(network, where, numbers, ways, len(sets)))
    return made


def _of_one(blocks: Sequence[JudgementMeasured]) -> dict[str, float]:
    """Of all repeats of a network on one set, which several jobs may have trained: rates are means, weighted by time."""
    train = sum(block.seconds_train for block in blocks)
    shares = [block.seconds_train / train if train else 1 / len(blocks) for block in blocks]
    rates = {name: sum(share * getattr(block, name) for share, block in zip(shares, blocks, strict=True)) for name in RATES}
    sums = {"seconds_train": train, "seconds_test": sum(block.seconds_test for block in blocks)}
    return sums | rates | {"peak_memory_bytes": float(max(block.peak_memory_bytes for block in blocks))}


def _way(measured: JudgementMeasured) -> str:
    return measured.way + (f", {measured.processes} processes" if measured.processes > 1 else "")


def of_section(section: Section) -> list[Cost]:
    """Of its distilled sets, baselines among them. Full data, of another size, count only where they are alone."""
    rows = [row for row in section.rows if not row.is_full_data] or section.rows
    return costs({id(result): result for row in rows for result in row.results}.values())  # a row may stand there twice


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
        line |= {"way": cost.way, "sets": str(cost.num_sets)}
        lines.append(line)
    return frame(lines)
