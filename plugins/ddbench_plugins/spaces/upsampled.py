"""Small images, enlarged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import Run, Space, State
from ddbench.errors import ConfigError
from ddbench.ops.reals import starting_images


@dataclass(frozen=True)
class Upsampled(Space):
    """Images of a `factor`-th of the side, bilinearly enlarged: as many as the floats of IPC full images hold.

    The simplest space of more images than IPC: whatever a more learned one adds must beat it. Starts from real images, made
    smaller with anti-aliasing.
    Source: none; the multi-formation of IDC without its tiles. Where a loss names no rate for small images they take that of
    pixels.
    Raises: ConfigError where the factor leaves no image.
    """

    factor: int = 2
    tensors: ClassVar[tuple[str, ...]] = ("small",)
    rates_of: ClassVar[Mapping[str, str]] = {"small": "pixels"}

    def __post_init__(self) -> None:
        """Refuse what has no meaning for any image."""
        if self.factor < 2:
            raise ConfigError(f"'factor' must be at least 2, got {self.factor}: with 1 it is the space 'pixel'.")

    def num_images(self, run: Run) -> int:
        """As many as fit. Raises ConfigError."""
        return run.spec.num_classes * self._per_class(run)

    def _sides(self, run: Run) -> list[int]:
        sides = [-(-side // self.factor) for side in run.spec.shape[1:]]
        if min(sides) < 2:
            most = min(run.spec.shape[1:]) - 1
            raise ConfigError(f"space 'upsampled' with factor {self.factor} leaves images of {sides}: it may be {most} at most.")
        return sides

    def _per_class(self, run: Run) -> int:
        (height, width), (_, full, wide) = self._sides(run), run.spec.shape
        return max(run.ipc, run.ipc * full * wide // (height * width))

    def init(self, run: Run) -> State:
        """small: [N, C, H / factor, W / factor]."""
        images = starting_images(run, self._per_class(run))
        return State({"small": F.interpolate(images, self._sides(run), mode="bilinear", antialias=True).contiguous()})

    def classes(self, state: State, run: Run) -> Tensor:
        """Sorted by class."""
        num = len(state.params["small"]) // run.spec.num_classes
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(num)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """Enlarged."""
        return F.interpolate(state.params["small"][index], run.spec.shape[1:], mode="bilinear")
