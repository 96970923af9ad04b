"""Real training images that a set starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from ddbench.api import Run


def starting_images(run: Run, num: int) -> Tensor:
    """`num` real images of every class, [K * num, C, H, W], normalised, sorted by class, the same for all spaces of one seed; a
    class with fewer repeats its own."""
    own = [run.real(label, num, run.rng("init", label)) for label in range(run.spec.num_classes)]
    return torch.cat([images[torch.arange(num, device=images.device) % len(images)] for images in own])
