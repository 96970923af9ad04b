"""Building a cache of decoded images: decoded by several processes into one file, which appears whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddbench.api import Split
from ddbench.errors import DataError
from ddbench.ops.decoding import decode_into
from ddbench.ops.image_files import Found, Picture, some
from ddbench.ops.image_set import SPLITS, ImageSet

MAGIC = b"ddbench images 1"
PAGE = 1 << 16  # bytes: the head's, and what the parts of the file begin at a multiple of
HASHED = 8 << 20  # bytes that are read at a time
TOLD_SECONDS = 5.0

Progress = Callable[[str, float], None]
"""(what has been done, the fraction of all)."""


def hash_of(path: Path) -> str:
    """Of all behind the head."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(PAGE)
        while content := file.read(HASHED):
            sha.update(content)
    return sha.hexdigest()


class Teller:
    """Tells on the standard error how far a cache is, not too often."""

    def __init__(self, images: ImageSet) -> None:
        self.what, self.last = f"{images.name} at {images.side} px", time.monotonic()

    def __call__(self, what: str, fraction: float) -> None:
        """A line."""
        now = time.monotonic()
        if now - self.last >= TOLD_SECONDS or fraction >= 1:
            self.last = now
            print(f"{self.what}: {what}, {100 * fraction:.0f} %", file=sys.stderr, flush=True)


def build(
    images: ImageSet, found: Mapping[Split, Found], state: str, folder: Path, progress: Progress | None
) -> tuple[Path, dict[str, Any]]:
    """The file of a state, in a folder that can be written to, and its head. Raises DataError."""
    pictures = {split: found[split].pictures() for split in SPLITS}
    size, at, parts = 3 * images.side**2, PAGE, dict[str, dict[str, Any]]()
    for split in SPLITS:
        num = len(pictures[split])
        parts[split] = {"num": num, "size": size, "images": at, "skipped": 0}
        at += -(-num * size // PAGE) * PAGE
        parts[split]["labels"] = at
        at += -(-num * 8 // PAGE) * PAGE
    path, beside = folder / images.file, folder / f".{images.file}.{uuid.uuid4().hex}.tmp"
    for left in folder.glob(f".{images.file}.*.tmp"):  # by one that was killed: nobody else builds it now
        left.unlink(missing_ok=True)
    try:
        _reserve(beside, at, images)
        _decode(beside, images, pictures, parts, progress or Teller(images))
        head = {"state": state, "side": images.side, "parts": parts, "sha256": hash_of(beside)}
        with beside.open("r+b") as file:
            file.write((MAGIC + json.dumps(head).encode()).ljust(PAGE, b"\0"))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path, head


def _reserve(path: Path, size: int, images: ImageSet) -> None:
    """A file of that size, whose room on the disc is its own."""
    free = shutil.disk_usage(path.parent).free
    try:
        if free < size:
            raise OSError(f"{free >> 20} MiB are free")
        with path.open("wb") as file:
            file.truncate(size)
            _allocate(file.fileno(), size)
    except OSError as error:
        told = f"decoded images of '{images.name}' take {-(-size >> 20)} MiB in {path.parent}, and there is no room for them"
        raise DataError(f"{told} ({error.strerror or error}): free some, or set DDBENCH_CACHE to another folder.") from error


def _allocate(handle: int, size: int) -> None:
    """Blocks for all of a file, where its file system can do that: else a full disc is noticed when it is written."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise


def _decode(
    path: Path, images: ImageSet, pictures: Mapping[Split, list[Picture]], parts: dict[str, dict[str, Any]], progress: Progress
) -> None:
    """Fill in images and labels, and leave out what cannot be read, if that is allowed."""
    total, finished, began = sum(map(len, pictures.values())), 0, time.monotonic()

    def done(num: int) -> None:
        nonlocal finished
        finished += num
        rate = finished / max(time.monotonic() - began, 1e-3)
        progress(f"{finished:,} of {total:,} images decoded, {rate:,.0f} a second", finished / total)

    jobs = {parts[split]["images"]: (images.side, [picture.place for picture in pictures[split]]) for split in SPLITS}
    faults = decode_into(path, jobs, done)
    unread = [(pictures[split][row].name, why) for split in SPLITS for row, why in faults[parts[split]["images"]]]
    if unread and not images.skip_unreadable:
        told = some([f"{name} ({why})" for name, why in unread])
        count = f"{len(unread)} of {total} images of dataset '{images.name}' cannot be read"
        raise DataError(f'{count}: {told}. Fetch them again, or leave them out with the setting unreadable = "skip".')
    for split in SPLITS:
        part, lost = parts[split], {row for row, _ in faults[parts[split]["images"]]}
        kept = [row for row in range(part["num"]) if row not in lost]
        _check_classes(images, split, [pictures[split][row].label for row in kept])
        _close_gaps(path, part, kept)
        part["skipped"] = len(lost)
        with path.open("r+b") as file:
            file.seek(part["labels"])
            file.write(np.array([pictures[split][row].label for row in kept], "<i8").tobytes())
    if unread:
        told = some([name for name, _ in unread])
        print(f"{images.name}: {len(unread)} images cannot be read and are left out: {told}", file=sys.stderr)


def _check_classes(images: ImageSet, split: Split, labels: Sequence[int]) -> None:
    """Every class must have an image."""
    there = set(labels)
    missing = [name for label, name in enumerate(images.classes) if label not in there]
    if missing:
        raise DataError(f"dataset '{images.name}': no {split} image of {some(missing)} can be read. Fetch the folder again.")


def _close_gaps(path: Path, part: dict[str, Any], kept: Sequence[int]) -> None:
    """Move the rows that are kept to the front."""
    size = part["size"]
    with path.open("r+b") as file:
        for row, source in enumerate(kept):
            if row != source:
                file.seek(part["images"] + source * size)
                content = file.read(size)
                file.seek(part["images"] + row * size)
                file.write(content)
    part["num"] = len(kept)
