"""Decoded images of a data set in one file, mapped into memory: built once from the image files, checked by its hash.

The file: a page of JSON that says what follows, then for each split its images, uint8 [N,3,side,side], and labels, int64 [N].
It is made anew when a source file has another name, size or time, or when other versions of the libraries that decode are
installed, so that pixels are always what decoding would give now. Beside it lies a note of when its bytes were last hashed:
while its size and times stay as they were then, they are not hashed again.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import _imaging

from ddbench.api import LabelledImages, Split
from ddbench.errors import DataError
from ddbench.ops.caches import image_folders
from ddbench.ops.image_building import MAGIC, PAGE, Progress, build, hash_of
from ddbench.ops.image_set import SPLITS, ImageSet


def load(images: ImageSet, split: Split, root: Path | None) -> LabelledImages:
    """A split, mapped; the cache is built where there is none, with progress on the standard error. Raises DataError."""
    return _mapped(*_ready(images, root, None), split)


def source_files(images: ImageSet) -> tuple[Path, ...]:
    """All that the pixels hang on: the source files, and the library that decodes them."""
    found = (images.find(split).files for split in SPLITS)
    return (*(path for files in found for path in files), Path(_imaging.__file__))


def prepare(images: ImageSet, root: Path | None, progress: Progress | None) -> None:
    """Build the cache where there is none; else hash its bytes, whatever is known of them. Raises DataError."""
    path, head = _ready(images, root, progress)
    _check_bytes(path, head)


def is_built(images: ImageSet, root: Path | None) -> bool:
    """Whether there is a cache of these very files. Raises DataError where they are missing, or it is damaged."""
    state = images.state({split: images.find(split) for split in SPLITS})
    return _current(images.file, state, image_folders(root)) is not None


def num_skipped(images: ImageSet, root: Path | None) -> int:
    """How many images could not be read and were left out."""
    return sum(part["skipped"] for part in _ready(images, root, None)[1]["parts"].values())


def _ready(images: ImageSet, root: Path | None, progress: Progress | None) -> tuple[Path, dict[str, Any]]:
    """The cache and its head, up to date and with the bytes that it was built with."""
    found = {split: images.find(split) for split in SPLITS}
    state, folders = images.state(found), image_folders(root)
    there = _current(images.file, state, folders)
    if there is None:
        folder = _writable(folders, images)
        with FileLock(folder / f"{images.file}.lock"):
            there = _current(images.file, state, (folder,))  # somebody else has built it meanwhile
            if there is None:
                there = build(images, found, state, folder, progress)
                _write_note(*there)
    path, head = there
    if _note(path, head) != _read_note(path):
        _check_bytes(path, head)
        _write_note(path, head)
    return there


def _current(file: str, state: str, folders: Sequence[Path]) -> tuple[Path, dict[str, Any]] | None:
    """The cache of exactly this state. Raises DataError where one is damaged."""
    for folder in folders:
        path = folder / file
        if path.is_file():
            head = _read_head(path)
            if head["state"] == state:
                return path, head
    return None


def _writable(folders: Sequence[Path], images: ImageSet) -> Path:
    """The first folder that can be written to."""
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    places = " nor ".join(map(str, folders)) or "any folder"
    raise DataError(f"decoded images of '{images.name}' cannot be kept: {places} can be written to. Set DDBENCH_CACHE to one.")


# ---------------------------------------------------------------- reading


def _read_head(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        start = file.read(PAGE)
    try:
        if not start.startswith(MAGIC) or len(start) < PAGE:
            raise ValueError("it does not begin as one")
        head = json.loads(start[len(MAGIC) :].rstrip(b"\0"))
        sizes = [part["images"] + part["num"] * part["size"] for part in head["parts"].values()]
        if path.stat().st_size < max(sizes) or not isinstance(head["state"], str):
            raise ValueError("it is cut short")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from error
    return dict(head)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"the cache of decoded images {path} is damaged ({why}): remove it, and it is made anew.")


def _mapped(path: Path, head: Mapping[str, Any], split: Split) -> LabelledImages:
    """The split's own part of the file and no more of it. Writing changes this process's copy of a page, never the file."""
    part, side = head["parts"][split], head["side"]
    shape = (part["num"], 3, side, side)
    images = np.memmap(path, np.uint8, "c", part["images"], shape)
    labels = np.fromfile(path, "<i8", part["num"], offset=part["labels"])
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), mapped=True)


def _check_bytes(path: Path, head: Mapping[str, Any]) -> None:
    if hash_of(path) != head["sha256"]:
        raise _damaged(path, "its bytes are not those that were written")


def _note(path: Path, head: Mapping[str, Any]) -> list[Any]:
    """What a hash of the file holds for."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, head["sha256"]]


def _read_note(path: Path) -> object:
    try:
        return json.loads(path.with_suffix(".checked").read_bytes())
    except (OSError, ValueError):
        return None


def _write_note(path: Path, head: Mapping[str, Any]) -> None:
    """Where this folder can be written to."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with suppress(OSError):
        beside.write_text(json.dumps(_note(path, head)))
        beside.replace(path.with_suffix(".checked"))
