"""Tensors as torch 0.4 to 2.x writes them: records that are checked before a number is read, and read where they lie."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench.ops.pickles.arrays import MAX_DIMS, is_count
from ddbench.ops.pickles.machine import Machine
from ddbench.ops.pickles.records import Maker, Name, Span, printable

UNREAD = "a tensor of a kind that is not read"
HEAD_BYTES = 1 << 16  # of a storage inside of a pickle: what stands before its numbers
HEAD_OPCODES = 500  # of each of the five pickles in it; torch writes some thirty
STORAGES: Mapping[str, torch.dtype] = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
OTHER_STORAGES: Mapping[str, tuple[str, int]] = {  # that are told from damage and not read: what they hold, bytes a number
    "ComplexFloatStorage": ("complex numbers", 8), "ComplexDoubleStorage": ("complex numbers", 16),
    "QInt8Storage": ("quantised numbers", 1), "QUInt8Storage": ("quantised numbers", 1),
    "QInt32Storage": ("quantised numbers", 4), "UntypedStorage": ("numbers of a kind that is not said", 1),
}  # fmt: skip


class OddTensorError(ValueError):
    """A tensor that is sound, and of a kind that is not read."""


@dataclass(eq=False, slots=True)
class FileStorage:
    """Bytes in a file of torch.save, and what its pickle says of them."""

    kind: Name
    num: int
    content: Span | None = None  # None: they have not been found

    @property
    def itemsize(self) -> int:
        """Bytes a number. Raises ValueError for a kind that is unknown."""
        short = _short(self.kind)
        return OTHER_STORAGES[short][1] if short in OTHER_STORAGES else _dtype(self.kind).itemsize

    def open(self) -> tuple[torch.dtype, Span]:
        """The type of its numbers, and where they lie. Raises ValueError where they are others than it says."""
        return _checked(_dtype(self.kind), self.num, self.content)


@dataclass(frozen=True, eq=False, slots=True)
class EmbeddedStorage:
    """A complete file of the old torch format, inside the pickle."""

    content: Any

    def open(self) -> tuple[torch.dtype, Span]:
        """The type of its numbers, and where they lie. Raises ValueError for anything but a whole file with one storage."""
        if not isinstance(self.content, Span):
            raise ValueError("a storage that is not made of bytes")
        head, span, place, parts = self.content.read(HEAD_BYTES), self.content, 0, []
        for _ in range(5):  # a magic number, the version, the system, the storage, and the list of its keys
            part, place = Machine({}, persistent=lambda told: told, limit=HEAD_OPCODES).run(head, place)
            parts.append(part)
        match parts[3]:
            case ("storage", Name() as kind, str(), str(), int(num), _):
                dtype = _dtype(kind)
            case _:
                raise ValueError("a storage that is none of torch's")
        told = struct.unpack("<q", head[place : place + 8])[0] if len(head) >= place + 8 else -1
        content = Span(span.buffer, min(span.stop, span.start + place + 8), span.stop)
        return _checked(dtype, num, content if told == num else None)


def _short(kind: Name) -> str:
    """`FloatStorage` of `torch.cuda.FloatStorage`."""
    return kind.name if kind.module in ("torch", "torch.cuda", "torch.storage") else ""


def _dtype(kind: Name) -> torch.dtype:
    short = _short(kind)
    if short not in STORAGES:
        unknown = f"numbers of a kind that is not read ({printable(kind.full)})"
        raise OddTensorError(OTHER_STORAGES[short][0] if short in OTHER_STORAGES else unknown)
    return STORAGES[short]


def _checked(dtype: torch.dtype, num: int, content: Span | None) -> tuple[torch.dtype, Span]:
    if content is None or not is_count(num) or len(content) != num * dtype.itemsize:
        raise ValueError(f"a storage of {num} numbers that has {len(content) if content else 0} bytes")
    return dtype, content


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
        if not (isinstance(self.size, tuple) and len(self.size) <= MAX_DIMS and all(is_count(one) for one in self.size)):
            raise ValueError("a tensor whose sizes are none")
        return self.size

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers. Raises ValueError where it has none."""
        return self._opened()[0]

    @property
    def view(self) -> tuple[Any, ...]:
        """What is equal for two tensors that are one."""
        return id(self.storage), self.offset, self.shape, self.stride

    def _opened(self) -> tuple[torch.dtype, Span]:
        if not isinstance(self.storage, FileStorage | EmbeddedStorage):
            raise ValueError("a tensor without a storage")
        return self.storage.open()

    @property
    def num_bytes(self) -> int:
        """What its numbers take. Raises ValueError as `read`."""
        return math.prod(self.shape) * self._checked()[0].itemsize

    def read(self) -> Tensor:
        """Its numbers, and no others, copied out of the file. Raises ValueError where they do not lie inside of its storage, or
        overlap: what `expand` leaves takes more memory than the file has bytes."""
        (dtype, span), shape = self._checked(), self.shape
        if not math.prod(shape):
            return torch.empty(shape, dtype=dtype)
        size = dtype.itemsize
        start, steps = span.start + self.offset * size, [step * size for step in self.stride]
        there = np.ndarray(shape, f"<i{size}", span.buffer, start, steps)
        copied = torch.from_numpy(there.astype(f"=i{size}", order="C"))
        return copied.ne(0) if dtype == torch.bool else copied.view(dtype)

    def _checked(self) -> tuple[torch.dtype, Span]:
        """Type and place of its storage, of which it is a part."""
        shape, stride = self.shape, self.stride
        fits = isinstance(stride, tuple) and len(stride) == len(shape) and all(is_count(one) for one in stride)
        if not fits or not is_count(self.offset):
            raise ValueError("a tensor whose strides are none")
        dtype, span = self._opened()
        if math.prod(shape) and _overlaps(shape, stride):
            raise OddTensorError("an expanded tensor, whose numbers overlap")
        count, last = math.prod(shape), self.offset + sum((one - 1) * step for one, step in zip(shape, stride, strict=True))
        num = len(span) // dtype.itemsize
        if count > num or (count and last >= num):
            raise ValueError(f"a tensor of {list(shape)} in a storage of {num} numbers")
        return dtype, span


def _overlaps(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether two places of a tensor may be one number of its storage."""
    extent = 1  # numbers from the first to the last of the dimensions seen so far
    for step, side in sorted((step, side) for side, step in zip(shape, stride, strict=True) if side > 1):
        if step < extent:
            return True
        extent += (side - 1) * step
    return False


@dataclass(frozen=True, eq=False, slots=True)
class OtherTensor:
    """A tensor of a kind that is not read."""

    kind: str

    def read(self) -> Tensor:
        """Raise OddTensorError."""
        raise OddTensorError(self.kind)


def _rebuilt(storage: Any, offset: Any, size: Any, stride: Any, grad: Any = None, hooks: Any = None, marks: Any = None) -> Any:
    """How torch writes most tensors. Marks say that the numbers that are meant are others, such as the negative ones."""
    return OtherTensor(UNREAD) if marks else StoredTensor(storage, offset, size, stride)


def _of_a_type(function: Any = None, kind: Any = None, arguments: Any = None, *rest: Any) -> Any:
    """A tensor with attributes of its own, which are dropped."""
    maker = TENSORS.get(function.full) if isinstance(function, Name) and function.full != _OF_A_TYPE else None
    known = isinstance(kind, Name) and kind.full in ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
    return maker(*arguments) if maker and known and isinstance(arguments, tuple) else OtherTensor(UNREAD)


_OF_A_TYPE = "torch._tensor._rebuild_from_type_v2"
TENSORS: dict[str, Maker] = {
    "torch.storage._load_from_bytes": lambda content, *rest: EmbeddedStorage(content),
    "torch._utils._rebuild_tensor": lambda storage, offset, size, stride: StoredTensor(storage, offset, size, stride),
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *rest: tensor,
    "torch._utils._rebuild_sparse_tensor": lambda *rest: OtherTensor("a sparse tensor"),
    "torch._utils._rebuild_sparse_csr_tensor": lambda *rest: OtherTensor("a sparse tensor"),
    "torch._utils._rebuild_nested_tensor": lambda *rest: OtherTensor("a nested tensor"),
    "torch._utils._rebuild_qtensor": lambda *rest: OtherTensor("a quantised tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *rest: OtherTensor("a meta tensor"),
    "torch._utils._rebuild_tensor_v3": lambda *rest: OtherTensor(UNREAD),
    _OF_A_TYPE: _of_a_type,
}
