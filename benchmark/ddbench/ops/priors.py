"""What an image is believed to be like before anything is known of it: smooth, and not far from the mean colour."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """|d_x|_2 + |d_y|_2 + |d_xy|_2 + |d_yx|_2 of images [B,C,H,W]: differences of neighbours along rows, columns and both
    diagonals, each norm over the whole batch; 0-d.

    Source: the prior of DeepInversion (Yin et al., Dreaming to Distill, CVPR 2020) as SRe2L's code has it. Departures: none.
    """
    across = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    falling = images[..., 1:, 1:] - images[..., :-1, :-1]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    return torch.stack([torch.linalg.vector_norm(part) for part in (across, down, falling, rising)]).sum()


def mean_norm(images: Tensor) -> Tensor:
    """The mean over images [B,C,H,W] of their L2 norms, 0-d; DeepInversion's other prior."""
    return torch.linalg.vector_norm(images.flatten(1), dim=1).mean()
