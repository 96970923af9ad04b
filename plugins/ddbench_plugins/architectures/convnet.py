"""ConvNet, the backbone of dataset distillation: some equal blocks and one linear layer."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from torch import nn

from ddbench.api import Arch, AtMost, Spec
from ddbench.ops.layers import Network, Norm, check_at_least, check_side, norm_layer

Blocks = Annotated[int, AtMost(16)]  # for images of 65,536 px: every block halves the sides


def convnet(width: int = 128, depth: Blocks | None = None, norm: Norm = "instance") -> Arch:
    """`depth` blocks of conv 3x3 -> norm -> ReLU -> average pool 2x2, then a linear layer.

    features: [B,C,H,W] -> [B, width, H/2^depth, W/2^depth], the last pooled maps;  embedding: these, flattened (2048
    features at 32 px with the defaults);  logits: [B,K].
    `depth` unset: log2(side) - 2, rounded down and at least 1, so that the last map is 4x4 where the shorter side is
    a power of two and otherwise between 4 and 7 (one block only, and a smaller map, below 8 px).
    Images of one channel get a border: the first conv pads by 3, so 28 px count as 32 in all of the above.
    Source: Gidaris and Komodakis, Dynamic Few-Shot Visual Learning without Forgetting, CVPR 2018, in the form of
    Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021.
    Departures: the depth rule is the one the papers imply; GLaD's and H-PD's code builds depth 5 at every resolution
    unless told otherwise, that is 8192 features at 256 px (`depth = 5` gives that network). One-channel images may
    have any size; the code of the source takes 28 px only.
    Raises: ConfigError for a width or depth below 1, for norm "group" and a width that 4 does not divide, for images below
    2^depth px (2 px where depth is unset).
    """
    check_at_least("convnet", 1, width=width, depth=1 if depth is None else depth)
    with torch.device("meta"):  # complain now, not when the first network is built; of any width, without memory
        norm_layer(norm, (width, 1, 1))
    min_size = 2 ** (depth or 1)
    return Arch(partial(_build, width=width, depth=depth, norm=norm, min_size=min_size), lr=0.001, min_size=min_size)


def _build(spec: Spec, width: int, depth: int | None, norm: Norm, min_size: int) -> nn.Module:
    check_side("convnet", spec, min_size)
    channels, *sides = spec.shape
    padding = 3 if channels == 1 else 1
    height, breadth = (side + 2 * (padding - 1) for side in sides)
    layers: list[nn.Module] = []
    for _ in range(depth or max(1, min(height, breadth).bit_length() - 3)):  # bit_length - 1 is log2, rounded down
        layers += [
            nn.Conv2d(channels, width, 3, padding=padding),
            norm_layer(norm, (width, height, breadth)),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
        channels, padding, height, breadth = width, 1, height // 2, breadth // 2
    return Network(nn.Sequential(*layers), nn.Identity(), nn.Linear(width * height * breadth, spec.num_classes))
