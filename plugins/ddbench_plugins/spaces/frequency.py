"""Frequencies: a part of the cosine transform of each image, the same part for all images of a class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddbench.api import Run, Space, State
from ddbench.errors import ConfigError
from ddbench.ops.reals import starting_images


@dataclass(frozen=True)
class Frequency(Space):
    """FreD: `kept` coefficients of every channel's discrete cosine transform, chosen once for each class.

    In the floats of IPC images there is room for floor(IPC * H * W / kept) images of a class; they start from as many real ones.
    Under the budget of bytes the places of a class's coefficients count too, which FreD leaves out: one image fewer as a rule.
    Which coefficients a class keeps: those whose variance over its starting images, of the mean over channels, is largest.
    A coefficient is that of the un-normalised DCT-II divided by 2 sqrt(H W): orthonormal, but those of no frequency along an axis
    are sqrt(2) as large. So variances rank as they do in FreD's code, and a rate r of its code is r / (4 H W) here. Where a loss
    names no rate for coefficients they take that of pixels: a cosine transform keeps lengths.
    Source: Shin, Shin and Moon, Frequency Domain-based Dataset Distillation (FreD), NeurIPS 2023. Departures: none known.
    Raises: ConfigError where `kept` is no number of coefficients of such an image, or leaves a class fewer than two images.
    """

    kept: int = 64
    tensors: ClassVar[tuple[str, ...]] = ("coefficients",)
    rates_of: ClassVar[Mapping[str, str]] = {"coefficients": "pixels"}

    def __post_init__(self) -> None:
        """Refuse what has no meaning for any image."""
        if self.kept < 1:
            raise ConfigError(f"'kept' must be at least 1, got {self.kept}.")

    def num_images(self, run: Run) -> int:
        """As many as fit. Raises ConfigError."""
        return run.spec.num_classes * self._per_class(run)

    def _per_class(self, run: Run) -> int:
        channels, size = run.spec.shape[0], math.prod(run.spec.shape[1:])
        num, most = run.ipc * size // self.kept, min(size, run.ipc * size // 2)
        if run.budget == "bytes":  # a class stores one more number for each: where it lies
            floats = run.ipc * channels * size
            num, most = (floats - self.kept) // (channels * self.kept), min(size, floats // (2 * channels + 1))
        if self.kept > size or num < 2:
            told = f"keeps {self.kept} of {size} coefficients, which leaves a class {num} images at IPC {run.ipc}"
            raise ConfigError(f"space 'frequency' {told}: it needs 2 at least, so 'kept' must lie in 1..{most}.")
        return num

    def init(self, run: Run) -> State:
        """coefficients: [N, C, kept]; places: int32 [K, kept], where they lie in an image's H * W coefficients."""
        num = self._per_class(run)
        whole = _transformed(starting_images(run, num)).unflatten(0, (run.spec.num_classes, num))
        spread = whole.mean(2).var(1)  # [K, H * W]
        places = spread.topk(self.kept, sorted=False).indices.sort(1).values
        kept = whole.gather(3, places[:, None, None].expand(*whole.shape[:3], -1)).flatten(0, 1)
        return State({"coefficients": kept.contiguous()}, {"places": places.int()})

    def classes(self, state: State, run: Run) -> Tensor:
        """Sorted by class."""
        num = len(state.params["coefficients"]) // run.spec.num_classes
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(num)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """The inverse transform, with zeros in all other places."""
        coefficients, places = state.params["coefficients"], state.fixed["places"]
        of_class = places[index // (len(coefficients) // len(places))].long()
        channels, height, width = run.spec.shape
        whole = coefficients.new_zeros(len(index), channels, height * width)
        whole = whole.scatter(2, of_class[:, None].expand(-1, channels, -1), coefficients[index])
        vertical, horizontal = (_cosines(side, math.sqrt(0.5), whole) for side in (height, width))
        return vertical.t() @ whole.unflatten(2, (height, width)) @ horizontal


def _cosines(side: int, constant: float, like: Tensor) -> Tensor:
    """The orthonormal DCT-II as a matrix [side, side], a frequency a row, the constant one times a factor. Made where the images
    are: a copy from the host would make the device wait."""
    steps = torch.arange(side, dtype=torch.float64, device=like.device)
    matrix = torch.cos(math.pi / side * (steps + 0.5) * steps[:, None]) * math.sqrt(2 / side)
    matrix[0] *= constant * math.sqrt(0.5)
    return matrix.to(like.dtype)


def _transformed(images: Tensor) -> Tensor:
    """[N,C,H,W] -> [N, C, H * W]."""
    vertical, horizontal = (_cosines(side, math.sqrt(2), images) for side in images.shape[2:])
    return (vertical @ images @ horizontal.t()).flatten(2)
