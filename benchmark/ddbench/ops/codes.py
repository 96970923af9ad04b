"""Codes and feature maps that distillation in a generator starts from.

Shapes: B batch, K classes, L rows of a code, D features.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from ddbench.api import AtMost, Generator, Run
from ddbench.errors import ConfigError

TOGETHER = 64  # px: images up to this side go through a generator together, larger ones one at a time

Start = Literal["sample", "average"]
"""One random code an image, or the mean of many of its class."""
Samples = Annotated[int, AtMost(100_000)]
"""Codes of a class, drawn at once."""


def starting_codes(run: Run, how: Start, samples: int) -> Tensor:
    """w [K * IPC, L, D], sorted by class; equal for all spaces of one seed. "average": `samples` codes of a class are shared out
    among its images, and each has the mean of its own: the mean of all would make the images of a class equal. Where a class has
    a limited number of codes, none is in two means.

    Source: GLaD's code (CVPR 2023), which averages mapped codes. Averaging the noise before it is mapped changes nothing: the
    mapping scales it to unit size again.
    Raises: ConfigError where a class has fewer codes than images, some of which would be equal.
    """
    for label in range(run.spec.num_classes):
        limit = run.generator.num_latents(label)
        if limit is not None and limit < run.ipc:
            told = f"the generator has {limit} codes of class {label}, and ipc {run.ipc} would make images of it equal"
            raise ConfigError(f"{told}: it may be {limit} at most.")
    rng = run.rng("latents")
    if how == "average":
        return full_precision(torch.cat([_averages(run, label, samples, rng) for label in range(run.spec.num_classes)]))
    classes = torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(run.ipc)
    return full_precision(run.generator.latents(classes, rng))


def _averages(run: Run, label: int, samples: int, rng: torch.Generator) -> Tensor:
    """The mean codes [IPC, L, D] of a class."""
    limit = run.generator.num_latents(label)
    num = max(1, (samples if limit is None else min(samples, limit)) // run.ipc)
    if limit is None:
        of_class = torch.full((num,), label, device=run.device)
        return torch.stack([run.generator.latents(of_class, rng).mean(0) for _ in range(run.ipc)])
    drawn = run.generator.latents(torch.full((run.ipc * num,), label, device=run.device), rng)  # at once: all different
    return drawn.unflatten(0, (run.ipc, num)).mean(1)


def pushed(run: Run, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
    """F_start -> F_stop of all images, without a graph: [B,L,D] -> [B,C,h,w]. A space does not know how many fit into memory; the
    layers of one large image may take gigabytes."""
    generator: Generator = run.generator
    size = len(w) if max(run.spec.shape[1:]) <= TOGETHER else 1
    hiddens = (None,) * len(w.split(size)) if hidden is None else hidden.split(size)
    with torch.no_grad():
        parts = [generator.synthesize(*part, start, stop) for part in zip(w.split(size), hiddens, strict=True)]
        return full_precision(torch.cat(parts))


def full_precision(tensor: Tensor) -> Tensor:
    """What is optimised is never kept in half precision, whatever a generator computes in."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def gaussian_like(maps: Tensor, rng: torch.Generator) -> Tensor:
    """Noise in the place of feature maps [B,...]: N(0, 1) times the standard deviation of each image's own map, plus its mean;
    both are numbers over all of the map. `rng` is on the CPU.

    Source: GLaD's code (CVPR 2023), `rand_f`, for generators that have not seen the data.
    """
    noise = torch.randn(maps.shape, generator=rng, dtype=maps.dtype).to(maps.device)
    flat = maps.flatten(1)
    std, mean = torch.std_mean(flat, 1)
    return noise * std.view(-1, *[1] * (maps.dim() - 1)) + mean.view(-1, *[1] * (maps.dim() - 1))
