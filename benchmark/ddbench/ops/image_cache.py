"""Decoded images of a data set in one file, mapped into memory: built once from the image files, checked by its hash.

The file: a page of JSON that says what follows, then for each split its images, uint8 [N,3,side,side], and labels, int64 [N].
It is made anew when a source file has another name, size or time, or when other versions of the libraries that decode are
installed, so that pixels are always what decoding would give now. Beside it lies a note of when its bytes were last hashed:
while its size and times stay as they were then, they are not hashed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import _imaging

from ddbench.api import LabelledImages, Split
from ddbench.errors import DataError
from ddbench.ops.caches import image_folders
from ddbench.ops.decoding import decode_into
from ddbench.ops.image_files import Found, Picture, some
from ddbench.ops.pictures import decoder

SPLITS: tuple[Split, Split] = ("train", "test")
MAGIC = b"ddbench images 1"
PAGE = 1 << 16  # bytes: the head's, and what the parts of the file begin at a multiple of
HASHED = 8 << 20  # bytes that are read at a time
TOLD_SECONDS = 5.0

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class ImageSet:
    """Images on disc, and how they are decoded: all that a cache of them needs to know."""

    name: str  # of the data set
    side: int
    classes: tuple[str, ...]
    where: Path  # names in the cache are relative to it
    find: Callable[[Split], Found]  # raises DataError where files are missing
    skip_unreadable: bool = False

    @property
    def file(self) -> str:
        """The name of its cache."""
        what = [self.name, self.side, list(self.classes), str(self.where.absolute()), self.skip_unreadable]
        return f"{self.name}-{self.side}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]}.images"

    def state(self, found: Mapping[Split, Found]) -> str:
        """The hash of all that the pixels hang on: names, sizes and times of the source files, and how they are decoded."""
        sha = hashlib.sha256(json.dumps([self.side, list(self.classes), self.skip_unreadable, decoder()]).encode())
        base = str(self.where.absolute())
        for split in SPLITS:
            for path in found[split].files:
                stat = os.stat(path)  # noqa: PTH116 - thousands of them
                name = str(path).removeprefix(base)
                sha.update(f"{split}\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return sha.hexdigest()


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
                there = _build(images, found, state, folder, progress or Teller(images))
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


def _hash(path: Path) -> str:
    """Of all behind the head."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(PAGE)
        while content := file.read(HASHED):
            sha.update(content)
    return sha.hexdigest()


def _check_bytes(path: Path, head: Mapping[str, Any]) -> None:
    if _hash(path) != head["sha256"]:
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


# ---------------------------------------------------------------- building


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


def _build(
    images: ImageSet, found: Mapping[Split, Found], state: str, folder: Path, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    pictures = {split: found[split].pictures() for split in SPLITS}
    size, at, parts = 3 * images.side**2, PAGE, dict[str, dict[str, Any]]()
    for split in SPLITS:
        num = len(pictures[split])
        parts[split] = {"num": num, "size": size, "images": at, "skipped": 0}
        at += -(-num * size // PAGE) * PAGE
        parts[split]["labels"] = at
        at += -(-num * 8 // PAGE) * PAGE
    path, beside = folder / images.file, folder / f".{images.file}.{uuid.uuid4().hex}.tmp"
    try:
        _reserve(beside, at, images)
        _decode(beside, images, pictures, parts, progress)
        head = {"state": state, "side": images.side, "parts": parts, "sha256": _hash(beside)}
        with beside.open("r+b") as file:
            file.write((MAGIC + json.dumps(head).encode()).ljust(PAGE, b"\0"))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _write_note(path, head)
    return path, head


def _reserve(path: Path, size: int, images: ImageSet) -> None:
    """A file of that size, whose room on the disc is its own."""
    free = shutil.disk_usage(path.parent).free
    try:
        if free < size:
            raise OSError(f"{free >> 20} MiB are free")
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        told = f"decoded images of '{images.name}' take {-(-size >> 20)} MiB in {path.parent}, and there is no room for them"
        raise DataError(f"{told} ({error.strerror or error}): free some, or set DDBENCH_CACHE to another folder.") from error


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
        raise DataError(f"{count}: {told}. Fetch them again, or leave them out with the setting unreadable = \"skip\".")
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
