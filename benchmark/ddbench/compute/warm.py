"""What the first step of a process pays once for all of them, paid before any clock runs: imports, threads, kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap


def warm_up(device: torch.device) -> None:
    """A step of each optimiser on a convolution, differentiated twice, and one mapped over networks. Draws nothing.

    Torch imports a compiler with the first optimiser of a process, and starts its threads and libraries with the first
    convolution: seconds that would else be counted as those of whichever set came first.
    """
    weight = torch.zeros(2, 1, 3, 3, device=device).requires_grad_()
    images, labels = torch.zeros(2, 1, 8, 8, device=device), torch.zeros(2, dtype=torch.int64, device=device)

    def value(weight: Tensor, images: Tensor) -> Tensor:
        return F.cross_entropy(F.conv2d(images, weight, padding=1).mean((2, 3)), labels)

    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        optimizer = kind([weight], lr=0.0)
        loss = value(weight, images)
        (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
        (loss + slope.square().sum()).backward()
        optimizer.step()
    vmap(grad(value), (None, 0))(weight.detach(), torch.stack([images, images]))
