"""Real images as they are: some of every class, or all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ddbench.api import TRAIN, Baseline, Batch, Run, Saw
from ddbench.errors import PluginError
from ddbench.ops.selecting import check_enough, labelled


@dataclass(frozen=True)
class RandomReal(Baseline):
    """random: IPC real training images of every class, drawn without replacement.

    The lower end of every table. Departures: none.
    Raises: ConfigError where a class has fewer images than IPC.
    """

    saw: ClassVar[Saw] = TRAIN

    def check(self, run: Run) -> None:
        """Whether every class has enough."""
        check_enough(run)

    def build(self, run: Run) -> Batch:
        """Images of class c from the stream ("random", c)."""
        classes = range(run.spec.num_classes)
        return labelled(torch.cat([run.real(label, run.ipc, run.rng("random", label)) for label in classes]), run)


@dataclass(frozen=True)
class FullData(Baseline):
    """full-data: all real training images, the held-out ones among them, for it selects nothing. No copy is stored.

    The upper end of every table: what the same networks reach under the same recipe, over fewer epochs.
    """

    everything: ClassVar[bool] = True
    saw: ClassVar[Saw] = TRAIN

    def build(self, run: Run) -> Batch:
        """Never asked: whoever judges it reads the training split."""
        raise PluginError("the baseline 'full-data' has no images of its own.")
