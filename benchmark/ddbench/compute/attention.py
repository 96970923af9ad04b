"""A classifier of a subset, trained for looking at sets: on the real training images alone."""

from __future__ import annotations

import torch
from torch import nn

from ddbench.api import Recipe
from ddbench.compute.run import be_deterministic, build_network
from ddbench.compute.train import train
from ddbench.data.subsets import TrainingData
from ddbench.ops.augment import SiameseAugment
from ddbench.refs import PluginRef

LR = 0.01


def trained_classifier(ref: PluginRef, data: TrainingData, device: torch.device, epochs: int, threads: int = 1) -> nn.Module:
    """A network after `epochs` on the training images, held-out ones too, in evaluation mode, frozen. Equal arguments give equal
    weights on one machine."""
    be_deterministic(threads)
    name = ("figures", "classifier")
    network, (images, labels) = build_network(ref, data.spec, device, *name), data.everything()
    augment = SiameseAugment(data.spec.augmentation)
    train(network, images, labels, Recipe(epochs, LR), (*name, "train"), augment, view=data.seen)
    return network.eval().requires_grad_(False)
