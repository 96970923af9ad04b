"""Synthetic images side by side: through the stages of a walk, and of several spaces from one start.

Like Figures 6 and 7 of H-PD (Zhong et al., Hierarchical Features Matter, CVPR 2025).
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddbench.compute.picture import WALK_COLUMNS, tiles
from ddbench.errors import DataError
from ddbench.files import sha256_file
from ddbench.leaderboard.figures.drawing import DPI, Drawn, Kept, plain, rendered
from ddbench.leaderboard.join import Result
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.walks import rows_of_walk
from ddbench.results.layout import WALK
from ddbench.results.store import Store
from ddbench.schema import REMEDY_FOLDER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 64  # at least, of a tile
LABEL_WIDTH, LABEL_LENGTH = 28, 100  # letters of a line, and of a whole label: four lines at the height of a tile
SHORT = 7  # letters of a class's name that stands level above its column
Tiles = Sequence[Sequence[np.ndarray]]
"""By row, uint8 [H,W,3], all of one size."""
MAX_SHEET = 1 << 26  # pixels of a picture of a walk: twenty rows of ten at 128 px have 3 million


def sheet(rows: Tiles, labels: Sequence[str], classes: Sequence[str]) -> tuple[bytes, bytes]:
    """(PNG, SVG) of rows of images, each named at its left, columns by their class above."""
    height, width = rows[0][0].shape[:2]
    factor, gap = max(1, -(-SIDE // height)), 3
    columns = max(map(len, rows))
    pitch_y, pitch_x = height * factor + gap, width * factor + gap
    paper = np.full((len(rows) * pitch_y - gap, columns * pitch_x - gap, 3), 255, dtype=np.uint8)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            large = tile.repeat(factor, 0).repeat(factor, 1)
            paper[y * pitch_y : y * pitch_y + large.shape[0], x * pitch_x : x * pitch_x + large.shape[1]] = large
    names = [textwrap.shorten(plain(name), 16, placeholder="…") for name in classes[:columns]]
    short = max(map(len, names)) <= SHORT
    left, right, top, bottom = 190, 8 if short else 60, 25 if short else 90, 8
    size = left + paper.shape[1] + right, top + paper.shape[0] + bottom

    def draw(figure: Figure) -> None:
        box = (left / size[0], bottom / size[1], paper.shape[1] / size[0], paper.shape[0] / size[1])
        axis = figure.add_axes(box)
        axis.imshow(paper, interpolation="none", aspect="auto")
        axis.set_yticks([y * pitch_y + height * factor / 2 for y in range(len(rows))])
        axis.set_yticklabels(
            [textwrap.fill(textwrap.shorten(plain(label), LABEL_LENGTH, placeholder=" …"), LABEL_WIDTH) for label in labels],
            fontsize=8,
        )
        axis.set_xticks([x * pitch_x + width * factor / 2 for x in range(columns)])
        turned: dict[str, Any] = {} if short else {"rotation": 45, "ha": "left", "rotation_mode": "anchor"}
        axis.set_xticklabels(names, fontsize=9, **turned)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.grid(False)
        for spine in axis.spines.values():
            spine.set_visible(False)

    return rendered((size[0] / DPI, size[1] / DPI), draw, layout=None)


def walk_figure(store: Store, row: Row, result: Result) -> Drawn | None:
    """The stages of a set's walk; None where no picture of it was kept. Raises DataError where that is damaged."""
    record = result.record
    if WALK not in record.files:
        return None
    path = store.folder(result.key) / WALK
    if not path.is_file() or sha256_file(path) != record.files[WALK]:
        raise DataError(f"{path} is missing or damaged: its bytes are not those that were written. {REMEDY_FOLDER}")
    labels, classes = rows_of_walk(result), class_names(result)[:WALK_COLUMNS]
    rows = _tiles_of(path.read_bytes(), len(labels), len(classes), str(path))
    kept = "" if len(labels) == len(record.stages) else f" {len(labels)} of {len(record.stages)} stages are shown."
    caption = (
        "A row a stage of the walk, a column a class: the first image of it, as the stage handed it on (the best by the step "
        f"ranker, where there is one). The set is the row marked as chosen.{kept}"
    )
    png, svg = sheet(rows, labels, classes)
    values = {"kind": "walk", "method": row.name, "seed": result.seed, "stages": labels, "classes": list(classes)}
    return Drawn(f"Through the stages: {row.name}, seed {result.seed}", caption, png, svg, values)


def class_names(result: Result) -> tuple[str, ...]:
    """Of its data set; numbers where that is not installed."""
    try:
        return tuple(result.plan.dataset.make().spec().class_names)
    except Exception:  # a stranger's plugin, or one that is not here: names are for people alone
        return tuple(map(str, range(len(result.record.data.counts))))


def _tiles_of(content: bytes, num_rows: int, num_columns: int, where: str) -> list[list[np.ndarray]]:
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if picture.width * picture.height > MAX_SHEET:
                raise ValueError(f"it has {picture.width} by {picture.height} pixels")
            return [[np.asarray(tile) for tile in row] for row in tiles(picture.convert("RGB"), num_rows, num_columns)]
    except (OSError, ValueError) as error:
        raise DataError(f"{where} is no picture of a walk ({error}). {REMEDY_FOLDER}") from error


def beside_figure(store: Store, rows: Sequence[Row], kept: Kept) -> Drawn | None:
    """Sets that several spaces make of one loss and generator with one seed; None for fewer than two. Their starts are the
    iterates before step 0, where these are among the sound ones."""
    seeds = sorted(set.intersection(*({result.seed for result in row.results} for row in rows))) if len(rows) > 1 else []
    if not seeds:
        return None
    results = [next(result for result in row.results if result.seed == seeds[0]) for row in rows]
    shown, labels, starts = list[list[np.ndarray]](), list[str](), dict[str, Tensor]()
    for row, result in zip(rows, results, strict=True):
        tensors, meta = store.read_set(result.key)
        shown.append(as_tiles(tensors["images"], tensors["classes"], meta))
        labels.append(f"{row.label('space')}{row.name.removeprefix(row.plan.method)}")  # all else of its name is the others' too
        if 0 in kept.get(result.key, {}):
            images = store.read_iterate(result.key, 0)[0]
            starts[row.name] = images
            first = as_tiles(images, tensors["classes"], meta) if len(images) == len(tensors["classes"]) else None
            if first and len(starts) == 1:
                start = first
    told, common = _about_starts(starts, len(rows))
    if common:
        shown, labels = [start, *shown], ["start of all", *labels]
    png, svg = sheet(shown, labels, class_names(results[0])[:WALK_COLUMNS])
    caption = f"The first image of each class, of sets of one loss, generator and seed ({seeds[0]}). {told}"
    values = {"kind": "beside", "methods": [row.name for row in rows], "seed": seeds[0], "same_start": common}
    title = f"Side by side: {', '.join(labels[bool(common) :])} of {rows[0].label('loss')} on {rows[0].label('generator')}"
    return Drawn(title, caption, png, svg, values)


def _about_starts(starts: dict[str, Tensor], num: int) -> tuple[str, bool | None]:
    """What is known of them, and whether all are the same images; None: nobody knows."""
    if len(starts) < num:
        return (
            "Whether they start from the same images is not known: ask for it with iterates = { steps = [0] } in the suite.",
            None,
        )
    first, *others = starts.values()
    if all(first.shape == other.shape and torch.equal(first, other) for other in others):
        return "All start from the same images, those of the first row.", True
    if all(first.shape == other.shape for other in others):
        gap = max(float((first - other).abs().max()) for other in others)
        if gap < 1e-3:
            return f"All start from the same images but for rounding (at most {gap:.1g} of normalised values).", True
    return "They start from different images.", False


def as_tiles(images: Tensor, classes: Tensor, meta: dict[str, Any]) -> list[np.ndarray]:
    """The first image of each of the first classes as pixels."""
    labels = torch.arange(min(int(classes.max()) + 1, WALK_COLUMNS))
    chosen = images[torch.searchsorted(classes.contiguous(), labels)]
    mean, std = (torch.tensor(meta[name]).view(-1, 1, 1) for name in ("mean", "std"))
    pixels = ((chosen * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return [np.asarray(image.expand(3, -1, -1).permute(1, 2, 0)) for image in pixels]
