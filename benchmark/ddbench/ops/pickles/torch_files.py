"""Reads what torch.save writes, in its zip format and in the one before it, as data: no unpickler has a part in it.

A file is mapped, its pickle followed on records (`machine`), and the tensors that are asked for copied out, each number at most
once in all: what a file holds can be no larger than the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from typing import IO, Any

import torch
from torch import Tensor

from ddbench.errors import DataError
from ddbench.ops.pickles.archives import LOCAL, entries
from ddbench.ops.pickles.arrays import ARRAYS, StoredArray
from ddbench.ops.pickles.machine import Machine, StrangeNameError, sentence
from ddbench.ops.pickles.records import CONTAINERS, MAX_NAME, Buffer, Maker, Name, Span, Thing, printable
from ddbench.ops.pickles.tensors import OTHER_STORAGES, STORAGES, TENSORS, FileStorage, OddTensorError, OtherTensor, StoredTensor

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the format before the zip files
TAR = b"ustar"
MAX_PICKLE = 256 << 20  # bytes of the pickle in a zip file, which is read as a whole; of a network they are some thousands
MAX_DEPTH = 32  # of lists and dictionaries in each other
MAX_PARTS = 1_000_000  # of what is asked for; a set of 50,000 images in lists of pairs has 150,000


def _nothing(*rest: Any) -> Thing:
    return Thing(None)


def _parameter(data: Any = None, *rest: Any) -> Any:
    """As torch 0.1 to 0.3 wrote one."""
    return data if isinstance(data, StoredTensor | OtherTensor) else Thing(None)


MAKERS: dict[str, Maker] = {
    **CONTAINERS,
    **ARRAYS,
    **TENSORS,
    **{f"torch.{part}{kind}": _nothing for kind in (*STORAGES, *OTHER_STORAGES) for part in ("", "cuda.", "storage.")},
    **{str(kind): _nothing for kind in vars(torch).values() if isinstance(kind, torch.dtype | torch.qscheme)},
    "torch.serialization._get_layout": _nothing,
    "torch.Size": lambda items=(), *rest: tuple(items) if isinstance(items, list | tuple) else (),
    "torch.device": _nothing,
    "torch.Tensor": _nothing,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.autograd.variable.Variable": _parameter,
}


def read_torch(file: IO[bytes], what: str, choose: Callable[[Any], Any] = lambda content: content, strict: bool = True) -> Any:
    """What torch.save wrote into an open file: tensors on the CPU, numbers and texts, in lists, tuples and dictionaries by text
    (other keys are dropped); arrays of numpy come as tensors.

    `choose` takes a part of it before its tensors are read. Where the file names any other class or function it is refused or,
    not `strict`, has a `Thing` there, which does nothing. `what` begins each message. Raises DataError, one sentence.
    """
    try:
        try:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise ValueError("it is empty") from error
        return _Reader(len(buffer)).read(choose(_records(buffer, strict)), "it")
    except StrangeNameError as error:
        told = f"holds more than tensors (it asks for {error}), and pickled code is never run"
        raise DataError(f"{what} {told}: save the tensors alone.") from error
    except OddTensorError as error:
        raise DataError(f"{what} cannot be read: {sentence(error)}. Save dense tensors of floats or integers.") from error
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{what} cannot be read: {sentence(error)}.") from error


def _records(buffer: Buffer, strict: bool) -> Any:
    if buffer[:4] == LOCAL:
        return _zipped(buffer, strict)
    if buffer[257:262] == TAR:
        raise ValueError("it is a tar file, as torch before 0.1.10 wrote; load it with torch and save its tensors anew")
    return _plain(buffer, strict)


def _zipped(buffer: Buffer, strict: bool) -> Any:
    """The format since torch 1.6."""
    found = entries(buffer)
    root = next(iter(found), "").partition("/")[0]
    parts = {name.removeprefix(f"{root}/"): span for name, span in found.items() if name.startswith(f"{root}/")}
    if "data.pkl" not in parts:
        raise ValueError("it is a zip file, and none that torch.save wrote")
    if "constants.pkl" in parts or any(name.startswith("code/") for name in parts):
        raise ValueError("it is a program of TorchScript; save the network's state_dict() alone")
    if "byteorder" in parts and parts["byteorder"].read(16) != b"little":
        raise ValueError("its numbers are not in the order little endian")
    storages = _Storages()
    pickle = parts["data.pkl"]
    if len(pickle) > MAX_PICKLE:
        raise ValueError(f"it says more of its tensors than {MAX_PICKLE >> 20} MiB")
    content, _ = Machine(MAKERS, storages.persistent, strict).run(pickle.read(len(pickle)))
    for key, storage in storages.by_key.items():
        storage.content = parts.get(f"data/{key}")
    return content


def _plain(buffer: Buffer, strict: bool) -> Any:
    """The format before torch 1.6: a magic number, a version, a system, the content, the keys of storages, and these."""
    try:
        magic, place = Machine({}, strict=True).run(buffer)
    except ValueError:
        magic, place = None, 0
    if magic != MAGIC:
        raise ValueError("it is no file that torch.save wrote")
    version, place = Machine({}, strict=True).run(buffer, place)
    if version != VERSION:
        raise ValueError("it is of a version of torch.save that is unknown")
    system, place = Machine({}, strict=True).run(buffer, place)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are not in the order little endian")
    storages = _Storages()
    content, place = Machine(MAKERS, storages.persistent, strict).run(buffer, place)
    keys, place = Machine({}, strict=True).run(buffer, place)
    for key in keys if isinstance(keys, list) else ():
        storage = storages.by_key.get(key) if isinstance(key, str) else None
        if storage is None or len(buffer) < place + 8 or struct.unpack("<q", buffer[place : place + 8])[0] != storage.num:
            raise ValueError("its storages are not those that it lists: it is damaged or cut short")
        start, place = place + 8, place + 8 + storage.num * storage.itemsize
        storage.content = Span(buffer, min(start, len(buffer)), min(place, len(buffer)))
    return content


class _Storages:
    """What a pickle calls storages; where they lie is known later."""

    def __init__(self) -> None:
        self.by_key: dict[str, FileStorage] = {}

    def persistent(self, told: Any) -> Any:
        """A storage, or the name of a class, whose source text is dropped."""
        match told:
            case ("storage", Name() as kind, str() as key, str(), int() as num, *rest) if num >= 0 and rest in ([], [None]):
                found = self.by_key.setdefault(key, FileStorage(kind, num))
                if (found.kind.full, found.num) != (kind.full, num):
                    raise ValueError("a storage that is said to be two")
                return found
            case ("module", Name() as kind, *_):
                return kind
        raise ValueError("a reference that is no storage")


class _Reader:
    """Makes tensors of records, within bounds: a small file may say much, as references that are shared."""

    def __init__(self, num_bytes: int) -> None:
        """Tensors take that many together at most, each view of a storage once."""
        self.bytes, self.parts = num_bytes, MAX_PARTS
        self.tensors: dict[Any, Tensor] = {}
        self.made: dict[int, Any] = {}  # lists and dictionaries by their records, None while one is being made

    def read(self, value: Any, where: str, depth: int = 0) -> Any:
        """The value, with tensors; `where` it stands, for messages. Raises ValueError for what is too much or no tensor."""
        self.parts -= 1
        if self.parts < 0 or depth > MAX_DEPTH:
            raise ValueError(f"it has more than {MAX_PARTS} parts, or more than {MAX_DEPTH} inside of each other")
        if isinstance(value, list | tuple | dict):
            return self._container(value, where, depth + 1)
        try:
            if isinstance(value, StoredTensor):
                return self._tensor(value)
            if isinstance(value, OtherTensor):
                return value.read()
            if isinstance(value, StoredArray):
                return self._array(value)
        except ValueError as error:
            kind = OddTensorError if isinstance(error, OddTensorError) else ValueError
            raise kind(f"{where} holds {error}") from error
        return value.read(self._spent(len(value))) if isinstance(value, Span) else value

    def _container(self, value: Any, where: str, depth: int) -> Any:
        if id(value) in self.made:
            if self.made[id(value)] is None:
                raise ValueError("it has a part inside of itself")
            return self.made[id(value)]
        self.made[id(value)] = None
        if isinstance(value, dict):
            if any(len(key) > MAX_NAME for key in value):
                raise ValueError(f"{where} holds a name of more than {MAX_NAME} characters")
            found: Any = {key: self.read(item, f"'{printable(key, 60)}'", depth) for key, item in value.items()}
        else:
            found = type(value)([self.read(item, where, depth) for item in value])
        self.made[id(value)] = found
        return found

    def _spent(self, num: int) -> int:
        self.bytes -= num
        if self.bytes < 0:
            raise ValueError("more numbers than the file has room for: tensors that overlap in what they are stored in")
        return num

    def _tensor(self, record: StoredTensor) -> Tensor:
        if record.view not in self.tensors:
            self._spent(record.num_bytes)
            self.tensors[record.view] = record.read()
        return self.tensors[record.view]

    def _array(self, record: StoredArray) -> Tensor:
        self._spent(math.prod(record.shape) * record.kind.itemsize)
        return torch.from_numpy(record.read().astype(record.kind.newbyteorder("="), order="C"))
