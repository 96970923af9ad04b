"""Prepared generators: a safetensors file of tensors and a JSON description beside it, made once from an official pickle.

Runs read these two and nothing else. What they hold is pinned by a hash of the description, in which the hash of the tensors'
file stands; the name of the source does not count, so that equal files are equal under any name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ddbench.errors import DataError
from ddbench.ops.steady import sha256_of, steady
from ddbench_plugins.stylegan import description as descriptions
from ddbench_plugins.stylegan.description import Description, TensorFile
from ddbench_plugins.stylegan.network import check_tensors
from ddbench_plugins.stylegan.pickles import Official

DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
AGAIN = "Remove it and its .json, and prepare it anew."


def pin(description: Description) -> str:
    """The SHA-256 of what decides the numbers: the description without its source and without the names of files."""
    facts = msgspec.to_builtins(description)
    facts["tensors"] = description.tensors.sha256 if description.tensors else None
    del facts["source"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def convert(official: Official, target: Path) -> Description:
    """Write `target` (a .json) and the tensors beside it, each whole or not at all; one tensor is in memory at a time. Raises
    DataError where other files are in their place: nothing is overwritten."""
    tensors = target.with_suffix(".safetensors")
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f".{target.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                return _convert(official, target, tensors)
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise DataError(f"{target} is being prepared by another process: wait for it.") from error


def _convert(official: Official, target: Path, tensors: Path) -> Description:
    with _beside(tensors) as (file, unfinished):
        sha256 = _write(official, file)
        check_tensors(official.description, mapped(unfinished), f"in {tensors.stem}")
        found = msgspec.structs.replace(official.description, tensors=TensorFile(file=tensors.name, sha256=sha256))
        content = descriptions.write(found)
        if target.exists() and pin(read(target)) != pin(found):
            raise DataError(f"{target} was made of another file: remove both, or prepare this under another name.")
        if tensors.exists() and _sha256(tensors) != sha256:
            raise DataError(f"{tensors} is there and holds something else: remove it, or prepare this under another name.")
        if not tensors.exists():
            unfinished.rename(tensors)
    if not target.exists():
        with _beside(target) as (file, unfinished):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            unfinished.rename(target)
    return found


@contextmanager
def _beside(target: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A new file beside the target, that is removed if nobody renames it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with path.open("wb") as file:
            yield file, path
    finally:
        path.unlink(missing_ok=True)


def _write(official: Official, file: IO[bytes]) -> str:
    """Safetensors, tensor after tensor, larger numbers first and then by name as the library has them; gives the SHA-256."""
    kinds = {name: official.dtype(name) for name in official.tensors}
    names = sorted(official.tensors, key=lambda name: (-kinds[name].itemsize, name))
    header, place = dict[str, Any](), 0
    for name in names:
        shape, kind = official.tensors[name].shape, kinds[name]
        stop = place + math.prod(shape) * kind.itemsize
        header[name] = {"dtype": DTYPES[kind], "shape": list(shape), "data_offsets": [place, stop]}
        place = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sha = hashlib.sha256()
    for part in _parts(struct.pack("<Q", len(text)) + text, names, official.read):
        sha.update(part)
        file.write(part)
    file.flush()
    os.fsync(file.fileno())
    return sha.hexdigest()


def _parts(head: bytes, names: list[str], read: Callable[[str], Tensor]) -> Iterator[Any]:
    yield head
    for name in names:
        yield read(name).flatten().view(torch.uint8).numpy().data


def read(target: Path) -> Description:
    """The description of what was prepared. Raises DataError where it is missing or damaged."""
    try:
        with target.open("rb") as file:
            found = descriptions.read(file.read(descriptions.MAX_BYTES + 1), str(target))
    except FileNotFoundError as error:
        raise DataError(f"{target} is missing.") from error
    if found.tensors is None:
        raise DataError(f"the description {target} names no file of tensors: prepare it anew.")
    return found


def check(target: Path) -> Description:
    """The description, once the tensors beside it have the hash that it names. Raises DataError."""
    found = read(target)
    tensors = _tensors_of(target, found)
    _check_hash(target, found, tensors, _sha256(tensors))
    return found


def _check_hash(target: Path, found: Description, tensors: Path, sha256: str) -> None:
    if sha256 != _expected(found):
        raise DataError(f"{tensors} has the SHA-256 {sha256}, and {target.name} says {_expected(found)}. {AGAIN}")


def load(target: Path, wanted: str) -> tuple[Description, dict[str, Tensor]]:
    """A prepared generator whose pin is `wanted`, its tensors mapped, not copied. Raises DataError, one sentence, where a file is
    missing, another one or damaged."""
    found = read(target)
    if pin(found) != wanted:
        raise DataError(f"{target} is not the generator that was planned: its pin is {pin(found)}, not {wanted}. Plan anew.")
    path = _tensors_of(target, found)
    with steady(path) as file:
        _check_hash(target, found, path, sha256_of(file))
        return found, mapped(path)


def mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, where they lie. Raises DataError for a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())[:200]}). {AGAIN}") from error


def _expected(found: Description) -> str:
    return found.tensors.sha256 if found.tensors else ""


def _tensors_of(target: Path, found: Description) -> Path:
    path = target.with_name(found.tensors.file) if found.tensors else target
    if not path.is_file():
        raise DataError(f"{path} is missing, and {target.name} is there. {AGAIN}")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
