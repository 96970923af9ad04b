"""A class-conditional diffusion transformer of diffusers (DiT): its settings, and its module."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta

from ddbench.errors import DataError
from ddbench_plugins.diffusion.vae import UNUSED, of_diffusers

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # the latter as diffusers called it before
MAX_POSITIONS = 1 << 28  # values of the table of positions, which no file holds

Small = Annotated[int, Meta(ge=1, le=512)]


class DiTConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What config.json says of it: the arguments of diffusers, with their defaults, within bounds."""

    num_attention_heads: Small = 16
    attention_head_dim: Small = 72
    in_channels: Small = 4
    out_channels: Small | None = None
    num_layers: Annotated[int, Meta(ge=1, le=64)] = 28
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    norm_num_groups: Small = 32
    attention_bias: bool = True
    sample_size: Small = 32
    patch_size: Annotated[int, Meta(ge=1, le=16)] = 2
    activation_fn: Literal["gelu-approximate", "gelu"] = "gelu-approximate"
    num_embeds_ada_norm: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    norm_type: Literal["ada_norm_zero"] = "ada_norm_zero"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-5

    @property
    def width(self) -> int:
        """Of its layers."""
        return self.num_attention_heads * self.attention_head_dim

    def check(self) -> None:
        """Raise ValueError, with the fault, where its parts do not fit each other."""
        if self.sample_size % self.patch_size or self.width % 4:
            raise ValueError("'sample_size' must be a multiple of 'patch_size', and the width of 4")
        if (self.sample_size // self.patch_size) ** 2 * self.width > MAX_POSITIONS:
            raise ValueError("it has too many positions")
        if self.out_channels not in (None, self.in_channels, 2 * self.in_channels):
            raise ValueError("'out_channels' must be those that come in, or twice as many")


def read_config(content: bytes, name: str) -> DiTConfig:
    """From JSON; `name` is what messages call it. Settings of its kin that are off do not count. Raises DataError, one sentence,
    for anything else."""
    try:
        told = msgspec.json.decode(content, type=dict[str, Any])
        if told.get("_class_name") not in CLASSES:
            raise ValueError(f"it is of the class {told.get('_class_name')!r:.80}")
        known = {field.name for field in msgspec.structs.fields(DiTConfig)}
        counts = {key: value for key, value in told.items() if key in known or not (key in UNUSED or value in (None, False))}
        config = msgspec.convert(counts, DiTConfig)
        config.check()
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DataError(f"'{name}' does not describe a DiTTransformer2DModel: {' '.join(str(error).split())}.") from error
    return config


def build_network(config: DiTConfig, who: str) -> Any:
    """The module of diffusers, without weights but with its positions. Raises ConfigError where diffusers, which `who` needs, is
    not installed."""
    kind = of_diffusers("DiTTransformer2DModel", who)
    from diffusers.models.attention_processor import Attention, AttnProcessor
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    with torch.device("meta"):
        network: Any = kind(**msgspec.structs.asdict(config))
    grid = config.sample_size // config.patch_size
    positions = get_2d_sincos_pos_embed(config.width, grid, base_size=grid, interpolation_scale=1, output_type="pt")
    network.pos_embed.register_buffer("pos_embed", positions.float()[None], persistent=False)
    for layer in network.modules():
        if isinstance(layer, Attention):
            layer.set_processor(AttnProcessor())  # plain matrix products, the same on every machine
    return network
