"""The layers of a StyleGAN generator for frozen weights: the plain form's numbers up to rounding, in a third of its time.

Activations are modulated, not weights, so a batch shares one normalised weight and nothing computes a gradient of it. Up- and
down-sampling are matrices along each axis with padding and gains folded in. The activation goes through the maps in chunks, so
that those at twice the resolution never exist as a whole, and its backward pass computes them again: what autograd keeps of a
layer is its input and its convolution's output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddbench_plugins.stylegan.description import LayerShape
from ddbench_plugins.stylegan.filters import downsampling_matrix, factors, upsampling_matrix
from ddbench_plugins.stylegan.plain import EPS, GAIN, SLOPE, affine

MAPS_AT_ONCE = 64  # on a CPU: they fit its last cache, and the next slower memory is used once
VALUES_AT_ONCE = 1 << 28  # elsewhere: of the maps at twice the resolution

Pairs = list[tuple[Tensor, Tensor]]
"""Matrices (vertical [h',h], horizontal transposed [w,w']) whose products are summed: one pair of a separable filter."""


class ModulatedConvolution(torch.autograd.Function):
    """conv(x * s): its backward pass keeps x and s, not their product, and knows no gradient of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, style: Tensor, weight: Tensor) -> Tensor:
        """[B,C,h,w], [B,C], [C',C,k,k] -> [B,C',h+k-1,w+k-1]."""
        ctx.save_for_backward(x, style)
        ctx.weight = weight
        return F.conv2d(x * style[:, :, None, None], weight, padding=weight.shape[2] - 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Of x and s."""
        x, style = ctx.saved_tensors
        margin = [ctx.weight.shape[2] - 1] * 2
        wanted = [True, False, False]  # the input's gradient, and neither the weight's nor a bias's
        one, zero = [1, 1], [0, 0]
        back, _, _ = torch.ops.aten.convolution_backward(grad, x, ctx.weight, None, one, margin, one, False, zero, 1, wanted)
        of_style = torch.einsum("bchw,bchw->bc", back, x)
        return back.mul_(style[:, :, None, None]), of_style, None


@dataclass(frozen=True)
class Resampling:
    """What a layer's activation needs beside its input: the way up and down, the limit between, and how many maps at once."""

    up: Pairs
    down: Pairs
    clamp: float | None

    def expand(self, maps: Tensor) -> Tensor:
        """[N,h,w] -> [N,h',w'] at twice the resolution or more."""
        return product(self.up, maps)

    def chunk(self, maps: Tensor) -> int:
        """How many maps go through at once."""
        if maps.device.type == "cpu":
            return MAPS_AT_ONCE
        return max(1, VALUES_AT_ONCE // (self.up[0][0].shape[0] * self.up[0][1].shape[1]))


def product(pairs: Pairs, maps: Tensor, out: Tensor | None = None) -> Tensor:
    """The sum of V m H for every map m of [N,h,w]: [N,h',w']."""
    rows = maps.shape[0] * maps.shape[1]
    made = out
    for number, (vertical, horizontal) in enumerate(pairs):
        across = torch.mm(maps.reshape(rows, -1), horizontal).view(*maps.shape[:2], -1)
        whole = vertical.expand(len(maps), -1, -1)
        if number:
            assert made is not None
            made.baddbmm_(whole, across)
        else:
            made = torch.bmm(whole, across, out=out) if out is not None else torch.bmm(whole, across)
    assert made is not None
    return made


def transposed(pairs: Pairs, maps: Tensor, out: Tensor | None = None) -> Tensor:
    """The sum of V^T m H^T: the way back of a gradient."""
    return product([(vertical.t(), horizontal.t()) for vertical, horizontal in pairs], maps, out)


class FilteredLeakyReLU(torch.autograd.Function):
    """down(clamp(leaky_relu(up(d * y + b)))): its backward pass keeps y and d alone."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, bias: Tensor, how: Resampling) -> Tensor:
        """[B,C,h,w], d [B,C], b [C] -> [B,C,h'',w'']."""
        ctx.save_for_backward(y, scale)
        ctx.bias, ctx.how = bias, how
        maps, scales, biases = _flat(y, scale, bias)
        sides = how.down[0][0].shape[0], how.down[0][1].shape[1]
        made, step = y.new_empty(len(maps), *sides), how.chunk(y)
        for first in range(0, len(maps), step):
            part = slice(first, first + step)
            between = activated(maps[part], scales[part], biases[part], how)
            product(how.down, between, made[part])
        return made.view(*y.shape[:2], *sides)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Of y and d."""
        (y, scale), how = ctx.saved_tensors, ctx.how
        maps, scales, biases = _flat(y, scale, ctx.bias)
        grads = grad.reshape(len(maps), *grad.shape[2:])
        of_maps, of_scales, step = torch.empty_like(maps), torch.empty_like(scales), how.chunk(y)
        for first in range(0, len(maps), step):
            part = slice(first, first + step)
            between = activated(maps[part], scales[part], biases[part], how)
            back = transposed(how.down, grads[part])
            if how.clamp is not None:
                back = torch.ops.aten.hardtanh_backward(back, between, -how.clamp, how.clamp)
            back = torch.ops.aten.leaky_relu_backward(back, between, SLOPE, True)
            transposed(how.up, back, of_maps[part])
            of_scales[part] = torch.einsum("nhw,nhw->n", of_maps[part], maps[part])[:, None, None]
        return of_maps.mul_(scales).view_as(y), of_scales.view_as(scale), None, None


def activated(maps: Tensor, scales: Tensor, biases: Tensor, how: Resampling) -> Tensor:
    """The maps of a chunk between up- and down-sampling, without the gain, which the way down holds."""
    between = F.leaky_relu_(how.expand(torch.addcmul(biases, maps, scales)), SLOPE)
    return between if how.clamp is None else between.clamp_(-how.clamp, how.clamp)


def _flat(y: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [N,h,w], and their scales and biases [N,1,1]."""
    biases = bias.expand(len(y), -1).reshape(-1, 1, 1)
    return y.reshape(-1, *y.shape[2:]), scale.reshape(-1, 1, 1), biases


def resampling(shape: LayerShape, tensors: dict[str, Tensor], sides: tuple[int, int], dtype: torch.dtype) -> Resampling:
    """The matrices of a layer whose convolution gives maps of these sides (height, width); in float64 first."""
    one = torch.ones(1, dtype=torch.float64)
    up, down = tensors.get("up_filter", one).cpu(), tensors.get("down_filter", one).cpu()
    left, right, top, bottom = shape.padding
    (height, width), (above, across) = sides, (up.shape[0], up.shape[-1])
    between = (height * shape.up_factor + top + bottom - above + 1, width * shape.up_factor + left + right - across + 1)
    taps = down.shape[0], down.shape[-1]
    outer = [(side - num + shape.down_factor) // shape.down_factor for side, num in zip(between, taps, strict=True)]
    accuracy = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    device = tensors["weight"].device

    def there(matrix: Tensor) -> Tensor:
        return matrix.to(device, dtype).contiguous()

    ways_up = [
        (there(upsampling_matrix(v, height, shape.up_factor, top, between[0])),
         there(upsampling_matrix(h, width, shape.up_factor, left, between[1]).t()))
        for v, h in factors(up, accuracy)
    ]  # fmt: skip
    ways_down = [
        (there(GAIN * downsampling_matrix(v, between[0], shape.down_factor, outer[0])),
         there(downsampling_matrix(h, between[1], shape.down_factor, outer[1]).t()))
        for v, h in factors(down, accuracy)
    ]  # fmt: skip
    limit = None if shape.conv_clamp is None else torch.tensor(shape.conv_clamp / GAIN, dtype=dtype).item()
    return Resampling(ways_up, ways_down, limit)  # a limit of that precision: backward passes know what was clamped by equality


class FastLayer(nn.Module):
    """F_n and its code -> F_(n+1); styles in the precision of codes, everything else in the layer's."""

    weight: Tensor
    energy: Tensor
    bias: Tensor
    gain: Tensor
    affine_weight: Tensor
    affine_bias: Tensor

    def __init__(self, shape: LayerShape, tensors: dict[str, Tensor], sides: tuple[int, int], dtype: torch.dtype) -> None:
        """`tensors` by the names that they have inside of the layer, `sides` (height, width) of its input."""
        super().__init__()
        self.shape, self.dtype = shape, dtype
        weight, gain = tensors["weight"], tensors["magnitude_ema"].rsqrt()
        scale, self.eps = 1 / math.sqrt(weight[0].numel()), EPS / weight[0].numel()
        if not shape.is_torgb:  # norm 1 instead of root mean square 1: the convolution's output stays in float16's range
            weight = F.normalize(weight.flatten(1), dim=1, eps=1e-30).view_as(weight)
            self.register_buffer("energy", weight.square().sum((2, 3)).t().contiguous())  # [C,C']
        self.register_buffer("weight", weight.to(dtype))
        self.register_buffer("bias", tensors["bias"].to(dtype))
        self.register_buffer("gain", gain * scale if shape.is_torgb else gain)
        self.register_buffer("affine_weight", tensors["affine.weight"])
        self.register_buffer("affine_bias", tensors["affine.bias"])
        grown = shape.conv_kernel - 1
        self.how = None if shape.is_torgb else resampling(shape, tensors, (sides[0] + grown, sides[1] + grown), dtype)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """[B,C,h,w], [B,D] -> [B,C',h',w'] in the layer's precision."""
        style = affine(code, self.affine_weight, self.affine_bias)
        if self.how is None:
            y = ModulatedConvolution.apply(x.to(self.dtype), (style * self.gain).to(self.dtype), self.weight)
            y = y + self.bias[:, None, None]
            return y if self.shape.conv_clamp is None else y.clamp(-self.shape.conv_clamp, self.shape.conv_clamp)
        style = style * style.square().mean(1, keepdim=True).rsqrt()  # by image: one hangs on no other of its batch
        scale = (style.square() @ self.energy + self.eps).rsqrt()  # what demodulation is worth, [B,C']
        y = ModulatedConvolution.apply(x.to(self.dtype), (style * self.gain).to(self.dtype), self.weight)
        return FilteredLeakyReLU.apply(y, scale.to(self.dtype), self.bias, self.how)
