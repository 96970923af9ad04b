"""Splits a pickle into its instructions: the name of each, and its argument, checked against the bytes that are there.

`pickletools` lists which instructions there are; what follows each is read here. Bytes and long texts stay where they are.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any

from ddbench.ops.pickles.records import Buffer, Span, Text, unescaped

MAX_PIECE = 1 << 20  # bytes of one line, one number, or one text that is made a text of Python's at once
MAX_NUMBER = 1024  # bits of an integer

Argument = tuple[Any, int]
"""What was read, and the place behind it."""


def instruction(buffer: Buffer, place: int) -> tuple[str, Any, int]:
    """Name, argument and the place behind it. Raises ValueError for what is none."""
    if place >= len(buffer):
        raise ValueError("it ends before its end is said")
    name, read = _INSTRUCTIONS.get(buffer[place], ("", None))
    if not name:
        raise ValueError(f"an instruction that is unknown ({buffer[place]:#x})")
    argument, place = read(buffer, place + 1) if read else (None, place + 1)
    return name, argument, place


def _raw(buffer: Buffer, place: int, num: int) -> bytes:
    found = buffer[place : place + num]
    if len(found) < num:
        raise ValueError("it ends before its end is said")
    return found


def _number(form: str) -> Callable[[Buffer, int], Argument]:
    size = struct.calcsize(form)

    def read(buffer: Buffer, place: int) -> Argument:
        return struct.unpack(form, _raw(buffer, place, size))[0], place + size

    return read


def _span(length: str) -> Callable[[Buffer, int], Argument]:
    """So many bytes as a number before them says."""
    number = _number(length)

    def read(buffer: Buffer, place: int) -> Argument:
        num, start = number(buffer, place)
        if not 0 <= num <= len(buffer) - start:
            raise ValueError("it ends before its end is said")
        return Span(buffer, start, start + num), start + num

    return read


def _text(length: str, encoding: str) -> Callable[[Buffer, int], Argument]:
    """Characters, of which a number before them says how many bytes they are."""
    bounded = _span(length)

    def read(buffer: Buffer, place: int) -> Argument:
        span, after = bounded(buffer, place)
        return _decoded(span, encoding), after

    return read


def _decoded(span: Span, encoding: str) -> str | Text:
    if len(span) > MAX_PIECE:
        return Text(span, encoding)
    return span.read(MAX_PIECE).decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict")


def _long(length: str) -> Callable[[Buffer, int], Argument]:
    bounded = _span(length)

    def read(buffer: Buffer, place: int) -> Argument:
        span, after = bounded(buffer, place)
        if len(span) * 8 > MAX_NUMBER:
            raise ValueError(f"a number of more than {MAX_NUMBER} bits")
        return int.from_bytes(span.read(MAX_NUMBER), "little", signed=True), after

    return read


def _line(buffer: Buffer, place: int, limit: int = MAX_PIECE) -> tuple[Span, int]:
    """Up to the next end of a line."""
    found = buffer.find(b"\n", place, min(len(buffer), place + limit))
    if found < 0:
        raise ValueError("a line that does not end")
    return Span(buffer, place, found), found + 1


def _quoted(buffer: Buffer, place: int) -> Argument:
    """How protocol 0 of Python 2 writes a string."""
    span, after = _line(buffer, place, len(buffer))
    first, last = (buffer[at : at + 1] for at in (span.start, span.stop - 1))
    if len(span) < 2 or first != last or first not in (b"'", b'"'):
        raise ValueError("a string without its quotation marks")
    inside = Span(buffer, span.start + 1, span.stop - 1)
    if len(inside) > MAX_PIECE:
        return Text(inside, "escape"), after
    return unescaped(inside.read(MAX_PIECE)).decode("latin-1"), after


def _unicode_line(buffer: Buffer, place: int) -> Argument:
    span, after = _line(buffer, place, len(buffer))
    return _decoded(span, "raw-unicode-escape"), after


def _decimal(buffer: Buffer, place: int) -> Argument:
    span, after = _line(buffer, place)
    digits = span.read(MAX_NUMBER)
    if len(span) > MAX_NUMBER:
        raise ValueError(f"a number of more than {MAX_NUMBER} digits")
    if digits in (b"00", b"01"):  # how protocol 0 writes these two
        return digits == b"01", after
    value = int(digits.removesuffix(b"L"))
    if value.bit_length() > MAX_NUMBER:
        raise ValueError(f"a number of more than {MAX_NUMBER} bits")
    return value, after


def _decimal_float(buffer: Buffer, place: int) -> Argument:
    span, after = _line(buffer, place)
    return float(span.read(MAX_NUMBER)), after


def _plain_line(buffer: Buffer, place: int) -> Argument:
    span, after = _line(buffer, place)
    return span.read(MAX_PIECE).decode("ascii"), after


def _two_lines(buffer: Buffer, place: int) -> Argument:
    first, middle = _line(buffer, place)
    second, after = _line(buffer, middle)
    return (first.read(MAX_PIECE).decode("utf-8"), second.read(MAX_PIECE).decode("utf-8")), after


_ARGUMENTS: dict[str, Callable[[Buffer, int], Argument]] = {
    "uint1": _number("<B"), "uint2": _number("<H"), "int4": _number("<i"), "uint4": _number("<I"), "uint8": _number("<Q"),
    "float8": _number(">d"), "floatnl": _decimal_float, "decimalnl_short": _decimal, "decimalnl_long": _decimal,
    "long1": _long("<B"), "long4": _long("<i"),
    "bytes1": _span("<B"), "bytes4": _span("<I"), "bytes8": _span("<Q"), "bytearray8": _span("<Q"),
    "string1": _text("<B", "latin-1"), "string4": _text("<i", "latin-1"), "stringnl": _quoted,
    "unicodestring1": _text("<B", "utf-8"), "unicodestring4": _text("<I", "utf-8"), "unicodestring8": _text("<Q", "utf-8"),
    "unicodestringnl": _unicode_line, "stringnl_noescape": _plain_line, "stringnl_noescape_pair": _two_lines,
}  # fmt: skip
_INSTRUCTIONS: dict[int, tuple[str, Callable[[Buffer, int], Argument] | None]] = {
    ord(code.code): (code.name, _ARGUMENTS[code.arg.name] if code.arg else None) for code in pickletools.opcodes
}
