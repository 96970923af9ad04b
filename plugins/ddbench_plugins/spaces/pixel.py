"""The pixels themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ddbench.api import Run, Space, State


@dataclass(frozen=True)
class Pixel(Space):
    """Pixel space: IPC images a class, optimised directly in normalised units and never clamped.

    Starts from real training images (as DSA, DM and MTT) or from N(0, 1) noise (the default of GLaD's public code, and of DC).
    Source: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021. Departures: none.
    """

    init_from: Literal["real", "noise"] = "real"
    tensors: ClassVar[tuple[str, ...]] = ("pixels",)

    def init(self, run: Run) -> State:
        """pixels: [K * IPC, C, H, W]."""
        if self.init_from == "noise":
            pixels = torch.randn(run.spec.num_classes * run.ipc, *run.spec.shape, generator=run.rng("init"))
        else:
            own = [run.real(label, run.ipc, run.rng("init", label)) for label in range(run.spec.num_classes)]
            pixels = torch.cat([images[torch.arange(run.ipc) % len(images)] for images in own])
        return State({"pixels": pixels.to(run.device).clone()})

    def classes(self, state: State, run: Run) -> Tensor:
        """Sorted by class."""
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(run.ipc)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """The images as they are stored."""
        return state.params["pixels"][index]
