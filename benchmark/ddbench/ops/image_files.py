"""Image files on disc as a data set finds them: listed cheaply, in an order of their own, from folders or tars."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ddbench.errors import DataError
from ddbench.ops.pictures import SUFFIXES, Place

SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Picture:
    """An image on disc."""

    place: Place
    label: int
    name: str  # for people


@dataclass(frozen=True)
class Found:
    """A split as it lies on disc."""

    files: tuple[Path, ...]  # all that decide its pixels and labels
    pictures: Callable[[], list[Picture]]  # sorted by label; asked for only where they are decoded


@dataclass(frozen=True)
class Folder:
    """A folder of images."""

    path: Path
    names: tuple[str, ...]  # of its images, sorted
    sizes: tuple[int, ...]

    def pictures(self, label: int) -> list[Picture]:
        """All of them, of one class."""
        place = f"{self.path.parent.name}/{self.path.name}"
        paths = (os.path.join(self.path, name) for name in self.names)  # noqa: PTH118 - thousands of them
        return [
            Picture((path, 0, size), label, f"{place}/{name}")
            for path, name, size in zip(paths, self.names, self.sizes, strict=True)
        ]

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [self.path / name for name in self.names]


def list_folder(path: Path) -> Folder:
    """The images in a folder, by their suffix; what is hidden and other files are passed over. Raises FileNotFoundError."""
    with os.scandir(path) as entries:
        found = sorted(
            (entry.name, entry.stat().st_size)
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower().endswith(SUFFIXES) and entry.is_file()
        )
    names, sizes = zip(*found, strict=True) if found else ((), ())
    return Folder(path, tuple(names), tuple(sizes))


def class_folders(path: Path) -> tuple[str, ...]:
    """The names of the folders in a folder, sorted; hidden ones are passed over. Raises OSError."""
    with os.scandir(path) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def in_folders(folders: Sequence[Folder]) -> Found:
    """A split of one folder a class, in label order."""
    files = tuple(file for folder in folders for file in folder.files)
    return Found(files, lambda: [picture for label, folder in enumerate(folders) for picture in folder.pictures(label)])


def tar_members(path: Path, start: int = 0, size: int | None = None) -> Iterator[tuple[str, int, int]]:
    """(name without folders, first byte in the file, bytes) of the plain files in a tar, or in one that is a part of a file.
    Nothing is unpacked. Raises DataError where it is damaged."""
    try:
        with path.open("rb") as file:
            whole = size if size is not None else file.seek(0, os.SEEK_END)
            with tarfile.open(fileobj=_Part(file, start, whole), mode="r:") as archive:  # type: ignore[call-overload]
                for member in archive:
                    if member.isreg():
                        yield member.name.rpartition("/")[2], start + member.offset_data, member.size
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a tar: {error}. Fetch it again.") from error


class _Part:
    """Some bytes of a file as a file of their own."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self.file, self.start, self.size, self.at = file, start, size, 0

    def tell(self) -> int:
        """Where it is."""
        return self.at

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        """Go there."""
        self.at = to + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def read(self, num: int = -1) -> bytes:
        """So many bytes, or all that are left."""
        left = max(0, self.size - self.at)
        self.file.seek(self.start + self.at)
        content = self.file.read(left if num < 0 else min(num, left))
        self.at += len(content)
        return content


def some(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
