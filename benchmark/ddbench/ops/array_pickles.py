"""Arrays out of the pickles that CIFAR is published as, without executing anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any, ClassVar


class UnreadablePickleError(Exception):
    """A pickle that is damaged or asks for something else than numbers, and why."""


def read_arrays(path: Path, what: str) -> Any:
    """What a pickle holds: numbers, texts, lists, dictionaries and `Array`s. `what` it is, for messages. Raises
    UnreadablePickleError."""
    try:
        with path.open("rb") as file:
            return _Unpickler(file, what).load()
    except Exception as error:  # damaged bytes can raise anything at all
        raise UnreadablePickleError(str(error)) from error


class Array:
    """What a pickle says of an array: (version, shape, type, whether columns come first, bytes)."""

    state: tuple[Any, ...] = ()

    def __init__(self, *args: Any) -> None:
        """The arguments, always the same, say nothing."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Kept as it is; texts become the bytes that Python 2 meant."""
        self.state = tuple(_latin1(one) if isinstance(one, str) else one for one in state)


class ArrayType:
    """What a pickle says of an array's type: a code, "u1" for uint8."""

    def __init__(self, code: Any = None, *args: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """The byte order and the like, which bytes do not have."""


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Makes numbers, strings, lists, dicts, and descriptions of numpy arrays; imports nothing, not even numpy's own
    reconstruction, which believes whatever a pickle says of an array's type."""

    def __init__(self, file: IO[bytes], what: str) -> None:
        super().__init__(file, encoding="latin1")  # Python 2, whose strings are bytes, wrote the published files
        self.what = what

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): ArrayType,
        ("numpy.core.multiarray", "_reconstruct"): Array,
        ("numpy._core.multiarray", "_reconstruct"): Array,
        ("_codecs", "encode"): _latin1,  # how protocols 0 to 2 write bytes
    }

    def find_class(self, module: str, name: str) -> Any:
        """Our stand-in for the object of that name."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which {self.what} does not need")
        return self.ALLOWED[module, name]
