"""From the host to a device without waiting for it: through pinned memory, many tensors in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

ALIGNED = 128  # bytes that a tensor inside of a larger one begins at a multiple of, as kernels like it


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. From the host to a CUDA device it is on its way when this returns: the host waits neither for it nor
    for what the device does, and may change the original at once."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def send_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """`send` of each, in one copy for all; they then share their memory, without overlapping."""
    if device.type != "cuda" or not tensors:
        return [tensor.to(device) for tensor in tensors]
    starts = list(accumulate((-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors), initial=0))
    flat = torch.empty(starts[-1], dtype=torch.uint8)
    for tensor, start in zip(tensors, starts, strict=False):
        flat[start : start + tensor.nbytes] = tensor.detach().flatten().view(torch.uint8)
    there = send(flat, device)
    return [
        there[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for tensor, start in zip(tensors, starts, strict=False)
    ]


@torch.no_grad()
def send_network(network: nn.Module, device: torch.device) -> nn.Module:
    """A network that is on the host, itself, with its parameters and buffers on a device, in one copy; tied ones stay tied."""
    if device.type != "cuda":
        return network.to(device)
    held = list(dict.fromkeys((*network.parameters(), *network.buffers())))
    for old, new in zip(held, send_together(held, device), strict=True):
        old.data = new
    return network
