"""The loss of every step of a distillation: noted on the device, fetched where the loop waits for that anyway."""

from __future__ import annotations

from math import isfinite, nan

import torch
from torch import Tensor

MOST = 4000  # losses that are kept of a set


class LossTrace:
    """Losses by step: all up to MOST steps, of more steps every second, every third, ..., and those that are asked for."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps, self.every = total_steps, max(1, -(-total_steps // MOST))
        self.asked: set[int] = set()  # steps whose losses are kept wherever they fall
        self.kept: dict[int, float] = {}
        self.waiting: list[tuple[int, Tensor]] = []

    def note(self, step: int, value: Tensor) -> None:
        """Take a step's loss, 0-d, without waiting for it."""
        self.waiting.append((step, value.detach().clone()))  # a replayed step writes its next value into the same place

    def fetch(self) -> int | None:
        """Wait for what was noted; the first step among it whose loss is no number."""
        if not self.waiting:
            return None
        steps, values = zip(*self.waiting, strict=True)
        losses = dict(zip(steps, torch.stack(values).tolist(), strict=True))
        self.waiting.clear()
        self.kept |= {step: loss for step, loss in losses.items() if step % self.every == 0 or step in self.asked}
        return next((step for step, loss in losses.items() if not isfinite(loss)), None)

    def even(self) -> Tensor:
        """Every `every`-th loss from step 0 on, float32; NaN where an earlier process noted none."""
        return torch.tensor([self.kept.get(step, nan) for step in range(0, self.total_steps, self.every)])

    def tensors(self) -> dict[str, Tensor]:
        """What was fetched, for a checkpoint."""
        values = torch.tensor(list(self.kept.values()), dtype=torch.float64)
        return {"steps": torch.tensor(list(self.kept), dtype=torch.int64), "values": values}

    def take_up(self, tensors: dict[str, Tensor]) -> None:
        """Back from a checkpoint; one of an earlier ddbench holds none."""
        if tensors:
            self.kept = dict(zip(tensors["steps"].tolist(), tensors["values"].tolist(), strict=True))
