"""Small made-up folders of images by class, for what reads images of others, so that no test needs published ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("class 0", "class 1", "class 2")  # of toy runs


def png(seed: int, side: int = 8, channels: int = 1) -> bytes:
    """Another image for every seed, grey or in colour."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    return file.getvalue()


def folders(where: Path, classes: Sequence[str] = CLASSES, each: int = 4, side: int = 8, channels: int = 1) -> Path:
    """`where/<class>/<number>.png`; the image `number` of the class `label` is that of the seed 100 label + number."""
    for label, name in enumerate(classes):
        (where / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            (where / name / f"{number}.png").write_bytes(png(100 * label + number, side, channels))
    return where


def images_of_others(root: Path) -> dict[str, Any]:
    """The settings of a baseline that reads a folder of them."""
    folders(root / "others")
    return {"folder": "others", "saw": ["external-images"]}
