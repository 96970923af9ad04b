"""Vision transformers: a pre-LayerNorm ViT, and one without LayerNorm, behind published cross-architecture numbers."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from ddbench.api import Arch, AtMost, Spec
from ddbench.errors import ConfigError
from ddbench.ops.layers import Dropout, Form, Network, check_at_least, check_side, form_of

HEADS = 8
DROPOUT = 0.1
LOW_PATCH, HIGH_PATCH = 4, 16  # px
LOW_DEPTH, HIGH_DEPTH = 6, 10
Blocks = Annotated[int, AtMost(1_000)]


def vit(width: int = 512, depth: Blocks | None = None, layer_norm: bool = True, form: Form = "auto") -> Arch:
    """Patches and a class token, `depth` blocks of attention and an MLP of 8 heads, a linear layer on the class token.

    features: [B,C,H,W] -> [B, width, 1, 1], the class token after the last LayerNorm;  embedding: the same, flat;
    logits: [B,K].
    `form`: "low" has patches of 4 px and 6 blocks, "high" patches of 16 px and 10 blocks; "auto": low up to a side of
    64 px.
    `layer_norm`: one before every attention and MLP and one before the linear layer, or none at all (see `vit_noln`).
    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, in the sizes of Cazenavette et al.,
    Generalizing Dataset Distillation via Deep Generative Prior, CVPR 2023: width 512, MLP hidden 512, dropout 0.1
    after the embedding, the output projection and both MLP layers.
    Departures: the high form of the latter has no LayerNorm; this one does, unless told otherwise. Attention is
    written out, as the fused kernels have no second derivative.
    Raises: ConfigError for a width that is no multiple of 8, for a depth below 1, for images below a patch or not
    made of whole patches.
    """
    return _arch("vit", width, depth, layer_norm, form)


def vit_noln(width: int = 512, depth: Blocks | None = None, form: Form = "high") -> Arch:
    """`vit` without any LayerNorm, in the high form: the "ViT-B/16" of published cross-architecture tables.

    Shapes and settings: as `vit`. A true B/16 has five times as many parameters.
    Source: Cazenavette et al., Generalizing Dataset Distillation via Deep Generative Prior, CVPR 2023; its code has
    every LayerNorm of this network commented out. Departures: none at 128, 256 and 512 px. At 32 px the source has a
    LayerNorm and patches of 4 px, which is `vit`.
    Raises: as `vit`.
    """
    return _arch("vit-noln", width, depth, False, form)


def _arch(name: str, width: int, depth: int | None, layer_norm: bool, form: Form) -> Arch:
    check_at_least(name, HEADS, width=width)
    check_at_least(name, 1, depth=1 if depth is None else depth)
    if width % HEADS:
        raise ConfigError(f"architecture '{name}' has {HEADS} heads: width must be a multiple of {HEADS}, got {width}.")
    min_size = HIGH_PATCH if form == "high" else LOW_PATCH
    build = partial(_build, name=name, width=width, depth=depth, layer_norm=layer_norm, form=form, min_size=min_size)
    return Arch(build, lr=0.001, min_size=min_size)


def _build(spec: Spec, name: str, width: int, depth: int | None, layer_norm: bool, form: Form, min_size: int) -> nn.Module:
    check_side(name, spec, min_size)
    low = form_of(form, spec) == "low"
    patch = LOW_PATCH if low else HIGH_PATCH
    channels, height, breadth = spec.shape
    if height % patch or breadth % patch:
        raise ConfigError(
            f"architecture '{name}' cuts images into patches of {patch} x {patch} px and data set '{spec.name}' has "
            f"{height} x {breadth}. Use images whose sides are multiples of {patch}, or the other form."
        )
    tokens = (height // patch) * (breadth // patch) + 1
    encoder = Encoder(channels, patch, tokens, width, depth or (LOW_DEPTH if low else HIGH_DEPTH), layer_norm)
    return Network(encoder, nn.Identity(), nn.Linear(width, spec.num_classes))


class Encoder(nn.Module):
    """[B,C,H,W] -> the class token [B, width, 1, 1]. Class token and positions start as N(0, 1)."""

    def __init__(self, channels: int, patch: int, tokens: int, width: int, depth: int, layer_norm: bool) -> None:
        """`tokens` counts the class token."""
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, tokens, width))
        self.dropout = Dropout(DROPOUT)
        self.blocks = nn.Sequential(*(Block(width, layer_norm) for _ in range(depth)))
        self.norm = nn.LayerNorm(width) if layer_norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B, width, 1, 1]."""
        rows = images.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # [B,C,h,p,w,p]
        patches = rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, h w, C p p]
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), self.embed(patches)], dim=1)
        tokens = self.blocks(self.dropout(tokens + self.positions))
        return self.norm(tokens[:, 0])[:, :, None, None]


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): [B,T,D] -> [B,T,D]."""

    def __init__(self, width: int, layer_norm: bool) -> None:
        """Without `layer_norm`, norm is the identity."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.attention = Attention(width)
        self.mlp_norm = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), Dropout(DROPOUT), nn.Linear(width, width), Dropout(DROPOUT))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V in 8 heads of d = D / 8, with plain operations: [B,T,D] -> [B,T,D]."""

    def __init__(self, width: int) -> None:
        """`width` is D."""
        super().__init__()
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)
        self.dropout = Dropout(DROPOUT)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,T,D] -> [B,T,D]."""
        query, key, value = self.to_qkv(tokens).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # [B,heads,T,d]
        weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(dim=-1)  # [B,heads,T,T]
        return self.dropout(self.project((weights @ value).transpose(1, 2).flatten(2)))
