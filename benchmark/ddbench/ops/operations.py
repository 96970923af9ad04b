"""The operations that a described decoder may consist of: each with typed, bounded settings, its shapes, and its module."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import msgspec
import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor, nn

MAX_VALUES = 1 << 26  # of any one tensor, or of an image's map: 256 MiB in float32

Size = Annotated[int, Meta(ge=1, le=1 << 20)]
Channels = Annotated[int, Meta(ge=1, le=1 << 14)]
Kernel = Annotated[int, Meta(ge=1, le=31)]
Stride = Annotated[int, Meta(ge=1, le=8)]
Padding = Annotated[int, Meta(ge=0, le=30)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Shape = tuple[int, ...]  # of one image's map or vector, without the batch


class Operation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op"):
    """One step of a decoder."""

    takes: ClassVar[int | None] = None  # how many dimensions its input has: 1 a vector, 3 a map; None: any

    def makes(self, before: Shape) -> Shape:
        """What it makes of an input of that shape. Raises ValueError, with the fault, where it cannot."""
        if self.takes is not None and len(before) != self.takes:
            raise ValueError(f"takes a {'map' if self.takes == 3 else 'vector'} and gets {list(before)}")
        return before

    def module(self) -> nn.Module:
        """Without weights that mean anything."""
        raise NotImplementedError  # abstract


def check_size(*shape: int) -> None:
    """Raise ValueError for a tensor, or an image's map, of an impossible shape."""
    if min(shape) < 1 or math.prod(shape) > MAX_VALUES:
        raise ValueError(f"would have a tensor or a map of {' x '.join(map(str, shape))} values")


def _match(channels: int, before: Shape) -> None:
    if before[0] != channels:
        raise ValueError(f"takes {channels} channels and gets {before[0]}")


class StoredNorm(nn.Module):
    """x -> (x - mean) / sqrt(var + eps), scaled and shifted, by what is stored; vectors or maps."""

    def __init__(self, channels: int, eps: float, affine: bool) -> None:
        """`affine`: with a scale and a shift."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,...] -> [B,C,...]."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)  # type: ignore[arg-type]


class Linear(Operation, frozen=True, kw_only=True, tag="linear"):
    """x -> W x + b of a vector."""

    tensors: Name
    before: Size
    after: Size
    bias: bool = True
    takes: ClassVar[int | None] = 1

    def makes(self, before: Shape) -> Shape:
        """[after]."""
        _match(self.before, super().makes(before))
        check_size(self.before, self.after)
        return (self.after,)

    def module(self) -> nn.Module:
        """nn.Linear."""
        return nn.Linear(self.before, self.after, self.bias)


class Reshape(Operation, frozen=True, kw_only=True, tag="reshape"):
    """A vector or map in another shape: [C,h,w], or [C]."""

    shape: Annotated[tuple[Size, ...], Meta(min_length=1, max_length=3)]

    def makes(self, before: Shape) -> Shape:
        """The shape told."""
        if len(self.shape) == 2 or math.prod(self.shape) != math.prod(before):
            raise ValueError(f"cannot make {list(self.shape)} of {list(before)}")
        return self.shape

    def module(self) -> nn.Module:
        """nn.Unflatten after nn.Flatten."""
        return nn.Sequential(nn.Flatten(), nn.Unflatten(1, self.shape))


class Conv(Operation, frozen=True, kw_only=True, tag="conv"):
    """A convolution of a map."""

    tensors: Name
    before: Channels
    after: Channels
    kernel: Kernel
    stride: Stride = 1
    padding: Padding = 0
    bias: bool = True
    takes: ClassVar[int | None] = 3

    def makes(self, before: Shape) -> Shape:
        """[after, h', w']."""
        _match(self.before, super().makes(before))
        check_size(self.before, self.after, self.kernel, self.kernel)
        return (self.after, *((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in before[1:]))

    def module(self) -> nn.Module:
        """nn.Conv2d."""
        return nn.Conv2d(self.before, self.after, self.kernel, self.stride, self.padding, bias=self.bias)


class ConvTranspose(Conv, frozen=True, kw_only=True, tag="conv-transpose"):
    """A transposed convolution of a map."""

    output_padding: Annotated[int, Meta(ge=0, le=7)] = 0

    def makes(self, before: Shape) -> Shape:
        """[after, h', w']."""
        after = super().makes(before)[0]
        if self.output_padding >= self.stride:
            raise ValueError("needs an 'output_padding' below its 'stride'")
        more = self.kernel - 2 * self.padding + self.output_padding
        return (after, *((side - 1) * self.stride + more for side in before[1:]))

    def module(self) -> nn.Module:
        """nn.ConvTranspose2d."""
        sizes = (self.kernel, self.stride, self.padding, self.output_padding)
        return nn.ConvTranspose2d(self.before, self.after, *sizes, bias=self.bias)


class BatchNorm(Operation, frozen=True, kw_only=True, tag="batch-norm"):
    """(x - mean) / sqrt(var + eps), scaled and shifted, by the stored mean and variance of every channel."""

    tensors: Name
    channels: Size
    eps: Annotated[float, Meta(gt=0, le=10)] = 1e-5
    affine: bool = True  # with a scale and a shift

    def makes(self, before: Shape) -> Shape:
        """The same."""
        _match(self.channels, before)
        return before

    def module(self) -> nn.Module:
        """nn.BatchNorm2d in evaluation mode, for vectors too."""
        return StoredNorm(self.channels, self.eps, self.affine)


class Upsample(Operation, frozen=True, kw_only=True, tag="upsample"):
    """A map with larger sides."""

    factor: Annotated[int, Meta(ge=2, le=8)]
    mode: Literal["nearest", "bilinear"] = "nearest"  # bilinear: without aligned corners
    takes: ClassVar[int | None] = 3

    def makes(self, before: Shape) -> Shape:
        """[C, factor h, factor w]."""
        channels, height, width = super().makes(before)
        return (channels, self.factor * height, self.factor * width)

    def module(self) -> nn.Module:
        """nn.Upsample."""
        return nn.Upsample(scale_factor=float(self.factor), mode=self.mode)


class Relu(Operation, frozen=True, tag="relu"):
    """max(x, 0)."""

    def module(self) -> nn.Module:
        """nn.ReLU."""
        return nn.ReLU()


class LeakyRelu(Operation, frozen=True, kw_only=True, tag="leaky-relu"):
    """x where it is positive, else slope x."""

    slope: Annotated[float, Meta(ge=0, le=1)] = 0.01

    def module(self) -> nn.Module:
        """nn.LeakyReLU."""
        return nn.LeakyReLU(self.slope)


class Tanh(Operation, frozen=True, tag="tanh"):
    """tanh x."""

    def module(self) -> nn.Module:
        """nn.Tanh."""
        return nn.Tanh()


class Sigmoid(Operation, frozen=True, tag="sigmoid"):
    """1 / (1 + exp -x)."""

    def module(self) -> nn.Module:
        """nn.Sigmoid."""
        return nn.Sigmoid()


AnyOperation = Linear | Reshape | Conv | ConvTranspose | BatchNorm | Upsample | Relu | LeakyRelu | Tanh | Sigmoid
Operations = Annotated[tuple[AnyOperation, ...], Meta(max_length=64)]
