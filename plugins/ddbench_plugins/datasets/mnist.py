"""MNIST and Fashion-MNIST from the files that their authors published, as torchvision keeps them."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ddbench.api import Dataset, LabelledImages, Spec, Split
from ddbench.errors import DataError
from ddbench.ops.vision import load_torchvision

PARTS: dict[Split, str] = {"train": "train", "test": "t10k"}
MAX_IMAGES = 60_000
MAX_BYTES = 16 + MAX_IMAGES * 28 * 28
IMAGES, LABELS = 0x00000803, 0x00000801  # what the files begin with: unsigned bytes, of three dimensions or one
FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
MD5 = {  # of the published files, unpacked, images and labels to train and to test
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}  # fmt: skip
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True)
class Mnist(Dataset):
    """10 classes of 28x28 grey images: 60,000 to train, 10,000 to test.

    Files: `MNIST/raw` or `FashionMNIST/raw` under the data root, with train-images-idx3-ubyte, train-labels-idx1-ubyte and the
    same of t10k, unpacked or as .gz. Images: uint8 [N,1,28,28], in the files' order.
    Normalisation: mean and standard deviation of the training pixels, as DC and DM use them.
    Source: LeCun, Cortes and Burges, The MNIST database of handwritten digits; Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017.
    Digits are augmented without flip, as in DC and DSA. Departures: none.
    Raises: DataError if a file is missing or damaged.
    """

    which: Literal["mnist", "fashion-mnist"] = "mnist"

    def spec(self) -> Spec:
        """See Dataset."""
        if self.which == "mnist":
            names, augmentation = tuple("0123456789"), "color_crop_cutout_scale_rotate"
            return Spec("mnist", (1, 28, 28), names, (0.1307,), (0.3081,), augmentation)
        return Spec("fashion-mnist", (1, 28, 28), CLOTHES, (0.2861,), (0.3530,))

    def load(self, split: Split, root: Path | None) -> LabelledImages:
        """See Dataset."""
        raw, told = (self._content(path) for path in self._paths(split, root))
        num = int.from_bytes(raw[4:8], "big")
        head = np.frombuffer(raw[:16], ">u4").tolist() if len(raw) >= 16 else []
        if head != [IMAGES, num, 28, 28] or not 1 <= num <= MAX_IMAGES or len(raw) != 16 + num * 28 * 28:
            raise self._fault(f"a whole file of 28x28 images for {split}, and finds another.")
        labels = np.frombuffer(told[8:], np.uint8)
        if told[:8] != LABELS.to_bytes(4, "big") + num.to_bytes(4, "big") or len(labels) != num or labels.max() > 9:
            raise self._fault(f"a whole file of {num} labels from 0 to 9 for {split}, and finds another.")
        images = torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).reshape(num, 1, 28, 28).copy())
        return LabelledImages(images, torch.from_numpy(labels.astype(np.int64)))

    def files(self, root: Path | None) -> tuple[Path, ...]:
        """See Dataset."""
        return (*self._paths("train", root), *self._paths("test", root))

    def is_original(self, root: Path | None) -> bool:
        """Whether the four files, unpacked, have the published md5."""
        contents = (self._content(path) for path in self.files(root))
        return tuple(hashlib.md5(one, usedforsecurity=False).hexdigest() for one in contents) == MD5[self.which]

    def download(self, root: Path) -> None:
        """See Dataset. Through torchvision, from a mirror (12 or 31 MB)."""
        datasets = load_torchvision().datasets
        try:
            (datasets.MNIST if self.which == "mnist" else datasets.FashionMNIST)(str(root), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"dataset '{self.which}' cannot be downloaded into {root}: {error}.") from error

    def _paths(self, split: Split, root: Path | None) -> tuple[Path, Path]:
        """The files of images and labels."""
        names = tuple(f"{PARTS[split]}-{what}-ubyte" for what in ("images-idx3", "labels-idx1"))
        folder = Path(FOLDERS[self.which], "raw")
        found = [_existing(root / folder / name) if root else None for name in names]
        missing = [name for name, path in zip(names, found, strict=True) if path is None]
        if missing:
            where = "and DDBENCH_DATA is not set" if root is None else f"in {root}"
            remedy = f"Put them there, or run: ddbench download {self.which} --to FOLDER, and set DDBENCH_DATA=FOLDER."
            raise self._fault(f"{folder}/ with {' and '.join(missing)}, {where}. {remedy}")
        images, labels = (path for path in found if path)
        return images, labels

    def _content(self, path: Path) -> bytes:
        """A file's, unpacked and not larger than it can be."""
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                content: bytes = file.read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise self._fault(f"{path} to be whole, and cannot read it: {error}. Fetch it again.") from error
        return content

    def _fault(self, expected: str) -> DataError:
        return DataError(f"dataset '{self.which}' is not under DDBENCH_DATA: expected {expected}")


def _existing(path: Path) -> Path | None:
    """The file, or the same packed."""
    return next((one for one in (path, path.with_name(f"{path.name}.gz")) if one.is_file()), None)


def mnist() -> Mnist:
    """10 classes of 28x28 grey digits: 60,000 to train, 10,000 to test. See Mnist."""
    return Mnist("mnist")


def fashion_mnist() -> Mnist:
    """10 classes of 28x28 grey clothes: 60,000 to train, 10,000 to test. See Mnist."""
    return Mnist("fashion-mnist")
