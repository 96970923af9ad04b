"""Arrays and numbers of numpy as pickles hold them: records that are checked before a number is read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ddbench.ops.pickles.records import Maker, Span, Text, Thing

MAX_DIMS = 8
MAX_WRITTEN = 6  # bytes that the text of a byte has at most: a backslash, u, and four digits
MAX_ELEMENTS = 64  # of an array among a module's attributes: sizes and cutoffs
NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})


class NumberType:
    """What a pickle says of the type of an array's numbers: a code, `f8`, and later the order of its bytes."""

    def __init__(self, code: Any = None, *rest: Any) -> None:
        """The code may have that order in front."""
        self.code, self.order = code, "<"

    def receive(self, state: Any) -> None:
        """A tuple (version, order, ...)."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]

    @property
    def is_plain(self) -> bool:
        """Whether it is a number of a kind that is read."""
        return isinstance(self.code, str) and self.code in NUMBERS

    def numpy(self) -> np.dtype[Any]:
        """Numpy's own. Raises ValueError for what is no plain number."""
        if not self.is_plain:
            raise ValueError("an array of something else than numbers")
        return np.dtype(self.order + self.code)


class StoredArray:
    """An array of numpy: what its state says."""

    def __init__(self, *rest: Any) -> None:
        self.state: Any = None

    def receive(self, state: Any) -> None:
        """A tuple (version, shape, type, whether columns come first, bytes)."""
        self.state = state

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes. Raises ValueError where they are none."""
        match self.state:
            case (_, tuple() as shape, _, _, _) if len(shape) <= MAX_DIMS and all(is_count(one) for one in shape):
                return shape
        raise ValueError("an array without sizes")

    @property
    def kind(self) -> np.dtype[Any]:
        """The type of its numbers. Raises ValueError for what is no plain number."""
        match self.state:
            case (_, _, NumberType() as kind, _, _):
                return kind.numpy()
        raise ValueError("an array without numbers")

    def read(self) -> npt.NDArray[Any]:
        """Its numbers, where they lie in the file, not to be written to. Raises ValueError where they are not there."""
        shape, kind = self.shape, self.kind
        content = as_bytes(self.state[4], math.prod(shape) * kind.itemsize)
        if len(content) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"an array of {list(shape)} that has {len(content)} bytes")
        if not len(content):
            return np.empty(shape, kind)
        flat = np.frombuffer(content.buffer, kind, math.prod(shape), content.start)
        return flat.reshape(shape, order="F" if self.state[3] is True or self.state[3] == 1 else "C")

    def values(self) -> Any:
        """Its numbers as Python's, in lists. Raises ValueError for what is no small array of numbers."""
        if math.prod(self.shape) > MAX_ELEMENTS:
            raise ValueError(f"an array of {list(self.shape)} numbers where a setting belongs")
        return self.read().tolist()


def is_count(value: Any) -> bool:
    """Whether it is a whole number that sizes and places may be."""
    return type(value) is int and 0 <= value < 1 << 40


def as_bytes(value: Any, num: int) -> Span:
    """The bytes of an array or a number that has so many; protocols that have none, and Python 2, write texts. A long text for a
    few bytes is not looked at: it could be there for many. Raises ValueError."""
    if isinstance(value, str):
        value = Text(value)
    if isinstance(value, Text):
        if len(value.content) > MAX_WRITTEN * num:
            raise ValueError(f"an array of {num} bytes that has a text of {len(value.content)}")
        value = value.as_bytes()
    if not isinstance(value, Span):
        raise ValueError("an array without numbers")
    return value


def _scalar(kind: Any = None, content: Any = None) -> Any:
    """A number of numpy, as one of Python's; an inert record for what is none, which other networks in a file may have."""
    try:
        made = StoredArray()
        made.receive((1, (), kind, False, content))
        return made.read().item()
    except ValueError:
        return Thing(None)


def _from_buffer(content: Any = None, kind: Any = None, shape: Any = None, order: Any = None, *rest: Any) -> StoredArray:
    """As protocol 5 writes an array."""
    made = StoredArray()
    made.receive((1, shape, kind, order == "F", content))
    return made


def _encode(text: Any = None, *rest: Any) -> Any:
    """How protocols 0 to 2 of Python 3 write bytes: as the characters of these numbers."""
    return Text(text) if isinstance(text, str) else text if isinstance(text, Text) else Thing(None)


ARRAYS: dict[str, Maker] = {"numpy.dtype": NumberType, "numpy.ndarray": StoredArray, "_codecs.encode": _encode}
for _core in ("numpy.core", "numpy._core"):
    for _part in ("multiarray", "_multiarray_umath"):
        ARRAYS |= {f"{_core}.{_part}._reconstruct": StoredArray, f"{_core}.{_part}.scalar": _scalar}
    ARRAYS[f"{_core}.numeric._frombuffer"] = _from_buffer
