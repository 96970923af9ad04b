"""Tiny-ImageNet in its original layout, or with validation images in class folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddbench.api import Spec, Split
from ddbench.errors import DataError
from ddbench.ops.class_folders import find_classes
from ddbench.ops.image_dataset import ImageDataset
from ddbench.ops.image_files import Found
from ddbench.ops.image_set import ImageSet
from ddbench.ops.imagenet import MEAN, STD, class_facts

FOLDER, SIDE = "tiny-imagenet-200", 64
SPLITS: dict[Split, tuple[str, int]] = {"train": ("train", 500), "test": ("val", 50)}  # folder, images of a class


@dataclass(frozen=True)
class TinyImageNet(ImageDataset):
    """200 classes of 64x64 colour images: 500 a class to train; the 50 a class of the validation split to test.

    Files: `tiny-imagenet-200` under the data root: train/<wnid>/images/ and val/images/ with val/val_annotations.txt, or
    val/<wnid>/. The unlabelled test split is never used. Images: uint8 [N,3,64,64], by class and file name; labels by ascending
    WordNet id. `unreadable`: images that cannot be decoded are refused, or skipped and counted.
    Normalisation: ImageNet's constants, as DC, MTT and TESLA have it; SRe2L uses those of these images (0.4802, 0.4481, 0.3975;
    0.2302, 0.2265, 0.2262).
    Source: Stanford CS231N; Le and Yang, Tiny ImageNet Visual Recognition Challenge, 2015. Departures: none.
    Raises: DataError where a class or an image is missing: a part of it is an `image-folder`.
    """

    unreadable: Literal["refuse", "skip"] = "refuse"

    @property
    def wnids(self) -> tuple[str, ...]:
        """WordNet ids in label order."""
        return tuple(json.loads(Path(__file__).with_name("tiny_imagenet_classes.json").read_text()))

    def spec(self) -> Spec:
        """See Dataset."""
        facts = class_facts(self.wnids)
        assert facts is not None
        return Spec("tiny-imagenet", (3, SIDE, SIDE), facts[0], MEAN, STD, class_ids=self.wnids, class_indices=facts[1])

    def image_set(self, root: Path | None) -> ImageSet:
        """See ImageDataset. Numbers are those published, or it is refused."""
        where = None if root is None else root / FOLDER
        if where is None or not where.is_dir():
            told = "and DDBENCH_DATA is not set" if where is None else f"in {root}"
            raise DataError(f"dataset 'tiny-imagenet' is not under DDBENCH_DATA: expected {FOLDER}/, {told}. See docs/data.md.")
        wnids = self.wnids

        def find(split: Split) -> Found:
            name, each = SPLITS[split]
            return find_classes("tiny-imagenet", where / name, wnids, each, each, "A part of it is an image-folder.")

        return ImageSet("tiny-imagenet", SIDE, wnids, where, find, self.unreadable == "skip")
