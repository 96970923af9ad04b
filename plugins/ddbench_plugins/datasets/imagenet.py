"""ImageNet-1K, its ten subsets of ten classes, and their union, from an ImageNet tree of the user's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddbench.api import Spec
from ddbench.errors import ConfigError, DataError
from ddbench.ops.image_dataset import ImageDataset
from ddbench.ops.image_set import ImageSet
from ddbench.ops.imagenet import MEAN, STD, class_facts, imagenet_classes
from ddbench.ops.imagenet_tree import ImageNetTree

SIDES = (32, 512)
UNION, WHOLE = "imagenet-94", "imagenet-1k"
Unreadable = Literal["refuse", "skip"]


@dataclass(frozen=True)
class ImageNetSubset(ImageDataset):
    """Classes of ImageNet: all their training images to train (732 to 1,300 a class), the 50 official validation images to test.

    Images: uint8 [N,3,side,side], by class and then by file name; the shorter side resized to `side` with anti-aliasing, then
    cropped in the middle (`ddbench.ops.pictures`). Labels of a ten-class subset are in the order of its published list.
    `unreadable`: images that cannot be decoded are refused, or skipped and counted, which marks results as a copy's.
    Decoded images are kept in one mapped file (`ddbench.ops.image_cache`).
    Normalisation: ImageNet's constants, as GLaD and H-PD have it for real images.
    Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015; subsets by Cazenavette et al., CVPR
    2022 and 2023. Departures: their code normalised, then resized floats, with or without anti-aliasing by torchvision's version.
    Raises: ConfigError for another side, DataError where a class is missing or is not as it was published.
    """

    subset: str
    side: int = 128
    unreadable: Unreadable = "refuse"

    def __post_init__(self) -> None:
        """Refuse sides that nothing was made for."""
        if not SIDES[0] <= self.side <= SIDES[1]:
            raise ConfigError(f"data set '{self.subset}': 'side' must lie in {SIDES[0]}..{SIDES[1]}, got {self.side}.")

    @property
    def wnids(self) -> tuple[str, ...]:
        """WordNet ids in label order."""
        if self.subset == WHOLE:
            return tuple(wnid for wnid, _ in imagenet_classes())
        subsets: dict[str, list[str]] = json.loads(Path(__file__).with_name("imagenet_subsets.json").read_text())
        if self.subset == UNION:
            return tuple(sorted({wnid for wnids in subsets.values() for wnid in wnids}))
        return tuple(subsets[self.subset])

    def spec(self) -> Spec:
        """See Dataset."""
        facts = class_facts(self.wnids)
        assert facts is not None
        return Spec(self.subset, (3, self.side, self.side), facts[0], MEAN, STD, class_ids=self.wnids, class_indices=facts[1])

    def image_set(self, root: Path | None) -> ImageSet:
        """See ImageDataset. Names and numbers are ImageNet's, or it is refused; no hash of ImageNet is published."""
        if root is None:
            told = f"dataset '{self.subset}' needs ImageNet under DDBENCH_DATA, and that is not set"
            raise DataError(f"{told}. docs/data.md says how to get it in place.")
        tree = ImageNetTree(self.subset, root, self.wnids)
        return ImageSet(self.subset, self.side, self.wnids, tree.base, tree.find, self.unreadable == "skip")


def _factory(subset: str, own_side: int = 128, what: str = "Ten classes of ImageNet") -> Callable[..., ImageNetSubset]:
    """A data set by its name, with its own side where none is given."""

    def make(side: int = own_side, unreadable: Unreadable = "refuse") -> ImageNetSubset:
        return ImageNetSubset(subset, side, unreadable)

    make.__doc__ = f"{what}, from a tree of the user's; {own_side} px where no side is given. See ImageNetSubset."
    return make


imagenet_a, imagenet_b, imagenet_c = _factory("imagenet-a"), _factory("imagenet-b"), _factory("imagenet-c")
imagenet_d, imagenet_e = _factory("imagenet-d"), _factory("imagenet-e")
imagenette, imagewoof = _factory("imagenette"), _factory("imagewoof")
birds, fruits, cats = _factory("imagenet-birds"), _factory("imagenet-fruits"), _factory("imagenet-cats")
imagenet_94 = _factory(UNION, what="The 94 classes of the ten subsets of ImageNet")
imagenet_1k = _factory(WHOLE, 64, "ImageNet-1K")
