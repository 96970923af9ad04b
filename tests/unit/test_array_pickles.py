"""CIFAR's files read as data: as pickle reads them, and crafted ones end in a sentence, in little time and memory."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_stylegan_pickles import BOMBS, PIECES

from ddbench.errors import DataError
from ddbench.ops.array_pickles import UnreadablePickleError, byte_rows, read_arrays
from ddbench.ops.pickles import machine
from ddbench.ops.pickles.arrays import ARRAYS, StoredArray
from ddbench_plugins.datasets.cifar10 import BATCHES, CLASSES, FOLDER, META, Cifar10

LARGE = np.random.default_rng(3).integers(0, 256, (400, 3072), dtype=np.uint8)  # more than is made a text at once


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "batch"


def taken(path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    return read_arrays(path, "CIFAR-10")


def told(path: Path, content: bytes) -> str:
    with pytest.raises(UnreadablePickleError) as caught:
        taken(path, content)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < 300
    return sentence


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("num", [3, 400])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_back_whatever_the_protocol(path: Path, protocol: int, num: int, order: Any) -> None:
    content = {"data": np.asarray(LARGE[:num], order=order), "labels": [3, 9], "batch_label": "training batch 1 of 5"}
    found = taken(path, pickle.dumps(content, protocol))
    rows = byte_rows(found["data"], 3072)
    assert rows is not None
    assert np.array_equal(rows, LARGE[:num])
    assert (found["labels"], found["batch_label"]) == ([3, 9], "training batch 1 of 5")
    assert byte_rows(found["data"], 3071) is None


def python_2(raw: bytes, string: Callable[[bytes], bytes]) -> bytes:
    """How Python 2 wrote an array: byte strings, and numpy's module names of then."""
    num = struct.pack("<H", len(raw) // 3072)
    return (
        b"\x80\x02}(" + string(b"data") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + string(b"b") + b"\x87R(K\x01M" + num + b"M\x00\x0c\x86cnumpy\ndtype\n"
        + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + string(raw) + b"tbu."
    )  # fmt: skip


def in_a_line(raw: bytes) -> bytes:
    """As protocol 0 writes a string."""
    return b"S" + repr(raw)[1:].encode() + b"\n"


@pytest.mark.parametrize("num", [3, 400])
@pytest.mark.parametrize("string", [lambda raw: b"T" + struct.pack("<i", len(raw)) + raw, in_a_line])
def test_strings_of_python_2_are_bytes(path: Path, string: Callable[[bytes], bytes], num: int) -> None:
    rows = byte_rows(taken(path, python_2(LARGE[:num].tobytes(), string))["data"], 3072)
    assert rows is not None
    assert np.array_equal(rows, LARGE[:num])


def test_the_published_files_are_read_as_pickle_reads_them(user_data: Path | None) -> None:
    if user_data is None or not (user_data / FOLDER).is_dir():
        pytest.skip(f"DDBENCH_DATA names no folder with {FOLDER}")
    for name in ("test_batch", META):
        path = user_data / FOLDER / name
        theirs, ours = pickle.loads(path.read_bytes(), encoding="latin1"), read_arrays(path, "CIFAR-10")
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if isinstance(value, np.ndarray):
                rows = byte_rows(ours[key], 3072)
                assert rows is not None
                assert np.array_equal(rows, value)
            else:
                assert ours[key] == value


CRAFTED = {
    "memo": (b"\x80\x02Nr\x00\x00\x00\x40.", "a reference out of bounds"),
    "memo in a line": (b"Np1073741824\n.", "a reference out of bounds"),
    "deep": (b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".", ""),
    "deep names": (b"\x80\x02cnumpy\ndtype\n" + b"\x85" * 200_000 + b".", ""),
    "many": (b"\x80\x02" + b"N0" * 1_000_005 + b"N.", "more than 2000000 instructions"),
    "length": (b"\x80\x02T\xff\xff\xff\x7fx.", "it ends before its end is said"),
    "negative length": (b"\x80\x02T\xff\xff\xff\xffx.", "it ends before its end is said"),
    "escape": (b"S'\\q'\n.", "a string with an escape that is unknown"),
    "quotes": (b"Sabc\n.", "a string without its quotation marks"),
    "number": (b"I12345678901x\n.", "invalid literal"),
    "digits": (b"L" + b"9" * 2000 + b"L\n.", "a number of more than 1024 digits"),
    "unknown": (b"\xff.", "an instruction that is unknown (0xff)"),
    "call of an array": (b"\x80\x02cnumpy\nndarray\n)R)R.", "a call of something that is no name"),
    "extension": (b"\x80\x02\x82\x01.", "a reference to something outside of it"),
    "another": (b"cos\nsystem\n.", "it asks for os.system, which CIFAR-10 does not need"),
}


@pytest.mark.parametrize("label", CRAFTED)
def test_crafted_files_end_in_a_sentence(path: Path, label: str) -> None:
    """Python's own unpickler takes gigabytes for some of them, and a process for others."""
    content, sentence = CRAFTED[label]
    if sentence:
        assert sentence in told(path, content)
    else:
        taken(path, content)


@pytest.mark.slow
def test_crafted_files_of_names_are_refused_by_the_data_set(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in (*BATCHES["train"], *BATCHES["test"]):
        (folder / name).write_bytes(pickle.dumps({"data": LARGE[:2], "labels": [0, 1]}))
    for content, sentence in CRAFTED.values():
        (folder / META).write_bytes(content)
        with pytest.raises(DataError, match=r"batches\.meta to") as caught:
            Cifar10().load("test", tmp_path)
        assert sentence in str(caught.value)
    (folder / META).write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    assert len(Cifar10().load("test", tmp_path).labels) == 2


def test_nothing_in_a_file_changes_how_the_next_is_read(path: Path) -> None:
    """States for our own functions and classes, which Python's unpickler would hand to them."""
    before, state = dict(ARRAYS), vars(StoredArray).copy()
    for name in (b"c_codecs\nencode\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"):
        taken(path, b"\x80\x02" + name + b"}(X\x05\x00\x00\x00stateK\x01X\x08\x00\x00\x00__dict__K\x02ub.")
        taken(path, b"\x80\x02" + name + b"N}X\x08\x00\x00\x00encodingX\x05\x00\x00\x00utf-7s\x86b.")
    assert before == ARRAYS
    assert vars(StoredArray) == state
    assert taken(path, b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R.").as_bytes().read(9) == b"a"


def test_labels_that_collide_are_not_compared_with_each_other(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name in (*BATCHES["train"], *BATCHES["test"]):
        labels = [number * (2**61 - 1) for number in range(400)]
        (folder / name).write_bytes(pickle.dumps({"data": LARGE, "labels": labels}))
    (folder / META).write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    with pytest.raises(DataError, match="labels from 0 to 9, and finds others"):
        Cifar10().load("test", tmp_path)


def test_one_text_cannot_be_made_many_arrays(path: Path) -> None:
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00"
    each = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    content = b"\x80\x02" + text + b"0](" + each * 1000 + b"e."
    tracemalloc.start()
    assert len(taken(path, content)) == 1000
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("label", BOMBS)
def test_bombs_are_read_or_refused(label: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MAX_OPCODES", 100_000)
    with suppress(UnreadablePickleError):
        taken(path, BOMBS[label])


# ---------------------------------------------------------------- fuzz

FUZZ = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
WHOLES = [pickle.dumps({"data": LARGE[:1], "labels": [3, 9], "x": ["a", 1.5]}, protocol) for protocol in range(6)]
WHOLES += [python_2(LARGE[:1].tobytes(), in_a_line)]
ARRAY_PIECES = st.one_of(
    PIECES,
    st.sampled_from([b"c_codecs\nencode\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n"]),
    st.sampled_from([b"X\x02\x00\x00\x00u1", b"U\x02u1", b"(K\x03U\x01|tb", b"S'\\x00'\n", b"V\\u0100\n", b"K\x01M\x00\x0c\x86"]),
)
MADE = st.lists(ARRAY_PIECES, max_size=60).map(lambda pieces: b"\x80\x02" + b"".join(pieces) + b".")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A file with some bytes changed, cut out, doubled or replaced, before and behind its pixels."""
    content = bytearray(draw(st.sampled_from(WHOLES)))
    for _ in range(draw(st.integers(1, 3))):
        last = len(content) - 1
        place = draw(st.one_of(st.integers(0, min(last, 400)), st.integers(max(0, last - 100), last)))
        how = draw(st.integers(0, 3))
        if how == 0:
            content[place] = draw(st.integers(0, 255))
        elif how == 1:
            del content[place : place + draw(st.integers(1, 60))]
        elif how == 2:
            content[place:place] = content[place : place + draw(st.integers(1, 60))]
        else:
            content[place : place + draw(st.integers(0, 10))] = draw(ARRAY_PIECES)
        content = content or bytearray(b".")
    return bytes(content)


def survives(path: Path, content: bytes) -> None:
    """It is read, or gets one sentence."""
    with suppress(UnreadablePickleError):
        found = taken(path, content)
        byte_rows(found, 3072)
        if isinstance(found, dict):
            byte_rows(found.get("data"), 3072)


@settings(max_examples=100, derandomize=True, **FUZZ)
@given(st.one_of(MADE, mutated()))
def test_made_up_and_changed_files_are_data(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    survives(tmp_path_factory.getbasetemp() / "batch", content)


@pytest.mark.long
@settings(max_examples=20_000, **FUZZ)
@given(st.one_of(MADE, mutated()))
def test_many_made_up_and_changed_files_are_data(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    survives(tmp_path_factory.getbasetemp() / "batch", content)
