"""A network that others have trained, made to take the images of a run and to answer with its classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import Spec
from ddbench.errors import ConfigError


class Adapted(nn.Module):
    """What a network trained elsewhere says of a data set's images and classes.

    features: images as the data set normalises them [B,C,H,W] -> pixels -> resized so that the shorter side is `side` (0: as they
    are) -> as the network normalises -> its maps [B,D,h,w];  head: -> its logits, those of the data set's classes alone [B,K].
    Pixels are not clamped: where a method leaves [0, 1], the network sees it. Resizing is bicubic, with antialiasing.
    """

    mean: Tensor
    std: Tensor
    outputs: Tensor

    def __init__(
        self, network: nn.Module, spec: Spec, mean: Sequence[float], std: Sequence[float], outputs: Sequence[int], side: int = 0
    ) -> None:
        """`network` has `forward_features` and `forward_head`; `mean` and `std` are its own, of pixels in [0, 1]; `outputs` says
        which of its logits each class of the data set is."""
        super().__init__()
        self.network, self.spec, self.side = network, spec, side
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.register_buffer("outputs", torch.tensor(outputs), persistent=False)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,D,h,w]."""
        pixels = self.spec.denormalise(images)
        if self.side:
            shorter = min(pixels.shape[2:])
            size = [round(side * self.side / shorter) for side in pixels.shape[2:]]
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)
        return self.network.forward_features((pixels - self.mean) / self.std)  # type: ignore[operator]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B,D,h,w] -> logits [B,K], or the network's embedding [B,D']."""
        made = self.network.forward_head(features, pre_logits=pre_logits)  # type: ignore[operator]
        return made if pre_logits else made[:, self.outputs]

    def forward(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,K]."""
        return self.forward_head(self.forward_features(images))


def imagenet_outputs(spec: Spec) -> tuple[int, ...]:
    """Which outputs of a network trained on ImageNet-1K a data set's classes are. Raises ConfigError where it does not say, or
    has no colours."""
    if not spec.class_indices:
        told = f"data set '{spec.name}' does not say which of ImageNet's classes its classes are"
        raise ConfigError(f"{told}: name an architecture as the proxy instead, which is trained on the data set itself.")
    if spec.shape[0] != 3:
        raise ConfigError(f"data set '{spec.name}' has {spec.shape[0]} channels, and networks trained on ImageNet take 3.")
    return spec.class_indices
