"""Small networks of every architecture, images and recipes, for tests that train several networks at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ddbench.api import Arch, Recipe, Spec
from ddbench.seeds import global_stream, stream
from ddbench.testing import TOY_ARCH, toy_spec
from ddbench_plugins.architectures.alexnet import alexnet
from ddbench_plugins.architectures.convnet import convnet
from ddbench_plugins.architectures.resnet import resnet18
from ddbench_plugins.architectures.resnet_bn import resnet18_bn
from ddbench_plugins.architectures.vgg import vgg11
from ddbench_plugins.architectures.vit import vit

FULL = "color_crop_cutout_flip_scale_rotate"
NUM_CLASSES = 3
RECIPE = Recipe(epochs=3, lr=0.05, batch=3, warmup_epochs=1, ema=0.6, schedule="glad")  # 7 images: batches of 3, 3 and 1
ADAMW = replace(RECIPE, optimizer="adamw", lr=0.01)


def beginning_of_resnet18_bn(spec: Spec) -> nn.Module:
    """Its stem and its first two stages, for it has no narrow form."""
    network = resnet18_bn().build(spec)
    network.layer3, network.layer4, network.fc = nn.Identity(), nn.Identity(), nn.Linear(128, spec.num_classes)
    return network


NETWORKS: dict[str, tuple[Arch, int]] = {  # every network of the protocols, small, and a side in px
    "convnet": (convnet(width=4), 16),
    "convnet-bn": (convnet(width=4, norm="batch"), 16),
    "alexnet": (alexnet(width=4), 16),
    "vgg11": (vgg11(width=2), 28),
    "resnet18": (resnet18(width=2), 28),
    "resnet18-bn": (replace(resnet18_bn(), build=beginning_of_resnet18_bn), 9),
    "vit": (vit(width=16, depth=2), 16),
    "toy": (TOY_ARCH, 8),
}


def fresh(name: str, num: int, dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    """Networks of one architecture, each with weights of its own."""
    arch, side = NETWORKS[name]
    made = []
    for number in range(num):
        with global_stream("network", number):
            made.append(arch.build(toy_spec(NUM_CLASSES, 3, side)).to(dtype))
    return made


def images_for(name: str, num: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    side = NETWORKS[name][1]
    return torch.randn(num, 3, side, side, generator=stream("images"), dtype=dtype), torch.arange(num) % NUM_CLASSES


def names_of(num: int) -> list[tuple[str | int, ...]]:
    return [("evaluate", 0, "net", number) for number in range(num)]
