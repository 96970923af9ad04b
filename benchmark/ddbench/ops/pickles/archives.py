"""The zip files that torch.save writes: what lies where in one, its entries stored as they are, and none over another."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

from ddbench.ops.pickles.records import Buffer, Span

MAX_ENTRIES = 200_000  # one a storage; the largest published networks have some thousands
MAX_COMMENT = 65_535
END, END_64, LOCATOR_64, CENTRAL, LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
IN_EXTRA = 0xFFFFFFFF  # a number that stands in a field behind the name, with 64 bits


def entries(buffer: Buffer) -> dict[str, Span]:
    """Where the content of each entry lies, by name. Raises ValueError for what is no zip file, or one that is compressed,
    encrypted, in several parts, or whose entries overlap."""
    count, place, end = _directory(buffer)
    if count > MAX_ENTRIES:
        raise ValueError(f"a zip file of more than {MAX_ENTRIES} entries")
    found: dict[str, Span] = {}
    for name, span in _listed(buffer, count, place, end):
        if name in found:
            raise ValueError("a zip file that names an entry twice")
        found[name] = span
    spans = sorted((span.start, span.stop) for span in found.values())
    if any(before[1] > after[0] for before, after in pairwise(spans)) or (spans and spans[-1][1] > place):
        raise ValueError("a zip file whose entries overlap")
    return found


def _unpacked(form: str, buffer: Buffer, place: int) -> tuple[int, ...]:
    raw = buffer[place : place + struct.calcsize(form)] if place >= 0 else b""
    if len(raw) < struct.calcsize(form):
        raise ValueError("a zip file that is cut short")
    return struct.unpack(form, raw)


def _directory(buffer: Buffer) -> tuple[int, int, int]:
    """How many entries the list at the end of the file has, where it begins and where it ends."""
    last = buffer.rfind(END, max(0, len(buffer) - MAX_COMMENT - 22))
    if last < 0:
        raise ValueError("a zip file that is cut short")
    disks, _, _, count, size, place, comment = _unpacked("<4xHHHHIIH", buffer, last)
    if last + 22 + comment != len(buffer):
        raise ValueError("a zip file with something behind its end")
    end = last
    if last >= 20 and buffer[last - 20 : last - 16] == LOCATOR_64:
        _, end, _ = _unpacked("<4xIQI", buffer, last - 20)
        if buffer[end : end + 4] != END_64:
            raise ValueError("a zip file whose end is not where it says")
        disks, count, size, place = (_unpacked("<4xQHHIIQQQQ", buffer, end)[at] for at in (3, 6, 7, 8))
    if disks or place + size > end or end > last:
        raise ValueError("a zip file whose list of entries is not where it says")
    return count, place, place + size


def _listed(buffer: Buffer, count: int, place: int, end: int) -> Iterator[tuple[str, Span]]:
    for _ in range(count):
        if place + 46 > end or buffer[place : place + 4] != CENTRAL:
            raise ValueError("a zip file whose list of entries is damaged")
        flags, method, packed, size, *lengths, start = _unpacked("<8xHH8xIIHHHxxxxxxxxI", buffer, place)
        begin, behind = place + 46, place + 46 + sum(lengths)
        raw = bytes(buffer[begin : begin + lengths[0]])
        if behind > end:
            raise ValueError("a zip file whose list of entries is damaged")
        size, packed, start = _with_64_bits(bytes(buffer[begin + lengths[0] : behind - lengths[2]]), size, packed, start)
        if flags & 1 or method or packed != size:
            raise ValueError("a zip file with a compressed or encrypted entry, and torch.save stores them as they are")
        yield raw.decode("utf-8"), _content(buffer, raw, start, size)
        place = behind


def _with_64_bits(extra: bytes, *numbers: int) -> Iterator[int]:
    """The numbers, those that have no room among the others from the extra field that has them."""
    wide, place = b"", 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            wide = extra[place + 4 : place + 4 + length]
            break
        place += 4 + length
    for number in numbers:
        if number == IN_EXTRA:
            (number,), wide = _unpacked("<Q", wide, 0), wide[8:]
        yield number


def _content(buffer: Buffer, name: bytes, start: int, size: int) -> Span:
    """Behind what stands before an entry."""
    method, name_length, extra_length = _unpacked("<8xH16xHH", buffer, start)
    begin = start + 30 + name_length
    if buffer[start : start + 4] != LOCAL or method or buffer[start + 30 : begin] != name:
        raise ValueError("a zip file with an entry that is not where its list says")
    stop = begin + extra_length + size
    if stop > len(buffer):
        raise ValueError("a zip file that is cut short")
    return Span(buffer, begin + extra_length, stop)
