"""Low-pass filters of StyleGAN3's layers: how they are designed, and what resampling with them does along one axis.

Source: Karras et al., Alias-Free Generative Adversarial Networks, NeurIPS 2021, appendix C; Kaiser's window, and the jinc
function for radial filters.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.signal.windows import kaiser
from scipy.special import j1
from torch import Tensor


def kaiser_beta(taps: int, width: float, rate: float) -> float:
    """The shape of Kaiser's window for a transition of `width` at a sampling `rate`, both in the same unit."""
    attenuation = 2.285 * (taps - 1) * math.pi * width / (rate / 2) + 7.95
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21) if attenuation > 21 else 0.0


def lowpass(taps: int, cutoff: float, width: float, rate: float, radial: bool = False) -> Tensor | None:
    """A filter with sum 1, float32: [taps], used along both axes, or, `radial`, [taps, taps]. None for one tap: no filter."""
    if taps == 1:
        return None
    window = kaiser(taps, kaiser_beta(taps, width, rate), sym=True)
    steps = (np.arange(taps) - (taps - 1) / 2) / rate
    if radial:
        distance = np.hypot(*np.meshgrid(steps, steps))  # never 0: published filters have an even number of taps
        with np.errstate(invalid="ignore", divide="ignore"):
            ring = np.where(distance > 0, j1(2 * cutoff * np.pi * distance) / (np.pi * distance), cutoff)
        values = ring * np.outer(window, window)
    else:
        values = window * np.sinc(2 * cutoff * steps)
    return torch.from_numpy((values / values.sum()).astype(np.float32))


def factors(kernel: Tensor, accuracy: float) -> list[tuple[Tensor, Tensor]]:
    """A filter as a sum of products of (vertical, horizontal) ones, float64, until what is left is below `accuracy` everywhere,
    relative to the largest value.

    A separable one [taps] is one product with itself. A radial one [taps, taps] has three to six that count: the cross of its
    largest remaining value is taken away each time, which needs no library whose result hangs on its threads.
    """
    rest, found = kernel.double().clone(), list[tuple[Tensor, Tensor]]()
    if kernel.dim() == 1:
        return [(rest, rest)]
    least = accuracy * float(rest.abs().max())
    while float(rest.abs().max()) > least and len(found) < len(rest):
        row, column = divmod(int(rest.abs().argmax()), len(rest))
        found.append((rest[:, column] / rest[row, column], rest[row].clone()))
        rest = rest - found[-1][0][:, None] * found[-1][1]
    return found


def convolution_matrix(kernel: Tensor, into: int, step: int, before: int, width: int) -> Tensor:
    """[width, into] float64: row i, column j holds the weight of sample j in output i, whose window begins at i; samples lie at
    j * step + before."""
    offsets = torch.arange(into) * step + before - torch.arange(width)[:, None]
    flipped, inside = kernel.double().flip(0), (offsets >= 0) & (offsets < len(kernel))
    return torch.where(inside, flipped[offsets.clamp(0, len(kernel) - 1)], 0.0)


def upsampling_matrix(kernel: Tensor, into: int, factor: int, before: int, width: int) -> Tensor:
    """Zeros between the samples of an axis, padding (or cropping) of `before`, the filter times the factor: [width, into]."""
    return factor * convolution_matrix(kernel, into, factor, before, width)


def downsampling_matrix(kernel: Tensor, into: int, factor: int, width: int) -> Tensor:
    """The filter, then every factor-th sample of an axis, the first one first: [width, into]."""
    return convolution_matrix(kernel, into, 1, 0, into - len(kernel) + 1)[::factor][:width]
