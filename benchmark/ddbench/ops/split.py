"""Stratified splits: the same number of images of every class set apart."""

from __future__ import annotations

import torch
from torch import Tensor

from ddbench.errors import ConfigError


def stratified_split(labels: Tensor, part: float | int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split positions in two at random, with equally many of every class held out.

    labels: [N] int64, in any order. part: an int is the number held out of each class; a float in [0, 1) is the
    fraction held out of the smallest class, rounded, at least one image unless it is 0; the same number of every class.
    Gives (kept [N - K n], held out [K n]), int64 on the CPU, each ascending. Takes one permutation of N from `rng`.
    Raises: ConfigError if a class would keep no image, or if `part` is negative or a fraction of 1 or more.
    """
    classes, inverse, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
    smallest = int(counts.min()) if len(counts) else 0
    if part < 0 or (isinstance(part, float) and part >= 1):
        raise ConfigError(f"a held-out part must be a fraction in [0, 1) or a count of at least 0, got {part}.")
    held_out = part if isinstance(part, int) else max(round(part * smallest), int(part > 0))
    if held_out and held_out >= smallest:
        rarest = int(classes[counts.argmin()]) if len(counts) else "any"
        raise ConfigError(f"cannot hold out {held_out} images a class: class {rarest} has {smallest} and must keep some.")
    order = torch.randperm(len(inverse), generator=rng)
    order = order[inverse[order].argsort(stable=True)]  # by class, at random within each
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[inverse[order]]  # within its class
    return order[rank >= held_out].sort().values, order[rank < held_out].sort().values
