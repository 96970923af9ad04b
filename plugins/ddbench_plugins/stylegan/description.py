"""What a StyleGAN generator's file records of it, layer by layer, as one typed JSON document beside its tensors.

A generator is built from this alone, never from a schedule computed out of a few settings: published files were made with
several versions of the official code, so layers of one model differ in kernel, filter and clamp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ddbench.errors import DataError

MAX_BYTES = 1 << 20  # of a description; those of the largest published models have 10 KiB
MAX_VALUES = 1 << 30  # of one tensor: 4 GiB in float32; the largest of a published model has 9.4 million

Width = Annotated[int, Meta(ge=1, le=16384)]
Side = Annotated[int, Meta(ge=1, le=4096)]
Factor = Annotated[int, Meta(ge=1, le=16)]
Offset = Annotated[int, Meta(ge=-4096, le=4096)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}$")]  # never a path
LayerName = Annotated[str, Meta(pattern="^[A-Za-z0-9_]{1,64}$")]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a description."""


class Source(_Record, frozen=True, kw_only=True):
    """The file that the tensors were taken from."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    sha256: Hash
    bytes: Annotated[int, Meta(ge=1)]
    key: Annotated[str, Meta(min_length=1, max_length=64)]  # of the generator in it: "G_ema", or "G"
    class_name: Annotated[str, Meta(min_length=1, max_length=64)]


class TensorFile(_Record, frozen=True, kw_only=True):
    """The safetensors file beside the description."""

    file: FileName
    sha256: Hash


class MappingShape(_Record, frozen=True, kw_only=True):
    """z and class -> w."""

    num_layers: Annotated[int, Meta(ge=1, le=64)]  # fully connected ones after the class embedding
    lr_multiplier: Positive  # of their weights and biases


class InputShape(_Record, frozen=True, kw_only=True):
    """The Fourier features F_0."""

    size: tuple[Side, Side]  # width, height
    sampling_rate: Positive
    bandwidth: Positive


class LayerShape(_Record, frozen=True, kw_only=True):
    """One layer. Its filters are tensors; a factor of 1 has none."""

    name: LayerName
    is_torgb: bool
    in_channels: Width
    out_channels: Width
    conv_kernel: Annotated[int, Meta(ge=1, le=15)]
    up_factor: Factor
    down_factor: Factor
    padding: tuple[Offset, Offset, Offset, Offset]  # left, right, top, bottom, of the up-sampled map; negative ones crop
    conv_clamp: Positive | None  # of the activation, None: no limit
    use_fp16: bool  # as the official code marks it; which precision a layer runs in is a setting of ours


class Description(_Record, frozen=True, kw_only=True):
    """A whole generator: z [B,z_dim], class -> w [B,num_ws,w_dim] -> F_0 -> ... -> F_L -> image, L = num_ws - 1."""

    schema: Literal[1]
    kind: Literal["stylegan"]
    source: Source | None = None  # None: random weights
    tensors: TensorFile | None = None
    z_dim: Width
    c_dim: Annotated[int, Meta(ge=0, le=1_000_000)]  # classes; 0: unconditional
    w_dim: Width
    img_resolution: Side
    img_channels: Annotated[int, Meta(ge=1, le=16)]
    output_scale: Positive
    num_ws: Annotated[int, Meta(ge=2, le=513)]
    mapping: MappingShape
    input: InputShape
    layers: Annotated[tuple[LayerShape, ...], Meta(min_length=1, max_length=512)]  # in the order they run in

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.layers)


def read(content: bytes | str, name: str) -> Description:
    """A description from JSON; `name` is what messages call it. Raises DataError, one sentence, for anything else."""
    if len(content) > MAX_BYTES:
        raise DataError(f"the description {name} is larger than {MAX_BYTES >> 20} MiB: it is not one of a StyleGAN generator.")
    try:
        found = msgspec.json.decode(content, type=Description)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:  # ValidationError is a DecodeError
        told = str(error).replace("\n", " ")
        raise DataError(f"the description {name} is not one of a StyleGAN generator: {told}.") from error
    check(found, name)
    return found


def write(description: Description) -> bytes:
    """Its JSON, indented, in the order of the fields. Raises DataError as `check`."""
    check(description, "to be written")
    return msgspec.json.format(msgspec.json.encode(description), indent=1) + b"\n"


def check(description: Description, name: str) -> None:
    """Raise DataError, one sentence, where the parts do not fit each other."""
    fault = next(_faults(description), None)
    if fault:
        raise DataError(f"the description {name} does not fit together: {fault}.")


def _faults(of: Description) -> Iterator[str]:
    layers = of.layers
    if of.num_ws != len(layers) + 1:
        yield f"'num_ws' is {of.num_ws}, and {len(layers)} layers take {len(layers) + 1} codes"
    if len({layer.name for layer in layers}) < len(layers) or any(layer.name == "input" for layer in layers):
        yield "layers need names of their own, other than 'input'"
    for before, after in pairwise(layers):
        if before.out_channels != after.in_channels:
            yield f"layer {after.name} takes {after.in_channels} channels and gets {before.out_channels}"
    for layer in layers:
        if layer.is_torgb != (layer is layers[-1]):
            yield f"the last layer, and no other, gives colours: 'is_torgb' of {layer.name} is {str(layer.is_torgb).lower()}"
        if layer.is_torgb and (layer.up_factor, layer.down_factor, layer.conv_kernel, any(layer.padding)) != (1, 1, 1, False):
            yield f"the colour layer {layer.name} must have kernel 1, factors 1 and no padding"
    if layers[-1].out_channels != of.img_channels:
        yield f"the last layer gives {layers[-1].out_channels} channels and images have {of.img_channels}"
    if of.input.sampling_rate / 2 <= of.input.bandwidth:
        yield "the input's 'bandwidth' must be less than half of its 'sampling_rate'"
    for key, shape in tensor_shapes(of).items():
        if math.prod(side or 1 for side in shape) > MAX_VALUES:
            yield f"the tensor {key} would have more than {MAX_VALUES} values"


Shape = tuple[int | None, ...]


def tensor_shapes(of: Description) -> dict[str, Shape]:
    """Every tensor that such a generator needs, by its official key, with its shape; None is any size.

    `mapping.w_avg`, which only truncation uses, and the embedding table of an unconditional generator are not needed. Filters
    are left out: their number of taps is known from themselves alone; see `filter_keys`.
    """
    z, w, first = of.z_dim, of.w_dim, of.layers[0].in_channels
    shapes: dict[str, Shape] = {}
    if of.c_dim:
        shapes |= {"mapping.embed.weight": (None, None), "mapping.embed_proj.weight": (z, None), "mapping.embed_proj.bias": (z,)}
    for number in range(of.mapping.num_layers):
        before = w if number else z * (2 if of.c_dim else 1)
        shapes |= {f"mapping.fc{number}.weight": (w, before), f"mapping.fc{number}.bias": (w,)}
    start: dict[str, Shape] = {"weight": (first, first), "transform": (3, 3), "freqs": (first, 2), "phases": (first,)}
    start |= {"affine.weight": (4, w), "affine.bias": (4,)}
    shapes |= {f"synthesis.input.{name}": shape for name, shape in start.items()}
    for layer in of.layers:
        name, before, after, kernel = f"synthesis.{layer.name}.", layer.in_channels, layer.out_channels, layer.conv_kernel
        shapes |= {f"{name}weight": (after, before, kernel, kernel), f"{name}bias": (after,), f"{name}magnitude_ema": ()}
        shapes |= {f"{name}affine.weight": (before, w), f"{name}affine.bias": (before,)}
    return shapes


def filter_keys(of: Description) -> tuple[str, ...]:
    """The filters that such a generator needs: [taps], and `down_filter` [taps] or [taps, taps]."""
    found = []
    for layer in of.layers:
        found += [f"synthesis.{layer.name}.up_filter"] if layer.up_factor > 1 else []
        found += [f"synthesis.{layer.name}.down_filter"] if layer.down_factor > 1 else []
    return tuple(found)


PARAMETERS = ("weight", "bias")


def count_parameters(of: Description, embedding: tuple[int, int] = (1000, 320)) -> int:
    """How many numbers training would change, the class embedding's table of that shape included, as the official code counts."""
    rows, features = embedding
    shapes = tensor_shapes(of) | {"mapping.embed.weight": (rows, features)}
    if of.c_dim:
        shapes["mapping.embed_proj.weight"] = (of.z_dim, features)
    return sum(math.prod(side or 1 for side in shape) for key, shape in shapes.items() if key.rpartition(".")[2] in PARAMETERS)
