"""The official pickles of StyleGAN-XL and StyleGAN3: which generator lies in one, what its layers record, and its tensors.

Attributes of modules are read, never the arguments that they were made with: a superresolution stage changes a finished
generator in place, and leaves the arguments as they were.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from ddbench.errors import DataError
from ddbench.ops.pickles.arrays import ARRAYS, StoredArray
from ddbench.ops.pickles.machine import load
from ddbench.ops.pickles.records import CONTAINERS, INSTANCES, Buffer, Maker, Thing, printable
from ddbench.ops.pickles.tensors import TENSORS, StoredTensor
from ddbench_plugins.stylegan.description import Description, Source, check, filter_keys, tensor_shapes
from ddbench_plugins.stylegan.dill import DILL

MAX_BYTES = 8 << 30  # of a file; the largest published ones have about 1.5 GB
MAX_MODULES = 10_000
MAX_DEPTH = 16
MAX_TENSORS = 20_000  # of a network, those of shared parts once for each place
MAX_NAME = 200  # characters of the name of a part or a tensor
MAX_LAYERS = 512
MAX_TAPS = 512  # of a filter
OPTIONAL = ("mapping.w_avg", "mapping.embed.weight")  # kept where they are there: truncation uses the one, classes the other


class Persistent(Thing):
    """A module of the official code, which its file keeps together with the source text of its class; that is dropped."""

    class_name = ""

    @classmethod
    def made(cls, meta: Any = None, *rest: Any) -> Thing:
        """From the one argument of the call, a dictionary."""
        record = cls(None)
        if isinstance(meta, dict):
            record.receive(meta.get("state"))
            record.class_name = meta["class_name"] if isinstance(meta.get("class_name"), str) else ""
        return record


OFFICIAL: dict[str, Maker] = {
    **CONTAINERS,
    **INSTANCES,
    **ARRAYS,
    **TENSORS,
    **DILL,
    "torch_utils.persistence._reconstruct_persistent_obj": Persistent.made,
    "dnnlib.util.EasyDict": lambda *rest: {},
}


@dataclass(frozen=True)
class Module:
    """A module of a network: its attributes, tensors and parts."""

    record: Thing
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)
    parts: Mapping[str, Module] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """An attribute, arrays as lists; None where there is none. Raises ValueError for an array that is none of a setting."""
        value = self.record.get(name)
        return value.values() if isinstance(value, StoredArray) else value

    def named_tensors(self, prefix: str = "") -> Iterator[tuple[str, StoredTensor]]:
        """Parameters and buffers of it and its parts, as the official `state_dict` names them."""
        yield from ((prefix + name, tensor) for name, tensor in self.tensors.items())
        for name, part in self.parts.items():
            yield from part.named_tensors(f"{prefix}{name}.")


@dataclass(frozen=True)
class Official:
    """A generator in an official file."""

    description: Description  # without its tensors' file
    tensors: Mapping[str, StoredTensor]  # all that it needs, and nothing else
    messages: tuple[str, ...]

    def dtype(self, name: str) -> torch.dtype:
        """Of one tensor. Raises DataError as `read`."""
        return self._asked(name, lambda tensor: tensor.dtype)

    def read(self, name: str) -> Tensor:
        """One tensor, copied out of the file. Raises DataError where its numbers do not lie in it."""
        return self._asked(name, lambda tensor: tensor.read())

    def _asked(self, name: str, question: Callable[[StoredTensor], Any]) -> Any:
        try:
            return question(self.tensors[name])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DataError(f"the tensor {name} cannot be read: {error}.") from error


@contextmanager
def opened(path: Path, sha256: str) -> Iterator[Official]:
    """The generator in an official file, which is mapped until the end. Raises DataError, one sentence, for what is none."""
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise DataError(f"{path} has {size} bytes: it is no pickle of a generator.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        source = Source(name=path.name[:200], sha256=sha256, bytes=size, key="?", class_name="?")
        official = read(content, f"the file {path.name}", source)
        taken = sum(math.prod(tensor.shape) * official.dtype(name).itemsize for name, tensor in official.tensors.items())
        if taken > size:  # tensors that share what they are stored in
            raise DataError(f"the file {path.name} has {size} bytes, and its tensors would take {taken}: it is no official one.")
        yield official


def read(content: Buffer, what: str, source: Source) -> Official:
    """The generator in a pickle; `what` names the file in messages. Raises DataError, one sentence."""
    refuse_other_files(content, what)
    top = load(content, what, OFFICIAL)
    key, record = _generator(top, what)
    messages = [] if key == "G_ema" else [f"{what} holds no averaged generator 'G_ema': its 'G' is taken."]
    try:
        network = _module(record, _Budget())
        description = _describe(network, msgspec.structs.replace(source, key=key, class_name=_class_of(record)))
        check(description, f"of {what}")
        tensors, told = _needed(network, description)
    except ValueError as error:
        why = " ".join(str(error).split())[:300]
        raise DataError(f"{what} holds a generator '{key}' that is not one of StyleGAN-XL or StyleGAN3: {why}.") from error
    return Official(description, tensors, (*messages, *told))


def refuse_other_files(content: Buffer, what: str) -> None:
    """Raise DataError for files of other kinds, by how they begin."""
    if content[:4] == b"PK\x03\x04":
        told = "a zip file, as torch.save writes a state dict or a checkpoint"
    elif content[:1] in (b"<", b"{") or content[8:9] == b"{":
        told = "a web page, JSON or safetensors"
    else:
        return
    raise DataError(f"{what} is {told}, not an official pickle with a generator 'G_ema': get that.")


def _generator(top: Any, what: str) -> tuple[str, Thing]:
    """The generator among what the file holds. Raises DataError saying what it holds instead."""
    if isinstance(top, dict):
        for key in ("G_ema", "G"):
            if isinstance(top.get(key), Thing):
                _refuse_other_networks(top[key], f"{what} holds as '{key}'")
                return key, top[key]
        if top and all(isinstance(value, StoredTensor) for value in top.values()):
            told = "is a plain state dict, which says nothing of layers"
        elif any(isinstance(top.get(key), Thing) for key in ("D", "discriminator")):
            told = "holds a discriminator and no generator"
        else:
            told = f"holds {printable(', '.join(list(top)[:5])) or 'nothing'} and no generator"
    elif isinstance(top, Thing):
        _refuse_other_networks(top, f"{what} is")
        told = f"is {_class_of(top)} alone"
    else:
        told = f"holds a {type(top).__name__}"
    raise DataError(f"{what} {told}: it must be an official pickle with a generator 'G_ema'.")


def _refuse_other_networks(record: Thing, what: str) -> None:
    """Raise DataError for what is known to be another network."""
    name, parts = _class_of(record), _table(record.get("_modules"))
    synthesis = parts.get("synthesis")
    inside = _table(synthesis.get("_modules")) if isinstance(synthesis, Thing) else {}
    if "iscriminator" in name:
        told = "a discriminator"
    elif "b4" in inside or "b8" in inside:
        told = "a StyleGAN2 generator"
    elif parts and not {"mapping", "synthesis"} <= parts.keys():
        told = f"a network of class {name}"
    else:
        return
    raise DataError(f"{what} {told}; only generators of StyleGAN-XL and StyleGAN3 can be prepared.")


def _class_of(record: Thing) -> str:
    name = record.class_name if isinstance(record, Persistent) else record.of.name if record.of else ""
    return printable(name)[:64] or "unknown"


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


@dataclass
class _Budget:
    """What is left to walk: a small file may say endless networks, as references that are shared."""

    modules: int = MAX_MODULES
    tensors: int = MAX_TENSORS

    def spend(self, depth: int, tensors: int) -> None:
        self.modules -= 1
        self.tensors -= tensors
        if self.tensors < 0:
            raise ValueError(f"it has more than {MAX_TENSORS} tensors")
        if self.modules < 0 or depth > MAX_DEPTH:
            raise ValueError(f"it has more than {MAX_MODULES} parts, or more than {MAX_DEPTH} inside of each other")


def _module(record: Thing, budget: _Budget, depth: int = 0) -> Module:
    tables = _table(record.get("_parameters")), _table(record.get("_buffers"))
    budget.spend(depth, sum(map(len, tables)))
    tensors = tables[0] | tables[1]
    if any(len(name) > MAX_NAME for table in (tensors, _table(record.get("_modules"))) for name in table):
        raise ValueError(f"a part of it has a name of more than {MAX_NAME} characters")
    parts = {name: part for name, part in _table(record.get("_modules")).items() if isinstance(part, Thing)}
    return Module(
        record,
        {name: tensor for name, tensor in tensors.items() if isinstance(tensor, StoredTensor)},
        {name: _module(part, budget, depth + 1) for name, part in parts.items()},
    )


def _part(module: Module, name: str) -> Module:
    if name not in module.parts:
        raise ValueError(f"it has no part '{printable(name)}'")
    return module.parts[name]


def _describe(network: Module, source: Source) -> Description:
    """From the attributes of the parts. Raises ValueError for one that is missing or of another kind."""
    mapping, synthesis = _part(network, "mapping"), _part(network, "synthesis")
    names, start = synthesis.get("layer_names"), _part(synthesis, "input")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("it does not list its layers")
    if len(names) > MAX_LAYERS or len(set(names)) < len(names):
        raise ValueError(f"it lists {len(names)} layers, of which {len(set(names))} differ, and may have {MAX_LAYERS}")
    settings = {
        "schema": 1, "kind": "stylegan", "source": msgspec.to_builtins(source),
        **{name: mapping.get(name) for name in ("z_dim", "c_dim", "w_dim", "num_ws")},
        **{name: synthesis.get(name) for name in ("img_resolution", "img_channels", "output_scale")},
        "mapping": {"num_layers": mapping.get("num_layers"), "lr_multiplier": _part(mapping, "fc0").get("bias_gain")},
        "input": {name: start.get(name) for name in ("size", "sampling_rate", "bandwidth")},
        "layers": [{"name": name} | _layer(_part(synthesis, name)) for name in names],
    }  # fmt: skip
    try:
        return msgspec.convert(settings, Description)
    except msgspec.ValidationError as error:
        raise ValueError(f"what it records is not as expected: {error}") from error


def _layer(layer: Module) -> dict[str, Any]:
    """What a layer records; factors that numpy made floats are whole numbers all the same."""
    names = ("is_torgb", "in_channels", "out_channels", "conv_kernel", "conv_clamp", "use_fp16", "padding")
    return {name: layer.get(name) for name in names} | {name: _whole(layer.get(name)) for name in ("up_factor", "down_factor")}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _needed(network: Module, description: Description) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors that such a generator needs, by name, and what was left out. Raises ValueError where one lacks or misfits."""
    found, shapes, filters = dict(network.named_tensors()), tensor_shapes(description), filter_keys(description)
    missing = [name for name in (*shapes, *filters) if name not in found]
    if missing:
        raise ValueError(f"it lacks the tensor {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
    for name, shape in shapes.items():
        got = found[name].shape
        if len(got) != len(shape) or any(wanted not in (None, one) for wanted, one in zip(shape, got, strict=True)):
            raise ValueError(f"its tensor {name} is {list(got)}, and what it records asks for {_shown(shape)}")
    _check_sizes({name: found[name].shape for name in (*shapes, *filters)}, description, filters)
    kept = {name: found[name] for name in (*shapes, *filters, *(name for name in OPTIONAL if name in found))}
    odd = sorted(found.keys() - kept.keys())
    return kept, (f"tensors that are not known are left out: {printable(', '.join(odd[:5]))}.",) if odd else ()


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('any' if side is None else str(side) for side in shape)}]"


def _check_sizes(shapes: Mapping[str, tuple[int, ...]], description: Description, filters: tuple[str, ...]) -> None:
    """Raise ValueError where sizes that nothing records do not fit each other."""
    for name in filters:
        taps = shapes[name]
        square = name.endswith("down_filter") and len(taps) == 2 and taps[0] == taps[1]
        if not (square or len(taps) == 1) or not 1 <= taps[0] <= MAX_TAPS:
            raise ValueError(f"its filter {name} is {list(taps)}")
    if description.c_dim:
        rows, features = shapes["mapping.embed.weight"]
        if rows < description.c_dim or shapes["mapping.embed_proj.weight"][1] != features:
            raise ValueError(f"its table of {rows} class embeddings does not serve {description.c_dim} classes")
