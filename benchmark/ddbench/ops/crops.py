"""Random resized crops and mirrors with explicit random numbers: the augmentation of ImageNet training, on tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.errors import ConfigError
from ddbench.ops.moves import send, send_together

ATTEMPTS = 10  # at a box inside the image, before the largest centred one is taken


@dataclass(frozen=True)
class CropFlip:
    """A box of `scale` times the image's area and of aspect `ratio`, resized to the image's size, and mirrored half of the time.

    Draws follow torchvision's RandomResizedCrop: area uniform, logarithm of the aspect uniform, sides rounded, up to ten
    attempts, then the largest centred box within the bounds of `ratio`. Pixels are those of cropping first and resizing then:
    none beside the box is seen. Departures: bilinear without antialiasing, which changes nothing, as no side of a box is
    larger than the image's; one draw can serve a whole batch.
    Raises: ConfigError for a scale outside 0 < low <= high <= 1.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"the scale of crops must lie in (0, 1], got {list(self.scale)}.")

    def draw(self, rng: torch.Generator, num: int | None = None) -> CropFlipView:
        """One set of parameters for all images (`num` None), or one for each of `num`. Takes 4 * 10 + 1 uniforms for each."""
        return CropFlipView(self, torch.rand(4 * ATTEMPTS + 1, num or 1, generator=rng, dtype=torch.float64), num)


@dataclass(frozen=True, eq=False)
class CropFlipView:
    """One draw: a differentiable function of a batch. Raises ConfigError if it was drawn for another number of images."""

    augment: CropFlip
    uniforms: Tensor  # [41, 1 or num] in [0, 1), on the CPU
    num: int | None
    theta: Tensor | None = None  # where the images are; None: not there yet

    def boxes(self, height: int, width: int) -> Tensor:
        """Top, left, height and width of each box, in pixels, and whether it is mirrored: [5, 1 or num] float64."""
        area, aspect, y, x = self.uniforms[:-1].view(4, ATTEMPTS, -1)  # [attempts, n] each
        low, high = self.augment.scale
        area = height * width * (low + (high - low) * area)
        small, large = (math.log(value) for value in self.augment.ratio)
        aspect = (small + (large - small) * aspect).exp()
        wide, tall = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
        first = fits.to(torch.int8).argmax(0, keepdim=True)  # 0 where none fits
        wide, tall, y, x = (value.gather(0, first)[0] for value in (wide, tall, y, x))
        top, left = (y * (height - tall + 1)).floor(), (x * (width - wide + 1)).floor()
        # No attempt fitted: the whole image, cut to the nearest aspect that is allowed.
        most = (min(width, round(height * self.augment.ratio[1])), min(height, round(width / self.augment.ratio[0])))
        whole = torch.tensor([(height - most[1]) // 2, (width - most[0]) // 2, most[1], most[0]], dtype=torch.float64)
        box = torch.where(fits.any(0), torch.stack([top, left, tall, wide]), whole[:, None])
        return torch.cat([box, (self.uniforms[-1:] < self.augment.flip).double()])

    def matrix(self, height: int, width: int) -> Tensor:
        """Where output pixels come from: [1 or num, 2, 3] float64, on the CPU."""
        top, left, tall, wide, mirrored = self.boxes(height, width)
        sign = 1 - 2 * mirrored
        zero = torch.zeros_like(top)
        rows = [sign * wide / width, zero, (2 * left + wide) / width - 1, zero, tall / height, (2 * top + tall) / height - 1]
        return torch.stack(rows, 1).view(-1, 2, 3)

    def __call__(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,H,W]."""
        if self.num is not None and len(images) != self.num:
            raise ConfigError(f"this view was drawn for {self.num} images and cannot augment {len(images)}.")
        theta = self.theta
        if theta is None:
            theta = send(self.matrix(images.shape[2], images.shape[3]), images.device)
        rows, columns = _places(theta[:, 1, 1:], images.shape[2]), _places(theta[:, 0, ::2], images.shape[3])
        shape = (len(theta), *images.shape[2:])
        grid = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], 3).to(images.dtype)
        grid = grid.expand(len(images), -1, -1, -1)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _places(line: Tensor, side: int) -> Tensor:
    """Where the pixels of a side come from, in [-1, 1], none outside of the centres of the box's first and last pixel: [n, side].
    `line` [n, 2]: the box's half length, below 0 where it is mirrored, and its middle. No matrix product: TF32 might round it."""
    half, middle = line[:, :1], line[:, 1:]
    centres = torch.linspace(1 / side - 1, 1 - 1 / side, side, device=line.device, dtype=line.dtype)
    reach = half.abs() - 1 / side
    return torch.clamp(half * centres, -reach, reach) + middle


def ahead(views: Sequence[CropFlipView], height: int, width: int, device: torch.device) -> list[CropFlipView]:
    """The same views of images of that size, with what they would each move to a device there already, in one copy."""
    moved = send_together([view.matrix(height, width) for view in views], device)
    return [replace(view, theta=theta) for view, theta in zip(views, moved, strict=True)]


@dataclass(frozen=True)
class ShiftFlip:
    """The image moved by up to `pixels` along both axes, and mirrored half of the time: the padded crop of CIFAR training.

    Departures: zeros of normalised images, the mean colour, move in, where pads of pixels are black; a draw can serve a whole
    batch, as with `CropFlip`. Raises: ConfigError for a negative shift.
    """

    pixels: int = 4
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.pixels < 0:
            raise ConfigError(f"images are moved by at least 0 pixels, got {self.pixels}.")

    def draw(self, rng: torch.Generator, num: int | None = None) -> ShiftFlipView:
        """One set of parameters for all images (`num` None), or one for each of `num`."""
        shifts = torch.randint(0, 2 * self.pixels + 1, (2, num or 1), generator=rng)
        return ShiftFlipView(self.pixels, shifts, torch.rand(num or 1, generator=rng) < self.flip, num)


@dataclass(frozen=True, eq=False)
class ShiftFlipView:
    """One draw: a differentiable function of a batch. Raises ConfigError if it was drawn for another number of images."""

    pixels: int
    shifts: Tensor  # [2, 1 or num] in 0..2 pixels: where the window begins in the padded image, from its top and left
    mirrored: Tensor  # [1 or num] bool
    num: int | None

    def __call__(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,H,W]."""
        if self.num is not None and len(images) != self.num:
            raise ConfigError(f"this view was drawn for {self.num} images and cannot augment {len(images)}.")
        height, width = images.shape[2:]
        rows = self.shifts[0][:, None] + torch.arange(height)  # [n,H]
        columns = self.shifts[1][:, None] + torch.arange(width)
        columns = torch.where(self.mirrored[:, None], columns.flip(1), columns)
        rows, columns = (part.expand(len(images), -1) for part in send_together([rows, columns], images.device))
        padded = F.pad(images, (self.pixels,) * 4).permute(0, 2, 3, 1)
        item = torch.arange(len(images), device=images.device)
        return padded[item[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
