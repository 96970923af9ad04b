"""VGG-11 with instance normalisation and one linear layer."""

from __future__ import annotations

from functools import partial

from torch import nn

from ddbench.api import Arch, Spec
from ddbench.ops.layers import Form, Network, check_at_least, check_side, form_of, instance_norm

MULTIPLES = (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0)  # of the width: a conv with so many channels; 0: a max pool
MIN_SIZE = 28  # px: five max pools, and the border of small images
HIGH_GRID = 7


def vgg11(width: int = 64, form: Form = "auto") -> Arch:
    """Eight blocks of conv 3x3 -> instance norm -> ReLU, five max pools 2x2 between and after them, a linear layer.

    features: [B,C,H,W] -> [B, 8 width, H/32, W/32], the maps after the last max pool;  logits: [B,K].
    `form` decides the embedding. "low": the maps, flattened (512 features at 32 px). "high": the maps, max-pooled
    adaptively to 7x7 and flattened (25,088 features); maps smaller than 7x7 (below 224 px) are repeated. "auto": low
    up to a side of 64 px.
    Images of one channel get a border: the first conv pads by 3, so 28 px count as 32.
    Source: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, in
    the low form of Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021, and the high form
    of Cazenavette et al., Generalizing Dataset Distillation via Deep Generative Prior, CVPR 2023.
    Departures from these: images of three channels below 32 px, which five pools would leave empty, get the border
    too; at 64 px the low form keeps a 2x2 grid (2048 features), where that of the source does not run.
    Raises: ConfigError for a width below 1, for images below 28 px.
    """
    check_at_least("vgg11", 1, width=width)
    return Arch(partial(_build, width=width, form=form), lr=0.0001, min_size=MIN_SIZE)


def _build(spec: Spec, width: int, form: Form) -> nn.Module:
    check_side("vgg11", spec, MIN_SIZE)
    channels, *sides = spec.shape
    padding = 3 if channels == 1 or min(sides) < 32 else 1
    height, breadth = ((side + 2 * (padding - 1)) // 32 for side in sides)
    layers: list[nn.Module] = []
    for multiple in MULTIPLES:
        if multiple == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        wider = multiple * width
        layers += [nn.Conv2d(channels, wider, 3, padding=padding), instance_norm(wider), nn.ReLU()]
        channels, padding = wider, 1
    if form_of(form, spec) == "low":
        return Network(nn.Sequential(*layers), nn.Identity(), nn.Linear(channels * height * breadth, spec.num_classes))
    pool = nn.AdaptiveMaxPool2d(HIGH_GRID)
    return Network(nn.Sequential(*layers), pool, nn.Linear(channels * HIGH_GRID**2, spec.num_classes))
