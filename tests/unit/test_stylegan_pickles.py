"""Official pickles read as data: every tensor and setting comes back, other files get a sentence, hostile ones get nowhere."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from golden_stylegan import describe, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from official_pickles import (
    Call,
    Global,
    New,
    Raw,
    Writer,
    discriminator,
    dtype,
    generator,
    official,
    ordered,
    persistent,
    storage_bytes,
    stored,
)
from torch import Tensor

from ddbench.errors import DataError
from ddbench.ops.pickles import machine
from ddbench.ops.pickles.machine import load
from ddbench.ops.pickles.records import Span, Thing
from ddbench.ops.pickles.tensors import EmbeddedStorage, StoredTensor
from ddbench_plugins.stylegan.description import Source
from ddbench_plugins.stylegan.pickles import OFFICIAL, Official, opened, read

SOURCE = Source(name="x.pkl", sha256="0" * 64, bytes=1, key="?", class_name="?")


def taken(content: bytes) -> Official:
    return read(content, "the file x.pkl", SOURCE)


def read_all(content: bytes) -> None:
    """The description, and every number."""
    found = taken(content)
    for name in found.tensors:
        assert isinstance(found.read(name), Tensor)


def told(content: bytes) -> str:
    """The one sentence that a file gets."""
    with pytest.raises(DataError) as caught:
        read_all(content)
    sentence = str(caught.value)
    assert len(sentence) < 600
    assert sentence.isprintable()
    return sentence


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("case", ["sr32", "sr128", "plain32"])
@pytest.mark.parametrize(("protocol", "dill"), [(3, True), (4, False)])
def test_every_tensor_and_setting_comes_back(case: str, protocol: int, dill: bool) -> None:
    found, wanted = taken(official(case, protocol, dill)), weights(case)
    assert found.tensors.keys() == wanted.keys()
    assert all(torch.equal(found.read(name), wanted[name]) for name in wanted)
    assert msgspec.structs.replace(found.description, source=None) == describe(case)
    source = found.description.source
    assert source is not None
    assert (source.key, source.class_name) == ("G_ema", "Generator" if case == "plain32" else "SuperresGenerator")
    assert found.messages == ()


def test_a_mapped_file_is_read_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(official("plain32"))
    with opened(path, "a" * 64) as found:
        assert torch.equal(found.read("synthesis.input.freqs"), weights("plain32")["synthesis.input.freqs"])
    path.write_bytes(b"")
    with pytest.raises(DataError, match="has 0 bytes"), opened(path, "a" * 64):
        pass


def test_arguments_of_constructors_are_never_read() -> None:
    """Those in the golden files are stale, as in published ones; here they are all wrong."""
    found = taken(official("sr32"))
    assert found.description.num_ws == 13
    changed = generator("sr32")
    changed.arguments[0]["state"]["_modules"].items["synthesis"].arguments[0]["state"]["_init_kwargs"] = "nonsense"
    assert taken(Writer().finish({"G_ema": changed})).description == found.description


def test_half_precision_is_kept_as_it_is_stored() -> None:
    half = {name: value.half() if value.dim() == 4 else value for name, value in weights("plain32").items()}
    found = taken(Writer().finish({"G_ema": generator("plain32", half)}))
    assert {found.dtype(name) for name in half} == {torch.float16, torch.float32}
    assert all(torch.equal(found.read(name), half[name]) for name in half)


def test_only_an_averaged_generator_goes_without_a_word() -> None:
    found = taken(Writer().finish({"G": generator("plain32")}))
    assert found.messages == ("the file x.pkl holds no averaged generator 'G_ema': its 'G' is taken.",)


def test_tensors_that_are_not_known_are_told_and_left_out() -> None:
    more = weights("plain32") | {"synthesis.L0_36_6.old_filter": torch.ones(3)}
    found = taken(Writer().finish({"G_ema": generator("plain32", more)}))
    assert "synthesis.L0_36_6.old_filter" not in found.tensors
    assert found.messages == ("tensors that are not known are left out: synthesis.L0_36_6.old_filter.",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool, torch.uint8, torch.bfloat16])
def test_storages_are_read_as_torch_reads_them(dtype: torch.dtype) -> None:
    tensor = torch.arange(-3, 9).to(dtype)
    content = storage_bytes(tensor)
    theirs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    ours = StoredTensor(EmbeddedStorage(Span(b"before" + content, 6, 6 + len(content))), 0, (12,), (1,)).read()
    assert torch.equal(ours, torch.tensor([], dtype=dtype).set_(theirs.untyped(), 0, (12,), (1,)))
    assert torch.equal(ours, tensor)


def test_a_view_is_what_its_strides_say() -> None:
    base = torch.arange(12.0)
    content = storage_bytes(base)
    view = StoredTensor(EmbeddedStorage(Span(content, 0, len(content))), 1, (3, 2), (1, 4)).read()
    assert torch.equal(view, base.as_strided((3, 2), (1, 4), 1))
    assert view.is_contiguous()


# ---------------------------------------------------------------- other files, one sentence each


def stylegan2() -> Call:
    blocks = {name: persistent("SynthesisBlock", {"_parameters": ordered()}) for name in ("b4", "b8")}
    synthesis = persistent("SynthesisNetwork", {"_modules": ordered(blocks)})
    parts = ordered({"synthesis": synthesis, "mapping": persistent("MappingNetwork", {})})
    return persistent("Generator", {"_modules": parts})


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


OTHERS = {
    "StyleGAN2": (lambda: Writer().finish({"G_ema": stylegan2()}), "holds as 'G_ema' a StyleGAN2 generator; only"),
    "discriminator": (lambda: Writer().finish({"D": discriminator()}), "holds a discriminator and no generator"),
    "discriminator alone": (lambda: Writer().finish(discriminator()), "the file x.pkl is a discriminator; only"),
    "another network": (
        lambda: Writer().finish({"G": persistent("Unet", {"_modules": ordered({"down": persistent("X", {})})})}),
        "holds as 'G' a network of class Unet; only",
    ),
    "state dict": (lambda: Writer().finish({"a": stored(torch.ones(2))}), "is a plain state dict, which says nothing of layers"),
    "torch.save": (lambda: saved({"a": torch.ones(2)}), "is a zip file, as torch.save writes a state dict or a checkpoint"),
    "web page": (lambda: b"<!DOCTYPE html><html>Not found</html>", "is a web page, JSON or safetensors, not an official pickle"),
    "list": (lambda: pickle.dumps([1, 2]), "holds a list: it must be an official pickle with a generator 'G_ema'"),
    "nothing": (lambda: pickle.dumps({}), "holds nothing and no generator"),
    "other keys": (lambda: pickle.dumps({"epoch": 3, "\x1b[31m": 2}), r"holds epoch, \[31m and no generator"),
    "class": (lambda: Writer().finish(New(Global("timm.models", "Net"))), "the file x.pkl is Net alone"),
    "cut": (lambda: official("plain32")[:-1], "is damaged, cut short or no pickle: it ends before its end is said"),
    "no pickle": (lambda: b"\x89PNG....", "is damaged, cut short or no pickle"),
}


@pytest.mark.parametrize("label", OTHERS)
def test_other_files_are_told_what_they_are(label: str) -> None:
    content, sentence = OTHERS[label]
    with pytest.raises(DataError, match=sentence):
        taken(content())


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("synthesis/layer_names", ..., "it does not list its layers"),
        ("synthesis/layer_names", ["L0_36_6", "L9"], "it has no part 'L9'"),
        ("synthesis/layer_names", ["L0_36_6"] * 3000, "it lists 3000 layers, of which 1 differ, and may have 512"),
        ("mapping/num_ws", 9, "'num_ws' is 9, and 9 layers take 10 codes"),
        ("synthesis/output_scale", "0.25", "what it records is not as expected: Expected `float`, got `str`"),
        ("synthesis/output_scale", float("nan"), "not as expected"),
        ("mapping/z_dim", ..., r"Expected `int`, got `null` - at `\$\.z_dim`"),
        ("mapping/z_dim", 17, "its tensor mapping.fc0.weight is"),
        ("mapping.fc0/bias_gain", -1.0, "not as expected"),
        ("synthesis.L1_36_6/conv_kernel", 1, r"its tensor synthesis.L1_36_6.weight is \[6, 6, 3, 3\]"),
        ("synthesis.L1_36_6/padding", [1, 2], "not as expected"),
        ("synthesis.L1_36_6/up_factor", 10**6, "not as expected"),
        ("synthesis.L1_36_6/in_channels", 10**9, "not as expected"),
        ("synthesis.input/size", [36], "not as expected"),
    ],
)
def test_settings_that_do_not_fit_are_named(path: str, value: Any, sentence: str) -> None:
    module, _, name = path.rpartition("/")
    changed = {f"{module}/{name}": value}
    with pytest.raises(DataError, match=sentence):
        taken(Writer().finish({"G_ema": generator("plain32", **changed)}))


def test_tensors_that_do_not_fit_are_named() -> None:
    name, good = "synthesis.L0_36_6.affine.weight", weights("plain32")
    for wrong, sentence in (
        ({key: value for key, value in good.items() if key != name}, f"it lacks the tensor {name}"),
        (good | {name: torch.ones(6, 63)}, f"its tensor {name} is \\[6, 63\\], and what it records asks for \\[6, 64\\]"),
        (good | {"synthesis.L0_36_6.down_filter": torch.ones(3, 4)}, r"its filter .*down_filter is \[3, 4\]"),
    ):
        with pytest.raises(DataError, match=sentence):
            taken(Writer().finish({"G_ema": generator("plain32", wrong)}))
    few = weights("sr32") | {"mapping.embed.weight": torch.ones(9, 20)}
    with pytest.raises(DataError, match="its table of 9 class embeddings does not serve 10 classes"):
        taken(Writer().finish({"G_ema": generator("sr32", few)}))


def settings_array(shape: tuple[int, ...]) -> Call:
    num = int(np.prod(shape))
    state = (1, shape, dtype("i8"), False, np.arange(num, dtype=np.int64).tobytes())
    return Call(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b"), state)


def test_settings_are_arrays_of_few_numbers() -> None:
    """As many as it says: one of 64 is read, and does not fit; a longer one is not."""
    for num, sentence in ((64, "what it records is not as expected"), (65, "an array of [65] numbers where a setting belongs")):
        changed = generator("plain32", **{"synthesis.input/size": settings_array((num,))})
        assert sentence in told(Writer().finish({"G_ema": changed}))
    flat = settings_array((2,))
    flat.state = (*flat.state[:1], (3,), *flat.state[2:])
    assert "an array of [3] that has 16 bytes" in told(
        Writer().finish({"G_ema": generator("plain32", **{"synthesis.input/size": flat})})
    )


def test_a_table_of_class_embeddings_has_the_features_that_are_mixed() -> None:
    wrong = weights("sr32") | {"mapping.embed.weight": torch.ones(10, 21)}
    content = Writer().finish({"G_ema": generator("sr32", wrong)})
    assert "its table of 10 class embeddings does not serve 10 classes" in told(content)


def test_tensors_that_share_a_storage_cannot_exceed_the_file(tmp_path: Path) -> None:
    """Every one lies in the same storage, which is in the file once."""
    path, tensors = tmp_path / "x.pkl", weights("plain32")
    shared = torch.zeros(max(tensor.numel() for tensor in tensors.values()))
    storage = Call(Global("torch.storage", "_load_from_bytes"), (storage_bytes(shared),))

    def in_it(made: Any) -> Any:
        """The same module with all tensors there."""
        state = made.arguments[0]["state"] if isinstance(made, Call) else made.state
        for table in (state["_parameters"].items, state["_buffers"].items):
            for name, tensor in table.items():
                call = tensor.arguments[0] if tensor.what.name == "_rebuild_parameter" else tensor
                call.arguments = (storage, *call.arguments[1:])
                table[name] = tensor
        for part in state["_modules"].items.values():
            in_it(part)
        return made

    path.write_bytes(Writer().finish({"G_ema": in_it(generator("plain32"))}))
    sentence = r"bytes, and its tensors would take [0-9]+: it is no official one"
    with pytest.raises(DataError, match=sentence), opened(path, "a" * 64):
        pass


def with_tensor(made: Any) -> bytes:
    """An official file, one tensor of which is made by hand."""
    changed = generator("plain32")
    synthesis = changed.arguments[0]["state"]["_modules"].items["synthesis"].arguments[0]["state"]
    synthesis["_modules"].items["input"].arguments[0]["state"]["_buffers"].items["phases"] = made
    return Writer().finish({"G_ema": changed})


def rebuilt(content: Any, offset: Any = 0, size: Any = (6,), stride: Any = (1,)) -> Call:
    storage = Call(Global("torch.storage", "_load_from_bytes"), (content,))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, offset, size, stride, False, ordered()))


SIX = storage_bytes(torch.arange(6.0))


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (rebuilt(SIX[:-1]), "a storage of 6 numbers that has 23 bytes"),
        (rebuilt(SIX[:100]), "cannot be read"),
        (rebuilt(SIX.replace(b"cuda:0q", b"cuda:0q")[:-32] + struct.pack("<q", 10**15) + SIX[-24:]), "storage of 6 numbers"),
        (rebuilt(SIX, 1), r"a tensor of \[6\] in a storage of 6 numbers"),
        (rebuilt(SIX, -1), "strides are none"),
        (rebuilt(SIX, 0, (6,), (0,)), "an expanded tensor, whose numbers overlap"),
        (rebuilt(SIX, 0, (6,), (2,)), "in a storage of 6 numbers"),
        (rebuilt(SIX, 0, (6,), (True,)), "strides are none"),
        (rebuilt(SIX, 0, (6,), (1, 1)), "strides are none"),
        (rebuilt("text"), "a storage that is not made of bytes"),
        (rebuilt(SIX.replace(b"FloatStorage", b"EvilsStorage")), "numbers of a kind that is not read (torch.EvilsStorage)"),
        (rebuilt(SIX.replace(b"ctorch\n", b"cposix\n")), "numbers of a kind that is not read (posix.FloatStorage)"),
    ],
)
def test_numbers_must_lie_in_their_storage(tensor: Call, sentence: str | None) -> None:
    if sentence is None:
        assert taken(with_tensor(tensor)).read("synthesis.input.phases").tolist() == [0.0] * 6
    else:
        assert sentence.replace("\\", "") in told(with_tensor(tensor))


def test_sizes_of_the_file_are_checked_before_a_number_is_read() -> None:
    large = rebuilt(SIX, 0, (2**39,), (0,))
    tracemalloc.start()
    assert "is [549755813888]" in told(with_tensor(large))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


# ---------------------------------------------------------------- hostile files

MARK = b"("


def reduce(module: str, name: str, *arguments: Any) -> bytes:
    return Writer().finish(Call(Global(module, name), arguments))


def hostile(sentinel: str) -> dict[str, bytes]:
    """Files that would leave a mark on disc, each in another way, if anything of them ran."""
    touch, python = f"touch {sentinel}", f"open({sentinel!r}, 'w').close()"
    system = Call(Global("os", "system"), (touch,))
    module = Call(Global("dill._dill", "_import_module"), ("os",))
    objects = Call(Global("numpy", "dtype"), ("O8", False, True))
    source = persistent("Generator", {"_modules": {}}, source=python)
    line = touch.encode()
    return {
        "os.system": reduce("os", "system", touch),
        "posix.system": reduce("posix", "system", touch),
        "eval": reduce("builtins", "eval", python),
        "exec": reduce("__builtin__", "exec", python),
        "getattr": Writer().finish(Call(Call(Global("builtins", "getattr"), (Global("os", ""), "system")), (touch,))),
        "import": Writer().finish(Call(Global("builtins", "__import__"), ("antigravity",))),
        "subprocess": reduce("subprocess", "Popen", ["touch", sentinel]),
        "nested": Writer().finish({"G_ema": persistent("Generator", {"a": system, "_modules": ordered({"mapping": system})})}),
        "inside of a tensor": with_tensor(system),
        "as a storage": with_tensor(rebuilt(reduce("os", "system", touch))),
        "storage in a storage": with_tensor(rebuilt(SIX.replace(b"(X\x07\x00\x00\x00storage", b"cos\nsystem\n(" + line))),
        "source": Writer().finish({"G_ema": source}),
        "INST": b"(S'" + line + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + line + b"'\no.",
        "NEWOBJ": b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(line)) + line + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cos\nsystem\nX" + struct.pack("<I", len(line)) + line + b"\x85}\x92.",
        "BUILD with slots": Writer().finish(New(Global("os", "_wrap_close"), state=(None, {"__class__": system}))),
        "BUILD of a class": Writer().finish(Raw(b"cbuiltins\nobject\n}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsbS'x'\nb")),
        "copyreg": reduce("copyreg", "_reconstructor", Global("os", "system"), Global("builtins", "object"), touch),
        "copyreg.add_extension": reduce("copyreg", "add_extension", "os", "system", 1),
        "EXT1": b"\x80\x02\x82\x01X\x01\x00\x00\x00a\x85R.",
        "PERSID": b"Pos.system\n.",
        "BINPERSID": b"\x80\x02cos\nsystem\nQ.",
        "dill": Writer().finish(Call(Call(Global("dill._dill", "_get_attr"), (Global("os", ""), "system")), (touch,))),
        "dill module": Writer().finish(Call(Call(Global("dill._dill", "_get_attr"), (module, "system")), (touch,))),
        "dill type": Writer().finish(Call(Call(Global("dill._dill", "_load_type"), ("exec",)), (python,))),
        "dill code": Writer().finish(Call(Global("dill._dill", "_create_function"), (python, {}, "f"))),
        "numpy object": Writer().finish(Call(Global("numpy.core.multiarray", "scalar"), (objects, pickle.dumps(1)))),
        "odd names": Writer().finish(Call(Global("os.path\x00", "system;\n"), (touch,))),
        "name of a number": b"\x80\x04K\x01K\x02\x93.",
        "dotted": Writer().finish(Call(Global("os", "path.os.system"), (touch,))),
        "torch.load": reduce("torch", "load", pickle.dumps(1)),
        "pickle.loads": reduce("pickle", "loads", reduce("os", "system", touch)),
        "OrderedDict of calls": reduce("collections", "OrderedDict", [["a", system]]),
        "set of calls": Writer().finish(Call(Global("builtins", "set"), ([system],))),
        "EasyDict": Writer().finish(New(Global("dnnlib.util", "EasyDict"), {"__class__": system}, state={"x": system})),
    }


HOSTILE = sorted(hostile("sentinel"))


@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_files_get_a_sentence_and_run_nothing(label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    told(hostile(str(tmp_path / "sentinel"))[label])
    assert set(sys.modules) - before <= {"_strptime"}
    assert list(tmp_path.iterdir()) == []


def test_the_same_files_do_leave_a_mark_where_they_are_unpickled(tmp_path: Path) -> None:
    """The test above can fail."""
    path = tmp_path / "sentinel"
    for label in ("os.system", "eval", "INST", "OBJ"):
        pickle.loads(hostile(str(path))[label])
        assert path.is_file()
        path.unlink()


WATCHED = """
import sys, pathlib
sys.path[:0] = {paths!r}
import official_pickles, test_stylegan_pickles as tests
from ddbench.errors import DataError
import ddbench_plugins.stylegan.pickles, torch, numpy, msgspec
tests.hostile("warm"), tests.official("plain32")
files = [*tests.hostile({sentinel!r}).items(), ("official", tests.official("sr32"))]
tests.taken(files[-1][1]).read("mapping.w_avg")
with tests.suppress(DataError):
    tests.taken(b"no pickle")
seen = []
def hook(event, arguments):
    if not watching: return
    if event in ("exec", "compile", "import", "pickle.find_class", "subprocess.Popen") or event.startswith("os."):
        seen.append((label, event, repr(arguments)[:100]))
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append((label, event, repr(arguments)[:100]))
watching = False
sys.addaudithook(hook)
for label, content in files:
    watching = True
    try:
        found = tests.taken(content)
        for name in found.tensors: found.read(name)
    except DataError:
        pass
    finally:
        watching = False
label, watching = "control", True
eval("1"), __import__("colorsys")
watching = False
print(*seen, sep="\\n")
"""


@pytest.mark.slow
def test_python_itself_sees_no_code_run_and_no_file_opened(tmp_path: Path) -> None:
    script = WATCHED.format(paths=[str(Path(__file__).parent)], sentinel=str(tmp_path / "sentinel"))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = done.stdout.splitlines()
    assert [line for line in seen if "'control'" not in line] == []
    assert {line.split("'")[3] for line in seen} == {"compile", "exec", "import"}  # the hook does see
    assert list(tmp_path.iterdir()) == []


def bomb_of_lists(depth: int) -> bytes:
    """Ten references to the list before, again and again: 10 ** depth leaves."""
    lists = (b"]q" + bytes([n + 1]) + b"(" + (b"h" + bytes([n])) * 10 + b"e" for n in range(depth))
    return b"\x80\x02]q\x00" + b"".join(lists) + b"."


BOMBS = {
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "deep tuple as a key": b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.",
    "deep tuple as a name": b"\x80\x02cdill._dill\n_import_module\n)" + b"\x85" * 100_000 + b"\x85R.",
    "shared lists": bomb_of_lists(60),
    "shared name": b"\x80\x02cdill._dill\n_import_module\n" + bomb_of_lists(60)[2:-1] + b"\x85R.",
    "doubled dictionaries": b"\x80\x02}q\x00" + b"".join(b"}X\x01\x00\x00\x00ah\x00sq\x00" for _ in range(50)) + b".",
    "copies of a list": b"\x80\x02](" + b"N" * 100_000 + b"eq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 20_000 + b".",
    "long names": b"\x80\x02" + b"cdill._dill\n_get_attr\ncos\nsystem\n" + b"X\xe8\x03\x00\x00" + b"a" * 1000 + b"\x86R.",
    "growing names": b"\x80\x02cos\nx\nq\x00" + b"cdill._dill\n_get_attr\nh\x00X\x01\x00\x00\x00y\x86Rq\x00" * 5000 + b".",
    "colliding references": b"".join(b"Np%d\n0" % (n * (2**61 - 1)) for n in range(1000)) + b"N.",
    "many marks": MARK * 100_000,
    "more opcodes than allowed": b"\x80\x02" + b"N0" * (machine.MAX_OPCODES // 2 + 5) + b"N.",
    "LONG4": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01" * 100,
    "LONG4 of 2 MiB": b"\x80\x02\x8b" + struct.pack("<i", 2 << 20) + b"\x01" * (2 << 20) + b".",
    "LONG1": b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".",
    "LONG of digits": b"L" + b"9" * 100_000 + b"L\n.",
    "negative LONG4": b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
    "BINBYTES8": b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"x.",
    "BINUNICODE8": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
    "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "text of 2 MiB": b"\x80\x02X" + struct.pack("<I", 2 << 20) + b"a" * (2 << 20) + b".",
    "FRAME": b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.",
    "line without an end": b"S'" + b"a" * (2 << 20),
    "PUT": b"Np99999999999999999999\n.",
    "negative PUT": b"Np-1\n.",
    "GET of nothing": b"g5\n.",
    "DUP of nothing": b"2.",
    "stack underflow": b"\x80\x02R.",
    "STOP alone": b".",
    "array of much": Writer().finish(
        {"G_ema": generator("plain32", **{"synthesis.input/size": Call(
            Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b"),
            (1, (2**35,), Call(Global("numpy", "dtype"), ("i8", False, True)), False, b""),
        )})}
    ),
    "modules without end": Writer(2).finish(
        {"G_ema": Raw(
            b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}X\x05\x00\x00\x00state}X\x08\x00\x00\x00_modulesq\x63}"
            b"q\x64X\x07\x00\x00\x00mappingh\x63" + b"ss\x85R"
        )}
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", BOMBS)
def test_bombs_end_in_a_sentence(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer opcodes allowed, so that it is quick; the memory that they take is seen to below."""
    monkeypatch.setattr(machine, "MAX_OPCODES", 250_000)
    told(BOMBS[label])


def endless(depth: int) -> bytes:
    """A generator whose parts are shared: 2 ** depth of them, in a file of some kilobytes."""
    inner = persistent("Leaf", {"_modules": ordered()})
    for _ in range(depth):
        inner = persistent("Twice", {"_modules": ordered({"a": inner, "b": inner})})
    return Writer().finish({"G_ema": persistent("Generator", {"_modules": ordered({"mapping": inner, "synthesis": inner})})})


def test_small_files_cannot_ask_for_much() -> None:
    """Tensors that many parts share, long names before many, and states that every look goes through."""
    tensors = {str(number): stored(torch.ones(1)) for number in range(300)}
    parts = {str(number): persistent("P", {"_buffers": ordered(tensors)}) for number in range(100)}
    mapping = persistent("M", {"_modules": ordered(parts)})
    many = persistent("Generator", {"_modules": ordered({"mapping": mapping, "synthesis": 0})})
    assert "it has more than 20000 tensors" in told(Writer().finish({"G_ema": many}))
    long = persistent("Generator", {"_modules": ordered({"mapping": persistent("M", {}), "x" * 201: 1, "synthesis": 0})})
    assert "a name of more than 200 characters" in told(Writer().finish({"G_ema": long}))
    begin = b"\x80\x02}X\x05\x00\x00\x00G_emactorch_utils.persistence\n_reconstruct_persistent_obj\n}\x85R"
    assert "an object with more than 16 states" in told(begin + b"}b" * 20 + b"s.")


@pytest.mark.parametrize("depth", [14, 60])
def test_endless_networks_are_not_walked(depth: int) -> None:
    assert "it has more than 10000 parts, or more than 16 inside of each other" in told(endless(depth))


def test_a_network_inside_of_itself_is_not_walked() -> None:
    writer = Writer()
    opcodes = Raw(
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}r\xff\xff\x00\x00"
        b"X\x05\x00\x00\x00state}r\xfe\xff\x00\x00s\x85Rr\xfd\xff\x00\x00"
        b"j\xfe\xff\x00\x00X\x08\x00\x00\x00_modules}(X\x07\x00\x00\x00mappingj\xfd\xff\x00\x00X\x09\x00\x00\x00synthesisj\xfd\xff\x00\x00us0"
    )
    assert "inside of each other" in told(writer.finish({"G_ema": opcodes}))


# ---------------------------------------------------------------- fuzz

NAMES = ["os\nsystem", "builtins\neval", "builtins\ngetattr", "collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2",
         "torch_utils.persistence\n_reconstruct_persistent_obj", "torch.storage\n_load_from_bytes", "dill._dill\n_get_attr",
         "dill._dill\n_import_module", "dill._dill\n_load_type", "dill._dill\n_create_array", "numpy\ndtype",
         "numpy.core.multiarray\nscalar", "numpy.core.multiarray\n_reconstruct", "copyreg\n_reconstructor", "x\ny"]  # fmt: skip
PIECES = st.one_of(
    st.sampled_from([name.encode() for name in NAMES]).map(lambda name: b"c" + name + b"\n"),
    st.sampled_from([bytes([code]) for code in b"(.0123Nabdeg)]}lotsuQR\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94"]),
    st.binary(max_size=8).map(lambda raw: b"X" + struct.pack("<I", len(raw)) + raw),
    st.binary(max_size=8).map(lambda raw: b"B" + struct.pack("<I", len(raw)) + raw),
    st.integers(0, 255).flatmap(lambda n: st.sampled_from([b"K", b"q", b"h", b"\x8a", b"\x82"]).map(lambda op: op + bytes([n]))),
    st.sampled_from([b"G_ema", b"_modules", b"state", b"_parameters"]).map(lambda raw: b"X" + struct.pack("<I", len(raw)) + raw),
    st.binary(max_size=4),
)
MADE = st.lists(PIECES, max_size=60).map(lambda pieces: b"\x80\x04" + b"".join(pieces) + b".")
WHOLE = official("plain32")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An official file with some bytes changed, cut out, doubled or replaced by opcodes."""
    content = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        place, how = draw(st.integers(0, len(content) - 1)), draw(st.integers(0, 3))
        if how == 0:
            content[place] = draw(st.integers(0, 255))
        elif how == 1:
            del content[place : place + draw(st.integers(1, 300))]
        elif how == 2:
            content[place:place] = content[place : place + draw(st.integers(1, 300))]
        else:
            content[place : place + draw(st.integers(0, 30))] = draw(PIECES)
    return bytes(content)


def survives(content: bytes) -> None:
    """It is read, or gets one sentence."""
    with suppress(DataError):
        read_all(content)


FUZZ = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=300, derandomize=True, **FUZZ)
@given(MADE)
def test_made_up_pickles_are_data(content: bytes) -> None:
    survives(content)


@settings(max_examples=60, derandomize=True, **FUZZ)
@given(mutated())
def test_changed_files_are_data(content: bytes) -> None:
    survives(content)


@pytest.mark.long
@settings(max_examples=20_000, **FUZZ)
@given(MADE)
def test_many_made_up_pickles_are_data(content: bytes) -> None:
    survives(content)


@pytest.mark.long
@settings(max_examples=5_000, **FUZZ)
@given(mutated())
def test_many_changed_files_are_data(content: bytes) -> None:
    survives(content)


@pytest.mark.long
def test_bombs_fit_into_little_memory(tmp_path: Path) -> None:
    """In a process that may take 512 MiB more than it has: no bomb asks for more, though torch's allocations count too."""
    script = f"""
import sys, resource
sys.path[:0] = [{str(Path(__file__).parent)!r}]
import test_stylegan_pickles as tests
from ddbench.errors import DataError
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (512 << 20),) * 2)
for label, content in tests.BOMBS.items():
    try:
        tests.taken(content)
        print("taken", label)
    except DataError:
        pass
print("all", len(tests.BOMBS))
"""
    if not Path("/proc/self/statm").is_file():
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["all", str(len(BOMBS))], done.stdout + done.stderr[-2000:]


def test_placeholders_do_nothing() -> None:
    found = load(Writer().finish(discriminator()), "x", OFFICIAL)
    assert isinstance(found, Thing)
    assert found.get("forward").of.full == "builtins.getattr"
    assert np.ndarray is not type(found)
