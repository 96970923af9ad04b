"""Reads a pickle as data: its instructions are followed on records of our own, and nothing that the file names is imported or
called.

Python's unpicklers have no part in this. What an instruction does is written out below, and what a call would do is looked up in
a table of our own functions by the name that the file gives. A name that is not in the table makes an inert record or is refused.
So there is no way from a file to code, whatever it says.

Memory and time are bounded by the number of instructions, each of which makes at most one object, and by the text they hold;
bytes stay where they are, in the mapped file. Keys that are no text are dropped: nothing here hashes, prints or walks what a file
made, which may be deep, or small and yet endless to walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ddbench.errors import DataError
from ddbench.ops.pickles.instructions import instruction
from ddbench.ops.pickles.records import Buffer, Maker, Name, Receiver, Thing, printable

MAX_OPCODES = 2_000_000  # a generator of 26 layers takes 21,000; published files hold two of them and a discriminator
MAX_TEXT = 64 << 20  # characters of all texts together: a file holds the source of its classes, once each


class StrangeNameError(ValueError):
    """A name that is not in the table, where others are refused."""


class Machine:
    """Follows the instructions of one pickle."""

    def __init__(
        self, makers: Mapping[str, Maker], persistent: Maker | None = None, strict: bool = False, limit: int | None = None
    ) -> None:  # fmt: skip
        """`makers` by full name; `persistent` makes an object of a persistent id: without it they are refused. `strict`: other
        names are refused and make no records. `limit`: of instructions, where it is less than that for all."""
        self.makers, self.persistent, self.strict = makers, persistent, strict
        self.limit = MAX_OPCODES if limit is None else limit
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # stacks below a mark
        self.memo: dict[int, Any] = {}
        self.text = self.given = 0

    def run(self, buffer: Buffer, start: int = 0) -> tuple[Any, int]:
        """The object that the pickle makes, and the place behind it. Raises ValueError for what is no pickle or too much, of
        which StrangeNameError for a name that is refused."""
        place = start
        try:
            for _ in range(self.limit):
                name, argument, place = instruction(buffer, place)
                if name == "STOP":
                    return self.stack.pop(), place
                if name in _ARGUMENTS:
                    self.stack.append(self._weighed(argument))
                else:
                    _STEPS[name](self, argument)
        except ValueError:
            raise
        except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"instructions that make no sense ({type(error).__name__})") from error
        raise ValueError(f"more than {self.limit} instructions")

    def _weighed(self, value: Any) -> Any:
        """The value; texts count."""
        if isinstance(value, str):
            self.text += len(value)
            if self.text > MAX_TEXT:
                raise ValueError(f"more than {MAX_TEXT} characters of text")
        return value

    # What instructions do, in groups.

    def _mark(self, argument: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _put(self, argument: Any) -> None:
        index = len(self.memo) if argument is None else int(argument)
        if not 0 <= index < MAX_OPCODES:
            raise ValueError("a reference out of bounds")
        self.memo[index] = self.stack[-1]

    def _get(self, argument: Any) -> None:
        self.stack.append(self.memo[int(argument)])

    def _tuple(self, size: int) -> None:
        items = tuple(self.stack[-size:])
        if len(items) < size:
            raise IndexError
        self.stack[-size:] = [items]

    def _append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_pairs(items))

    def _two(self) -> list[Any]:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def _named(self, module: Any, name: Any) -> Name:
        found = Name(module, name)
        if self.strict and found.full not in self.makers:
            raise StrangeNameError(printable(found.full))
        return found

    def _call(self, what: Any, arguments: Any) -> None:
        """What our table has for the name; an inert record for all else."""
        maker = self.makers.get(what.full) if isinstance(what, Name) else None
        if maker is not None and isinstance(arguments, tuple):
            self.given += len(arguments) + sum(len(one) for one in arguments if isinstance(one, list | tuple | dict))
            if self.given > MAX_OPCODES:  # a maker may copy them
                raise ValueError(f"more than {MAX_OPCODES} arguments")
            self.stack.append(maker(*arguments))
        elif self.strict:
            raise ValueError("a call of something that is no name, or without arguments")
        else:
            self.stack.append(Thing(what if isinstance(what, Name) else None))

    def _instance(self, argument: Any) -> None:
        """INST and OBJ: a class, named here or in the stack, and its arguments, up to the mark."""
        items = self._to_mark()
        if argument is None:
            self._call(items[0], tuple(items[1:]))
        else:
            self._call(self._named(*argument), tuple(items))

    def _new_with_names(self, argument: Any) -> None:
        names, arguments, what = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self._call(what, arguments if not names else None)

    def _build(self, argument: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Receiver):
            self.stack[-1].receive(state)

    def _persist(self, argument: Any) -> None:
        if self.persistent is None:
            raise ValueError("a reference to something outside of it")
        self.stack.append(self.persistent(self.stack.pop() if argument is None else argument))

    def _refuse(self, argument: Any) -> None:
        raise ValueError("a reference to something outside of it")


def _pairs(items: list[Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values that follow each other; those whose key is text."""
    if len(items) % 2:
        raise IndexError
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str):
            yield key, value


_Step = Callable[[Machine, Any], Any]
_ARGUMENTS = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
        "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
        "BINBYTES8", "BYTEARRAY8",
    }
)  # fmt: skip
_STEPS: dict[str, _Step] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "NONE": lambda m, a: m.stack.append(None),
    "NEWTRUE": lambda m, a: m.stack.append(True),
    "NEWFALSE": lambda m, a: m.stack.append(False),
    "MARK": Machine._mark,
    "POP": lambda m, a: m.stack.pop() if m.stack else m._to_mark(),
    "POP_MARK": lambda m, a: m._to_mark(),
    "DUP": lambda m, a: m.stack.append(m.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine._get),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda m, a: m.stack.append([])),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda m, a: m._push(m._to_mark())),
    "APPEND": lambda m, a: m._append([m.stack.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, a: m._append(m._to_mark())),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "DICT": lambda m, a: m._push(dict(_pairs(m._to_mark()))),
    "SETITEM": lambda m, a: m._set(m._two()),
    "SETITEMS": lambda m, a: m._set(m._to_mark()),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "TUPLE": lambda m, a: m._push(tuple(m._to_mark())),
    "TUPLE1": lambda m, a: m._tuple(1),
    "TUPLE2": lambda m, a: m._tuple(2),
    "TUPLE3": lambda m, a: m._tuple(3),
    "GLOBAL": lambda m, a: m._push(m._named(*a)),
    "STACK_GLOBAL": lambda m, a: m._push(m._named(*m._two())),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, a: m._call(*m._two())),
    **dict.fromkeys(("INST", "OBJ"), Machine._instance),
    "NEWOBJ_EX": Machine._new_with_names,
    "BUILD": Machine._build,
    **dict.fromkeys(("PERSID", "BINPERSID"), Machine._persist),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"), Machine._refuse),
}


def load(buffer: Buffer, what: str, makers: Mapping[str, Maker]) -> Any:
    """The records of a whole pickle; `what` names the file in messages. Raises DataError, one sentence."""
    try:
        return Machine(makers).run(buffer)[0]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is damaged, cut short or no pickle: {sentence(error)}.") from error


def sentence(error: Exception) -> str:
    """What an error says, as a part of a message."""
    return " ".join(printable(str(error).replace("\n", " "), 300).split())
