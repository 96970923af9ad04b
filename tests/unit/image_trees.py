"""Small trees of real JPEGs in the layouts of ImageNet and its kin, for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(seed: int, width: int = 20, height: int = 16) -> bytes:
    """An image of its own for every seed."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def class_tree(folder: Path, classes: Sequence[str], each: Mapping[str, int], first: int = 0) -> None:
    """`folder/<split>/<class>/<number>.jpg`."""
    for split, num in each.items():
        for label, name in enumerate(classes):
            for number in range(num):
                write(folder / split / name / f"{number}.jpg", jpeg(hash_of(split, label, number) + first))


def hash_of(split: str, label: int, number: int) -> int:
    return (len(split) * 1000 + label) * 1000 + number


def tar_of(members: Mapping[str, bytes]) -> bytes:
    """An uncompressed tar, in the order given."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()
