"""Pieces of networks that several architecture plugins share.

Shapes: B batch, C channels, H height, W width, K classes, D features.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ddbench.api import Spec
from ddbench.errors import ConfigError

Form = Literal["auto", "low", "high"]
"""Which of its two published forms a network takes: that for 32 px, that for 128 px and more, or whichever fits."""

Norm = Literal["instance", "batch", "layer", "group", "none"]

LARGEST_LOW_SIDE = 64  # px


class Network(nn.Module):
    """A network in three parts, as `Arch.build` promises it: maps, an embedding, logits.

    features: [B,C,H,W] -> [B,D,h,w];  pool: -> [B,D,h',w'], flattened to the embedding [B,D'];  classifier: -> [B,K].
    """

    def __init__(self, features: nn.Module, pool: nn.Module, classifier: nn.Module) -> None:
        """`pool` gives what is flattened; `classifier` a linear function of that."""
        super().__init__()
        self.features, self.pool, self.classifier = features, pool, classifier

    def forward_features(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,D,h,w]."""
        return self.features(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B,D,h,w] -> logits [B,K], or the embedding [B,D'] they are a linear function of."""
        embedding = self.pool(features).flatten(1)
        return embedding if pre_logits else self.classifier(embedding)

    def forward(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,K]."""
        return self.forward_head(self.forward_features(images))


class Dropout(nn.Module):
    """Zeroes each value with `rate` probability in training and scales the others by 1 / (1 - rate); a stream of its own.

    Unlike torch's, it draws from `rng`, a generator on the device of the values that a run or a training loop gives it
    (torch's own where nobody has), or takes a ready `mask` of its input's shape; so a network draws the same numbers
    whether it is trained alone or with others.
    """

    def __init__(self, rate: float) -> None:
        """`rate` in [0, 1)."""
        super().__init__()
        self.rate = rate
        self.rng: torch.Generator | None = None
        self.mask: Tensor | None = None

    def draw(self, like: Tensor, rng: torch.Generator | None) -> Tensor:
        """A mask of zeros and 1 / (1 - rate) in the shape of a tensor."""
        return torch.empty_like(like).bernoulli_(1 - self.rate, generator=rng).div_(1 - self.rate)

    def forward(self, values: Tensor) -> Tensor:
        """Any shape."""
        if not self.training or self.rate == 0:
            return values
        return values * (self.draw(values, self.rng) if self.mask is None else self.mask)


def lend(network: nn.Module, rng: torch.Generator) -> None:
    """Make a network's Dropout layers draw from a generator, in the order in which they are called."""
    for layer in network.modules():
        if isinstance(layer, Dropout):
            layer.rng = rng


def instance_norm(channels: int) -> nn.Module:
    """Each map of each image to mean 0, variance 1, then a learned scale and shift a channel; no running statistics."""
    return nn.GroupNorm(channels, channels)


def norm_layer(name: Norm, shape: tuple[int, int, int]) -> nn.Module:
    """The normalisation of that name for maps [B, *shape], with a learned scale and shift.

    "group" has 4 groups; "layer" normalises a whole image and has a scale and shift for every channel and position, as
    in the code of Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021.
    Raises: ConfigError for another name, or where 4 groups do not fit.
    """
    channels = shape[0]
    if name == "instance":
        return instance_norm(channels)
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "layer":
        return nn.LayerNorm(shape)
    if name == "group":
        if channels % 4:
            raise ConfigError(f"norm 'group' makes 4 groups: width must be a multiple of 4, got {channels}.")
        return nn.GroupNorm(4, channels)
    if name == "none":
        return nn.Identity()
    raise ConfigError(f"unknown norm '{name}'. It takes: instance, batch, layer, group, none.")


def check_at_least(name: str, least: int, **settings: int) -> None:
    """Raise ConfigError if one of an architecture's settings is below `least`."""
    for setting, value in settings.items():
        if value < least:
            raise ConfigError(f"architecture '{name}' needs {setting} of at least {least}, got {value}.")


def check_side(name: str, spec: Spec, min_size: int) -> None:
    """Raise ConfigError if the images are smaller than an architecture can take."""
    _, height, width = spec.shape
    if min(height, width) < min_size:
        raise ConfigError(
            f"architecture '{name}' needs images of at least {min_size} x {min_size} px and data set '{spec.name}' has "
            f"{height} x {width}. Use larger images, or another architecture or other settings of this one."
        )


def form_of(form: Form, spec: Spec) -> Literal["low", "high"]:
    """The form for these images. "auto": low up to and including a shorter side of 64 px, high above.

    The published forms are for 32 px (low) and for 128 px and more (high); the limit between them is ours. At 64 px the
    high forms degenerate: VGG-11 repeats a 2 x 2 map to 7 x 7, ViT sees 16 patches.
    """
    if form == "auto":
        return "low" if min(spec.shape[1:]) <= LARGEST_LOW_SIDE else "high"
    return form
