"""What feature-matching losses compare: embeddings, and their means over the classes, several classes a pass.

Shapes: B batch, K classes, n synthetic images a class, C channels, H height, W width, D features.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ddbench.api import Batch, Run
from ddbench.ops.augment import ahead
from ddbench.ops.layers import Dropout

Features = Callable[[Tensor], Tensor]
"""Images [B,C,H,W] -> a vector for each [B,D]."""

OfClass = Callable[[int], Tensor]
"""A class -> images of it [B,C,H,W]."""

PIXELS_A_PASS = {"cpu": 1 << 17, "cuda": 1 << 20}
"""How many pixels of several classes share a pass: at 32 px 128 images on a CPU and 1,024 on CUDA; at 128 px 8 and 64.

On a CPU twice as many gain nothing more, and a quarter gives up half of the gain: DM on digits, ConvNet-3 of width 16, IPC
10, 32 real images a class took 115 ms a step class by class, 86 ms this way. On CUDA the bound is for memory, and not measured:
1,024 images of 32 px keep 1.5 GB of maps for the gradient of ConvNet-3 of width 128.
"""


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """What a network gives to its last linear layer: [B,C,H,W] -> [B,D]; for a ConvNet the flattened last map."""
    return network.forward_head(network.forward_features(images), pre_logits=True)  # type: ignore[operator]


def sees_images_alone(network: nn.Module) -> bool:
    """Whether a network gives an image the same in every batch: it has neither batch statistics nor dropout."""
    mixing = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, Dropout)
    return not any(isinstance(layer, mixing) for layer in network.modules())


def images_a_pass(network: nn.Module, images: Tensor) -> int:
    """How many of such images [..,H,W] classes may share a pass with, at least 1; no bound where other passes change numbers."""
    if not sees_images_alone(network):
        return sys.maxsize
    pixels = PIXELS_A_PASS.get(images.device.type, PIXELS_A_PASS["cuda"])
    return max(1, pixels // (images.shape[-2] * images.shape[-1]))


def class_groups(num_classes: int, per_class: int, at_once: int) -> list[range]:
    """The classes 0..K-1 in runs of as many as have at most `at_once` images together, but at least one."""
    size = max(1, at_once // per_class)
    return [range(start, min(start + size, num_classes)) for start in range(0, num_classes, size)]


def class_batches(syn: Batch, run: Run, batch_real: int, augment: bool) -> tuple[OfClass, OfClass]:
    """The synthetic and the real images of a class in this step, as two functions of the class.

    If `augment`, both are seen through the one view drawn for the class from the stream ("augment", step, class). Real images
    come from the stream ("real", step, class). `syn` holds n images of every class, sorted, as every space gives them;
    positions and no masks are read, since a mask makes a device wait.
    """
    images = syn.images.unflatten(0, (run.spec.num_classes, -1))  # [K,n,C,H,W]

    classes = range(run.spec.num_classes)
    chosen = {label: run.choose(label, batch_real, run.rng("real", run.step, label)) for label in classes}
    picked = {label: index for label, index in chosen.items() if index is not None}
    drawn = [run.augment.draw(run.rng("augment", run.step, label)) for label in classes] if augment else []
    views, moved = ahead(drawn, run.device, *picked.values())
    there = dict(zip(picked, moved, strict=True))

    def seen(images: Tensor, label: int) -> Tensor:
        return views[label](images) if views else images

    def fake(label: int) -> Tensor:
        return seen(images[label], label)

    def real(label: int) -> Tensor:
        return seen(run.read(label, there.get(label)), label)

    return fake, real


def class_means(features: Features, batches: Iterable[Tensor], at_once: int) -> Tensor:
    """The mean vector of every batch: K batches [B_c,C,H,W] -> [K,D].

    Batches share a pass while they have at most `at_once` images together; a larger one is not cut and has a pass of its own.
    """
    means: list[Tensor] = []
    held: list[Tensor] = []
    for batch in batches:
        if held and sum(map(len, held)) + len(batch) > at_once:
            means += _means(features, held)
            held = []
        held.append(batch)
    return torch.stack([*means, *_means(features, held)])


def _means(features: Features, batches: Sequence[Tensor]) -> list[Tensor]:
    vectors = features(torch.cat(list(batches)))
    return [own.mean(0) for own in vectors.split([len(batch) for batch in batches])]


def match_means(features: Features, fake: OfClass, real: OfClass, syn: Batch, num_classes: int, at_once: int) -> Tensor:
    """sum_c || mean_j features(fake(c)_j) - mean_i features(real(c)_i) ||^2: 0-d, detached; its gradient goes to `syn.leaves`.

    The classes' real images go first, then the synthetic ones; of either, classes with at most `at_once` images together
    share a pass.
    """
    with torch.no_grad():
        wanted = class_means(features, map(real, range(num_classes)), at_once)  # [K,D]
    value = torch.zeros_like(wanted[0, 0])
    for group in class_groups(num_classes, len(syn.images) // num_classes, at_once):
        means = class_means(features, map(fake, group), at_once)
        term = (means - wanted[group.start : group.stop]).square().sum()
        term.backward(inputs=syn.leaves)
        value += term.detach()
    return value


def match_means_by_class(features: Features, fake: OfClass, real: OfClass, syn: Batch, num_classes: int) -> Tensor:
    """`match_means` as its formula reads: one class after the other, a pass for either side."""
    value = syn.images.new_zeros(())
    for label in range(num_classes):
        with torch.no_grad():
            wanted = features(real(label)).mean(0)  # [D]
        term = (features(fake(label)).mean(0) - wanted).square().sum()
        term.backward(inputs=syn.leaves)
        value += term.detach()
    return value
