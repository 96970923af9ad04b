"""The autoencoder of a latent diffusion model, an AutoencoderKL of diffusers: its settings, its module, its tensors' names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from ddbench.errors import ConfigError, DataError
from ddbench.ops.checkpoints import fit_state
from ddbench.ops.vision import load_torchvision

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


def of_diffusers(name: str, who: str) -> Any:
    """A class of the package by its name; `who` needs it. Raises ConfigError where the package cannot be imported."""
    load_torchvision()  # which diffusers imports
    try:
        import diffusers

        return getattr(diffusers, name)
    except (ImportError, RuntimeError) as error:  # it wraps what fails inside of it
        told = f"{who} needs the package diffusers, which cannot be imported"
        raise ConfigError(f"{told}: pip install 'ddbench[diffusers]'.") from error


def build_network(config: KLConfig, who: str) -> Any:
    """The module of diffusers, without weights. Raises ConfigError where diffusers, which `who` needs, is not installed."""
    kind = of_diffusers("AutoencoderKL", who)
    with torch.device("meta"):
        network: Any = kind(**config.arguments())
    network.set_default_attn_processor()  # plain matrix products, the same on every machine
    return network


def fit_weights(network: nn.Module, tensors: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """A file's tensors as the network takes them, whatever the age of the file. Raises DataError where they do not fit."""
    return fit_state(network, _squared({_present(name): tensor for name, tensor in tensors.items()}), (), what)


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
