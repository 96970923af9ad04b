"""Files of torch.save read as data: as torch reads them, whatever their format, and crafted ones end in a sentence."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from official_pickles import Call, Global, Outside, Raw, Writer, ordered
from test_stylegan_pickles import BOMBS, HOSTILE, PIECES, hostile
from torch import Tensor, nn

from ddbench.errors import DataError
from ddbench.ops.pickles import machine, torch_files
from ddbench.ops.pickles.instructions import instruction
from ddbench.ops.pickles.records import Span, Text, Thing
from ddbench.ops.pickles.tensors import STORAGES
from ddbench.ops.pickles.torch_files import read_torch

OLD = {"_use_new_zipfile_serialization": False}
FORMATS: tuple[dict[str, bool], ...] = ({}, OLD)


def save(path: Path, content: Any, how: dict[str, Any]) -> bytes:
    torch.save(content, path, **how)
    return path.read_bytes()


def taken(path: Path, content: bytes, **settings: Any) -> Any:
    path.write_bytes(content)
    with path.open("rb") as file:
        return read_torch(file, "the file x.pt", **settings)


def told(path: Path, content: bytes, **settings: Any) -> str:
    """The one sentence that a file gets."""
    with pytest.raises(DataError) as caught:
        taken(path, content, **settings)
    sentence = str(caught.value)
    assert sentence.startswith("the file x.pt ")
    assert sentence.isprintable()
    assert len(sentence) < 500
    return sentence


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.pt"


# ---------------------------------------------------------------- what is read


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))


def checkpoint() -> dict[str, Any]:
    """What training scripts keep beside the network."""
    net, base = network(), torch.arange(24.0).view(4, 6)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    views = {"t": base.t(), "column": base[:, 2], "slice": base[1:3, 2:5], "parameter": nn.Parameter(base)}
    views |= {"tied": base, "again": base}
    typed = {str(kind): torch.arange(-2, 5).to(kind) for kind in STORAGES.values()}
    odd = {"empty": torch.empty(0, 3), "number": torch.tensor(4), "size": torch.Size([1, 2]), "numpy": np.float64(0.5)}
    return {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, **views, **typed, **odd}


@pytest.mark.parametrize("how", FORMATS)
def test_files_are_read_as_torch_reads_them(path: Path, how: dict[str, Any]) -> None:
    content = save(path, checkpoint(), how)
    makes_numbers: Any = np.float64(0).__reduce__()[0]
    with torch.serialization.safe_globals([makes_numbers, np.dtype, np.dtypes.Float64DType]):
        theirs, ours = torch.load(io.BytesIO(content), weights_only=True), taken(path, content)
    assert ours.keys() == theirs.keys()
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, tensor in [*theirs["state_dict"].items(), *theirs.items()]:
        found = ours["state_dict"].get(name, ours.get(name))
        if isinstance(tensor, Tensor):
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found, tensor)
            assert found.is_contiguous()
    assert ours["tied"] is ours["again"]  # one in the file, one in memory
    assert (ours["epoch"], ours["size"], ours["numpy"]) == (3, (1, 2), 0.5)
    assert ours["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("how", FORMATS)
def test_lists_and_pairs_are_read(path: Path, how: dict[str, Any]) -> None:
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    (pair,) = taken(path, save(path, [[images, labels]], how))
    assert torch.equal(pair[0], images)
    assert torch.equal(pair[1], labels)
    assert torch.equal(taken(path, save(path, images, how)), images)
    assert torch.equal(taken(path, save(path, {"x": np.eye(3)}, how))["x"], torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("how", FORMATS)
def test_a_file_need_not_be_named_and_may_have_more_in_it(path: Path, how: dict[str, Any]) -> None:
    """A tensor with attributes, a network's metadata, a part that is chosen; other parts are not looked at."""
    tensor = torch.ones(3)
    tensor.note = "mine"  # type: ignore[attr-defined]
    content = save(path, {"a": OrderedDict(x=tensor), "sparse": torch.eye(3).to_sparse()}, how)
    assert torch.equal(taken(path, content, choose=lambda found: found["a"], strict=False)["x"], torch.ones(3))
    assert "'sparse' holds a sparse tensor" in told(path, content, strict=False)


class Stranger:
    """No class of torch's."""


@pytest.mark.parametrize("how", FORMATS)
def test_what_is_no_tensor_is_refused_or_inert(path: Path, how: dict[str, Any]) -> None:
    content = save(path, {"a": torch.ones(2), "args": Stranger()}, how)
    sentence = told(path, content)
    assert "holds more than tensors (it asks for test_torch_files.Stranger), and pickled code is never run" in sentence
    found = taken(path, content, strict=False)
    assert isinstance(found["args"], Thing)
    assert torch.equal(found["a"], torch.ones(2))
    whole = taken(path, save(path, network(), how), strict=False)
    assert whole.of.full == "torch.nn.modules.container.Sequential"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_instructions_are_those_that_pickletools_lists(protocol: int) -> None:
    numbers, others = [1, -1, 2**15, 2**40, -(2**70), 1.5, True, None], ["é\n'", b"\xff\x00'", {1}, frozenset([2]), ()]
    value = {"a": numbers, "b": others, "c" * 300: 1}
    content, place = pickle.dumps(value, protocol), 0
    for opcode, argument, where in pickletools.genops(content):
        assert where == place
        name, found, place = instruction(content, place)
        assert name == opcode.name
        if isinstance(found, Span):
            found = found.read(len(found))
        elif isinstance(found, tuple):
            found = " ".join(found)
        assert found == argument
    assert place == len(content)


@pytest.mark.parametrize("quoted", [r"'a\x00\xff\n\t\\\''", '"it\'s"'])
def test_strings_of_python_2_are_read(quoted: str) -> None:
    wanted = pickle.loads(f"S{quoted}\n.".encode(), encoding="latin1")
    assert instruction(f"S{quoted}\n.".encode(), 0)[1] == wanted
    long = f"S{quoted[0]}{quoted[1:-1] * 400_000}{quoted[0]}\n.".encode()
    text = instruction(long, 0)[1]
    assert isinstance(text, Text)
    found = text.as_bytes()
    assert found.read(len(found)) == wanted.encode("latin-1") * 400_000


def test_a_view_takes_no_more_memory_than_its_numbers(path: Path) -> None:
    base = torch.arange(4 << 20, dtype=torch.float32).view(4, -1).t()  # 16 MiB
    content = save(path, {str(number): base[number] for number in range(200)}, {})
    tracemalloc.start()
    found = taken(path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(content) // 8
    assert torch.equal(found["199"], base[199])


# ---------------------------------------------------------------- crafted files


def tensor(
    key: str = "0", num: Any = 6, size: Any = (6,), stride: Any = (1,), offset: Any = 0, kind: str = "FloatStorage"
) -> Call:  # fmt: skip
    """A view of a storage in a file of the zip format."""
    storage = Outside(("storage", Global("torch", kind), key, "cpu", num))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, offset, size, stride, False, ordered()))


def zipped(
    content: Any, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED, **more: str | bytes
) -> bytes:  # fmt: skip
    """A file of the zip format."""
    buffer, six = io.BytesIO(), {"0": np.arange(6, dtype=np.float32).tobytes()}
    made = content if isinstance(content, bytes) else Writer(2).finish(content)
    parts: dict[str, Any] = {"data.pkl": made, "byteorder": "little", **more}
    parts |= {f"data/{key}": raw for key, raw in (six if storages is None else storages).items()}
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, part in parts.items():
            file.writestr(f"x/{name}", part)
    return buffer.getvalue()


def old(content: Any, keys: Any = ("0",), storages: bytes | None = None, system: Any = None, version: int = 1001) -> bytes:
    """A file of the format before."""
    made = content if isinstance(content, bytes) else Writer(2).finish(content)
    about = {"little_endian": True, "protocol_version": 1001} if system is None else system
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, version, about))
    six = struct.pack("<q", 6) + np.arange(6, dtype=np.float32).tobytes()
    return head + made + pickle.dumps(list(keys), 2) + (six if storages is None else storages)


def in_old(made: Call) -> Call:
    """Whose storage has the one place more that the old format has."""
    storage, *rest = made.arguments
    return Call(made.what, (Outside((*storage.value, None)), *rest))


def test_parameters_of_the_first_versions_are_tensors(path: Path) -> None:
    """As torch 0.1 wrote them: a class with a tensor of the first kind, and a state."""
    made = in_old(tensor())
    made = Call(Global("torch._utils", "_rebuild_tensor"), made.arguments[:4])
    parameter = Call(Global("torch.nn.parameter", "Parameter"), (made,), state=(True, False, ordered()))
    assert taken(path, old(ordered({"weight": parameter})))["weight"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("write", [zipped, old])
def test_crafted_files_are_read(path: Path, write: Callable[[Any], bytes]) -> None:
    """So that what is refused below is refused for its own sake."""
    made = tensor(size=(2, 2), stride=(1, 3), offset=1)
    assert taken(path, write({"a": made if write is zipped else in_old(made)}))["a"].tolist() == [[1, 4], [2, 5]]


TYPED = Global("torch._tensor", "_rebuild_from_type_v2")
TENSORS = {
    "expanded": (tensor(size=(6,), stride=(0,)), "an expanded tensor, whose numbers overlap"),
    "windows": (tensor(size=(2, 3), stride=(1, 1)), "an expanded tensor, whose numbers overlap"),
    "huge": (tensor(size=(2**39,)), "a tensor of [549755813888] in a storage of 6 numbers"),
    "behind": (tensor(offset=1), "a tensor of [6] in a storage of 6 numbers"),
    "before": (tensor(offset=-1), "a tensor whose strides are none"),
    "backwards": (tensor(stride=(-1,), offset=5), "a tensor whose strides are none"),
    "sizes": (tensor(size=("6",)), "a tensor whose sizes are none"),
    "many sizes": (tensor(size=(1,) * 9, stride=(1,) * 9), "a tensor whose sizes are none"),
    "long": (tensor(num=7), "a storage of 7 numbers that has 24 bytes"),
    "short": (tensor(num=5, size=(5,)), "a storage of 5 numbers that has 24 bytes"),
    "wide": (tensor(kind="DoubleStorage"), "a storage of 6 numbers that has 24 bytes"),
    "complex": (tensor(num=3, size=(3,), kind="ComplexFloatStorage"), "complex numbers"),
    "quantised": (tensor(num=24, kind="QInt8Storage"), "quantised numbers"),
    "untyped": (tensor(num=24, kind="UntypedStorage"), "numbers of a kind that is not said"),
    "qtensor": (Call(Global("torch._utils", "_rebuild_qtensor"), (1,)), "a quantised tensor"),
    "sparse": (Call(Global("torch._utils", "_rebuild_sparse_tensor"), (1, 2)), "a sparse tensor"),
    "csr": (Call(Global("torch._utils", "_rebuild_sparse_csr_tensor"), (1,)), "a sparse tensor"),
    "meta": (Call(Global("torch._utils", "_rebuild_meta_tensor_no_storage"), (1,)), "a meta tensor"),
    "v3": (Call(Global("torch._utils", "_rebuild_tensor_v3"), (1,)), "a tensor of a kind that is not read"),
    "no storage": (Call(Global("torch._utils", "_rebuild_tensor_v2"), (3, 0, (1,), (1,))), "a tensor without a storage"),
    "inside of itself": (Call(TYPED, (TYPED, Global("torch", "Tensor"), (), {})), "a tensor of a kind that is not read"),
}  # fmt: skip


@pytest.mark.parametrize("label", TENSORS)
def test_tensors_that_are_not_plain_get_a_sentence(path: Path, label: str) -> None:
    made, sentence = TENSORS[label]
    assert f"'weight' holds {sentence}." in told(path, zipped({"weight": made}))


@pytest.mark.parametrize("how", FORMATS)
def test_torchs_own_odd_tensors_get_a_sentence(path: Path, how: dict[str, Any]) -> None:
    made = {
        "a sparse tensor": torch.eye(3).to_sparse(),
        "a meta tensor": torch.empty(3, device="meta"),
        "an expanded tensor": torch.ones(1).expand(5),
        "complex numbers": torch.ones(3, dtype=torch.complex64),
        "a tensor of a kind that is not read": torch._neg_view(torch.ones(3)),  # whose numbers are stored with the other sign
    }
    for kind, value in made.items():
        assert f"'x' holds {kind}" in told(path, save(path, {"x": value}, how))


def test_views_cannot_multiply_what_a_file_holds(path: Path) -> None:
    """Each lies in its storage, and no two are equal: together they would be a hundred times the file."""
    num, raw = 50_000, bytes(200_000)
    shared = {"0": raw}
    storage = Outside(("storage", Global("torch", "FloatStorage"), "0", "cpu", num))

    def view(offset: int) -> Call:
        return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, offset, (num - 200,), (1,), False, ordered()))

    assert len(taken(path, zipped({"a": view(0)}, shared))["a"]) == num - 200
    sentence = told(path, zipped({str(number): view(number) for number in range(100)}, shared))
    assert "holds more numbers than the file has room for" in sentence
    again = view(0)
    assert len(taken(path, zipped({str(number): again for number in range(100)}, shared))) == 100  # one tensor, a hundred names


ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "deflated": (lambda: zipped({"a": tensor()}, method=zipfile.ZIP_DEFLATED), "a compressed or encrypted entry"),
    "bomb": (lambda: zipped({"a": tensor(num=2**24)}, {"0": bytes(2**26)}, zipfile.ZIP_DEFLATED), "a compressed or"),
    "big endian": (lambda: zipped({"a": tensor()}, byteorder="big"), "not in the order little endian"),
    "script": (lambda: zipped({"a": tensor()}, **{"constants.pkl": b"."}), "a program of TorchScript"),
    "code": (lambda: zipped({"a": tensor()}, **{"code/x.py": b"."}), "a program of TorchScript"),
    "no storage": (lambda: zipped({"a": tensor("1")}), "'a' holds a storage of 6 numbers that has 0 bytes"),
    "another zip": (lambda: zipped({"a": 1}).replace(b"data.pkl", b"date.pkl"), "none that torch.save wrote"),
    "nothing": (lambda: b"PK\5\6" + bytes(18), "no file that torch.save wrote"),
    "cut": (lambda: zipped({"a": tensor()})[:-1], "a zip file"),
    "half": (lambda: zipped({"a": tensor()})[:200], "a zip file that is cut short"),
    "longer": (lambda: zipped({"a": tensor()}) + b"x", "something behind its end"),
    "twice": (lambda: zipped({"a": 1}, x=b"", y=b"").replace(b"x/y", b"x/x"), "names an entry twice"),
    "two storages": (lambda: zipped({"a": tensor(), "b": tensor(num=3)}), "a storage that is said to be two"),
    "odd reference": (lambda: zipped({"a": Outside("storage")}), "a reference that is no storage"),
    "deep": (lambda: zipped(b"\x80\x02" + b"]" * 50 + b"a" * 49 + b"."), "more than 32 inside of each other"),
    "in itself": (lambda: zipped(b"\x80\x02]q\x00h\x00a."), "a part inside of itself"),
    "no name": (lambda: zipped(Call(Call(Global("collections", "OrderedDict"), ()), ())), "a call of something that is no name"),
    "web page": (lambda: b"<html>", "no file that torch.save wrote"),
    "empty": (lambda: b"", "it is empty"),
    "plain pickle": (lambda: pickle.dumps({"a": 1}), "no file that torch.save wrote"),
    "tar": (lambda: bytes(257) + b"ustar" + bytes(250), "a tar file, as torch before 0.1.10 wrote"),
}


@pytest.mark.parametrize("label", ZIPS)
def test_other_files_get_a_sentence(path: Path, label: str) -> None:
    made, sentence = ZIPS[label]
    assert sentence in told(path, made())


def with_directory(change: Callable[[bytearray, int], Any]) -> bytes:
    """A file of the zip format, something of whose list of entries is changed; gets the place of `data/0` in it."""
    content = bytearray(zipped({"a": tensor()}))
    change(content, content.rindex(b"x/data/0") - 46)
    return bytes(content)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda raw, at: raw.__setitem__(slice(at + 8, at + 10), b"\1\0"), "a compressed or encrypted entry"),
        (lambda raw, at: raw.__setitem__(slice(at + 42, at + 46), bytes(4)), "an entry that is not where its list says"),
        (lambda raw, at: raw.__setitem__(slice(at + 42, at + 46), b"\xfe\xff\xff\xff"), "a zip file that is cut short"),
        (lambda raw, at: raw.__setitem__(slice(at + 20, at + 28), b"\x40\0\0\0" * 2), "entries overlap"),
        (lambda raw, at: raw.__setitem__(slice(at + 20, at + 28), b"\xff" * 8), "a zip file that is cut short"),
        (lambda raw, at: raw.__setitem__(slice(at, at + 4), b"PK\1\3"), "list of entries is damaged"),
        (lambda raw, at: raw.__setitem__(slice(at + 28, at + 30), b"\xff\xff"), "list of entries is damaged"),
        (lambda raw, at: raw.__setitem__(slice(-12, -10), b"\xff\xff"), "list of entries is damaged"),
        (lambda raw, at: raw.__setitem__(slice(-6, -2), b"\xff\xff\xff\x7f"), "list of entries is not where it says"),
        (lambda raw, at: raw.__setitem__(slice(-18, -16), b"\1\0"), "list of entries is not where it says"),
    ],
)
def test_damaged_lists_of_entries_get_a_sentence(path: Path, change: Callable[[bytearray, int], Any], sentence: str) -> None:
    assert sentence in told(path, with_directory(change))


def with_64_bits(content: bytes) -> bytes:
    """The same file as it would be beyond 4 GiB: numbers in the fields that are made for those, and an end of its own."""
    last = content.rindex(b"PK\5\6")
    count, place = struct.unpack("<10xH4xIxx", content[last:])
    entries, at = bytearray(), place
    for _ in range(count):
        num, name, start = struct.unpack("<24xIH12xI", content[at : at + 46])
        head = bytearray(content[at : at + 46])
        head[20:28], head[30:32], head[42:46] = b"\xff" * 8, struct.pack("<H", 34), b"\xff" * 4
        extra = struct.pack("<HHH", 9, 2, 0) + struct.pack("<HHQQQ", 1, 24, num, num, start)
        entries += head + content[at + 46 : at + 46 + name] + extra
        at += 46 + name
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(entries), place)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, place + len(entries), 1)
    return content[:place] + entries + end + locator + b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2)


def test_files_beyond_4_gib_have_wider_fields(path: Path) -> None:
    content = with_64_bits(zipped({"a": tensor()}))
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert file.testzip() is None
    assert taken(path, content)["a"].tolist() == [0, 1, 2, 3, 4, 5]
    end = content.rindex(b"PK\6\6")
    for where, raw, sentence in (
        (end, b"PK\6\5", "a zip file whose end is not where it says"),
        (end + 48, b"\xff" * 8, "list of entries is not where it says"),
        (end + 32, b"\xff" * 8, "a zip file of more than"),
        (content.rindex(b"x/data/0") + 8 + 6, b"\2", "a zip file that is cut short"),  # the kind of the field with the numbers
    ):
        assert sentence in told(path, content[:where] + raw + content[where + len(raw) :])


def test_entries_and_pickles_cannot_be_without_bounds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "MAX_PICKLE", 20)
    assert "it says more of its tensors than 0 MiB" in told(path, zipped({"a": tensor()}))
    monkeypatch.setattr("ddbench.ops.pickles.archives.MAX_ENTRIES", 3)
    assert "a zip file of more than 3 entries" in told(path, zipped({"a": tensor()}, x=b""))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda good: old(good, version=1000), "a version of torch.save that is unknown"),
        (lambda good: old(good, system={"little_endian": False}), "not in the order little endian"),
        (lambda good: old(good, system=[]), "not in the order little endian"),
        (lambda good: old(good, ()), "'a' holds a storage of 6 numbers that has 0 bytes"),
        (lambda good: old(good, ("1",)), "its storages are not those that it lists"),
        (lambda good: old(good, (1,)), "its storages are not those that it lists"),
        (lambda good: old(good, storages=b"\6"), "its storages are not those that it lists"),
        (lambda good: old(good, storages=struct.pack("<q", 5) + bytes(24)), "its storages are not those that it lists"),
        (lambda good: old(good)[:-1], "'a' holds a storage of 6 numbers that has 23 bytes"),
        (lambda good: old(good, storages=struct.pack("<q", 6)), "'a' holds a storage of 6 numbers that has 0 bytes"),
        (lambda good: old({"a": Outside(("view", 1))}), "a reference that is no storage"),
    ],
)
def test_damaged_files_of_the_old_format_get_a_sentence(path: Path, content: Callable[[Any], bytes], sentence: str) -> None:
    assert sentence in told(path, content({"a": in_old(tensor())}))


def test_storages_of_views_of_the_first_versions_are_refused(path: Path) -> None:
    first = Outside(("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, ("1", 0, 3)))
    made = Call(Global("torch._utils", "_rebuild_tensor_v2"), (first, 0, (3,), (1,), False, ordered()))
    assert "a reference that is no storage" in told(path, old({"a": made}))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_pickles_run_nothing(label: str, strict: bool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = path.parent / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before, content = set(sys.modules), hostile(str(folder / "sentinel"))[label]
    for made in (zipped(content), old(content)):
        with suppress(DataError):
            taken(path, made, strict=strict)
    assert set(sys.modules) - before <= {"_strptime"}
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("label", BOMBS)
def test_bombs_are_read_or_refused(label: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MAX_OPCODES", 250_000)
    monkeypatch.setattr(torch_files, "MAX_PARTS", 10_000)
    for made in (zipped(BOMBS[label]), old(BOMBS[label])):
        with suppress(DataError):
            taken(path, made, strict=False)


def test_texts_that_stand_for_bytes_are_not_made_before_they_are_asked_for(path: Path) -> None:
    """A thousand arrays out of one text of a MiB."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00"
    each = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    content = zipped(b"\x80\x02" + text + b"0](" + each * 1000 + b"e.")
    tracemalloc.start()
    assert len(taken(path, content)) == 1000
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_work_is_bounded_by_what_the_file_says_once(path: Path) -> None:
    """Long tuples of arguments, and long texts, that many calls are given."""
    many = b"\x80\x02(" + b"N" * 1000 + b"tq\x00" + b"0cnumpy\nndarray\nh\x00R" * 3000 + b"."
    assert "more than 2000000 arguments" in told(path, zipped(many))
    kind = b"cnumpy\ndtype\nX\x02\x00\x00\x00i1\x85R"
    number = Raw(b"cnumpy.core.multiarray\nscalar\n" + kind + b"X\x07\x00\x00\x00aaaaaaa\x86R")
    assert isinstance(taken(path, zipped({"a": number}))["a"], Thing)
    state = Raw(b"(K\x01K\x01\x85" + kind + b"\x89X\x07\x00\x00\x00aaaaaaat")
    array = Call(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"),), state)
    assert "'a' holds an array of 1 bytes that has a text of 7" in told(path, zipped({"a": array}))
    assert "holds a name of more than 1000 characters" in told(path, zipped({"a" * 1001: 1}))
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2)[:-1] + b"0N" * 300 + b"."
    embedded = Call(Global("torch.storage", "_load_from_bytes"), (Raw(b"B" + struct.pack("<I", len(head)) + head),))
    made = Call(Global("torch._utils", "_rebuild_tensor_v2"), (embedded, 0, (1,), (1,), False, ordered()))
    assert "'a' holds more than 500 instructions" in told(path, zipped({"a": made}))


# ---------------------------------------------------------------- fuzz

FUZZ = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
TORCH_PIECES = st.one_of(
    PIECES,
    st.sampled_from([b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n"]),
    st.sampled_from([b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\nTensor\n", b"K\x00(K\x06t(K\x01t"]),
    st.sampled_from([Writer(2).finish(tensor().arguments[0])[2:-1]]),
)
MADE = st.lists(TORCH_PIECES, max_size=60).map(lambda pieces: b"\x80\x02" + b"".join(pieces) + b".")


def wholes() -> list[bytes]:
    """Small files of both formats, as torch writes them."""
    found = []
    for how in FORMATS:
        buffer = io.BytesIO()
        beside = {"t": torch.arange(6.0).view(2, 3).t(), "n": np.float64(1), "l": [1, "a"]}
        torch.save({"state_dict": network().state_dict(), **beside}, buffer, **how)
        found.append(buffer.getvalue())
    return found


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """One with some bytes changed, cut out, doubled or replaced; half of the places lie in its pickle or its list of entries."""
    content = bytearray(draw(st.sampled_from(WHOLES)))
    for _ in range(draw(st.integers(1, 4))):
        last = len(content) - 1
        place = draw(st.one_of(st.integers(0, last), st.integers(0, min(last, 1500)), st.integers(max(0, last - 1500), last)))
        how = draw(st.integers(0, 3))
        if how == 0:
            content[place] = draw(st.integers(0, 255))
        elif how == 1 and len(content) > 400:
            del content[place : place + draw(st.integers(1, 300))]
        elif how == 2:
            content[place:place] = content[place : place + draw(st.integers(1, 300))]
        else:
            content[place : place + draw(st.integers(0, 30))] = draw(TORCH_PIECES)
    return bytes(content)


WHOLES = wholes()


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from tensors_in(part)


def survives(path: Path, content: bytes) -> None:
    """It is read, or gets one sentence, and takes no more than the file."""
    for strict in (True, False):
        with suppress(DataError):
            found = {id(tensor): tensor.nbytes for tensor in tensors_in(taken(path, content, strict=strict))}
            assert sum(found.values()) <= len(content)


@pytest.mark.slow
@settings(max_examples=100, derandomize=True, **FUZZ)
@given(MADE)
def test_made_up_files_are_data(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "made.pt"
    survives(path, zipped(content))
    survives(path, old(content))


@settings(max_examples=100, derandomize=True, **FUZZ)
@given(mutated())
def test_changed_files_are_data(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    survives(tmp_path_factory.getbasetemp() / "changed.pt", content)


@pytest.mark.long
@settings(max_examples=10_000, **FUZZ)
@given(MADE)
def test_many_made_up_files_are_data(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "made.pt"
    survives(path, zipped(content))
    survives(path, old(content))


@pytest.mark.long
@settings(max_examples=10_000, **FUZZ)
@given(mutated())
def test_many_changed_files_are_data(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    survives(tmp_path_factory.getbasetemp() / "changed.pt", content)


@pytest.mark.long
def test_bombs_fit_into_little_memory(tmp_path: Path) -> None:
    """In a process that may take 512 MiB more than it has."""
    script = f"""
import sys, resource
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parent)!r}]
import test_torch_files as tests
from ddbench.errors import DataError
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
files = [write(content) for content in tests.BOMBS.values() for write in (tests.zipped, tests.old)]
resource.setrlimit(resource.RLIMIT_AS, (size + (512 << 20),) * 2)
for content in files:
    try:
        tests.taken(Path({str(tmp_path / "x.pt")!r}), content, strict=False)
    except DataError:
        pass
print("all")
"""
    if not Path("/proc/self/statm").is_file():
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["all"], done.stdout + done.stderr[-2000:]
