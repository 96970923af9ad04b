"""Differentiable siamese augmentation with explicit parameters (DSA): draw a view once, apply it to any batch.

Shapes: B images x [B,C,H,W], normalised, so that the padding value 0 is the data set's mean colour; u ~ U[0,1).

    color      x + (u - 0.5) brightness;  then (x - m) (saturation u) + m, m the mean over C of each pixel;
               then (x - m) (u + contrast) + m, m the mean over C, H, W of each image
    crop       shift by (dy, dx), each uniform in {-p..p}, p = int(side crop + 0.5); zeros shifted in
    cutout     zero a box of side k = int(side cutout + 0.5), centred on a uniform grid line {0..side} where k is even,
               on a uniform pixel {0..side-1} where k is odd, and clipped at the borders
    flip       mirror left and right where u < flip
    scale      sampling grid times (sx, sy), each uniform in [1/scale, scale]; above 1 the content shrinks and a zero
               border shows
    rotate     by an angle uniform in [-rotate, rotate] degrees

scale and rotate resample bilinearly with zero padding and align_corners=True, in coordinates where each side is
[-1, 1], so a rotation of images that are not square shears them. On CUDA their gradient is summed in no fixed order,
which is how torch's grid_sample does it.

Source: Zhao and Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021; operations and
strengths as in the public code of DSA, MTT and GLaD, mode "S" (one operation a call). Departures: parameters come from
the caller's generator, where that code seeds the global one with the wall clock. DSA's code does not align corners,
MTT's and GLaD's do: on square images that gives the same numbers, on others another shear of a rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import radians
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import View
from ddbench.errors import ConfigError, did_you_mean
from ddbench.ops.moves import send, send_together


@dataclass(frozen=True)
class SiameseAugment:
    """The operations to choose from, joined by "_", and their strengths (formulas at the top of this module).

    An empty strategy or "none" leaves images as they are.
    Raises: ConfigError if the strategy names an unknown operation, or if a strength makes no sense.
    """

    strategy: str
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    crop: float = 0.125  # of the side
    cutout: float = 0.5  # of the side
    flip: float = 0.5  # probability
    scale: float = 1.2
    rotate: float = 15.0  # degrees

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn from."""
        for name in self.ops:
            if name not in OPS:
                known = ", ".join(sorted(OPS))
                raise ConfigError(f"unknown augmentation '{name}'.{did_you_mean(name, OPS)} A strategy takes: {known}.")
        for name in ("brightness", "saturation", "contrast", "rotate"):
            if getattr(self, name) < 0:
                raise ConfigError(f"the augmentation strength '{name}' must be at least 0, got {getattr(self, name)}.")
        for name in ("crop", "cutout", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"the augmentation strength '{name}' must lie in [0, 1], got {getattr(self, name)}.")
        if self.scale < 1:
            raise ConfigError(f"the augmentation strength 'scale' must be at least 1, got {self.scale}.")

    @property
    def ops(self) -> tuple[str, ...]:
        """The operations' names; empty for the identity."""
        return () if self.strategy in ("", "none") else tuple(self.strategy.split("_"))

    def draw(self, rng: torch.Generator, num: int | None = None) -> SiameseView:
        """One operation, each equally likely, and its parameters: one set for all images (`num` None), or one for each
        of `num` images. Takes one integer and, for each parameter, `num` or 1 uniforms from `rng`, a CPU generator."""
        if not self.ops:
            return SiameseView(self, "none", torch.empty(0, num or 1), num)
        op = self.ops[int(torch.randint(len(self.ops), (), generator=rng))]
        size = 1 if num is None else num
        return SiameseView(self, op, torch.rand(OPS[op][0], size, generator=rng), num)


@dataclass(frozen=True, eq=False)
class SiameseView:
    """One draw: a differentiable function of a batch, float32 or float64, of any height and width, on any device.

    Raises: ConfigError if it was drawn for another number of images.
    """

    augment: SiameseAugment
    op: str
    uniforms: Tensor  # [P, 1 or num] in [0, 1), float32, on the CPU or where the images are: the operation's P parameters
    num: int | None  # None: shared by every image of any batch
    theta: Tensor | None = None  # float64 [1 or num, 2, 3] where the images are, of one that resamples; None: not there yet

    def __call__(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,H,W]."""
        if self.num is not None and len(images) != self.num:
            raise ConfigError(
                f"this view was drawn for {self.num} images and cannot augment {len(images)}: "
                f"draw one with num={len(images)}, or with num=None for any batch."
            )
        if self.theta is not None:
            return _resample(images, self.theta.to(images.dtype))
        return images if self.op == "none" else OPS[self.op][1](images, self.uniforms, self.augment)


def ahead(views: Sequence[View], device: torch.device, *beside: Tensor) -> tuple[list[View], list[Tensor]]:
    """The same views, with what they would each move to a device there already; and other tensors from the host, that go along in
    the one copy."""
    wanted: dict[int, Tensor] = {}
    for number, view in enumerate(views):
        if isinstance(view, SiameseView) and view.op in MATRICES:
            wanted[number] = _theta(view.op, view.uniforms, view.augment)
        elif isinstance(view, SiameseView) and view.uniforms.shape[1] > 1:  # one that is shared becomes numbers, on the host
            wanted[number] = view.uniforms
    made, moved = list(views), send_together([*wanted.values(), *beside], device)
    for number, there in zip(wanted, moved, strict=False):
        view = views[number]
        assert isinstance(view, SiameseView)
        made[number] = replace(view, theta=there) if view.op in MATRICES else replace(view, uniforms=there)
    return made, moved[len(wanted) :]


def apply_together(views: Sequence[View], batches: Sequence[Tensor]) -> list[Tensor]:
    """Each view on its own batch [B,C,H,W], with one call for all batches that meet the same operation with parameters for
    every image; the values are those of one call each."""
    made = list(batches)
    alike: dict[Any, list[int]] = {}
    for number, view in enumerate(views):
        if isinstance(view, SiameseView) and view.num is not None and view.op != "none":
            alike.setdefault((view.augment, view.op), []).append(number)
        else:
            made[number] = view(batches[number])
    for (augment, op), numbers in alike.items():
        images = torch.cat([batches[number] for number in numbers])
        uniforms = torch.cat([views[number].uniforms for number in numbers], 1)  # type: ignore[attr-defined]
        sizes = [len(batches[number]) for number in numbers]
        for number, part in zip(numbers, OPS[op][1](images, uniforms, augment).split(sizes), strict=True):
            made[number] = part
    return made


def _params(images: Tensor, uniforms: Tensor) -> list[float] | tuple[Tensor, ...]:
    """Uniforms [P, 1 or B] as P operands that broadcast against images: numbers where all images share them, which
    spares a device the copy, else [B,1,1,1] each."""
    if uniforms.shape[1] == 1:
        return [row[0] for row in uniforms.tolist()]
    moved = send(uniforms, images.device).to(images.dtype)
    return moved[:, :, None, None, None].unbind()


def _cells(side: int, ratio: float) -> int:
    return int(side * ratio + 0.5)


def _color(images: Tensor, uniforms: Tensor, by: SiameseAugment) -> Tensor:
    brightness, saturation, contrast = _params(images, uniforms)
    images = images + (brightness - 0.5) * by.brightness
    grey = images.mean(1, keepdim=True)  # [B,1,H,W]
    images = (images - grey) * (saturation * by.saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)  # [B,1,1,1]
    return (images - mean) * (contrast + by.contrast) + mean


def _crop(images: Tensor, uniforms: Tensor, by: SiameseAugment) -> Tensor:
    channels, height, width = images.shape[1:]
    down, right = _cells(height, by.crop), _cells(width, by.crop)  # largest shifts
    y, x = _params(images, uniforms)
    top, left = y * (2 * down + 1) // 1, x * (2 * right + 1) // 1  # where the window starts in the padded image
    if not isinstance(top, Tensor) or not isinstance(left, Tensor):
        dy, dx = int(top) - down, int(left) - right
        return F.pad(images, (-dx, dx, -dy, dy))  # negative padding cuts
    padded = F.pad(images, (right, right, down, down))
    rows = top.long() + torch.arange(height, device=images.device)[:, None]  # [B,1,H,1]
    columns = left.long() + torch.arange(width, device=images.device)  # [B,1,1,W]
    index = (rows * padded.shape[3] + columns).flatten(2).expand(-1, channels, -1)  # [B,C,HW]
    return padded.flatten(2).gather(2, index).view_as(images)


def _cutout(images: Tensor, uniforms: Tensor, by: SiameseAugment) -> Tensor:
    height, width = images.shape[2:]
    y, x = _params(images, uniforms)
    rows = _covered(torch.arange(height, device=images.device)[:, None], height, y, by.cutout)  # [H,1] or [B,1,H,1]
    columns = _covered(torch.arange(width, device=images.device), width, x, by.cutout)  # [W] or [B,1,1,W]
    return images.masked_fill(rows & columns, 0)


def _covered(position: Tensor, side: int, uniform: float | Tensor, ratio: float) -> Tensor:
    """Which positions of a side the box covers: bool."""
    box = _cells(side, ratio)
    start = uniform * (side + 1 - box % 2) // 1 - box // 2
    return (position >= start) & (position < start + box)


def _flip(images: Tensor, uniforms: Tensor, by: SiameseAugment) -> Tensor:
    (uniform,) = _params(images, uniforms)
    if not isinstance(uniform, Tensor):
        return images.flip(3) if uniform < by.flip else images
    return torch.where(uniform < by.flip, images.flip(3), images)


def _scale(uniforms: Tensor, by: SiameseAugment) -> Tensor:
    sx, sy = (uniforms.to(torch.float64) * (by.scale - 1 / by.scale) + 1 / by.scale).unbind()  # [1 or B] each
    zero = torch.zeros_like(sx)
    return torch.stack([sx, zero, zero, sy], 1)


def _rotate(uniforms: Tensor, by: SiameseAugment) -> Tensor:
    angle = (uniforms[0].to(torch.float64) * 2 - 1) * radians(by.rotate)  # [1 or B]
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([cosine, -sine, sine, cosine], 1)


MATRICES: dict[str, Callable[[Tensor, SiameseAugment], Tensor]] = {"rotate": _rotate, "scale": _scale}
"""Of the operations that resample: (uniforms [2 or 1, 1 or B], strengths) -> M row by row, float64 [1 or B, 4]."""


def _theta(op: str, uniforms: Tensor, by: SiameseAugment) -> Tensor:
    """[1 or B, 2, 3]: no translation."""
    return F.pad(MATRICES[op](uniforms, by).view(-1, 2, 2), (0, 1))


def _resampled(op: str, images: Tensor, uniforms: Tensor, by: SiameseAugment) -> Tensor:
    return _resample(images, send(_theta(op, uniforms, by).to(images.dtype), images.device))


def _resample(images: Tensor, theta: Tensor) -> Tensor:
    """Output pixel at (x, y) in [-1, 1]^2 is the input at M (x, y): theta [1 or B, 2, 3], of the images' type and device."""
    if images.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        grid = plain_grid(theta, *images.shape[2:])
    else:
        grid = F.affine_grid(theta, [len(theta), *images.shape[1:]], align_corners=True)  # [1 or B, H, W, 2]
    grid = grid.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def plain_grid(theta: Tensor, height: int, width: int) -> Tensor:
    """`affine_grid` with aligned corners, [n, H, W, 2], without the matrix product, which TF32 may round to 11 bits: at 128 px
    that would be a thirtieth of a pixel at the borders."""
    y, x = (torch.linspace(-1, 1, side, device=theta.device, dtype=theta.dtype) for side in (height, width))
    across, down, middle = theta[:, None, None].unbind(4)  # [n, 1, 1, 2] each
    return across * x[None, None, :, None] + down * y[None, :, None, None] + middle


OPS: dict[str, tuple[int, Callable[[Tensor, Tensor, SiameseAugment], Tensor]]] = {
    "color": (3, _color),
    "crop": (2, _crop),
    "cutout": (2, _cutout),
    "flip": (1, _flip),
    "rotate": (1, partial(_resampled, "rotate")),
    "scale": (2, partial(_resampled, "scale")),
}
"""Operation by name: how many uniforms it takes, and (images, uniforms [P, 1 or B], strengths) -> images."""
