"""Images of others in class folders below the data folder: found for a data set's classes, hashed and decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ddbench.api import Spec
from ddbench.errors import ConfigError, DataError
from ddbench.ops.class_folders import folder_of_class, numbered
from ddbench.ops.image_files import Folder, Picture, class_folders, some
from ddbench.ops.pictures import UnreadableError, decode, read


def find_folder(root: Path | None, folder: str) -> Path:
    """The path of a folder below the data folder. Raises ConfigError for a path that leads elsewhere, DataError where there is
    none."""
    parts = PurePosixPath(folder).parts
    if not parts or ".." in parts or PurePosixPath(folder).is_absolute() or Path(folder).is_absolute():
        raise ConfigError(f"a folder of the user's is named by its path below the data folder, got '{folder}'.")
    if root is None:
        raise DataError(f"the folder '{folder}' lies below the data folder, and DDBENCH_DATA is not set.")
    if not (root / folder).is_dir():
        raise DataError(f"the folder {root / folder} is not there: put a folder of images for each class into it.")
    return root / folder


def refuse_own(where: Path, files: Iterable[Path], name: str) -> None:
    """Raise ConfigError where a folder holds files of a data set, at any depth: its test images are sealed, and its training
    images are what other sets are made of."""
    folder = where.resolve()
    for place in {file.parent for file in files}:
        if folder in (place.resolve(), *place.resolve().parents):
            raise ConfigError(f"the folder {where} holds images of '{name}' itself: name one of images that others have made.")


def list_classes(where: Path) -> dict[str, Folder]:
    """The class folders that hold images, by name, sorted. Raises DataError where there is none."""
    try:
        folders = {name: folder_of_class(where / name) for name in class_folders(where)}
    except OSError as error:
        raise DataError(f"the folder {error.filename or where} cannot be read: {error.strerror}.") from error
    held = {name: folder for name, folder in folders.items() if folder.names}
    if not held:
        raise DataError(f"the folder {where} holds no images in folders by class, as torchvision's ImageFolder reads them.")
    return held


def folders_of(folders: Mapping[str, Folder], spec: Spec, where: Path) -> list[Folder]:
    """One for each class of a data set, in its order: named by its class names or its class ids, and others are passed over; or
    all of them by the classes' numbers, as `3` or `new003`. Raises DataError where a class has none."""
    known = [names for names in (spec.class_names, spec.class_ids) if names]
    for names in known:
        if set(names) <= folders.keys():
            return [folders[name] for name in names]
    numbers = numbered(list(folders), spec.num_classes)
    if numbers is not None and len(numbers) == spec.num_classes:
        of_number = dict(zip(numbers, folders.values(), strict=True))
        return [of_number[label] for label in range(spec.num_classes)]
    nearest = max(known, key=lambda names: len(folders.keys() & set(names)))
    missing = some([name for name in nearest if name not in folders])
    told = f"the folder {where} has no images in folders for these classes of '{spec.name}': {missing}"
    raise DataError(f"{told}. Name them by the classes' names, ids or numbers from 0 on.")


def hashes_of(pictures: Iterable[Picture]) -> list[str]:
    """The SHA-256 of each file. Raises DataError, naming the first that cannot be read."""
    hashes = []
    for picture in pictures:
        try:
            hashes.append(hashlib.sha256(read(picture.place)).hexdigest())
        except UnreadableError as error:
            raise DataError(f"the image {picture.place[0]} cannot be read: {error}. Make it anew.") from error
    return hashes


def hash_of_classes(folders: Mapping[str, Folder]) -> str:
    """Of the names of classes and files, and of all bytes."""
    sha = hashlib.sha256()
    for name, folder in folders.items():
        for file, content in zip(folder.names, hashes_of(folder.pictures(0)), strict=True):
            sha.update(f"{name}\0{file}\0{content}\n".encode())
    return sha.hexdigest()


def decode_pictures(pictures: Sequence[Picture], side: int, channels: int) -> np.ndarray:
    """uint8 [N,channels,side,side], resized as real images are; of grey ones, with one channel, all three must be the same.
    Raises DataError, naming those that cannot be read."""
    made = np.empty((len(pictures), channels, side, side), np.uint8)
    faults = []
    for row, picture in enumerate(pictures):
        try:
            pixels = decode(read(picture.place), side)
            if channels == 1 and (pixels != pixels[:1]).any():
                raise UnreadableError("it has colours, and the data set is grey")
            made[row] = pixels[:channels]
        except UnreadableError as error:
            faults.append(f"{picture.place[0]} ({error})")
    if faults:
        told = "1 image" if len(faults) == 1 else f"{len(faults)} images"
        raise DataError(f"{told} of {len(pictures)} cannot be used: {some(faults)}. Make them anew, or take them away.")
    return made
