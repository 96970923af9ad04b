"""CIFAR-10 in torchvision's layout, read without executing the pickles it is stored in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.api import Dataset, LabelledImages, Spec, Split
from ddbench.errors import DataError
from ddbench.ops.array_pickles import UnreadablePickleError, byte_rows, read_arrays
from ddbench.ops.vision import load_torchvision

FOLDER = "cifar-10-batches-py"
BATCHES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
META = "batches.meta"
FILES = (*BATCHES["train"], *BATCHES["test"], META)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MD5 = {  # of the published files, as torchvision lists them
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
MAX_IMAGES = 10_000  # a file
MAX_BYTES = 64 * 2**20  # a file: 30.7 MB of pixels, up to twice that where Python 3 wrote them with protocol 2


@dataclass(frozen=True)
class Cifar10(Dataset):
    """10 classes of 32x32 colour images: 5,000 a class to train, 1,000 a class to test.

    Files: `cifar-10-batches-py` under the data root, with data_batch_1 to 5, test_batch and batches.meta. A copy whose
    files differ from the published ones is read as well, with any number of images up to 10,000 a file; `is_original`
    tells it. Images: uint8 [N,3,32,32], in the files' order.
    Normalisation: the means of the training pixels, and the standard deviations (0.2023, 0.1994, 0.2010) that DC, MTT,
    GLaD and H-PD use; those of the training pixels are (0.2470, 0.2435, 0.2616).
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. Departures: none.
    Raises: DataError if a file is missing or damaged, or asks to execute anything.
    """

    def spec(self) -> Spec:
        """See Dataset."""
        return Spec(
            name="cifar10",
            shape=(3, 32, 32),
            class_names=CLASSES,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
        )

    def load(self, split: Split, root: Path | None) -> LabelledImages:
        """See Dataset."""
        folder = _folder(root)
        names = _unpickle(folder / META).get("label_names")
        if not isinstance(names, list) or names != list(CLASSES):
            raise _fault(f"{folder / META} with the label_names {', '.join(CLASSES)}, in that order.")
        images, labels = zip(*(_batch(folder / name) for name in BATCHES[split]), strict=True)
        return LabelledImages(torch.cat(images), torch.cat(labels))

    def files(self, root: Path | None) -> tuple[Path, ...]:
        """See Dataset."""
        folder = _folder(root)
        return tuple(folder / name for name in FILES)

    def is_original(self, root: Path | None) -> bool:
        """Whether the six files of images have the published md5."""
        folder = _folder(root)
        return all(_md5(folder / name) == digest for name, digest in MD5.items())

    def download(self, root: Path) -> None:
        """See Dataset. Through torchvision, from the authors' page (170 MB)."""
        try:
            load_torchvision().datasets.CIFAR10(str(root), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"dataset 'cifar10' cannot be downloaded into {root}: {error}.") from error


def _fault(expected: str) -> DataError:
    return DataError(f"dataset 'cifar10' is not under DDBENCH_DATA: expected {expected}")


def _folder(root: Path | None) -> Path:
    """The folder with all seven files."""
    missing = [name for name in FILES if root is None or not (root / FOLDER / name).is_file()]
    if root is None or missing:
        where = "and DDBENCH_DATA is not set" if root is None else f"in {root}"
        remedy = "Put them there, or run: ddbench download cifar10 --to FOLDER, and set DDBENCH_DATA=FOLDER."
        raise _fault(f"{FOLDER}/ with {', '.join(missing)}, {where}. {remedy}")
    return root / FOLDER


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _batch(path: Path) -> tuple[Tensor, Tensor]:
    """One file: images uint8 [n,3,32,32] and labels int64 [n]."""
    batch = _unpickle(path)
    data = byte_rows(batch.get("data"), 3072)
    if data is None:
        raise _fault(f"{path} with 'data' of uint8 [n, 3072], and finds something else.")
    num = len(data)
    if not 1 <= num <= MAX_IMAGES:
        raise _fault(f"{path} with 1 to {MAX_IMAGES} images, and finds {num}.")
    labels = batch.get("labels")
    if not isinstance(labels, list) or len(labels) != num or not set(map(type, labels)) <= {int}:
        raise _fault(f"{path} with 'labels', a list of {num} integers, and finds something else.")
    if not all(0 <= label < len(CLASSES) for label in labels):
        raise _fault(f"{path} with labels from 0 to {len(CLASSES) - 1}, and finds others.")
    return torch.from_numpy(data).view(num, 3, 32, 32), torch.tensor(labels)


def _unpickle(path: Path) -> dict[str, Any]:
    """The dictionary that a file holds."""
    if path.stat().st_size > MAX_BYTES:
        raise _fault(f"{path} of at most {MAX_BYTES} bytes, and finds {path.stat().st_size}.")
    try:
        content = read_arrays(path, "CIFAR-10")
    except UnreadablePickleError as error:
        raise _fault(f"{path} to be a whole CIFAR-10 file, and cannot read it: {error}. Fetch it again.") from error
    if not isinstance(content, dict):
        raise _fault(f"{path} to hold a dictionary, and finds {type(content).__name__}.")
    return content
