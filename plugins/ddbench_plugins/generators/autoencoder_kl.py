"""The autoencoder of a latent diffusion model as a generator, from files in the layout of diffusers; an optional extra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from ddbench.api import TRAIN, Generator, GeneratorConfig, Resource, Run, Saw, UserFile
from ddbench.errors import ConfigError, DataError
from ddbench.ops.checkpoints import fit_state
from ddbench.ops.encodings import EncodingGenerator, RealEncodings, check_shape
from ddbench.ops.vision import load_torchvision

NAME = "autoencoder-kl"
CONFIG = "config.json"
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}  # of older files
UNUSED = ("_class_name", "_diffusers_version", "_name_or_path", "_commit_hash")  # of a file, that decide nothing

Channels = Annotated[int, Meta(ge=1, le=4096)]
Down = Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
Up = Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]


class KLConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What config.json says of an AutoencoderKL: the arguments of diffusers, with their defaults, within bounds."""

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: Annotated[tuple[Down, ...], Meta(min_length=1, max_length=8)] = ("DownEncoderBlock2D",)
    up_block_types: Annotated[tuple[Up, ...], Meta(min_length=1, max_length=8)] = ("UpDecoderBlock2D",)
    block_out_channels: Annotated[tuple[Channels, ...], Meta(min_length=1, max_length=8)] = (64,)
    layers_per_block: Annotated[int, Meta(ge=1, le=16)] = 1
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    latent_channels: Channels = 4
    norm_num_groups: Annotated[int, Meta(ge=1, le=1024)] = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    sample_size: Any = None  # from here on for diffusion models alone: latents are taken as the encoder gives them
    scaling_factor: Any = None
    shift_factor: Any = None
    latents_mean: Any = None
    latents_std: Any = None
    force_upcast: Any = None

    @property
    def factor(self) -> int:
        """Of a latent's side to the image's."""
        return 2 ** (len(self.block_out_channels) - 1)

    def check(self) -> None:
        """Raise ValueError, with the fault, where its parts do not fit each other."""
        num = len(self.block_out_channels)
        if not len(self.down_block_types) == len(self.up_block_types) == num:
            raise ValueError("'down_block_types', 'up_block_types' and 'block_out_channels' must be equally many")
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError("'block_out_channels' must be multiples of 'norm_num_groups'")

    def arguments(self) -> dict[str, Any]:
        """For diffusers."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}


def read_config(content: bytes, name: str) -> KLConfig:
    """From JSON; `name` is what messages call it. Raises DataError, one sentence, for anything else."""
    try:
        told = msgspec.json.decode(content, type=dict[str, Any])
        if told.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
            raise ValueError(f"it is of the class {told['_class_name']!r:.80}")
        config = msgspec.convert({key: value for key, value in told.items() if key not in UNUSED}, KLConfig)
        config.check()
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DataError(f"'{name}' does not describe an AutoencoderKL: {' '.join(str(error).split())}.") from error
    return config


def build_network(config: KLConfig) -> Any:
    """The module of diffusers, without weights. Raises ConfigError where diffusers is not installed."""
    load_torchvision()  # which diffusers imports
    try:
        from diffusers import AutoencoderKL
    except (ImportError, RuntimeError) as error:  # it wraps what fails inside of it
        told = f"generator '{NAME}' needs the package diffusers, which cannot be imported"
        raise ConfigError(f"{told}: pip install 'ddbench[diffusers]'.") from error
    with torch.device("meta"):
        network: Any = AutoencoderKL(**config.arguments())
    network.set_default_attn_processor()  # plain matrix products, the same on every machine
    return network


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
        network = build_network(read_config(run.document(self.config, self.config_sha256), self.config))
        tensors = {_present(name): tensor for name, tensor in run.weights(self.file, self.sha256).items()}
        return fit_state(network, _squared(tensors), (), f"the weights '{self.file}'")


def _present(name: str) -> str:
    """A tensor's name as it is today."""
    if ".attentions." in name:
        for old, new in RENAMED.items():
            name = name.replace(old, new)
    return name


def _squared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices of attention that older files keep as convolutions of one pixel."""
    return {
        name: tensor[:, :, 0, 0] if ".attentions." in name and tensor.dim() == 4 and tensor.shape[2:] == (1, 1) else tensor
        for name, tensor in tensors.items()
    }


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
        network = build_network(config)
        network.load_state_dict(run.resource(self._weights()), assign=True)
        return KLGenerator(network, config, run).eval().requires_grad_(False)
