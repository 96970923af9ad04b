"""From an image file to the pixels that a data set keeps: decoded, resized with anti-aliasing to the shorter side, cropped.

Also the process that does it for many files beside others (`fill`). Imports no torch, so that it starts in a moment.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # by content, whatever the name says
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa")  # of 8 bits a channel
MAX_PIXELS = 89_000_000  # of an image, as stored and as resized; ImageNet's largest has 61 million
MAX_BYTES = 64 << 20  # of a file; ImageNet's largest has 15 MB
REPORTED = 32  # images between two reports of a process

Place = tuple[str, int, int]
"""A file, where in it an image begins, and its bytes: of a tar a part, else all of it."""


class UnreadableError(Exception):
    """An image that cannot be decoded, and why."""


def decoder() -> str:
    """What decides the bits of decoded pixels beside the files."""
    return f"pillow {PIL.__version__}, libjpeg {features.version('jpg')}, turbo {features.version('libjpeg_turbo')}"


def decode(content: bytes, side: int | None) -> np.ndarray:
    """An image file's bytes to uint8 [3,side,side], or, with `side` None, to [3,H,W] as it is.

    Resized so that the shorter side is `side`, the longer rounded down (bilinear, anti-aliased, on 8-bit pixels), then cropped
    in the middle. Grey, palette and CMYK become RGB; alpha is dropped, not blended; of an animation the first picture counts;
    a rotation that EXIF asks for is not done: as torchvision's loader reads them. Raises UnreadableError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF and the like, which is not looked at
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _resized(image, side)
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError(f"none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise UnreadableError(f"more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # damaged bytes can raise anything at all
        raise UnreadableError(" ".join(str(error).split())[:120] or type(error).__name__) from error


def _resized(image: Image.Image, side: int | None) -> np.ndarray:
    width, height = image.size
    if image.mode not in MODES:
        raise UnreadableError(f"pixels of mode {image.mode}, which are not 8 bits a channel")
    short = min(width, height)
    size = (width, height) if side is None else (max(side, width * side // short), max(side, height * side // short))
    if max(width * height, size[0] * size[1]) > MAX_PIXELS:
        at = "" if side is None else f" at {side} px"
        raise UnreadableError(f"{width} by {height} pixels, which{at} are more than {MAX_PIXELS}")
    pixels = image.convert("RGB")
    if side is None:
        return np.asarray(pixels).transpose(2, 0, 1)
    if pixels.size != size:
        pixels = pixels.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return np.asarray(pixels.crop((left, top, left + side, top + side))).transpose(2, 0, 1)


def read(place: Place) -> bytes:
    """The bytes of an image. Raises UnreadableError."""
    path, start, size = place
    if size > MAX_BYTES:
        raise UnreadableError(f"{size} bytes, which are more than {MAX_BYTES}")
    try:
        with Path(path).open("rb") as file:
            file.seek(start)
            content = file.read(size)
    except OSError as error:
        raise UnreadableError(error.strerror or type(error).__name__) from error
    if len(content) < size:
        raise UnreadableError("the file ends within it")
    return content


def fill(target: Path, start: int, side: int, work: Sequence[tuple[int, Place]]) -> Iterator[tuple[int, str]]:
    """Write images into rows of a file that has room for them from byte `start` on. Gives (row, "") for each when it is written,
    (row, why) for what cannot be read; its bytes stay as they are."""
    size = 3 * side * side
    with target.open("r+b") as file:
        for row, place in work:
            try:
                pixels = decode(read(place), side)
            except UnreadableError as error:
                yield row, str(error)
                continue
            file.seek(start + row * size)
            file.write(pixels.tobytes())
            yield row, ""


def main(source: IO[str]) -> None:
    """What a process of its own does: a line of JSON says what, lines of JSON say how far it is."""
    target, jobs = json.loads(source.readline())
    for start, side, work in jobs:
        done, faults = 0, list[tuple[int, str]]()
        for row, why in fill(Path(target), start, side, work):
            done += 1
            faults += [(row, why)] if why else []
            if done == REPORTED:
                _tell(start, done, faults)
                done, faults = 0, []
        _tell(start, done, faults)


def _tell(start: int, done: int, faults: list[tuple[int, str]]) -> None:
    sys.stdout.write(json.dumps([start, done, faults]) + "\n")
    sys.stdout.flush()
