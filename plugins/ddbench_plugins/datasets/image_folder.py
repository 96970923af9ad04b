"""Any folder of class folders that a suite names; and fastai's archives of ImageNet classes, which are such folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddbench.api import Spec, Split
from ddbench.errors import ConfigError, DataError
from ddbench.ops.class_folders import find_classes, names_of_classes
from ddbench.ops.image_dataset import ImageDataset
from ddbench.ops.image_files import Found
from ddbench.ops.image_set import ImageSet
from ddbench.ops.imagenet import MEAN, STD, class_facts

SIDES = (8, 512)
LEAST: dict[Split, int] = {"train": 2, "test": 1}  # of a class: one to train on and one to hold out
NETTE = "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 n03888257"
WOOF = "n02086240 n02087394 n02088364 n02089973 n02093754 n02096294 n02099601 n02105641 n02111889 n02115641"
Unreadable = Literal["refuse", "skip"]


@dataclass(frozen=True)
class ImageFolder(ImageDataset):
    """Images in folders by class: `folder/train/<class>/` to train, `folder/test/<class>/` to test.

    `folder`: absolute, or below the data root. `classes`: the class folders that count, in label order. `class_ids`: a WordNet id
    for each, where folders are named otherwise; classes whose ids ImageNet-1K knows get its names and indices.
    Images: uint8 [N,3,side,side], by class and then by file name, decoded as ImageNet's are (`ddbench.ops.pictures`).
    `unreadable`: images that cannot be decoded are refused, or skipped and counted, which marks results as a copy's.
    Normalisation: `mean` and `std`, ImageNet's if not given. Source: none; the folder is the user's.
    Raises: ConfigError for settings that cannot be; DataError where a class is missing or has fewer than 2 training images.
    """

    folder: str
    classes: tuple[str, ...]
    name: str
    train: str = "train"
    test: str = "val"
    side: int = 128
    class_ids: tuple[str, ...] = ()
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    unreadable: Unreadable = "refuse"
    test_images_elsewhere: bool = False  # whether test images are in circulation as training images, ImageNet's above all

    def __post_init__(self) -> None:
        """Refuse sides, classes and parts of paths that cannot be."""
        if not SIDES[0] <= self.side <= SIDES[1]:
            raise ConfigError(f"data set '{self.name}': 'side' must lie in {SIDES[0]}..{SIDES[1]}, got {self.side}.")
        if len(set(self.classes)) < max(2, len(self.classes)):
            raise ConfigError(f"data set '{self.name}': 'classes' must name two folders or more, each once, got {self.classes}.")
        parts = [part for part in (*self.classes, self.train, self.test) if Path(part).is_absolute() or ".." in Path(part).parts]
        if parts or not all(self.classes):
            told = f"data set '{self.name}': {parts or list(self.classes)}"
            raise ConfigError(f"{told} must be names of folders inside of '{self.folder}'.")
        if self.class_ids and len(self.class_ids) != len(self.classes):
            told = f"{len(self.class_ids)} ids for {len(self.classes)} classes"
            raise ConfigError(f"data set '{self.name}': 'class_ids' must name each class once, got {told}.")
        if self.class_ids and class_facts(self.class_ids) is None:
            raise ConfigError(f"data set '{self.name}': 'class_ids' must be WordNet ids of ImageNet-1K, got {self.class_ids}.")

    def spec(self) -> Spec:
        """See Dataset."""
        ids = self.class_ids or self.classes
        facts = class_facts(ids)
        names, indices = facts or (self.classes, ())
        shape = (3, self.side, self.side)
        return Spec(self.name, shape, names, self.mean, self.std, class_ids=ids if facts else (), class_indices=indices)

    def image_set(self, root: Path | None) -> ImageSet:
        """See ImageDataset. A folder of the user's has no published form: its hash stands in every record."""
        where = _place(self.folder, self.name, root)

        def find(split: Split) -> Found:
            above = where / (self.train if split == "train" else self.test)
            return find_classes(self.name, above, self.classes, LEAST[split])

        return ImageSet(self.name, self.side, self.classes, where, find, self.unreadable == "skip")


def _place(folder: str, name: str, root: Path | None) -> Path:
    if not Path(folder).is_absolute() and root is None:
        raise DataError(f"dataset '{name}' is the folder '{folder}' below the data folder, and DDBENCH_DATA is not set.")
    where = Path(folder) if root is None else root / folder
    if not where.is_dir():
        raise DataError(f"dataset '{name}' expected the folder {where}, which is not there.")
    return where


def _refuse_lone(name: str, where: Path, classes: tuple[str, ...], train: str, test: str) -> None:
    """Raise ConfigError where there are classes to test and not to train: nobody means that."""
    above = where / test
    found = {path.name for path in above.iterdir() if path.is_dir()} if above.is_dir() else set()
    lone = sorted(found - set(classes))
    if lone and found & set(classes):  # else it has no folder for each class
        told = f"{where / test} has the classes {', '.join(lone[:5])} and {train} has not"
        raise ConfigError(f"dataset '{name}': {told}: put their images there, or name the 'classes' that count.")


def image_folder(
    folder: str, classes: tuple[str, ...] = (), train: str = "train", test: str = "val", side: int = 128,
    class_ids: tuple[str, ...] = (), mean: tuple[float, float, float] = MEAN, std: tuple[float, float, float] = STD,
    unreadable: Unreadable = "refuse", test_images_elsewhere: bool = False,
) -> ImageFolder:  # fmt: skip
    """Any folder of class folders. See ImageFolder.

    It is called by its folder's name. Without `classes` they are the folders to train from, sorted by name, which are looked up
    when the plugin is made, below DDBENCH_DATA; name them, and boards can be drawn where the images are not.
    """
    name, where = Path(folder).name, None
    if not classes:
        root = os.environ.get("DDBENCH_DATA")
        try:
            where = _place(folder, name, Path(root).expanduser() if root else None)
            classes = names_of_classes(name, where / train)
        except DataError as error:
            raise ConfigError(f"{error} Put it there, or name its 'classes', and the rest can be planned without it.") from error
    made = ImageFolder(folder, classes, name, train, test, side, class_ids, mean, std, unreadable, test_images_elsewhere)
    if where is not None:
        _refuse_lone(name, where, classes, train, test)
    return made


def fastai_imagenette(side: int = 128, folder: str = "imagenette2", unreadable: Unreadable = "refuse") -> ImageFolder:
    """fastai's Imagenette: another split than `imagenette`, mostly of ImageNet's training images, 70 to 30.

    Version 2 (`folder`: `imagenette2`, `-320` or `-160`). Results compare with none of `imagenette`, whose test images are
    ImageNet's own.
    """
    classes = tuple(NETTE.split())
    return ImageFolder(folder, classes, "fastai-imagenette", side=side, unreadable=unreadable, test_images_elsewhere=True)


def fastai_imagewoof(side: int = 128, folder: str = "imagewoof2", unreadable: Unreadable = "refuse") -> ImageFolder:
    """fastai's Imagewoof: another split than `imagewoof`, mostly of ImageNet's training images, 70 to 30.

    Version 2 (`folder`: `imagewoof2`, `-320` or `-160`); labels by ascending WordNet id.
    """
    classes = tuple(WOOF.split())
    return ImageFolder(folder, classes, "fastai-imagewoof", side=side, unreadable=unreadable, test_images_elsewhere=True)
