"""A distilled set as a picture."""

from __future__ import annotations

import io

from PIL import Image
from torch import Tensor

from ddbench.api import Spec

MAX_COLUMNS, MAX_ROWS = 20, 50
SHOWN_SIDE = 64  # smaller images are enlarged to about this side, pixel by pixel


def grid_png(images: Tensor, classes: Tensor, spec: Spec) -> bytes:
    """Normalised images [N,C,H,W] as PNG: a row of up to 20 images for each of up to 50 classes; for IPC 1 one row of all.

    Values outside [0, 1] are clipped for showing only.
    """
    pixels = (spec.denormalise(images).clamp(0, 1) * 255).round().byte()
    rows = [pixels[classes == label][:MAX_COLUMNS] for label in range(min(spec.num_classes, MAX_ROWS))]
    if max(map(len, rows)) == 1:
        rows = list(pixels[:MAX_ROWS].split(10))
    _, height, width = spec.shape
    factor, gap = max(1, round(SHOWN_SIDE / height)), 2
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (width * factor + gap) + gap, len(rows) * (height * factor + gap) + gap), (40, 40, 40))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            array = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
            tile = Image.fromarray(array).resize((width * factor, height * factor), Image.Resampling.NEAREST)
            sheet.paste(tile, (gap + x * (width * factor + gap), gap + y * (height * factor + gap)))
    out = io.BytesIO()
    sheet.save(out, format="PNG", optimize=True)
    return out.getvalue()
