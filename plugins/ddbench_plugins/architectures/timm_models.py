"""Any network of the library timm, by its name there."""

from __future__ import annotations

import difflib
import importlib
from functools import partial
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from ddbench.api import Arch, Spec
from ddbench.errors import ConfigError
from ddbench.ops.layers import check_at_least, check_side
from ddbench.ops.vision import load_torchvision

Layout = Literal["maps", "last", "tokens", "vector"]
"""What a network's `forward_features` gives: [B,D,h,w], [B,h,w,D], [B,T,D] or [B,D]."""


def timm_model(model: str, lr: float = 0.001, min_size: int = 32, double_backward: bool = False) -> Arch:
    """Any network of timm by its name there, written `timm/resnet10t`, for the images at hand and with fresh weights.

    features: [B,C,H,W] -> [B,D,h,w] as timm has them before pooling; of T tokens (class token included) [B,D,T,1], of a
    vector [B,D,1,1];  embedding: what timm calls pre_logits [B,D'], of which the logits are a linear function in all but
    networks of several heads;  logits: [B,K].
    The classes and the channels are the data set's, and so is the image side where a network is built for one (vision
    transformers). Everything else, drop rates too, is timm's default for that name. timm's fused attention is replaced by
    its plain formula, which can be differentiated twice and gives the same bits every time.
    `min_size` is not measured: below it images are refused, at it the network may still refuse them. BatchNorm needs two
    values a channel, so a map of one pixel needs batches of two.
    `double_backward` False means "not promised", as nobody has tried a thousand networks; say true for one that can.
    Source: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models (each network names its own).
    Departures: no trained weights, ever, hence no names with a tag such as `resnet10t.c3_in1k`.
    Raises: ConfigError for a name that timm does not list, for a rate that is not positive, for a min_size below 1; when
    built, for images below `min_size` and for images that the network cannot take.
    """
    check_at_least("timm", 1, min_size=min_size)
    if not lr > 0:
        raise ConfigError(f"architecture 'timm' needs a learning rate lr above 0, got {lr}.")
    _check_name(model)
    software = (f"timm {_timm().__version__}",)  # defines the network: another version may be another one
    return Arch(partial(_build, model=model, min_size=min_size), lr, min_size, double_backward, software=software)


def _timm() -> ModuleType:
    """timm, imported on first use: it takes a second."""
    load_torchvision()  # timm imports torchvision, which may not fit the installed torch
    return importlib.import_module("timm")


def _check_name(model: str) -> None:
    """Raise ConfigError for what timm does not list: it answers to names of old and of trained networks as well."""
    timm = _timm()
    known = timm.list_models()
    if model in known:
        return
    untagged = model.partition(".")[0]
    if untagged in known:
        raise ConfigError(f"timm's '{model}' has trained weights and ours start fresh: write '{untagged}'.")
    near = difflib.get_close_matches(model, known, n=3, cutoff=0.5)
    nearest = f"The nearest: {', '.join(near)}." if near else "Its names: python -c 'import timm; print(timm.list_models())'."
    raise ConfigError(f"timm {timm.__version__} has no network '{model}'. {nearest}")


def _build(spec: Spec, model: str, min_size: int) -> nn.Module:
    check_side(f"timm/{model}", spec, min_size)
    try:
        return _adapted(spec, model)
    except Exception as error:  # every network has limits of its own, and words of its own for them
        sides, what = " x ".join(map(str, spec.shape)), " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"architecture 'timm/{model}' cannot take the images {sides} of data set '{spec.name}' ({what.rstrip(':.')}). "
            "Use other images or another network."
        ) from error


def _adapted(spec: Spec, model: str) -> nn.Module:
    """The network, tried on one image of zeros. Raises whatever timm raises, and ValueError for images that are no whole
    patches, whose rest timm would leave out in silence, and for outputs of other shapes."""
    timm = _timm()
    create = partial(timm.create_model, model, pretrained=False, num_classes=spec.num_classes, in_chans=spec.shape[0])
    try:
        made = create(img_size=spec.shape[1:])
    except TypeError as error:  # convolutional networks take no img_size; nothing has been drawn yet
        if "img_size" not in str(error):
            raise
        made = create()
    for layer in made.modules():
        if isinstance(layer, timm.layers.PatchEmbed) and not layer.dynamic_img_pad:
            for side, patch in zip(spec.shape[1:], layer.patch_size, strict=True):
                if side % patch:
                    raise ValueError(f"a side of {side} px is no multiple of its patches of {patch} px")
        if hasattr(layer, "fused_attn"):  # a switch of each layer's own; timm's global one stays as it is
            layer.fused_attn = False
    made.eval()  # so that BatchNorm takes a single image and nothing is drawn
    with torch.no_grad():
        images = torch.zeros(1, *spec.shape)
        network = TimmNetwork(made, _layout(made.forward_features(images), made.num_features))
        features = network.forward_features(images)
        logits, embedding = network.forward_head(features), network.forward_head(features, pre_logits=True)
    if logits.shape != (1, spec.num_classes) or embedding.dim() != 2:
        raise ValueError(f"logits and embedding of one image have the shapes {list(logits.shape)} and {list(embedding.shape)}")
    return network.train()


def _layout(features: object, num_features: int) -> Layout:
    """How features lie. Raises ValueError for several tensors and for unknown shapes."""
    shape = features.shape if isinstance(features, Tensor) else ()
    if len(shape) == 4:
        return "last" if shape[1] != num_features == shape[3] else "maps"
    if len(shape) == 3:
        return "tokens"
    if len(shape) == 2:
        return "vector"
    raise ValueError("its features are not one tensor of maps or tokens")


class TimmNetwork(nn.Module):
    """A network of timm as `Arch.build` promises it. Parameters have timm's names behind `model.`: `model.conv1.weight`."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        """`layout` of what the model's own `forward_features` gives and its `forward_head` takes."""
        super().__init__()
        self.model, self.layout = model, layout

    def forward_features(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,D,h,w]; tokens are a column, h = T and w = 1."""
        features = self.model.forward_features(images)  # type: ignore[operator]
        if self.layout == "last":
            return features.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            return features.transpose(1, 2)[..., None]
        return features[..., None, None] if self.layout == "vector" else features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B,D,h,w] -> logits [B,K], or the embedding [B,D']."""
        if self.layout == "last":
            features = features.permute(0, 2, 3, 1)
        elif self.layout == "tokens":
            features = features[..., 0].transpose(1, 2)
        elif self.layout == "vector":
            features = features[..., 0, 0]
        return self.model.forward_head(features, pre_logits=pre_logits)  # type: ignore[operator]

    def forward(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,K]."""
        return self.forward_head(self.forward_features(images))
