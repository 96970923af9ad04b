"""What looks wrong about a set that can be judged all the same: sentences for whoever brought it, and for its record."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddbench.api import Spec
from ddbench.data.subsets import TrainingData
from ddbench.ops.image_files import some

LARGE = 20.0  # the root of the mean square of normalised or whitened images: of real ones it is about 1
SAMPLED, SAMPLED_VALUES = 200, 1 << 27  # real images of a class that are looked at, and values of all of them, at most
DARK = 0.02  # pixels in [0, 1] that are all below this were divided by 255 twice


def doubts_of_values(images: Tensor, values: str, spec: Spec) -> tuple[str, ...]:
    """Of images [N,C,H,W] as they were saved, and what they are said to be."""
    if not images.is_floating_point():
        return ()
    low, high = float(images.min()), float(images.max())
    lie = f"and lie in [{low:.2f}, {high:.2f}]"
    if values == "pixels":
        return (f"the images are said to be pixels {lie[:-1]}: were they divided by 255 twice?",) if high < DARK else ()
    told = f"the images are said to be {values} {lie}."
    if values == "normalised" and low >= 0 and high <= 1:
        return (f"{told} Are they pixels?",)
    size = float(images.float().square().mean().sqrt())
    if size <= LARGE:
        return ()
    if values == "normalised" and low >= 0 and high <= 255:
        return (f"{told} Are they pixels of 0 to 255? Then save images.to(torch.uint8), and say --images pixels.",)
    return (f"{told} Their root mean square is {size:.3g}, and that of real images about 1: were they scaled?",)


def counts_of(labels: Tensor, spec: Spec) -> str:
    """How many images a class has, by labels [N,K]: `100 images, 10 a class`, or `57 images, 1 to 20 a class; none of '9'`."""
    counts = torch.bincount(labels.argmax(1), minlength=spec.num_classes).tolist()
    there = [count for count in counts if count]
    each = f"{min(there)} a class" if min(there) == max(there) else f"{min(there)} to {max(there)} a class"
    missing = [f"'{name}'" for name, count in zip(spec.class_names, counts, strict=True) if not count]
    num = "1 image" if len(labels) == 1 else f"{len(labels)} images"
    return f"{num}, {each}" + (f"; none of {some(missing)}" if missing else "")


def doubts_of_counts(labels: Tensor, spec: Spec) -> tuple[str, ...]:
    """Where a class has more images than another, or none. Soft labels [N,K] share images out among classes as they like."""
    counts = torch.bincount(labels.argmax(1), minlength=spec.num_classes)
    is_hard = bool((labels.max(1).values == 1).all())
    return (f"it has {counts_of(labels, spec)}.",) if is_hard and bool((counts != counts[0]).any()) else ()


def doubts_of_classes(images: Tensor, labels: Tensor, seen: Callable[[Tensor], Tensor], real: TrainingData) -> tuple[str, ...]:
    """Where labels [N,K] agree with the nearest mean of a class of real training images no better than chance.

    `seen` gives what networks see of real images: the images [N,C,H,W] went through the same. Half of the real images that are
    looked at make the means, the other half says how often the nearest mean is the right one, r. The agreement of the set, a of
    N, is told where it is within two standard deviations of chance, or below, and where a share of 1/K is 20 times as likely as
    one of r to give it: of few images, or where means say little of classes, nothing is told.
    """
    num_classes = labels.shape[1]
    num = min(SAMPLED, SAMPLED_VALUES // (num_classes * images[0].numel()))
    if num < 2:
        return ()
    means, others = list[Tensor](), list[Tensor]()
    for first, count in zip(real.starts, real.counts, strict=False):
        rows = first + torch.arange(0, count, max(1, count // num))[:num]
        means.append(seen(real.images[rows[::2]]).flatten(1).mean(0))
        others.append(seen(real.images[rows[1::2]]))
    centres = torch.stack(means)
    right = torch.cat([_nearest(of_class, centres) == label for label, of_class in enumerate(others)])
    rate, chance = min(float(right.float().mean()), 0.95), 1 / num_classes
    agree, total = int((_nearest(images, centres) == labels.argmax(1)).sum()), len(images)
    if rate <= chance or agree > chance * total + 2 * math.sqrt(chance * (1 - chance) * total):
        return ()
    evidence = agree * math.log(chance / rate) + (total - agree) * math.log((1 - chance) / (1 - rate))
    told = f"the labels of {agree} of {total} images are those of the nearest mean of real training images"
    return (f"{told}, no more than by chance: do they count the classes in another order?",) if evidence > math.log(20) else ()


def _nearest(images: Tensor, means: Tensor) -> Tensor:
    """[N] the class whose mean [K,D] is nearest to each image [N,C,H,W]."""
    return torch.cdist(images.flatten(1), means).argmin(1)
