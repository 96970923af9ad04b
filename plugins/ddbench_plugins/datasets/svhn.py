"""SVHN, cropped digits, from the files that its authors published."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ddbench.api import Dataset, LabelledImages, Spec, Split
from ddbench.errors import DataError
from ddbench.ops.vision import load_torchvision

FILES: dict[Split, str] = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
PLACES = ("svhn", "SVHN", ".")
MD5 = {  # as torchvision lists them
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test": "eb5a983be6a315427106f1b164d9cef3",
}
MAX_BYTES = 512 << 20


@dataclass(frozen=True)
class Svhn(Dataset):
    """10 classes of 32x32 colour images of house numbers: 73,257 to train, 26,032 to test; the extra images are not used.

    Files: train_32x32.mat and test_32x32.mat under the data root, or in its folder svhn. Images: uint8 [N,3,32,32], in the files'
    order; the files' label 10 is the digit 0.
    Normalisation: mean and standard deviation of the training pixels, as DC and DM use them.
    Augmented without flip, as digits are in DC and DSA.
    Source: Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011. Departures: none.
    Raises: DataError if a file is missing or damaged.
    """

    def spec(self) -> Spec:
        """See Dataset."""
        mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
        return Spec("svhn", (3, 32, 32), tuple("0123456789"), mean, std, "color_crop_cutout_scale_rotate")

    def load(self, split: Split, root: Path | None) -> LabelledImages:
        """See Dataset."""
        from scipy.io import loadmat

        path = _path(split, root)
        if path.stat().st_size > MAX_BYTES:
            raise _fault(f"{path} of at most {MAX_BYTES} bytes, and finds {path.stat().st_size}.")
        try:
            content = loadmat(path, variable_names=["X", "y"])
            images, labels = content["X"], content["y"].ravel()
        except Exception as error:  # damaged bytes can raise anything at all
            raise _fault(f"{path} to be a whole file of SVHN, and cannot read it: {error}. Fetch it again.") from error
        if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)) or not np.isin(labels, range(1, 11)).all():
            raise _fault(f"{path} with 'X' of uint8 [32, 32, 3, n] and n labels 'y' from 1 to 10, and finds something else.")
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
        return LabelledImages(pixels, torch.from_numpy(labels.astype(np.int64) % 10))

    def files(self, root: Path | None) -> tuple[Path, ...]:
        """See Dataset."""
        return (_path("train", root), _path("test", root))

    def is_original(self, root: Path | None) -> bool:
        """Whether both files have the published md5."""
        found = (_path(split, root).read_bytes() for split in FILES)
        return [hashlib.md5(content, usedforsecurity=False).hexdigest() for content in found] == list(MD5.values())

    def download(self, root: Path) -> None:
        """See Dataset. Through torchvision, from the authors' page (250 MB)."""
        try:
            for split in FILES:
                load_torchvision().datasets.SVHN(str(root / PLACES[0]), split, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"dataset 'svhn' cannot be downloaded into {root}: {error}.") from error


def _fault(expected: str) -> DataError:
    return DataError(f"dataset 'svhn' is not under DDBENCH_DATA: expected {expected}")


def _path(split: Split, root: Path | None) -> Path:
    """The file of a split."""
    for place in PLACES:
        if root and (path := root / place / FILES[split]).is_file():
            return path
    where = "and DDBENCH_DATA is not set" if root is None else f"in {root}"
    remedy = "Put it there, or run: ddbench download svhn --to FOLDER, and set DDBENCH_DATA=FOLDER."
    raise _fault(f"svhn/{FILES[split]}, {where}. {remedy}")
