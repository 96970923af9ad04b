"""The statistics of what enters a network's BatchNorm layers, against those that the layers have stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """The network's BatchNorm2d layers with stored statistics, in the order in which it names them."""
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None]


@contextmanager
def moment_distances(network: nn.Module) -> Iterator[list[Tensor]]:
    """Inside it, each forward pass appends, for every BatchNorm2d layer in the order of calls, the distance
    |mean - stored mean|_2 + |var - stored var|_2 of its input [B,D,h,w]: mean and biased variance over B, h, w; 0-d."""
    found: list[Tensor] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), correction=0)
        found.append(torch.linalg.vector_norm(mean - layer.running_mean) + torch.linalg.vector_norm(var - layer.running_var))  # type: ignore[operator]

    hooks = [layer.register_forward_pre_hook(note) for layer in batch_norms(network)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
