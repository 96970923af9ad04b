"""Images that stay in the host's memory, mapped from a file as a rule, and go to the device batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ddbench.ops.moves import send

RESIDENT_SHARE = 0.25  # of a CUDA device's free memory: a split that takes more stays on the host


@dataclass(frozen=True, eq=False)
class HostImages:
    """Some of the images of a split, in an order of their own, without a copy of them.

    It answers to what a tensor of images on `device` is asked for: its length, its type, `split`, positions, a slice. Positions
    are on the host, so that the device need not be asked for them. A batch is a new tensor on `device`; to a CUDA device it is
    pinned and on its way when it is returned (`ddbench.ops.moves.send`).
    """

    source: Tensor  # uint8 [M,C,H,W] on the host
    rows: Tensor  # [N] int64 on the host: which of them
    device: torch.device  # where batches go

    def __len__(self) -> int:
        """N."""
        return len(self.rows)

    def __getitem__(self, which: Tensor | slice) -> Tensor:
        """Images at positions [B] on the host, or of a slice: on the device."""
        return send(self.gather(which), self.device)

    def gather(self, which: Tensor | slice) -> Tensor:
        """The same, still on the host."""
        return self.source[self.rows[which]]

    def split(self, size: int) -> Iterator[Tensor]:
        """All of them in order, so many at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def also(self, other: HostImages) -> HostImages:
        """These and then others of the same split."""
        return replace(self, rows=torch.cat([self.rows, other.rows]))

    def to(self, device: torch.device) -> HostImages:
        """The same images, for another device."""
        return replace(self, device=device)

    @property
    def shape(self) -> torch.Size:
        """[N,C,H,W]."""
        return torch.Size((len(self.rows), *self.source.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """uint8."""
        return self.source.dtype

    def numel(self) -> int:
        """Of all of them."""
        return self.shape.numel()

    @property
    def nbytes(self) -> int:
        """What they hold of a device's memory: nothing."""
        return 0

    @property
    def _version(self) -> int:
        """As of a tensor: another, once somebody has written into the images."""
        return self.source._version


Images: TypeAlias = Tensor | HostImages
"""Images of a split: on the device, or on the host."""


def stays(images: Tensor, mapped: bool, device: torch.device) -> bool:
    """Whether images stay where they are: on a CPU where they are mapped, for a CUDA device where they would take more than
    RESIDENT_SHARE of what is free there."""
    if device.type != "cuda":
        return mapped
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes > RESIDENT_SHARE * free


def pick(images: Images, here: Tensor, there: Tensor) -> Tensor:
    """The batch at positions [B], given on the host and on the device of the images."""
    return images[here] if isinstance(images, HostImages) else images[there]


def joined(first: Images, second: Images) -> Images:
    """All of both, of one split."""
    if isinstance(first, HostImages) and isinstance(second, HostImages):
        return first.also(second)
    return torch.cat([part[:] for part in (first, second)])
