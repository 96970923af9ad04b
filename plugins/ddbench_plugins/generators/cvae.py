"""A small class-conditional generator that is trained on the subset itself, so that nothing must be downloaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import NOTHING, TRAIN, AtMost, Effort, Generator, GeneratorConfig, Recipe, Resource, Run, Saw, Spec
from ddbench.errors import ConfigError
from ddbench.ops.moves import send

Width = Annotated[int, AtMost(1_024)]  # of codes and maps


class Layer(nn.Module):
    """x -> leaky ReLU((1 + a(w)) * conv(up(x)) + b(w)): a 3x3 convolution whose channels the layer's code scales and shifts."""

    def __init__(self, before: int, after: int, codes: int, up: bool) -> None:
        """Channels before and after, size of a code, and whether the side doubles."""
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.style = nn.Linear(codes, 2 * after)
        self.up = up

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[B,D,h,w], [B,D'] -> [B,D'',h,w] or twice the side."""
        if self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        scale, shift = self.style(w)[:, :, None, None].chunk(2, 1)
        return F.leaky_relu((1 + scale) * self.conv(x) + shift, 0.2)


class ToImage(nn.Module):
    """The last layer: pixels in [0, 1]."""

    def __init__(self, before: int, channels: int, codes: int) -> None:
        """Channels before and of the image, size of a code."""
        super().__init__()
        self.conv = nn.Conv2d(before, channels, 3, padding=1)
        self.style = nn.Linear(codes, before)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[B,D,H,W], [B,D'] -> [B,C,H,W]."""
        return self.conv((1 + self.style(w)[:, :, None, None]) * x).sigmoid()


def first_side(spec: Spec) -> tuple[int, int]:
    """The side of F_0, 4 to 7, and how often it doubles up to the images'. Raises ConfigError where it cannot."""
    _, height, width = spec.shape
    doublings = height.bit_length() - 3  # 2^(n+2) <= side < 2^(n+3)
    if height != width or doublings < 1 or height % 2**doublings:
        raise ConfigError(f"generator 'cvae' makes square images of a side 4 to 7 times a power of two, not {height} x {width}.")
    return height >> doublings, doublings


class Decoder(nn.Module, Generator):
    """z and class -> w -> F_0 (side 4 to 7) -> layers of growing side -> pixels.

    Two layers a side, of which the first doubles it, and the last one gives pixels. At 28 px: 1 and 2 at side 7, 3 and 4 at
    14, 5 and 6 at 28. At 32 px there are 8. w is one code a layer, all equal at first.
    """

    def __init__(self, spec: Spec, latent: int, codes: int, width: int) -> None:
        """`width` channels at the first side, half as many at each next one, at least 8."""
        super().__init__()
        self.side, doublings = first_side(spec)
        widths = [max(8, width >> level) for level in range(doublings + 1)]
        self.latent = latent
        self.embed = nn.Embedding(spec.num_classes, codes)
        self.mapping = nn.Sequential(nn.Linear(latent + codes, codes), nn.LeakyReLU(0.2), nn.Linear(codes, codes))
        self.start = nn.Linear(codes, widths[0] * self.side**2)
        layers: list[nn.Module] = []
        for level, after in enumerate(widths):
            layers.append(Layer(widths[max(level - 1, 0)], after, codes, up=level > 0))
            if level < doublings:
                layers.append(Layer(after, after, codes, up=False))
        self.layers = nn.ModuleList([*layers, ToImage(widths[-1], spec.shape[0], codes)])
        self.depth = len(self.layers)

    def codes(self, z: Tensor, classes: Tensor) -> Tensor:
        """[B,Z], [B] -> w [B,L,D]."""
        w = self.mapping(torch.cat([z, self.embed(classes)], 1))
        return w[:, None].expand(-1, self.depth, -1)

    def latents(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        """[B] -> w [B,L,D], from z ~ N(0, I)."""
        return self.codes(torch.randn(len(classes), self.latent, generator=rng).to(classes.device), classes).contiguous()

    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        """F_start -> F_stop."""
        if hidden is None:
            hidden = self.start(w[:, 0]).view(len(w), -1, self.side, self.side)
        for number in range(start, stop):
            hidden = self.layers[number](hidden, w[:, number])
        return hidden


class Autoencoder(nn.Module):
    """The decoder, and the encoder that trains it."""

    def __init__(self, spec: Spec, latent: int, codes: int, width: int) -> None:
        """As the decoder."""
        super().__init__()
        self.spec = spec
        self.decoder = Decoder(spec, latent, codes, width)
        sides = [spec.shape[0], width // 2, width, width]
        self.encoder = nn.Sequential(
            *[layer for a, b in pairwise(sides) for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.LeakyReLU(0.2))],
            nn.Flatten(),
        )
        features = width * math.ceil(spec.shape[1] / 8) ** 2
        self.embed = nn.Embedding(spec.num_classes, codes)
        self.head = nn.Linear(features + codes, 2 * latent)


def negative_elbo(network: nn.Module, images: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
    """Cross-entropy of the pixels plus KL(q(z | x, c) || N(0, I)), summed over pixels and codes, mean over the batch: 0-d."""
    assert isinstance(network, Autoencoder)
    mean, log_var = network.head(torch.cat([network.encoder(images), network.embed(targets)], 1)).chunk(2, 1)
    noise = torch.randn(mean.shape, generator=rng)
    noise = send(noise, mean.device)
    pixels = network.spec.denormalise(images).clamp(0, 1)
    decoder = network.decoder
    made = decoder.synthesize(decoder.codes(mean + noise * (0.5 * log_var).exp(), targets), None, 0, decoder.depth)
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
    return F.binary_cross_entropy(made, pixels, reduction="none").sum((1, 2, 3)).add(kl).mean()


@dataclass(frozen=True)
class CvaeWeights(Resource):
    """The decoder of a conditional variational autoencoder, trained on the real training images."""

    latent: int
    codes: int
    width: int
    epochs: int
    lr: float

    @property
    def saw(self) -> Saw:
        """Nothing without epochs."""
        return TRAIN if self.epochs else NOTHING

    def describe(self) -> str:
        """One line."""
        return f"generator cvae, {self.epochs} epochs" if self.epochs else "generator cvae, random weights"

    def effort(self, run: Run) -> Effort:
        """All training images in every epoch; the decoder is stored."""
        with torch.device("meta"):  # where tensors have sizes and no memory
            decoder = Decoder(run.spec, self.latent, self.codes, self.width)
        return Effort(self.epochs * sum(run.class_counts), sum(tensor.nbytes for tensor in decoder.state_dict().values()))

    def build(self, run: Run) -> dict[str, Tensor]:
        """The decoder's state. Without epochs, as it was drawn."""
        with run.seeded("cvae"):
            network = Autoencoder(run.spec, self.latent, self.codes, self.width).to(run.device)
        if self.epochs:
            recipe = Recipe(self.epochs, self.lr, batch=64, weight_decay=0.0, augment=False, optimizer="adamw")
            run.train(network, recipe, "cvae", objective=negative_elbo)
        return network.decoder.state_dict()


@dataclass(frozen=True)
class ConditionalVAE(GeneratorConfig):
    """cvae: a small class-conditional convolutional decoder, trained on the subset's own training images.

    It stands in for StyleGAN-XL where nothing may be downloaded: codes w for every layer that modulate it, as there, and
    layers that can be entered anywhere. Source: Sohn, Lee and Yan, Learning Structured Output Representation using Deep
    Conditional Generative Models, NeurIPS 2015. Departures: the decoder is a style-modulated stack (Karras et al., CVPR
    2019); the prior does not depend on the class.
    Raises: ConfigError if a number is out of range.
    """

    latent: Width = 16
    codes: Width = 32
    width: Width = 32
    epochs: int = 10
    lr: float = 2e-3
    saw: ClassVar[Saw] = NOTHING  # but its weights

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if min(self.latent, self.codes, self.width) < 1 or self.epochs < 0 or self.width % 2:
            raise ConfigError("'latent', 'codes' and 'width' must be at least 1, 'width' even and 'epochs' at least 0.")

    def _weights(self) -> CvaeWeights:
        return CvaeWeights(self.latent, self.codes, self.width, self.epochs, self.lr)

    def depth(self, run: Run) -> int:
        """Two layers for each side from the first to the images'."""
        return 2 * (first_side(run.spec)[1] + 1)

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """Its weights."""
        return (self._weights(),)

    def load(self, run: Run) -> Generator:
        """Frozen, in evaluation mode."""
        with run.seeded("cvae"):
            decoder = Decoder(run.spec, self.latent, self.codes, self.width).to(run.device)
        decoder.load_state_dict(run.resource(self._weights()))
        return decoder.eval().requires_grad_(False)


def random_weights(latent: Width = 16, codes: Width = 32, width: Width = 32) -> ConditionalVAE:
    """cvae-random: the same decoder with random weights: what the architecture gives without having seen data."""
    return ConditionalVAE(latent, codes, width, epochs=0)
