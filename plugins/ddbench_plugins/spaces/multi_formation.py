"""Several images in the place of one, around any space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import Run, State
from ddbench.errors import ConfigError
from ddbench.ops.tiles import cut, joined, tile_sides
from ddbench.ops.wrapping import Wrapping

GREY = 0.5  # what an image is padded with, of pixels in [0, 1]


@dataclass(frozen=True)
class MultiFormation(Wrapping):
    """IDC's multi-formation: every image of the inner space holds factor x factor tiles, each enlarged to a whole image.

    Images are padded with grey at the right and the bottom to a multiple of the factor, cut, and enlarged bilinearly. Where
    the inner space starts from real images, it is given ones that are made of factor^2 real images each, shrunk to the nearest
    pixels. Under the budget of bytes, a generator's images are counted as the tiles that are delivered, and are so many fewer.
    Factors of the paper: 2 for CIFAR-10, 3 for ImageNet.
    Source: Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization (IDC), ICML 2022. Departures: only the
    parameterisation is IDC's; its loss, which updates class by class beside a network that trains on real data, is another
    plugin's business. It clamps pixels after every 100 steps: `inner = { name = "pixel", clamp = true, clamp_every = 100 }`.
    Raises: ConfigError where the factor leaves no tile, or IPC no whole image of a generator under the budget of bytes.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        """Refuse what has no meaning for any image."""
        super().__post_init__()
        if self.factor < 2:
            raise ConfigError(f"'factor' must be at least 2, got {self.factor}: with 1 it is the inner space alone.")

    def num_images(self, run: Run) -> int:
        """Those of the inner space, times the tiles. Raises ConfigError."""
        if self.factor > min(run.spec.shape[1:]) // 2:
            most = min(run.spec.shape[1:]) // 2
            told = f"space 'multi-formation' with factor {self.factor} leaves tiles of less than 2 px"
            raise ConfigError(f"{told}: it may be {most} at most.")
        tiles = self.factor**2
        if self._is_cut_from_rendered(run) and run.ipc % tiles:
            told = f"space 'multi-formation' with factor {self.factor} makes {tiles} images of each of a generator's"
            raise ConfigError(f"{told}: in bytes, 'ipc' must be a multiple of {tiles}, got {run.ipc}.")
        return super().num_images(run) * tiles

    def inside(self, run: Run) -> Run:
        """With real images that are made of several; and, where all tiles of a generator's images count, an ipc of less."""
        ipc = run.ipc // self.factor**2 if self._is_cut_from_rendered(run) else run.ipc
        return cast(Run, _Composed(run, self.factor, ipc))

    def _is_cut_from_rendered(self, run: Run) -> bool:
        return run.budget == "bytes" and self.inner.is_rendered

    def classes(self, state: State, run: Run) -> Tensor:
        """Sorted by class; the tiles of an image follow each other."""
        return super().classes(state, run).repeat_interleave(self.factor**2)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """Image i is tile i mod factor^2 of the inner image i div factor^2. Whichever are fewer are decoded: all inner images, or
        one for each image that is asked for; which of them are the same, only the device knows."""
        tiles, num, inside = self.factor**2, len(super().classes(state, run)), self.inside(run)
        place = index // tiles
        if len(index) < num:
            whole, place = self.inner.decode(state, place, inside), torch.arange(len(index), device=index.device)
        else:
            whole = self.inner.decode(state, torch.arange(num, device=index.device), inside)
        grey = run.spec.normalise(whole.new_full((1, whole.shape[1], 1, 1), GREY))[0]
        return F.interpolate(cut(whole, self.factor, grey)[place, index % tiles], run.spec.shape[1:], mode="bilinear")


class _Composed:
    """A run whose real images are each made of several, with an `ipc` of its own."""

    def __init__(self, run: Run, factor: int, ipc: int) -> None:
        self._run, self._factor, self.ipc = run, factor, ipc

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def real(self, label: int, num: int, rng: torch.Generator) -> Tensor:
        """[num,C,H,W]: of factor^2 different images each, as long as there are enough."""
        factor, sides = self._factor, self._run.spec.shape[1:]
        images = self._run.real(label, num * factor**2, rng)
        images = images[torch.arange(num * factor**2, device=images.device) % len(images)]
        return joined(F.interpolate(images, tile_sides(sides, factor), mode="nearest"), factor, sides)
