"""ResNet-18 with BatchNorm, as torchvision has it."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn

from ddbench.api import Arch, Spec
from ddbench.ops.layers import LARGEST_LOW_SIDE, check_side
from ddbench.ops.vision import load_torchvision

Stem = Literal["auto", "small", "imagenet"]

MIN_SIZES = {"small": 9, "imagenet": 33}  # px: a last map of 2x2; a map of one pixel takes no batch of one image
PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")


def resnet18_bn(stem: Stem = "auto") -> Arch:
    """ResNet-18 with BatchNorm, torchvision's: stem; four stages of two blocks with 64, 128, 256, 512 channels; linear.

    features: [B,C,H,W] -> [B,512,h,w], the maps before pooling;  embedding: their means [B,512];  logits: [B,K].
    `stem` "imagenet": conv 7x7 stride 2 and a max pool 3x3 stride 2, so h = H/32 rounded up. "small": conv 3x3 stride 1
    without bias and no max pool, so h = H/8 rounded up. "auto": small up to a shorter side of 64 px.
    The names of parameters and buffers are torchvision's own (`conv1.weight`, `layer1.0.bn2.running_mean`, `fc.bias`): a
    state dict of torchvision.models.resnet18 with as many classes fits the stem "imagenet" as it is, and the stem "small"
    but for `conv1.weight`.
    Source: He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, CVPR 2016, as torchvision has it; the
    small stem as Yin, Xing and Shen, Squeeze, Recover and Relabel, NeurIPS 2023, use it for CIFAR and Tiny-ImageNet.
    Departures: the first conv takes as many channels as the images have. Weights start as torchvision's (normal, by
    fan-out), but a first conv that is not torchvision's own starts as torch's default, as in SRe2L's code.
    Raises: ConfigError for images below 9 px (33 px with the stem "imagenet").
    """
    min_size = MIN_SIZES["imagenet" if stem == "imagenet" else "small"]
    return Arch(partial(_build, stem=stem, min_size=min_size), lr=0.001, min_size=min_size)


def _build(spec: Spec, stem: Stem, min_size: int) -> nn.Module:
    check_side("resnet18-bn", spec, min_size)
    model = load_torchvision().models.resnet18(weights=None, num_classes=spec.num_classes)
    channels, *sides = spec.shape
    if stem == "small" or (stem == "auto" and min(sides) <= LARGEST_LOW_SIDE):
        model.conv1, model.maxpool = nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return ResNet18(model)


class ResNet18(nn.Module):
    """The layers of torchvision's network under their names, in three parts: maps, their means, logits."""

    avgpool: nn.Module
    fc: nn.Module

    def __init__(self, model: nn.Module) -> None:
        """Takes over the layers of `model`, a torchvision.models.ResNet."""
        super().__init__()
        for name in PARTS:
            self.add_module(name, getattr(model, name))

    def forward_features(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,512,h,w]."""
        for name in PARTS[:-2]:
            images = getattr(self, name)(images)
        return images

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B,512,h,w] -> logits [B,K], or the embedding [B,512]."""
        embedding = self.avgpool(features).flatten(1)
        return embedding if pre_logits else self.fc(embedding)

    def forward(self, images: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,K]."""
        return self.forward_head(self.forward_features(images))
