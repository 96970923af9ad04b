"""A distilled set as a picture, and the stages of its walk as another."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ddbench.api import Spec

MAX_COLUMNS, MAX_ROWS = 20, 50
SHOWN_SIDE = 64  # smaller images are enlarged to about this side, pixel by pixel
WALK_SIDE = 128  # larger images of a walk are made smaller
WALK_COLUMNS, WALK_ROWS = 10, 20  # of a walk: classes and stages
GAP, GROUND = 2, (40, 40, 40)


def grid_png(images: Tensor, classes: Tensor, spec: Spec) -> bytes:
    """Normalised images [N,C,H,W] as PNG: a row of up to 20 images for each of up to 50 classes; for IPC 1 one row of all.

    Values outside [0, 1] are clipped for showing only.
    """
    pixels = _bytes(spec.denormalise(images))
    rows = [pixels[classes == label][:MAX_COLUMNS] for label in range(min(spec.num_classes, MAX_ROWS))]
    if max(map(len, rows)) == 1:
        rows = list(pixels[:MAX_ROWS].split(10))
    return _sheet(rows)


def stages_shown(num_stages: int) -> list[int]:
    """The stages that are rows of the picture of a walk: all, or evenly spaced ones with the first and the last."""
    if num_stages <= WALK_ROWS:
        return list(range(num_stages))
    return [round(row * (num_stages - 1) / (WALK_ROWS - 1)) for row in range(WALK_ROWS)]


def walk_png(walk: Tensor, spec: Spec) -> bytes:
    """Normalised images [S,K,C,H,W] as PNG: a row a stage, a column a class; large ones at `WALK_SIDE` at most."""
    rows = []
    for images in walk:
        pixels = spec.denormalise(images)
        if max(pixels.shape[-2:]) > WALK_SIDE:
            share = WALK_SIDE / max(pixels.shape[-2:])
            side = [max(1, round(share * length)) for length in pixels.shape[-2:]]
            pixels = F.interpolate(pixels.clamp(0, 1), side, mode="area")
        rows.append(_bytes(pixels))
    return _sheet(rows)


def tiles(sheet: Image.Image, num_rows: int, num_columns: int) -> list[list[Image.Image]]:
    """The tiles of a picture that has so many, by row. Raises ValueError where it has others."""
    width, rest_x = divmod(sheet.width - GAP, num_columns)
    height, rest_y = divmod(sheet.height - GAP, num_rows)
    if rest_x or rest_y or min(width, height) <= GAP:
        raise ValueError(f"a picture of {sheet.width} by {sheet.height} pixels has not {num_rows} rows of {num_columns}")
    return [
        [sheet.crop((GAP + x * width, GAP + y * height, (x + 1) * width, (y + 1) * height)) for x in range(num_columns)]
        for y in range(num_rows)
    ]


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def _sheet(rows: Sequence[Tensor]) -> bytes:
    """Rows of images, uint8 [n,C,H,W] each, as PNG; small ones enlarged."""
    height, width = rows[0].shape[-2:]
    factor = max(1, round(SHOWN_SIDE / height))
    columns = max(map(len, rows))
    size = columns * (width * factor + GAP) + GAP, len(rows) * (height * factor + GAP) + GAP
    sheet = Image.new("RGB", size, GROUND)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            array = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
            tile = Image.fromarray(array).resize((width * factor, height * factor), Image.Resampling.NEAREST)
            sheet.paste(tile, (GAP + x * (width * factor + GAP), GAP + y * (height * factor + GAP)))
    out = io.BytesIO()
    sheet.save(out, format="PNG", optimize=True)
    return out.getvalue()
