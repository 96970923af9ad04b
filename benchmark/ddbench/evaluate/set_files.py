"""Files of distilled sets, opened as data and never as code: what a file holds, before anybody asks what it means."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ddbench.errors import ConfigError, DataError
from ddbench.files import digest, read_json, read_tensors, sha256_file
from ddbench.ops.image_files import class_folders, list_folder
from ddbench.ops.pickles.torch_files import read_torch
from ddbench.ops.pictures import UnreadableError, decode, read
from ddbench.ops.steady import sha256_of, steady

MAX_SET_BYTES = 8 << 30
SET_FILE = "set.safetensors"  # of a store
REMEDY = "Name another file."
FOLDERS = "a folder of images for each class, as torchvision's ImageFolder reads them"


@dataclass(frozen=True)
class Content:
    """What lies at a path."""

    path: Path
    value: Any  # what was saved: a tensor, an array, a list, a dictionary, or `Pictures`
    sha256: str
    meta: dict[str, Any] = field(default_factory=dict)  # what one of our files says of itself; nothing for others


@dataclass(frozen=True)
class Pictures:
    """Images of a folder of class folders, in the order of the folders' names."""

    images: Tensor  # uint8 [N,3,H,W]
    labels: Tensor  # int64 [N], positions in `names`
    names: tuple[str, ...]


def open_content(path: Path) -> Content:
    """What a file, or a folder of images, holds. Raises ConfigError where there is none, DataError where it cannot be read."""
    if path.is_dir():
        return _pictures(path)
    known = ", ".join(OPENERS)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}. Name a file of images and labels ({known}), or {FOLDERS}.")
    if path.suffix not in OPENERS:
        raise ConfigError(f"{path} is none of {known}, and no folder of images. Save images and labels as one of these.")
    if path.stat().st_size > MAX_SET_BYTES:
        raise DataError(f"{path} is larger than {MAX_SET_BYTES} bytes: it is hardly a distilled set.")
    with steady(path) as file:
        value, meta = OPENERS[path.suffix](path)
        return Content(path, value, sha256_of(file), meta)


def open_pt(path: Path) -> Any:
    """What torch.save wrote: tensors, numbers, texts, lists and dictionaries of such; arrays of numpy come as tensors. Nothing of
    it is executed: every .pt of a set is opened here. Raises DataError."""
    with path.open("rb") as file:
        return read_torch(file, str(path))


def _safetensors(path: Path) -> tuple[Any, dict[str, Any]]:
    _check_beside(path)
    tensors, meta = read_tensors(path, "distilled set", REMEDY)
    _check_meta(path, meta)
    return tensors, meta


def _npz(path: Path) -> tuple[Any, dict[str, Any]]:
    """Arrays by name; sizes are checked before anything is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MAX_SET_BYTES:
                raise DataError(f"{path} holds more than {MAX_SET_BYTES} bytes: it is hardly a distilled set.")
            arrays = {}
            for member in members:
                with archive.open(member) as file:
                    _check_header(file, member.file_size)
                with archive.open(member) as file:
                    arrays[member.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
            return arrays, {}
    except DataError:
        raise
    except Exception as error:  # damaged bytes can raise anything at all
        raise _no_arrays(path, error) from error


def _npy(path: Path) -> tuple[Any, dict[str, Any]]:
    """One array."""
    try:
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False), {}
    except Exception as error:
        raise _no_arrays(path, error) from error


def _check_header(file: IO[bytes], num_bytes: int) -> None:
    """Raise ValueError where an array says that it is larger than its file: room is made for it before it is read."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = header(file)
    size = kind.itemsize
    for side in shape:
        size *= side
    if kind.hasobject or size > num_bytes:
        raise ValueError("it holds Python objects" if kind.hasobject else "an array is larger than its file")


def _no_arrays(path: Path, error: Exception) -> DataError:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{path} cannot be read as arrays of numbers ({text}). Save images and labels anew with numpy.savez.")


OPENERS: Mapping[str, Callable[[Path], tuple[Any, dict[str, Any]]]] = {
    ".safetensors": _safetensors,
    ".pt": lambda path: (open_pt(path), {}),
    ".pth": lambda path: (open_pt(path), {}),
    ".npz": _npz,
    ".npy": _npy,
}
"""By suffix: what a file holds, and what one of ours says of itself."""


def _pictures(path: Path) -> Content:
    """Images of equal size, by class; what they are is the hash of their names and bytes."""
    folders = [list_folder(path / name) for name in class_folders(path)]
    folders = [folder for folder in folders if folder.names]
    if not folders:
        inside = sorted(one for one in path.iterdir() if one.suffix in OPENERS)
        what = f"name a file in it, such as {inside[0]}" if inside else "name a file"
        raise ConfigError(f"{path} is a folder and not {FOLDERS}: {what}.")
    images, labels, hashes, first = list[Tensor](), list[int](), list[tuple[str, str]](), ""
    for label, folder in enumerate(folders):
        for picture in folder.pictures(label):
            try:
                content = read(picture.place)
                pixels = decode(content, None)
            except UnreadableError as error:
                raise DataError(f"the image {picture.place[0]} cannot be read: {error}. Make it anew.") from error
            first = first or picture.place[0]
            if images and images[0].shape != pixels.shape:
                sizes = [f"{shape[2]} x {shape[1]} px" for shape in (images[0].shape, pixels.shape)]
                raise DataError(f"{first} has {sizes[0]} and {picture.place[0]} {sizes[1]}: images of a set have one size.")
            if (len(images) + 1) * pixels.nbytes > MAX_SET_BYTES:
                raise DataError(f"the images in {path} take more than {MAX_SET_BYTES} bytes: it is hardly a distilled set.")
            images.append(torch.from_numpy(pixels.copy()))
            labels.append(label)
            hashes.append((picture.name.partition("/")[2], hashlib.sha256(content).hexdigest()))
    names = tuple(folder.path.name for folder in folders)
    return Content(path, Pictures(torch.stack(images), torch.tensor(labels), names), digest(hashes))


def _check_beside(path: Path) -> None:
    """Raise DataError where the file lies in a store, and its record there names other bytes."""
    record = path.parent / "record.json"
    if path.name == SET_FILE and record.is_file():
        files = read_json(record, "record", REMEDY).get("files")
        wanted = files.get(path.name) if isinstance(files, dict) else None
        if isinstance(wanted, str) and sha256_file(path) != wanted:
            raise DataError(f"{path} is damaged: its bytes are not those that {record} names. {REMEDY}")


def _check_meta(path: Path, meta: Any) -> None:
    """That the metadata of one of our files, where there are any, say what ours say; a stranger may have written them."""
    from ddbench.compute.distilled import SET_SCHEMA

    lists = {"class_names": str, "mean": float, "std": float}
    fit = meta == {} or (
        isinstance(meta, dict)
        and isinstance(meta.get("dataset"), str)
        and meta["dataset"].isprintable()
        and all(isinstance(meta.get(name), list) for name in lists)
        and all(type(value) is kind for name, kind in lists.items() for value in meta[name])
        and isinstance(meta.get("learned", {}), dict)
    )
    if not fit:
        raise DataError(f"{path}: its metadata must hold dataset, class_names, mean and std, and do not. {REMEDY}")
    schema = meta.get("schema", SET_SCHEMA)
    if type(schema) is not int or schema != SET_SCHEMA:
        shown = schema if type(schema) is int else type(schema).__name__
        told = f"its metadata say schema {shown}, and this ddbench reads {SET_SCHEMA}"
        raise DataError(f"{path}: {told}. Update ddbench if the file is newer, or name another file.")
