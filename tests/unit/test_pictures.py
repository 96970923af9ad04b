"""Decoding image files: the geometry is torchvision's, every kind of 8-bit image becomes RGB, and faults are named."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from ddbench.ops import pictures
from ddbench.ops.pictures import UnreadableError, decode, read


def noise(width: int = 30, height: int = 20, channels: int = 3) -> np.ndarray:
    """[H,W,C], smooth, so that a JPEG keeps it."""
    small = np.random.default_rng(width).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    parts = [Image.fromarray(np.ascontiguousarray(small[..., at])).resize((width, height)) for at in range(channels)]
    return np.stack([np.asarray(part) for part in parts], 2)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(30, 20), (20, 30), (33, 47), (64, 64), (9, 200), (8, 8)])
@pytest.mark.parametrize("side", [8, 13, 64])
def test_the_geometry_is_that_of_torchvision_on_8_bit_images(size: tuple[int, int], side: int) -> None:
    from ddbench.ops.vision import load_torchvision

    load_torchvision()
    from torchvision import transforms

    image = Image.fromarray(noise(*size))
    own = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)])(image)
    assert np.array_equal(decode(saved(image), side), np.asarray(own).transpose(2, 0, 1))


def test_downsizing_averages_what_lies_between() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = decode(saved(Image.fromarray(board)), 8)
    assert found.shape == (3, 8, 8)
    assert np.abs(found[:, 1:-1, 1:-1].astype(int) - 128).max() <= 2  # no pixel of the board is left


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "L", {"quality": 100}), ("PNG", "L", {}), ("PNG", "LA", {}), ("PNG", "P", {}), ("GIF", "P", {}),
        ("PNG", "1", {}), ("PNG", "RGBA", {}), ("WEBP", "RGBA", {"lossless": True}), ("BMP", "RGB", {}),
        ("JPEG", "CMYK", {"quality": 100}),
    ],
)  # fmt: skip
def test_every_kind_of_8_bit_image_is_seen_as_pil_converts_it(kind: str, mode: str, options: dict[str, Any]) -> None:
    image = Image.fromarray(noise(16, 16)).convert(mode)
    content = saved(image, kind, **options)
    with Image.open(io.BytesIO(content)) as again:
        wanted = np.asarray(again.convert("RGB")).transpose(2, 0, 1)
    found = decode(content, 16)
    assert (found.dtype, found.shape) == (np.uint8, (3, 16, 16))
    assert np.array_equal(found, wanted)
    if mode == "L":
        assert np.array_equal(found[0], found[1])


def test_cmyk_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (220, 20, 30))
    found = decode(saved(red.convert("CMYK"), "JPEG", quality=100), 16)
    assert np.abs(found.astype(int).mean((1, 2)) - [220, 20, 30]).max() < 8


def test_alpha_is_dropped_and_not_blended() -> None:
    pixels = np.dstack([noise(16, 16), np.zeros((16, 16), np.uint8)])
    assert np.array_equal(decode(saved(Image.fromarray(pixels)), 16), pixels[..., :3].transpose(2, 0, 1))


def test_a_rotation_by_exif_is_not_done() -> None:
    image = Image.fromarray(noise(16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(image, "JPEG", quality=100, exif=exif)
    with Image.open(io.BytesIO(content)) as again:
        turned = np.asarray(ImageOps.exif_transpose(again).convert("RGB")).transpose(2, 0, 1)
        kept = np.asarray(again.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode(content, 16), kept)
    assert not np.array_equal(kept, turned)


def png_head(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


JPEG = saved(Image.fromarray(noise(64, 64)), "JPEG")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "none of JPEG, PNG"),
        (b"<html>not found</html>", "none of JPEG, PNG"),
        (JPEG[: len(JPEG) // 2], "(?i)truncated"),
        (JPEG[: len(JPEG) * 9 // 10], "(?i)truncated"),
        (JPEG[:20], "."),
        (saved(Image.fromarray(np.zeros((8, 8), np.uint16))), r"mode I;16.*not 8 bits"),
        (saved(Image.new("RGB", (8, 8)), "TIFF"), "none of JPEG, PNG"),  # none of the kinds that data sets come in
        (png_head(30_000, 30_000), "pixels"),
        (png_head(9_500, 9_500), "9500 by 9500 pixels"),
        (png_head(1, 80_000_000), "pixels"),
    ],
    ids=range(10),
)
def test_what_cannot_be_decoded_says_why(content: bytes, says: str) -> None:
    with pytest.raises(UnreadableError, match=says):
        decode(content, 32)


def test_a_part_of_a_file_is_read_and_faults_are_named(tmp_path, monkeypatch) -> None:
    path = tmp_path / "some.tar"
    path.write_bytes(b"before" + JPEG + b"after")
    assert read((str(path), 6, len(JPEG))) == JPEG
    with pytest.raises(UnreadableError, match="ends within it"):
        read((str(path), 6, 10**6))
    with pytest.raises(UnreadableError, match="No such file"):
        read((str(tmp_path / "none"), 0, 1))
    monkeypatch.setattr(pictures, "MAX_BYTES", 5)
    with pytest.raises(UnreadableError, match="more than 5"):
        read((str(path), 0, 6))
