"""Ranks sets by what networks trained on them get wrong among held-out training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddbench.api import Batch, Ranker, RankRun, Score
from ddbench.errors import ConfigError


@dataclass(frozen=True)
class Validation(Ranker):
    """mean_r error(network r trained on the set, held-out training images); every set trains the same `repeats` networks.

    They are the plan's backbone, trained as the protocol trains networks that judge, over `epochs`. Unset: what the suite says
    for all rankers, `rank_epochs` and `rank_repeats`. It trains at every candidate and waits for the device: meant for stages.
    Source: Zhong et al., Hierarchical Features Matter, CVPR 2025 (H-PD), which ranks its stages so. Departure: the paper reads
    test images.
    Raises: ConfigError for epochs or repeats below 1.
    """

    epochs: int | None = None
    repeats: int | None = None
    uses_held_out: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what trains nothing."""
        for name, value in (("epochs", self.epochs), ("repeats", self.repeats)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")

    def open(self, run: RankRun) -> Score:
        """The mean error."""
        epochs, repeats = self.epochs or run.defaults.epochs, self.repeats or run.defaults.repeats

        def score(syn: Batch, step: int) -> Tensor:
            networks = (run.trained_on(syn, epochs, "rank", repeat) for repeat in range(repeats))
            return torch.stack([run.held_out_error(network) for network in networks]).mean()

        return score
