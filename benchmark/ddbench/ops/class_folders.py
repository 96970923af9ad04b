"""A split in folders named by class, or in one folder with annotations as Tiny-ImageNet's validation images have them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ddbench.errors import DataError
from ddbench.ops.image_files import Folder, Found, Picture, class_folders, in_folders, list_folder, some

ANNOTATIONS, INSIDE = "val_annotations.txt", "images"
MAX_ANNOTATION_BYTES = 256 << 20


def find_classes(name: str, above: Path, classes: Sequence[str], least: int, most: int | None = None, hint: str = "") -> Found:
    """The split under a folder: `above/<class>/` or `above/<class>/images/` for each class, other folders are passed over; or
    `above/images/` with `above/val_annotations.txt`. Each class has `least` images, and `most` at most. `name` of the data set,
    and `hint`, are for messages. Raises DataError."""
    if not above.is_dir():
        raise DataError(f"dataset '{name}' expected the folder {above}, with a folder of images for each class. {hint}".rstrip())
    missing = [one for one in classes if not (above / one).is_dir()]
    if len(missing) == len(classes) and (above / ANNOTATIONS).is_file():
        return _annotated(name, above, classes, least, most, hint)
    if missing:
        there = f"{len(classes) - len(missing)} of {len(classes)} classes in {above}"
        raise DataError(f"dataset '{name}' finds {there}, and misses {some([f'{one}/' for one in missing])}. {hint}".rstrip())
    folders = []
    for one in classes:
        folder = folder_of_class(above / one)
        _check(name, folder.path, len(folder.names), least, most, hint)
        folders.append(folder)
    return in_folders(folders)


def folder_of_class(path: Path) -> Folder:
    """A class's images: in its folder, or, where that has none, in the folder `images` in it. Raises OSError."""
    folder = list_folder(path)
    return list_folder(path / INSIDE) if not folder.names and (path / INSIDE).is_dir() else folder


def numbered(names: Sequence[str], num_classes: int) -> list[int] | None:
    """The numbers with which all names end behind the same letters, as `new003` or `3` do; None where one has none, or they are
    not different classes, counted from 0."""
    matches = [re.fullmatch(r"(\D*)0*(\d{1,9})", name) for name in names]
    if not all(matches) or len({match[1] for match in matches if match}) > 1:
        return None
    numbers = [int(match[2]) for match in matches if match]
    fits = len(set(numbers)) == len(numbers) and max(numbers) < num_classes
    return numbers if fits else None


def names_of_classes(name: str, above: Path) -> tuple[str, ...]:
    """The class folders of a split, sorted. Raises DataError where there are not two."""
    try:
        found = class_folders(above)
    except OSError as error:
        raise DataError(f"dataset '{name}' expected {above}, with a folder for each class: {error.strerror}.") from error
    if len(found) < 2:
        raise DataError(f"dataset '{name}' expected a folder for each class in {above}, two at least, and finds {len(found)}.")
    return found


def _annotated(name: str, above: Path, classes: Sequence[str], least: int, most: int | None, hint: str) -> Found:
    """Lines of file name, class and more, tab by tab."""
    path = above / ANNOTATIONS
    if path.stat().st_size > MAX_ANNOTATION_BYTES:
        raise DataError(f"{path} has more than {MAX_ANNOTATION_BYTES} bytes: it is no list of labels.")
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    class_of = {row[0]: row[1] for row in rows if len(row) > 1}
    folder = list_folder(above / INSIDE)
    of_class: dict[str, list[int]] = {one: [] for one in classes}
    for at, image in enumerate(folder.names):
        if class_of.get(image) in of_class:
            of_class[class_of[image]].append(at)
    for one, rows_of_class in of_class.items():
        _check(name, path, len(rows_of_class), least, most, hint, f" of {one}")
    chosen = [(label, at) for label, one in enumerate(classes) for at in of_class[one]]

    def pictures() -> list[Picture]:
        all_of_them = folder.pictures(0)
        return [Picture(all_of_them[at].place, label, all_of_them[at].name) for label, at in chosen]

    return Found((path, *(folder.path / folder.names[at] for _, at in chosen)), pictures)


def _check(name: str, where: Path, num: int, least: int, most: int | None, hint: str, of: str = "") -> None:
    if num < least or (most is not None and num > most):
        wanted = f"{least} images" if most == least else f"at least {least} images"
        raise DataError(f"dataset '{name}' expected {wanted}{of} in {where}, and finds {num}. {hint}".rstrip())
