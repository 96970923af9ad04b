"""Tensors and arrays as pickles of torch 1.9 to 2.x and of numpy hold them: records that are checked before a number is read."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench_plugins.stylegan.records import Maker, Name, Span, Thing
from ddbench_plugins.stylegan.unpickling import Machine

MAX_DIMS = 8
HEAD_BYTES = 1 << 16  # of a storage: what stands before its numbers
MAX_ELEMENTS = 64  # of an array among a module's attributes: sizes and cutoffs
STORAGE_TYPES: Mapping[str, torch.dtype] = {
    "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16, "torch.DoubleStorage": torch.float64,
    "torch.BFloat16Storage": torch.bfloat16, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}  # fmt: skip
NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})  # of numpy


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A complete file of the old torch format, inside the pickle."""

    content: Any

    def open(self) -> tuple[torch.dtype, Span]:
        """The type of its numbers, and where they lie. Raises ValueError for anything but a whole file with one storage."""
        if not isinstance(self.content, Span):
            raise ValueError("a storage that is not made of bytes")
        head, span, place, parts = self.content.read(HEAD_BYTES), self.content, 0, []
        for _ in range(5):  # a magic number, the version, the system, the storage, and the list of its keys
            part, place = Machine({}, persistent=lambda told: told).run(head, place)
            parts.append(part)
        match parts[3]:
            case ("storage", Name() as kind, str(), str(), int(num), _) if kind.full in STORAGE_TYPES:
                dtype = STORAGE_TYPES[kind.full]
            case _:
                raise ValueError("a storage of a kind that torch 1.9 does not write")
        start = span.start + place + 8
        told = struct.unpack("<q", head[place : place + 8])[0] if len(head) >= place + 8 else -1
        if told != num or span.stop - start != num * dtype.itemsize:
            raise ValueError(f"a storage of {num} numbers that has {max(span.stop - start, 0)} bytes")
        return dtype, Span(span.buffer, start, span.stop)


@dataclass(frozen=True, eq=False, slots=True)
class StoredTensor:
    """A tensor as the file describes it: a view of a storage."""

    storage: Any
    offset: Any
    size: Any
    stride: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes. Raises ValueError where they are none."""
        if not (isinstance(self.size, tuple) and len(self.size) <= MAX_DIMS and all(_is_count(one) for one in self.size)):
            raise ValueError("a tensor whose sizes are none")
        return self.size

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers. Raises ValueError where it has none."""
        return self._opened()[0]

    def _opened(self) -> tuple[torch.dtype, Span]:
        if not isinstance(self.storage, Storage):
            raise ValueError("a tensor without a storage")
        return self.storage.open()

    def read(self) -> Tensor:
        """Its numbers, copied out of the file. Raises ValueError where they do not lie inside of its storage."""
        shape, stride = self.shape, self.stride
        fits = isinstance(stride, tuple) and len(stride) == len(shape) and all(_is_count(one) for one in stride)
        if not fits or not _is_count(self.offset):
            raise ValueError("a tensor whose strides are none")
        dtype, span = self._opened()
        count, last = math.prod(shape), self.offset + sum((one - 1) * step for one, step in zip(shape, stride, strict=True))
        num = len(span) // dtype.itemsize
        if count > num or (count and last >= num):
            raise ValueError(f"a tensor of {list(shape)} in a storage of {num} numbers")
        if not count:
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(bytearray(span.read(len(span))), dtype=dtype)
        return flat.as_strided(shape, stride, self.offset).clone(memory_format=torch.contiguous_format)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 40


class NumberType:
    """What a pickle says of the type of an array's numbers: a code, `f8`, and later the order of its bytes."""

    def __init__(self, code: Any = None, *rest: Any) -> None:
        """The code may have that order in front."""
        self.code, self.order = code, "<"

    def receive(self, state: Any) -> None:
        """A tuple (version, order, ...)."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        """Numpy's own. Raises ValueError for what is no plain number."""
        if not isinstance(self.code, str) or self.code not in NUMBERS:
            raise ValueError("an array of something else than numbers")
        return np.dtype(self.order + self.code)


class StoredArray:
    """An array of numpy: what its state says."""

    def __init__(self, *rest: Any) -> None:
        self.state: Any = None

    def receive(self, state: Any) -> None:
        """A tuple (version, shape, type, whether columns come first, bytes)."""
        self.state = state

    def values(self) -> Any:
        """Its numbers as Python's, in lists. Raises ValueError for what is no small array of numbers."""
        match self.state:
            case (_, tuple() as shape, NumberType() as kind, _, Span() as content) if len(shape) <= MAX_DIMS:
                count = math.prod(shape) if all(_is_count(one) for one in shape) else MAX_ELEMENTS + 1
                if count > MAX_ELEMENTS or len(content) != count * kind.numpy().itemsize:
                    raise ValueError("an array of another size than its bytes, or a large one, where a setting belongs")
                flat = np.frombuffer(content.read(len(content)), kind.numpy())
                return flat.reshape(shape, order="F" if self.state[3] is True else "C").tolist()
        raise ValueError("an array without numbers")


def _scalar(kind: Any = None, content: Any = None) -> Any:
    """A number of numpy, as one of Python's; an inert record for what is none, which other networks in a file may have."""
    plain_kind = isinstance(kind, NumberType) and isinstance(kind.code, str) and kind.code in NUMBERS
    if not (plain_kind and isinstance(content, Span) and len(content) == kind.numpy().itemsize):
        return Thing(None)
    return np.frombuffer(content.read(len(content)), kind.numpy())[0].item()


def _array(function: Any = None, arguments: Any = None, state: Any = None, *rest: Any) -> StoredArray:
    """As dill writes it."""
    made = StoredArray()
    made.receive(state)
    return made


def plain(value: Any) -> Any:
    """An attribute with arrays as lists. Raises ValueError as `StoredArray.values`."""
    return value.values() if isinstance(value, StoredArray) else value


MAKERS: dict[str, Maker] = {
    "torch.storage._load_from_bytes": lambda content, *rest: Storage(content),
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *rest: StoredTensor(storage, offset, size, stride),
    "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *rest: tensor,
    "numpy.dtype": NumberType,
    "numpy.ndarray": StoredArray,
    "dill._dill._create_array": _array,
}
for _module in (f"numpy.{core}.{part}" for core in ("core", "_core") for part in ("multiarray", "_multiarray_umath")):
    MAKERS |= {f"{_module}._reconstruct": StoredArray, f"{_module}.scalar": _scalar}
