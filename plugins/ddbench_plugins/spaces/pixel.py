"""The pixels themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ddbench.api import Run, Space, State


@dataclass(frozen=True)
class Pixel(Space):
    """Pixel space: IPC images a class, optimised directly in normalised units.

    Starts from real training images (as DSA, DM and MTT) or from N(0, 1) noise (the default of GLaD's public code, of DC, and
    of SRe2L). `clamp`: after every step each channel is brought back to the range of real pixels, as SRe2L does; the others
    never clamp.
    Source: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021. Departures: none.
    """

    init_from: Literal["real", "noise"] = "real"
    clamp: bool = False
    tensors: ClassVar[tuple[str, ...]] = ("pixels",)
    any_chunk: ClassVar[bool] = True

    def init(self, run: Run) -> State:
        """pixels: [K * IPC, C, H, W]."""
        if self.init_from == "noise":
            pixels = torch.randn(run.spec.num_classes * run.ipc, *run.spec.shape, generator=run.rng("init"))
        else:
            own = [run.real(label, run.ipc, run.rng("init", label)) for label in range(run.spec.num_classes)]
            pixels = torch.cat([images[torch.arange(run.ipc, device=run.device) % len(images)] for images in own])
        return State({"pixels": pixels.to(run.device).clone()}, self._range(run))

    def _range(self, run: Run) -> dict[str, Tensor]:
        """What black and white are in normalised units, [2,C,1,1], where they bound the pixels."""
        if not self.clamp:
            return {}
        ends = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, run.spec.shape[0], 1, 1)
        return {"range": run.spec.normalise(ends).to(run.device)}

    def project_(self, state: State) -> None:
        """Clamp, where asked for."""
        if "range" in state.fixed:
            low, high = state.fixed["range"]
            state.params["pixels"].clamp_(low, high)

    def classes(self, state: State, run: Run) -> Tensor:
        """Sorted by class."""
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(run.ipc)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """The images as they are stored."""
        return state.params["pixels"][index]
