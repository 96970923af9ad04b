"""StyleGAN-XL and StyleGAN3 with random weights: generators that have seen nothing, made from a seed without a download."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ddbench.api import NOTHING, AtMost, Generator, GeneratorConfig, Run, Saw, Spec
from ddbench.errors import ConfigError
from ddbench_plugins.stylegan.description import Description, tensor_shapes
from ddbench_plugins.stylegan.network import Precision, asked_classes, build
from ddbench_plugins.stylegan.schedule import Schedule, describe, filters, stylegan3, stylegan_xl

EMBEDDING = 320  # numbers that describe a class, as published models have them
HIDDEN = {32: 10, 64: 12, 128: 15, 256: 17}  # layers of a StyleGAN3; 32 and 256 px are GLaD's, the others lie between
Width = Annotated[int, AtMost(2048)]
Stem = Annotated[int, AtMost(64)]
Seed = Annotated[int, AtMost(2**63 - 1)]


def random_weights(of: Description, run: Run, seed: int) -> dict[str, Tensor]:
    """As the official code draws a fresh network: every tensor from a stream of its own name, so that none shifts another.

    Weights N(0, 1), in the mapping's fully connected layers divided by their multiplier; biases 0, those of styles 1; the
    Fourier features' own (1, 0, 0, 0) with weight 0; frequencies uniform in the disc of the input's bandwidth, phases uniform
    in [-1/2, 1/2); input magnitudes 1, as before any training.
    """
    found = {}
    for key, shape in tensor_shapes(of).items():
        sides = tuple(EMBEDDING if side is None else side for side in shape)
        if key == "mapping.embed.weight":
            sides = (of.c_dim, EMBEDDING)
        found[key] = _drawn(key, sides, of, run.rng("stylegan-random", seed, key))
    return found


def _drawn(key: str, sides: tuple[int, ...], of: Description, rng: torch.Generator) -> Tensor:
    if key.endswith("input.freqs"):  # uniform in a disc: the radius is the root of a uniform number
        radius, angle = torch.rand(2, sides[0], generator=rng).unbind()
        turn = 2 * math.pi * angle
        return of.input.bandwidth * radius.sqrt()[:, None] * torch.stack([turn.cos(), turn.sin()], 1)
    if key.endswith("input.phases"):
        return torch.rand(sides, generator=rng) - 0.5
    if key.endswith("input.transform"):
        return torch.eye(3)
    if key.endswith("input.affine.weight"):
        return torch.zeros(sides)
    if key.endswith("input.affine.bias"):
        return torch.tensor([1.0, 0.0, 0.0, 0.0])
    if key.endswith(("affine.bias", "magnitude_ema")):
        return torch.ones(sides)
    if key.endswith("bias"):
        return torch.zeros(sides)
    drawn = torch.randn(sides, generator=rng)
    return drawn / of.mapping.lr_multiplier if key.startswith("mapping.fc") else drawn


@dataclass(frozen=True)
class RandomStyleGAN(GeneratorConfig):
    """stylegan-xl-random, stylegan3-random: the architecture of a published generator with weights that were never trained.

    GLaD's "Rand G": what such a stack of layers gives as a space to distil in, without having seen an image. StyleGAN-XL: a
    16-px stem of `stem` hidden layers and a head of 7 for every doubling, class-conditional. StyleGAN3 (configuration T):
    one stage, unconditional, with a z of 64 numbers, as GLaD's random generators are.
    Source: Cazenavette et al., Generalizing Dataset Distillation via Deep Generative Prior (GLaD), CVPR 2023, section 4.3;
    Sauer, Schwarz and Geiger, StyleGAN-XL, SIGGRAPH 2022; Karras et al., Alias-Free Generative Adversarial Networks, NeurIPS
    2021. Departures: GLaD's random weights are files of its authors, and these are drawn anew; the class embedding is random,
    where the official code begins with a pretrained table; input magnitudes are 1, where a network that has begun to train has
    measured ones; GLaD names a number of layers for 32 and 256 px alone, those of other sides lie between; images have as many
    channels as the data set's.
    Raises: ConfigError if a number is out of range or the images are not square with a power of two as their side.
    """

    shape: Literal["stylegan-xl", "stylegan3"] = "stylegan-xl"
    width: Width = 0  # channels of a map at most; 0: as published, 1,024 of StyleGAN-XL and 512 of StyleGAN3
    conditional: bool = True  # whether it is asked for classes
    stem: Stem = 0  # hidden layers of the 16-px stem, or all hidden ones of a StyleGAN3; 0: as published for that side
    seed: Seed = 0  # of the weights
    precision: Precision = "float32"
    saw: ClassVar[Saw] = NOTHING

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.width < 0 or not (self.stem == 0 or 4 <= self.stem <= 64):
            raise ConfigError(f"'width' must be at least 0 and 'stem' 0 or 4 to 64, got {self.width} and {self.stem}.")

    @property
    def _name(self) -> str:
        return f"{self.shape}-random"

    def _schedule(self, spec: Spec) -> Schedule:
        """Its layers for such images."""
        channels, side, width = spec.shape
        is_xl = self.shape == "stylegan-xl"
        sides = [2**power for power in range(4, 10)] if is_xl else list(HIDDEN)
        if side != width or side not in sides:
            told = f"makes square images of {', '.join(map(str, sides))} px and data set '{spec.name}' has {side} x {width}"
            raise ConfigError(f"generator '{self._name}' {told}: choose another size of the images, or another generator.")
        c_dim = spec.num_classes if self.conditional else 0
        if is_xl:  # published at 32 px, for CIFAR-10, with a smaller stem than for ImageNet
            return stylegan_xl(side, c_dim, self.width or 1024, channels, self.stem or (6 if side == 32 else 10))
        return stylegan3(side, c_dim, self.stem or HIDDEN[side], self.width or 512, channels)

    def depth(self, run: Run) -> int:
        """By the schedule."""
        return describe(self._schedule(run.spec)).depth

    def load(self, run: Run) -> Generator:
        """Drawn anew each time, the same for the same seed."""
        schedule = self._schedule(run.spec)
        of = describe(schedule)
        tensors = random_weights(of, run, self.seed) | filters(schedule)
        classes = asked_classes(of, run.spec, self._name)
        return build(of, tensors, run.device, self.precision, classes=classes, name=f"of generator '{self._name}'")


def random_stylegan_xl(
    width: Width = 0, conditional: bool = True, stem: Stem = 0, seed: Seed = 0, precision: Precision = "float32"
) -> RandomStyleGAN:
    """stylegan-xl-random: class-conditional unless told otherwise."""
    return RandomStyleGAN("stylegan-xl", width, conditional, stem, seed, precision)


def random_stylegan3(
    width: Width = 0, conditional: bool = False, stem: Stem = 0, seed: Seed = 0, precision: Precision = "float32"
) -> RandomStyleGAN:
    """stylegan3-random: unconditional unless told otherwise."""
    return RandomStyleGAN("stylegan3", width, conditional, stem, seed, precision)
