"""Distances between two lists of gradients, one tensor for each parameter, and the gradients of a class or of several.

Shapes: G classes, n synthetic images a class, B images, K classes in all, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

Distance = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""(synthetic, real) gradients, one tensor for each parameter -> 0-d."""

EPSILON = 1e-6  # on the product of norms; it decides the value where gradients nearly vanish


def rowwise_cosine(syn: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """sum over rows r of 1 - <a_r, b_r> / (|a_r| |b_r| + 1e-6): 0-d.

    A row is what feeds one output unit: a convolution's [o,i,h,w] is read as o rows of i*h*w, a linear layer's [o,i] as o
    rows of i. Vectors (biases, norms' gains) count nothing. A row that vanishes on either side counts 1.
    Source: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021, eq. 8 and its public code, which
    sums where the paper's layers might be averaged. Departure: LayerNorm's [C,H,W] gains, counted there, are not here.
    """
    total = torch.zeros((), dtype=syn[0].dtype, device=syn[0].device)
    for a, b in zip(syn, real, strict=True):
        if a.dim() in (2, 4):
            a, b = a.flatten(1), b.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPSILON)).sum()
    return total


def cosine(syn: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """1 - <a, b> / (|a| |b| + 1e-6) of all gradients in one vector: 0-d. Source: GLaD, eq. 1."""
    a, b = _flat(syn), _flat(real)
    return 1 - (a @ b) / (a.norm() * b.norm() + EPSILON)


def mse(syn: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """|a - b|^2 of all gradients in one vector: 0-d."""
    return (_flat(syn) - _flat(real)).square().sum()


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


DISTANCES: dict[str, Distance] = {
    "rowwise-cosine": rowwise_cosine,
    "cosine": cosine,
    "mse": mse,
}


def gradients(network: nn.Module, images: Tensor, targets: Tensor, with_graph: bool = False) -> tuple[Tensor, ...]:
    """grad_theta of the mean cross-entropy of images [B,C,H,W], for targets [B] or [B,K]: a tensor for each parameter."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.autograd.grad(F.cross_entropy(network(images), targets), parameters, create_graph=with_graph)


def class_distances(
    network: nn.Module, distance: Distance, images: Tensor, labels: Tensor, real: Sequence[Sequence[Tensor]]
) -> Tensor:
    """distance(gradients(images of a class), real gradients of it) for several classes in one pass, with a graph: [G].

    images [G,n,C,H,W], labels [G,n,K]; `real`: G lists of gradients. The same as G calls one after the other, for a network
    that gives an image the same in every batch. The classes are a dimension of every tensor, mapped over by torch.func.
    """
    weights = {name: tensor.detach() for name, tensor in network.named_parameters() if tensor.requires_grad}
    wanted = [torch.stack(tensors) for tensors in zip(*real, strict=True)]  # [G, ...] for each parameter

    def of_class(images: Tensor, labels: Tensor, wanted: list[Tensor]) -> Tensor:
        def value(weights: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(network, weights, (images,)), labels)

        return distance(list(grad(value)(weights).values()), wanted)

    return vmap(of_class)(images, labels, wanted)
