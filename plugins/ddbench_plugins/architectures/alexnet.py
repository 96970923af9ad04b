"""AlexNet, as small as dataset distillation uses it: five convolutions, no normalisation, one linear layer."""

from __future__ import annotations

from functools import partial

from torch import nn

from ddbench.api import Arch, Spec
from ddbench.errors import ConfigError
from ddbench.ops.layers import Network, check_at_least, check_side

MIN_SIZE = 8  # px: three max pools


def alexnet(width: int = 128) -> Arch:
    """Convs of 5, 5, 3, 3, 3 px with 1, 3/2, 2, 3/2, 3/2 times `width` channels, ReLU; max pools after 1st, 2nd, 5th.

    features: [B,C,H,W] -> [B, 3/2 width, H/8, W/8];  embedding: these, flattened;  logits: [B,K]. No dropout, one
    linear layer.
    Images of one channel get a border: the first conv pads by 4, so 28 px count as 32.
    Source: Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional Neural Networks, NeurIPS
    2012, in the form of Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021. Departures
    from the latter: none.
    Raises: ConfigError for a width that is odd or below 2, for images below 8 px.
    """
    check_at_least("alexnet", 2, width=width)
    if width % 2:
        raise ConfigError(f"architecture 'alexnet' has layers of 3/2 times width: width must be even, got {width}.")
    return Arch(partial(_build, width=width), lr=0.001, min_size=MIN_SIZE)


def _build(spec: Spec, width: int) -> nn.Module:
    check_side("alexnet", spec, MIN_SIZE)
    channels, *sides = spec.shape
    border = 2 if channels == 1 else 0
    narrow, wide = width * 3 // 2, width * 2
    features = nn.Sequential(
        *(nn.Conv2d(channels, width, 5, padding=2 + border), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, narrow, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(wide, narrow, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(narrow, narrow, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    )
    height, breadth = ((side + 2 * border) // 8 for side in sides)
    return Network(features, nn.Identity(), nn.Linear(narrow * height * breadth, spec.num_classes))
