"""What a generator makes by itself, without a step of optimisation: where methods in its spaces start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ddbench.api import NOTHING, Baseline, Batch, Run, Saw
from ddbench.errors import ConfigError
from ddbench.ops.codes import Samples, Start, pushed, starting_codes
from ddbench.ops.selecting import labelled


def _made(run: Run, how: Start, samples: int) -> Batch:
    """The generator's images under the codes that spaces of the same seed start from."""
    with torch.no_grad():
        codes = starting_codes(run, how, samples)
    return labelled(run.spec.normalise(pushed(run, codes, None, 0, run.generator.depth)), run)


@dataclass(frozen=True)
class GeneratorSamples(Baseline):
    """generator-samples: images of the suite's generator from one random code each, the first images of GLaD at the same seed.

    Departures: none. An unconditional generator makes the same kind of images for all classes, which teaches nothing.
    """

    needs_generator: ClassVar[bool] = True
    saw: ClassVar[Saw] = NOTHING  # beside what the generator did

    def build(self, run: Run) -> Batch:
        """From the codes that spaces start from."""
        return _made(run, "sample", 1)


@dataclass(frozen=True)
class GeneratorMeans(Baseline):
    """generator-means: images of the suite's generator from the mean of `samples` codes of their class, where H-PD starts.

    Source: GLaD's code (CVPR 2023). Departures: with IPC > 1 every image averages codes of its own.
    """

    samples: Samples = 1000
    needs_generator: ClassVar[bool] = True
    saw: ClassVar[Saw] = NOTHING

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.samples < 1:
            raise ConfigError(f"'samples' must be at least 1, got {self.samples}.")

    def build(self, run: Run) -> Batch:
        """From averaged codes."""
        return _made(run, "average", self.samples)
