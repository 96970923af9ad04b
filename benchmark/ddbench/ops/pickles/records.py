"""What stands for the objects in a pickle: records that do nothing, and our own functions for the names of plain containers."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any, Protocol, runtime_checkable

MAX_NAME = 1000  # characters of the name of a class or a function
ESCAPED = re.compile(rb"""(?:[^\\]++|\\[\\'"nrtx])*+""")  # what Python 2 writes; other escapes would be guessed at
MAX_STATES = 16  # that one object receives; each look at an attribute goes through them

Buffer = bytes | mmap


@dataclass(frozen=True, eq=False, slots=True)
class Span:
    """Bytes of a pickle, where they lie."""

    buffer: Buffer = field(repr=False)
    start: int
    stop: int

    def __len__(self) -> int:
        """In bytes."""
        return self.stop - self.start

    def read(self, limit: int) -> bytes:
        """The first bytes, at most so many."""
        return bytes(self.buffer[self.start : min(self.stop, self.start + limit)])


@dataclass(frozen=True, eq=False, slots=True)
class Text:
    """Characters that stand for bytes, one for each, or that are too many to be made a text before somebody asks for them."""

    content: Span | str = field(repr=False)
    encoding: str = "latin-1"  # of a span; "escape" is how Python 2 writes the bytes of a string in a line

    def as_bytes(self) -> Span:
        """The bytes that are meant. Raises ValueError for characters that stand for none."""
        if isinstance(self.content, str):
            raw = self.content.encode("latin-1")
        elif self.encoding == "latin-1":
            return self.content
        elif self.encoding == "escape":
            raw = unescaped(self.content.read(len(self.content)))
        else:
            raw = self.content.read(len(self.content)).decode(self.encoding).encode("latin-1")
        return Span(raw, 0, len(raw))


@dataclass(frozen=True, eq=False, slots=True)
class Name:
    """A class or a function that the file names, or a module, whose `name` is empty. Raises ValueError for what is no name."""

    module: Any
    name: Any

    def __post_init__(self) -> None:
        """The file may put anything at all in the place of a name."""
        if not (isinstance(self.module, str) and isinstance(self.name, str)):
            raise ValueError("a name that is no text")
        if len(self.module) + len(self.name) > MAX_NAME:
            raise ValueError(f"a name of more than {MAX_NAME} characters")

    @property
    def full(self) -> str:
        """With dots."""
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass(eq=False, slots=True)
class Thing:
    """An instance of whatever the file says; it keeps the attributes that it was given, and does nothing."""

    of: Name | None
    states: list[dict[str, Any]] = field(default_factory=list, repr=False)  # as the file has them: a copy could be made of each

    def receive(self, state: Any) -> None:
        """Attributes, from a dictionary, or from a pair of one and another for slots."""
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        self.states.extend(part for part in parts if isinstance(part, dict))
        if len(self.states) > MAX_STATES:
            raise ValueError(f"an object with more than {MAX_STATES} states")

    def get(self, name: str) -> Any:
        """An attribute; None where there is none."""
        return next((state[name] for state in reversed(self.states) if name in state), None)


@runtime_checkable
class Receiver(Protocol):
    """A record that takes a state."""

    def receive(self, state: Any) -> None:
        """What follows the object in the file."""
        ...


Maker = Callable[..., Any]
"""What a table has for a name: a function of the arguments in the file."""


def unescaped(raw: bytes) -> bytes:
    """The bytes of a string as protocol 0 of Python 2 writes it, between its quotation marks. Raises ValueError."""
    if not ESCAPED.fullmatch(raw):
        raise ValueError("a string with an escape that is unknown")
    return codecs.escape_decode(raw)[0]


def printable(text: str, limit: int = 200) -> str:
    """A text from a file as messages may show it."""
    return "".join(letter for letter in text[:limit] if letter.isprintable())


def _container(items: Any = ()) -> list[Any]:
    return list(items) if isinstance(items, list | tuple) else []


def _dictionary(items: Any = ()) -> dict[str, Any]:
    """Empty, a copy, or of a list of pairs."""
    if isinstance(items, dict):
        return dict(items)
    pairs = [pair for pair in _container(items) if isinstance(pair, list | tuple) and len(pair) == 2]
    return {key: value for key, value in pairs if isinstance(key, str)}


def _instance_of(what: Any = None, *rest: Any) -> Thing:
    return Thing(what if isinstance(what, Name) else None)


CONTAINERS: dict[str, Maker] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": lambda *rest: _dictionary(*rest[1:]),
}
for _module in ("builtins", "__builtin__"):
    CONTAINERS |= {f"{_module}.{_name}": _container for _name in ("set", "frozenset", "list", "tuple")}
    CONTAINERS[f"{_module}.dict"] = _dictionary

INSTANCES: dict[str, Maker] = {
    f"{module}.{name}": _instance_of
    for module in ("copyreg", "copy_reg")
    for name in ("_reconstructor", "__newobj__", "__newobj_ex__")
}
"""Of any class at all: records, where names that are not in a table make records too."""
