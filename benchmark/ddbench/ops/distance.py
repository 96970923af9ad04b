"""Distances between two lists of gradients, one tensor for each parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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


DISTANCES: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]] = {
    "rowwise-cosine": rowwise_cosine,
    "cosine": cosine,
    "mse": mse,
}
