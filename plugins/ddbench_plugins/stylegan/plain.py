"""The layers of a StyleGAN generator in the form in which they were published: slow, and the reference for the fast form.

A layer: style s by an affine map of its code, a convolution whose weights the style scales, bias, up-sampling, leaky ReLU
with its gain, clamp, down-sampling. Source: Karras et al., Alias-Free Generative Adversarial Networks, NeurIPS 2021, appendix C
and D; Sauer, Schwarz and Geiger, StyleGAN-XL, SIGGRAPH 2022.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench_plugins.stylegan.description import LayerShape

SLOPE, GAIN = 0.2, math.sqrt(2)  # of the leaky ReLU, everywhere
EPS = 1e-8


def affine(x: Tensor, weight: Tensor, bias: Tensor, multiplier: float = 1.0) -> Tensor:
    """[B,D] -> [B,D']: x W^T m / sqrt(D) + b m, as every linear map of the generator stores its weights."""
    return F.linear(x, weight * (multiplier / math.sqrt(weight.shape[1])), bias * multiplier)


def unit_rms(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divided by their root mean square over some axes."""
    return values * values.square().mean(dims, keepdim=True).rsqrt()


def modulated_weights(style: Tensor, weight: Tensor, gain: Tensor, demodulate: bool) -> Tensor:
    """[B,C], [C',C,k,k] -> [B,C',C,k,k]: weights for each image, of unit norm for each channel that they give where they are
    demodulated, times the input's gain. The styles of a batch are divided by their common root mean square, which
    demodulation takes back; it keeps float16 in range."""
    if demodulate:
        weight, style = unit_rms(weight, (1, 2, 3)), unit_rms(style, (0, 1))
    weights = weight * style[:, None, :, None, None]
    if demodulate:
        weights = weights * (weights.square().sum((2, 3, 4), keepdim=True) + EPS).rsqrt()
    return weights * gain


def grouped_convolution(x: Tensor, weights: Tensor) -> Tensor:
    """[B,C,h,w], [B,C',C,k,k] -> [B,C',h+k-1,w+k-1]: each image with its own weights."""
    num, after, before, kernel, _ = weights.shape
    made = F.conv2d(x.reshape(1, num * before, *x.shape[2:]), weights.flatten(0, 1), padding=kernel - 1, groups=num)
    return made.view(num, after, *made.shape[2:])


def upsample(x: Tensor, kernel: Tensor | None, factor: int, padding: tuple[int, int, int, int]) -> Tensor:
    """Zeros after every sample, padding or cropping (left, right, top, bottom), then the filter times the factor an axis."""
    if factor > 1:
        num, channels, height, width = x.shape
        spread = x.new_zeros(num, channels, height, factor, width, factor)
        spread[:, :, :, 0, :, 0] = x
        x = spread.view(num, channels, height * factor, width * factor)
    return filtered(F.pad(x, padding), None if kernel is None else kernel * (factor if kernel.dim() == 1 else factor**2))


def filtered(x: Tensor, kernel: Tensor | None) -> Tensor:
    """[B,C,h,w] -> [B,C,h-t+1,w-t+1]: a filter [t] along both axes, or [t,t]."""
    if kernel is None:
        return x
    channels, kernel = x.shape[1], kernel.to(x.dtype).flip(tuple(range(kernel.dim())))  # a convolution, not a correlation
    if kernel.dim() == 2:
        return F.conv2d(x, kernel.expand(channels, 1, -1, -1), groups=channels)
    x = F.conv2d(x, kernel[None, :].expand(channels, 1, -1, -1), groups=channels)
    return F.conv2d(x, kernel[:, None].expand(channels, 1, -1, -1), groups=channels)


class PlainLayer(nn.Module):
    """F_n and its code -> F_(n+1)."""

    weight: Tensor
    bias: Tensor
    magnitude_ema: Tensor
    affine_weight: Tensor
    affine_bias: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(self, shape: LayerShape, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
        """`tensors` by the names that they have inside of the layer; `dtype` is what it computes in."""
        super().__init__()
        self.shape, self.dtype = shape, dtype
        for name in ("weight", "bias", "magnitude_ema", "affine_weight", "affine_bias"):
            self.register_buffer(name, tensors[name.replace("affine_", "affine.")])
        self.register_buffer("up_filter", tensors.get("up_filter"))
        self.register_buffer("down_filter", tensors.get("down_filter"))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """[B,C,h,w], [B,D] -> [B,C',h',w'] in the layer's precision."""
        shape = self.shape
        style = affine(code, self.affine_weight, self.affine_bias)
        if shape.is_torgb:
            style = style / math.sqrt(shape.in_channels * shape.conv_kernel**2)
        weights = modulated_weights(style, self.weight, self.magnitude_ema.rsqrt(), not shape.is_torgb)
        y = grouped_convolution(x.to(self.dtype), weights.to(self.dtype)) + self.bias.to(self.dtype)[:, None, None]
        y = upsample(y, self.up_filter, shape.up_factor, shape.padding)
        if not shape.is_torgb:
            y = F.leaky_relu(y, SLOPE) * GAIN
        if shape.conv_clamp is not None:
            y = y.clamp(-shape.conv_clamp, shape.conv_clamp)
        return filtered(y, self.down_filter)[:, :, :: shape.down_factor, :: shape.down_factor]
