"""Writes pickles as the official StyleGAN-XL code does, opcode by opcode, without that code and without dill.

A module is reduced to a call of `torch_utils.persistence._reconstruct_persistent_obj` with its source text; tensors lie in
storages of the old torch format that were saved from `cuda:0`; dill writes numpy's functions and sets in forms of its own.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from golden_stylegan import meta, weights
from torch import Tensor

SOURCE = "import os\nos.system('touch executed')\nraise SystemExit('the source of a class was executed')\n"


@dataclass
class Global:
    """A name."""

    module: str
    name: str


@dataclass
class Call:
    """REDUCE, then items; with a state, BUILD after it."""

    what: Any
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[str, Any] = field(default_factory=dict)


@dataclass
class New:
    """NEWOBJ, then items, then a state."""

    what: Any
    items: dict[str, Any] = field(default_factory=dict)
    state: Any = None


@dataclass
class Raw:
    """Opcodes as they are, that leave one object."""

    opcodes: bytes


@dataclass
class Outside:
    """A persistent id."""

    value: Any


class Writer:
    """Protocol 2 to 4, with a memo for whatever is met again."""

    def __init__(self, protocol: int = 4) -> None:
        self.protocol, self.out, self.memo = protocol, bytearray(b"\x80" + bytes([protocol])), dict[int, int]()
        self.kept: list[Any] = []

    def finish(self, value: Any) -> bytes:
        self.save(value)
        return bytes(self.out) + b"."

    def save(self, value: Any) -> None:
        if id(value) in self.memo:
            self.out += b"j" + struct.pack("<I", self.memo[id(value)])
            return
        self._save(value)
        if not isinstance(value, bool | int | float | type(None)):
            self.memo[id(value)] = len(self.memo)
            self.kept.append(value)  # so that no id is used twice
            self.out += b"\x94" if self.protocol >= 4 else b"r" + struct.pack("<I", len(self.memo) - 1)

    def _save(self, value: Any) -> None:
        match value:
            case None | True | False:
                self.out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
            case int():
                self.out += b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else b"L%dL\n" % value
            case float():
                self.out += b"G" + struct.pack(">d", value)
            case str():
                raw = value.encode()
                self.out += b"X" + struct.pack("<I", len(raw)) + raw
            case bytes():
                self.out += b"B" + struct.pack("<I", len(value)) + value
            case Outside():
                self.save(value.value)
                self.out += b"Q"
            case Raw():
                self.out += value.opcodes
            case Global():
                self._global(value)
            case Call():
                self.save(value.what)
                self.save(value.arguments)
                self.out += b"R"
                self._items(value.items)
                self._build(value.state)
            case New():
                self.save(value.what)
                self.out += b")\x81"
                self._items(value.items)
                self._build(value.state)
            case dict():
                self.out += b"}"
                self._items(value)
            case list() | tuple():
                self.out += b"("
                for item in value:
                    self.save(item)
                self.out += b"l" if isinstance(value, list) else b"t"
            case _:
                raise TypeError(type(value))

    def _global(self, value: Global) -> None:
        if self.protocol >= 4:
            self.save(value.module)
            self.save(value.name)
            self.out += b"\x93"
        else:
            self.out += f"c{value.module}\n{value.name}\n".encode()

    def _build(self, state: Any) -> None:
        if state is not None:
            self.save(state)
            self.out += b"b"

    def _items(self, items: Mapping[str, Any]) -> None:
        if items:
            self.out += b"("
            for key, item in items.items():
                self.save(key)
                self.save(item)
            self.out += b"u"


# ---------------------------------------------------------------- tensors and arrays


def storage_bytes(tensor: Tensor, location: str = "cuda:0") -> bytes:
    """Its storage as torch 1.9 writes it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # torch's own: typed storages are of the past
        torch.save(tensor.contiguous().flatten().clone().storage(), buffer, _use_new_zipfile_serialization=False)
    told, wanted = (b"X" + struct.pack("<I", len(text)) + text.encode() for text in ("cpu", location))
    assert buffer.getvalue().count(told) == 1
    return buffer.getvalue().replace(told, wanted)


def ordered(items: Mapping[str, Any] | None = None) -> Call:
    """An OrderedDict."""
    return Call(Global("collections", "OrderedDict"), (), items=dict(items or {}))


def stored(tensor: Tensor, parameter: bool = False) -> Call:
    """A tensor, or a parameter."""
    storage = Call(Global("torch.storage", "_load_from_bytes"), (storage_bytes(tensor),))
    rebuild = (storage, 0, tuple(tensor.shape), tuple(tensor.contiguous().stride()), False, ordered())
    made = Call(Global("torch._utils", "_rebuild_tensor_v2"), rebuild)
    return Call(Global("torch._utils", "_rebuild_parameter"), (made, True, ordered())) if parameter else made


def dill_attribute(module: str, name: str) -> Call:
    """How dill names a builtin function."""
    return Call(Global("dill._dill", "_get_attr"), (Call(Global("dill._dill", "_import_module"), (module,)), name))


def dtype(code: str) -> Call:
    return Call(Global("numpy", "dtype"), (code, False, True), (3, "<", None, None, None, -1, -1, 0))


def number(value: float, dill: bool) -> Call:
    """A numpy float64."""
    scalar = dill_attribute("numpy.core._multiarray_umath", "scalar") if dill else Global("numpy.core.multiarray", "scalar")
    return Call(scalar, (dtype("f8"), struct.pack("<d", value)))


def array(values: list[int], dill: bool) -> Call:
    """A numpy int64 array."""
    state = (1, (len(values),), dtype("i8"), False, np.array(values, np.int64).tobytes())
    start = (Global("numpy", "ndarray"), (0,), b"b")
    if dill:
        reconstruct = dill_attribute("numpy.core._multiarray_umath", "_reconstruct")
        return Call(Global("dill._dill", "_create_array"), (reconstruct, start, state, None))
    return Call(Global("numpy.core.multiarray", "_reconstruct"), start, state)


def empty_set(dill: bool) -> Call:
    what = Call(Global("dill._dill", "_load_type"), ("set",)) if dill else Global("builtins", "set")
    return Call(what, ([],))


# ---------------------------------------------------------------- modules


def persistent(class_name: str, state: Any, source: str = SOURCE) -> Call:
    """A module of the official code."""
    about = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
    return Call(Global("torch_utils.persistence", "_reconstruct_persistent_obj"), (about,))


def generator(case: str, tensors: Mapping[str, Tensor] | None = None, dill: bool = True, **changes: Any) -> Call:
    """A golden generator as the official code pickles it. `changes`: attributes by `path/name`, an ellipsis to leave one out."""
    modules = meta(case)["modules"]
    return _module("", modules, weights(case) if tensors is None else tensors, dill, changes)


def _module(path: str, modules: Mapping[str, Any], tensors: Mapping[str, Tensor], dill: bool, changes: Mapping[str, Any]) -> Any:
    about, start = modules[path], f"{path}." if path else ""
    own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    own = {name: value for name, value in own.items() if "." not in name}
    names = [name for name in modules if name.startswith(start) and name and "." not in name.removeprefix(start)]
    parameters = {name: stored(value, True) for name, value in own.items() if name in ("weight", "bias")}
    buffers = {name: stored(value) for name, value in own.items() if name not in parameters}
    attributes = {name: _attribute(name, value, dill) for name, value in about["attrs"].items()}
    attributes |= {key.rpartition("/")[2]: value for key, value in changes.items() if key.rpartition("/")[0] == path}
    attributes = {name: value for name, value in attributes.items() if value is not ...}
    inside = {name.removeprefix(start): _module(name, modules, tensors, dill, changes) for name in names}
    state = {
        "training": False, "_parameters": ordered(parameters), "_buffers": ordered(buffers),
        "_non_persistent_buffers_set": empty_set(dill), "_backward_hooks": ordered(), "_modules": ordered(inside), **attributes,
    }  # fmt: skip
    if about["init_kwargs"] is None:
        return New(Global("torch.nn.modules.sparse", "Embedding"), state=state)
    state |= {"_init_args": (), "_init_kwargs": New(Global("dnnlib.util", "EasyDict"), about["init_kwargs"])}
    return persistent(about["class_name"], state)


def _attribute(name: str, value: Any, dill: bool) -> Any:
    """As the official code holds it: sizes are arrays, cutoffs numpy numbers."""
    if name in ("size", "in_size", "out_size"):
        return array(value, dill)
    return number(value, dill) if name in ("bandwidth", "in_cutoff", "out_cutoff") else value


def discriminator() -> Call:
    """What makes the genuine one hard to read: a class of a missing module, a closure, a bound method, a class made there."""
    code = Call(Global("dill._dill", "_create_code"), (0, b"\x00", SOURCE))
    closure = Call(Global("dill._dill", "_create_function"), (code, Global("__builtin__", "__main__"), "run", None, ()))
    made = Call(Global("dill._dill", "_create_type"), (Global("builtins", "type"), "Made", (Global("builtins", "object"),), {}))
    method = Call(Global("builtins", "getattr"), (New(Global("timm.models.layers.conv2d_same", "Conv2dSame")), "forward"))
    state = {
        "_modules": ordered({"feature_network": New(Global("timm.models.efficientnet", "EfficientNet"), state={"f": closure})}),
        "_parameters": ordered(), "forward": method, "odd": New(made, state=(None, {"slot": 1})),
        "classes": {1: "one", (2, 3): [Raw(b"(c__main__\nThing\no")]},
    }  # fmt: skip
    return persistent("ProjectedDiscriminator", state)


def official(case: str, protocol: int = 4, dill: bool = True, **changes: Any) -> bytes:
    """A whole file."""
    made = generator(case, dill=dill, **changes)
    top = {"G": made, "D": discriminator(), "G_ema": made, "augment_pipe": None, "training_set_kwargs": {"path": "x.zip"}}
    return Writer(protocol).finish(top | {"progress": {"cur_nimg": stored(torch.zeros(1)), "best_fid": 1.5}})
