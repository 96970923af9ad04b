"""The layers of a generator from a few settings: a stem, and heads of twice its resolution each; for random generators and tests.

A published file says itself what its layers are (`description.py`), and nothing here is asked about it.
Sources: Karras et al., Alias-Free Generative Adversarial Networks, NeurIPS 2021, section 3 and appendix C (a stem);
Sauer, Schwarz and Geiger, StyleGAN-XL, SIGGRAPH 2022, section 3 (heads).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from ddbench_plugins.stylegan.description import Description, InputShape, LayerShape, MappingShape
from ddbench_plugins.stylegan.filters import lowpass

NUM_CRITICAL = 2  # hidden layers at the end of a stage that are sampled critically, as the colour layer is
MARGIN = 10  # pixels that inner maps have more on every side
FILTER_SIZE = 6  # taps for each unit of a resampling factor
LRELU_UPSAMPLING = 2  # how much denser the map is sampled inside of an activation
LAST_STOPBAND = 2**0.3  # of the last layer, relative to half of the resolution
CONV_CLAMP = 256.0
HALF_LEVELS = 4  # layers of so many top resolutions are marked for float16


@dataclass(frozen=True)
class Stage:
    """A stem, or a head on what is there."""

    num_layers: int  # hidden ones, without the colour layer
    conv_kernel: int
    radial: bool  # whether filters for down-sampling are radial, except those of critically sampled layers
    factor: int = 2  # of the resolution, by a head


@dataclass(frozen=True)
class Schedule:
    """The settings of a generator."""

    z_dim: int
    c_dim: int
    w_dim: int
    img_channels: int
    channel_base: int
    channel_max: int
    resolution: int  # of the stem
    stages: tuple[Stage, ...]  # the stem, then heads
    first_cutoff: float = 2.0
    first_stopband: float = 2**2.1
    output_scale: float = 0.25
    mapping_layers: int = 2
    lr_multiplier: float = 0.01


@dataclass(frozen=True)
class Signal:
    """What a map between two layers holds."""

    channels: int
    size: int
    rate: int
    cutoff: float
    half_width: float  # of the transition


@dataclass(frozen=True)
class Planned:
    """A layer, and the filters that it is to have."""

    shape: LayerShape
    before: Signal
    after: Signal
    up_filter: Tensor | None
    down_filter: Tensor | None


def signals(of: Schedule, stage: Stage, resolution: int, first: Signal | None) -> list[Signal]:
    """The maps of a stage: entry i is what layer i gives, i = 0 .. num_layers; `first` is what a head takes over as entry 0."""
    stopband = first.cutoff + first.half_width if first else of.first_stopband
    cutoff, found = first.cutoff if first else of.first_cutoff, []
    for i in range(stage.num_layers + 1):
        share = min(i / (stage.num_layers - NUM_CRITICAL), 1.0)
        fc = cutoff * (resolution / 2 / cutoff) ** share
        ft = stopband * (resolution / 2 * LAST_STOPBAND / stopband) ** share
        rate = first.rate if first and i == 0 else int(2 ** math.ceil(math.log2(min(2 * ft, resolution))))
        size = resolution if i >= stage.num_layers - 1 else rate + 2 * MARGIN
        channels = first.channels if first and i == 0 else round(min(of.channel_base / 2 / fc, of.channel_max))
        channels = of.img_channels if i == stage.num_layers else channels
        found.append(Signal(channels, size, rate, fc, max(ft, rate / 2) - fc))
    return found


def planned(of: Schedule) -> list[Planned]:
    """The layers of the finished generator, in the order they run in."""
    layers: list[Planned] = []
    resolution = of.resolution
    for number, stage in enumerate(of.stages):
        layers = layers[: -(NUM_CRITICAL + 1)]  # a head takes the place of the critically sampled layers and of the colours
        resolution *= stage.factor if number else 1
        maps = signals(of, stage, resolution, layers[-1].after if number else None)
        start = len(layers) + 1 if number else 0  # names leave one number out after the stem
        for i, after in enumerate(maps):
            layers.append(_layer(stage, f"L{start + i}", i, maps[max(i - 1, 0)], after, resolution))
    return layers


def _layer(stage: Stage, name: str, i: int, before: Signal, after: Signal, resolution: int) -> Planned:
    """Resampling factors, filters and padding of one layer."""
    is_torgb, is_critical = i == stage.num_layers, i >= stage.num_layers - NUM_CRITICAL
    kernel = 1 if is_torgb else stage.conv_kernel
    between = max(before.rate, after.rate) * (1 if is_torgb else LRELU_UPSAMPLING)
    up, down = between // before.rate, between // after.rate
    up_taps, down_taps = (FILTER_SIZE * factor if factor > 1 and not is_torgb else 1 for factor in (up, down))
    total = (after.size - 1) * down + 1 - (before.size + kernel - 1) * up + up_taps + down_taps - 2
    low = (total + up) // 2
    shape = LayerShape(
        name=f"{name}_{after.size}_{after.channels}", is_torgb=is_torgb, in_channels=before.channels, out_channels=after.channels,
        conv_kernel=kernel, up_factor=up, down_factor=down, padding=(low, total - low, low, total - low), conv_clamp=CONV_CLAMP,
        use_fp16=after.rate * 2**HALF_LEVELS > resolution,
    )  # fmt: skip
    return Planned(
        shape, before, after, lowpass(up_taps, before.cutoff, 2 * before.half_width, between),
        lowpass(down_taps, after.cutoff, 2 * after.half_width, between, stage.radial and not is_critical),
    )  # fmt: skip


def describe(of: Schedule) -> Description:
    """The description of such a generator."""
    layers = planned(of)
    first = layers[0].before
    return Description(
        schema=1, kind="stylegan", z_dim=of.z_dim, c_dim=of.c_dim, w_dim=of.w_dim, img_channels=of.img_channels,
        img_resolution=layers[-1].after.size, output_scale=of.output_scale, num_ws=len(layers) + 1,
        mapping=MappingShape(num_layers=of.mapping_layers, lr_multiplier=of.lr_multiplier),
        input=InputShape(size=(first.size, first.size), sampling_rate=first.rate, bandwidth=first.cutoff),
        layers=tuple(layer.shape for layer in layers),
    )  # fmt: skip


def filters(of: Schedule) -> dict[str, Tensor]:
    """The filters of its layers, by their official keys."""
    found = {}
    for layer in planned(of):
        for name, kernel in (("up_filter", layer.up_filter), ("down_filter", layer.down_filter)):
            if kernel is not None:
                found[f"synthesis.{layer.shape.name}.{name}"] = kernel
    return found


STEM = Stage(num_layers=10, conv_kernel=1, radial=True)
HEAD = Stage(num_layers=7, conv_kernel=3, radial=False)


def stylegan_xl(side: int, c_dim: int, width: int = 1024, channels: int = 3, stem_layers: int = 10) -> Schedule:
    """StyleGAN-XL as published: a 16-px stem with kernels 1 and radial filters, and a head of 7 layers for each doubling.

    `width` is the most channels that a map has: 1,024 in published models."""
    heads = side.bit_length() - 5
    stem = replace(STEM, num_layers=stem_layers)
    return Schedule(64, c_dim, 512, channels, 64 * width, width, 16, (stem, *[HEAD] * heads))


def stylegan3(side: int, c_dim: int, num_layers: int, width: int = 512, channels: int = 3) -> Schedule:
    """StyleGAN3 in configuration T, with the z of 64 numbers of GLaD's random generators: one stage, kernels 3."""
    return Schedule(64, c_dim, 512, channels, 64 * width, width, side, (Stage(num_layers, 3, False),))
