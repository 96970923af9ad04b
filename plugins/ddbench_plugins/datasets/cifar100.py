"""CIFAR-100 in torchvision's layout, read without executing the pickles it is stored in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from ddbench.api import Dataset, LabelledImages, Spec, Split
from ddbench.errors import DataError
from ddbench.ops.array_pickles import UnreadablePickleError, byte_rows, read_arrays
from ddbench.ops.vision import load_torchvision

FOLDER = "cifar-100-python"
FILES: tuple[Split, Split] = ("train", "test")
MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}  # as torchvision lists them
MAX_IMAGES = 50_000  # a file
MAX_BYTES = 512 << 20  # a file: 154 MB of pixels, up to twice that where Python 3 wrote them with protocol 2
CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy", "bridge",
    "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud",
    "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl",
    "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear",
    "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel",
    "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train",
    "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip


@dataclass(frozen=True)
class Cifar100(Dataset):
    """100 classes of 32x32 colour images, by their fine labels: 500 a class to train, 100 a class to test.

    Files: `cifar-100-python` under the data root, with train and test. A copy whose files differ from the published ones is read
    as well; `is_original` tells it. Images: uint8 [N,3,32,32], in the files' order.
    Normalisation: mean and standard deviation of the training pixels, as DM and MTT use them.
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. Departures: none.
    Raises: DataError if a file is missing or damaged, or asks to execute anything.
    """

    def spec(self) -> Spec:
        """See Dataset."""
        return Spec("cifar100", (3, 32, 32), CLASSES, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))

    def load(self, split: Split, root: Path | None) -> LabelledImages:
        """See Dataset."""
        path = _folder(root) / split
        if path.stat().st_size > MAX_BYTES:
            raise _fault(f"{path} of at most {MAX_BYTES} bytes, and finds {path.stat().st_size}.")
        try:
            content = read_arrays(path, "CIFAR-100")
        except UnreadablePickleError as error:
            raise _fault(f"{path} to be a whole CIFAR-100 file, and cannot read it: {error}. Fetch it again.") from error
        data = byte_rows(content.get("data"), 3072) if isinstance(content, dict) else None
        labels = content.get("fine_labels") if isinstance(content, dict) else None
        if data is None or not isinstance(labels, list) or not 1 <= len(data) == len(labels) <= MAX_IMAGES:
            raise _fault(f"{path} with 'data' of uint8 [n, 3072] and n 'fine_labels', and finds something else.")
        if not set(map(type, labels)) <= {int} or not all(0 <= label < len(CLASSES) for label in labels):
            raise _fault(f"{path} with fine_labels from 0 to {len(CLASSES) - 1}, and finds others.")
        return LabelledImages(torch.from_numpy(data).view(len(data), 3, 32, 32), torch.tensor(labels))

    def files(self, root: Path | None) -> tuple[Path, ...]:
        """See Dataset."""
        return tuple(_folder(root) / name for name in FILES)

    def is_original(self, root: Path | None) -> bool:
        """Whether both files have the published md5."""
        found = {path.name: path.read_bytes() for path in self.files(root)}
        return {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in found.items()} == MD5

    def download(self, root: Path) -> None:
        """See Dataset. Through torchvision, from the authors' page (170 MB)."""
        try:
            load_torchvision().datasets.CIFAR100(str(root), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"dataset 'cifar100' cannot be downloaded into {root}: {error}.") from error


def _fault(expected: str) -> DataError:
    return DataError(f"dataset 'cifar100' is not under DDBENCH_DATA: expected {expected}")


def _folder(root: Path | None) -> Path:
    """The folder with both files."""
    missing = [name for name in FILES if root is None or not (root / FOLDER / name).is_file()]
    if root is None or missing:
        where = "and DDBENCH_DATA is not set" if root is None else f"in {root}"
        remedy = "Put them there, or run: ddbench download cifar100 --to FOLDER, and set DDBENCH_DATA=FOLDER."
        raise _fault(f"{FOLDER}/ with {', '.join(missing)}, {where}. {remedy}")
    return root / FOLDER
