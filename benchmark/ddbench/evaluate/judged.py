"""What a store's records say of the first repeats of one network: its accuracies, their mean and spread, and the costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import msgspec

from ddbench.evaluate.cost import together
from ddbench.plan import Judging
from ddbench.schema import JudgementRecord


class Judged:
    """One network under one protocol on one set, over `repeats` repeats."""

    def __init__(self, judging: Judging, records: Iterable[JudgementRecord], repeats: int) -> None:
        """`records` are judgements of the set; those of other networks are passed over, and further repeats too."""
        self.repeats, self.used = repeats, list[tuple[JudgementRecord, list[int]]]()
        found = set[int]()
        for record in records:
            if record.key == judging.key:
                own = [number for number in range(record.first, min(record.last + 1, repeats)) if number not in found]
                found |= set(own)
                self.used += [(record, own)] if own else []
        self.is_whole = len(found) == repeats  # whether every repeat is there

    def entries(self) -> list[dict[str, Any]]:
        """The repeats, in their order."""
        every = [record.repeats[number - record.first] for record, own in self.used for number in own]
        return [msgspec.to_builtins(repeat) for repeat in sorted(every, key=lambda repeat: repeat.repeat)]

    def row(self) -> dict[str, Any]:
        """accuracy, the mean; std, the standard deviation over the networks (divided by one less than their number; None for a
        single one); what they cost; and the devices that computed them."""
        accuracies = [entry["accuracy"] for entry in self.entries()]
        std = statistics.stdev(accuracies) if self.repeats > 1 else None
        costs = together([(record.measured, len(own) / len(record.repeats)) for record, own in self.used])
        devices = sorted({record.place.hardware.device for record, _ in self.used})
        return {"accuracy": statistics.fmean(accuracies), "std": std, **costs, "devices": devices}
