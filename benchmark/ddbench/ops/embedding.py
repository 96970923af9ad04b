"""The embedding that feature-matching losses compare."""

from __future__ import annotations

from torch import Tensor, nn


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """What a network gives to its last linear layer: [B,C,H,W] -> [B,D]; for a ConvNet the flattened last map."""
    return network.forward_head(network.forward_features(images), pre_logits=True)  # type: ignore[operator]
