"""A small trained autoencoder of colour images as a generator: its decoder's layers, its encodings of real images as latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddbench.api import TRAIN, Generator, GeneratorConfig, Resource, Run, Saw, UserFile
from ddbench.ops.checkpoints import fit_state
from ddbench.ops.encodings import EncodingGenerator, RealEncodings, check_shape

NAME = "tiny-autoencoder"
FACTOR = 8  # of a latent's side to the image's
LATENT = 32  # channels of a latent
WIDTH = 64  # channels everywhere else
STARTS = (0, 3, 4, 5, 6, 9, 10, 11, 14, 15, 16, 19)  # the first module of every layer, among the decoder's


class Bounded(nn.Module):
    """x -> 3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        """[B,...] -> [B,...]."""
        return (x / 3).tanh() * 3


class Block(nn.Module):
    """x -> ReLU(c(x') + x'); x' = x, or x + p(x) in a pooled block, where p sees the whole map through a GroupNorm."""

    def __init__(self, pooled: bool = False) -> None:
        """`pooled`: with p."""
        super().__init__()
        first, second, third = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        wide = 4 * WIDTH
        widen, narrow = nn.Conv2d(WIDTH, wide, 1, bias=False), nn.Conv2d(wide, WIDTH, 1, bias=False)
        self.pool = nn.Sequential(widen, nn.GroupNorm(4, wide), nn.ReLU(), narrow) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        """[B,64,h,w] -> [B,64,h,w]."""
        if self.pool is not None:
            x = x + self.pool(x)
        return (self.conv(x) + x).relu()


def decoder_modules() -> nn.Sequential:
    """Latents [B,32,h,w] -> pixels [B,3,8h,8w]. Modules are numbered as in the published file."""

    def up(*after: nn.Module) -> list[nn.Module]:
        return [nn.Upsample(scale_factor=2.0), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), *after]

    start = [Bounded(), nn.Conv2d(LATENT, WIDTH, 3, padding=1), nn.ReLU(), Block(True), Block(True), Block(True)]
    middle = [*up(Block(), Block(), Block()), *up(Block(), Block(), Block()), *up(Block())]
    return nn.Sequential(*start, *middle, nn.Conv2d(WIDTH, 3, 3, padding=1))


def encoder_modules() -> nn.Sequential:
    """Pixels [B,3,8h,8w] -> latents [B,32,h,w]. Modules are numbered as in the published file."""

    def down(pooled: bool) -> list[nn.Module]:
        return [nn.Conv2d(WIDTH, WIDTH, 3, 2, 1, bias=False), Block(pooled), Block(pooled), Block(pooled)]

    start = [nn.Conv2d(3, WIDTH, 3, padding=1), Block()]
    return nn.Sequential(*start, *down(False), *down(False), *down(True), nn.Conv2d(WIDTH, LATENT, 3, padding=1))


class Autoencoder(nn.Module, EncodingGenerator):
    """F_0 is the latent map [32, H/8, W/8], which is the one code as well, flattened; layers are the decoder's blocks in order.

    Layer 0 bounds the latent and widens it, 1 to 3 are blocks at an eighth of the side, 4 to 6 at a quarter, 7 to 9 at half,
    10 at the full side, each first one after doubling it; 11 gives pixels.
    """

    depth = len(STARTS)

    def __init__(self, run: Run) -> None:
        """`run` gives real images."""
        super().__init__()
        self.decoder, self.encoder, self.run = decoder_modules(), encoder_modules(), run
        self.encodings = RealEncodings(run, self.encoder)

    @property
    def bytes_stored(self) -> int:
        """Of the decoder: no image needs the encoder."""
        return sum(tensor.nbytes for tensor in self.decoder.state_dict().values())

    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        """F_start -> F_stop."""
        if hidden is None:
            hidden = self.unflattened(w, LATENT, FACTOR)
        bounds = (*STARTS, len(self.decoder))
        for module in list(self.decoder)[bounds[start] : bounds[stop]]:
            hidden = module(hidden)
        return hidden


@dataclass(frozen=True)
class AutoencoderWeights(Resource):
    """Decoder and encoder from two files that the user has brought, in float32."""

    decoder: str
    decoder_sha256: str
    encoder: str
    encoder_sha256: str
    saw: ClassVar[Saw] = frozenset({"external-images"})

    def describe(self) -> str:
        """One line."""
        return f"generator {NAME}, weights {self.decoder} ({self.decoder_sha256[:8]}), {self.encoder} ({self.encoder_sha256[:8]})"

    def build(self, run: Run) -> dict[str, Tensor]:
        """By the names of `Autoencoder`."""
        halves: tuple[tuple[str, str, str, Callable[[], nn.Module]], ...] = (
            ("decoder", self.decoder, self.decoder_sha256, decoder_modules),
            ("encoder", self.encoder, self.encoder_sha256, encoder_modules),
        )
        tensors: dict[str, Tensor] = {}
        for half, file, sha256, modules in halves:
            with torch.device("meta"):
                wanted = modules()
            fitted = fit_state(wanted, run.weights(file, sha256), (), f"the weights '{file}'")
            tensors |= {f"{half}.{name}": tensor for name, tensor in fitted.items()}
        return tensors


@dataclass(frozen=True)
class TinyAutoencoder(GeneratorConfig):
    """tiny-autoencoder: the decoder of a small autoencoder of general colour images, at any side that is a multiple of 8.

    It was made to stand in for the autoencoder of a latent diffusion model (32 latent channels at an eighth of the side) and
    knows no classes: a class's latents are encodings of its real training images, drawn without replacement. So it is no GAN, has
    no codes for its layers, and the space w-plus optimises the latent itself. Files: `decoder` and `encoder` (safetensors,
    float16) in the folder `weights` of the data folder, pinned by hash; the defaults are the published weights. All is computed
    in float32.
    Source: O. Boer Bohan, madebyollin/taesd on GitHub, taef2_decoder.pth and taef2_encoder.pth at commit 5cccb12, MIT, converted
    to safetensors without a change of names or values. Departures: pixels are not clamped, as there.
    Raises: ConfigError for images that are not in colour or whose sides are no multiples of 8; DataError for weights that are
    missing, another file's, or no such network's.
    """

    decoder: str = "taef2-decoder.safetensors"
    decoder_sha256: str = "79b69df8dd742e179d3b929905310a39901a805840f9b2b8968d1bbf5f65d642"
    encoder: str = "taef2-encoder.safetensors"
    encoder_sha256: str = "ed439d4f19057d2a3b8fb43e3caa9aff37f5b9fdbf707cddff57f5a8ae8d5068"

    saw: ClassVar[Saw] = TRAIN  # latents are encodings of training images

    def _weights(self) -> AutoencoderWeights:
        return AutoencoderWeights(self.decoder, self.decoder_sha256, self.encoder, self.encoder_sha256)

    def depth(self, run: Run) -> int:
        """12, for colour images whose sides are multiples of 8."""
        check_shape(run.spec, NAME, FACTOR)
        return Autoencoder.depth

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """Its weights."""
        return (self._weights(),)

    def brings(self) -> tuple[UserFile, ...]:
        """Both halves."""
        source = "of taef2, madebyollin/taesd on GitHub, as safetensors; MIT"
        halves = (("decoder", self.decoder, self.decoder_sha256), ("encoder", self.encoder, self.encoder_sha256))
        return tuple(UserFile(file, f"{half} {source}", sha256) for half, file, sha256 in halves)

    def check(self, run: Run) -> None:
        """Whether the files are there and hold such networks."""
        self._weights().build(run)

    def load(self, run: Run) -> Generator:
        """Frozen, in evaluation mode."""
        check_shape(run.spec, NAME, FACTOR)
        with torch.device("meta"):
            generator = Autoencoder(run)
        generator.load_state_dict(run.resource(self._weights()), assign=True)
        return generator.eval().requires_grad_(False)
