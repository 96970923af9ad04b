"""The autoencoder of a latent diffusion model as a generator, from files in the layout of diffusers; an optional extra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ddbench.api import TRAIN, Generator, GeneratorConfig, Resource, Run, Saw, UserFile
from ddbench.ops.encodings import EncodingGenerator, RealEncodings, check_shape
from ddbench_plugins.diffusion.vae import KLConfig, build_network, fit_weights, read_config

NAME = "autoencoder-kl"
WHO = f"generator '{NAME}'"
CONFIG = "config.json"


class KLGenerator(nn.Module, EncodingGenerator):
    """F_0 is the latent map, which is the one code as well, flattened; layers are the decoder's blocks in order.

    Layer 0 is the convolutions and the block before the first up block, 1 to n are the up blocks, the last one gives pixels.
    """

    def __init__(self, network: nn.Module, config: KLConfig, run: Run) -> None:
        """`run` gives real images."""
        super().__init__()
        self.network: Any = network
        self.config, self.run, self.depth = config, run, len(config.block_out_channels) + 2
        self.encodings = RealEncodings(run, self._encode)

    def _encode(self, pixels: Tensor) -> Tensor:
        """The mean of the posterior."""
        moments = self.network.encoder(2 * pixels - 1)
        if self.network.quant_conv is not None:
            moments = self.network.quant_conv(moments)
        return moments.chunk(2, 1)[0]

    @property
    def bytes_stored(self) -> int:
        """Of the decoder: no image needs the encoder."""
        parts = (self.network.decoder, self.network.post_quant_conv)
        return sum(tensor.nbytes for part in parts if part is not None for tensor in part.state_dict().values())

    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        """F_start -> F_stop."""
        if hidden is None:
            hidden = self.unflattened(w, self.config.latent_channels, self.config.factor)
        for number in range(start, stop):
            hidden = self._layer(number, hidden)
        return hidden

    def _layer(self, number: int, x: Tensor) -> Tensor:
        decoder = self.network.decoder
        if number == 0:
            if self.network.post_quant_conv is not None:
                x = self.network.post_quant_conv(x)
            return decoder.mid_block(decoder.conv_in(x))
        if number < self.depth - 1:
            return decoder.up_blocks[number - 1](x)
        return (decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x))) + 1) / 2


@dataclass(frozen=True)
class KLWeights(Resource):
    """Weights of an AutoencoderKL from a file that the user has brought, in float32."""

    file: str
    sha256: str
    config: str
    config_sha256: str
    saw: ClassVar[Saw] = frozenset({"external-images"})

    def describe(self) -> str:
        """One line."""
        return f"generator {NAME}, weights {self.file} ({self.sha256[:8]})"

    def build(self, run: Run) -> dict[str, Tensor]:
        """By the names of diffusers."""
        network = build_network(read_config(run.document(self.config, self.config_sha256), self.config), WHO)
        return fit_weights(network, run.weights(self.file, self.sha256), f"the weights '{self.file}'")


@dataclass(frozen=True)
class AutoencoderKLDecoder(GeneratorConfig):
    """autoencoder-kl: the decoder of a latent diffusion model's autoencoder, an AutoencoderKL of diffusers.

    `folder`, in the folder `weights` of the data folder, holds config.json and `file`, as diffusers writes them; both are pinned
    by hash, and nothing is ever downloaded. It knows no classes: a class's latents are the means that the encoder gives for its
    real training images, drawn without replacement, unscaled. The space w-plus optimises the latent itself. In float32.
    Source: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022; built by diffusers (extra
    `diffusers`). Departures: attention as plain matrix products, where diffusers takes a fused kernel; pixels are not clamped.
    Raises: ConfigError for images that it cannot make, and without diffusers; DataError for files that are missing, others, or no
    such network's.
    """

    folder: str
    sha256: str = ""
    config_sha256: str = ""
    file: str = "diffusion_pytorch_model.safetensors"
    saw: ClassVar[Saw] = TRAIN  # latents are encodings of training images

    def _weights(self) -> KLWeights:
        return KLWeights(f"{self.folder}/{self.file}", self.sha256, f"{self.folder}/{CONFIG}", self.config_sha256)

    def _config(self, run: Run) -> KLConfig:
        file = f"{self.folder}/{CONFIG}"
        return read_config(run.document(file, self.config_sha256), file)

    def depth(self, run: Run) -> int:
        """The decoder's up blocks, and what is before and behind them."""
        config = self._config(run)
        check_shape(run.spec, NAME, config.factor)
        return len(config.block_out_channels) + 2

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """Its weights."""
        return (self._weights(),)

    def brings(self) -> tuple[UserFile, ...]:
        """What diffusers writes."""
        weights = UserFile(f"{self.folder}/{self.file}", "weights of an AutoencoderKL of diffusers", self.sha256)
        return weights, UserFile(f"{self.folder}/{CONFIG}", "its settings", self.config_sha256)

    def check(self, run: Run) -> None:
        """Whether diffusers and the files are there, and hold such a network."""
        self._weights().build(run)

    def load(self, run: Run) -> Generator:
        """Frozen, in evaluation mode."""
        config = self._config(run)
        check_shape(run.spec, NAME, config.factor)
        network = build_network(config, WHO)
        network.load_state_dict(run.resource(self._weights()), assign=True)
        return KLGenerator(network, config, run).eval().requires_grad_(False)
