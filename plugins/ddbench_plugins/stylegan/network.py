"""A StyleGAN3 or StyleGAN-XL generator from its description and tensors: mapping, Fourier features, layers, pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ddbench.api import IMAGENET_CLASSES, Generator, Spec
from ddbench.errors import ConfigError, DataError
from ddbench.ops.moves import send
from ddbench_plugins.stylegan.description import Description, InputShape, LayerShape, filter_keys, tensor_shapes
from ddbench_plugins.stylegan.fast import FastLayer
from ddbench_plugins.stylegan.plain import EPS, GAIN, SLOPE, PlainLayer, affine

Precision = Literal["float32", "float16", "bfloat16"]
"""What layers compute in that their file marks for float16; mapping, Fourier features and latents are float32 always."""

Form = Literal["fast", "plain"]
MAX_TAPS = 256
MAX_SIDE = 4096
MAX_BETWEEN = 16_384  # side of a map between its up- and down-sampling; of a published layer of 1,024 px it is about 4,300
MAX_MAP = 1 << 28  # numbers of a map


class Mapping(nn.Module):
    """z [B,Z] and classes [B] -> w [B,D]: both to unit mean square, then fully connected layers."""

    w_avg: Tensor
    embed_weight: Tensor
    embed_proj_weight: Tensor
    embed_proj_bias: Tensor

    def __init__(self, of: Description, tensors: dict[str, Tensor]) -> None:
        """`tensors` by their official keys."""
        super().__init__()
        self.multiplier, self.num_layers, self.is_conditional = of.mapping.lr_multiplier, of.mapping.num_layers, of.c_dim > 0
        names = ["w_avg", *(f"fc{number}.{part}" for number in range(self.num_layers) for part in ("weight", "bias"))]
        names += ["embed.weight", "embed_proj.weight", "embed_proj.bias"] if self.is_conditional else []
        for name in names:
            self.register_buffer(name.replace(".", "_"), tensors.get(f"mapping.{name}"))

    def forward(self, z: Tensor, classes: Tensor | None, psi: float = 1.0) -> Tensor:
        """`psi` below 1 draws w towards the average, of its class where there is one a class."""
        x = _unit(z)
        if self.is_conditional:
            assert classes is not None
            embedded = affine(self.embed_weight[classes], self.embed_proj_weight, self.embed_proj_bias)
            x = torch.cat([x, _unit(_activated(embedded))], 1)
        for number in range(self.num_layers):
            weight, bias = getattr(self, f"fc{number}_weight"), getattr(self, f"fc{number}_bias")
            x = _activated(affine(x, weight, bias, self.multiplier))
        if psi == 1:
            return x
        average = self.w_avg if self.w_avg.dim() == 1 else self.w_avg[classes]
        return average.lerp(x, psi)


def _unit(values: Tensor) -> Tensor:
    return values * (values.square().mean(1, keepdim=True) + EPS).rsqrt()


def _activated(values: Tensor) -> Tensor:
    return nn.functional.leaky_relu(values, SLOPE) * GAIN


class Fourier(nn.Module):
    """The first code [B,D] -> F_0 [B,C,h,w]: waves that it rotates and shifts, mixed by one matrix."""

    weight: Tensor
    transform: Tensor
    freqs: Tensor
    phases: Tensor
    affine_weight: Tensor
    affine_bias: Tensor

    def __init__(self, shape: InputShape, tensors: dict[str, Tensor]) -> None:
        """`tensors` by the names that they have inside of the input."""
        super().__init__()
        self.shape = shape
        for name in ("weight", "transform", "freqs", "phases", "affine.weight", "affine.bias"):
            self.register_buffer(name.replace(".", "_"), tensors[name])

    def forward(self, code: Tensor) -> Tensor:
        """A wave fades out where its frequency has left the band that the map can hold."""
        (width, height), rate, band = self.shape.size, self.shape.sampling_rate, self.shape.bandwidth
        placed = affine(code, self.affine_weight, self.affine_bias)
        cos, sin, right, down = (placed / placed[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).view(-1, 3, 3)
        shift = torch.stack([one, zero, -right, zero, one, -down, zero, zero, one], 1).view(-1, 3, 3)
        matrix = rotation @ shift @ self.transform
        phases = self.phases + (self.freqs @ matrix[:, :2, 2:]).squeeze(2)  # [B,C]
        freqs = self.freqs @ matrix[:, :2, :2]  # [B,C,2]
        heights = (1 - (freqs.norm(dim=2) - band) / (rate / 2 - band)).clamp(0, 1)
        columns, rows = (_centres(num, rate, code) for num in (width, height))
        turns = freqs[:, :, 0, None, None] * columns + freqs[:, :, 1, None, None] * rows[:, None] + phases[:, :, None, None]
        waves = heights[:, :, None, None] * (2 * math.pi * turns).sin()
        return torch.einsum("oc,bchw->bohw", self.weight / math.sqrt(len(self.weight)), waves)


def _centres(num: int, rate: float, like: Tensor) -> Tensor:
    """Of the pixels of an axis, whose middle is 0."""
    return (torch.arange(num, dtype=like.dtype, device=like.device) + (1 - num) / 2) / rate


class StyleGAN(nn.Module, Generator):
    """Loaded and frozen: w [B,L+1,D], of which code 0 makes F_0 and code n + 1 drives layer n; F_L is pixels.

    Pixels are (image + 1) / 2 and are not clamped, as published methods use them. A layer that is not run costs nothing, and
    neither does its code's gradient, which is 0.
    """

    def __init__(self, of: Description, tensors: dict[str, Tensor], dtypes: tuple[torch.dtype, torch.dtype], form: Form) -> None:
        """Tensors have been checked and are on their device; `dtypes` are those of codes and of layers marked for float16."""
        super().__init__()
        self.description, self.depth = of, of.depth
        self.mapping, self.input = Mapping(of, tensors), Fourier(of.input, _inside("synthesis.input.", tensors))
        self.layers, sides = nn.ModuleList(), of.input.size[::-1]
        for shape in of.layers:
            inside, dtype = _inside(f"synthesis.{shape.name}.", tensors), dtypes[shape.use_fp16]
            self.layers.append(FastLayer(shape, inside, sides, dtype) if form == "fast" else PlainLayer(shape, inside, dtype))
            sides = sides_after(shape, inside, sides)
        self.classes: Tensor | None = None  # by label, the class that the network is asked for; None: it knows no classes

    @property
    def num_codes(self) -> int:
        """L + 1."""
        return self.description.num_ws

    def codes(self, z: Tensor, classes: Tensor | None, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """z [B,Z], the network's own classes [B] -> w [B,L+1,D]; the first `cutoff` codes (all: None) are truncated by `psi`."""
        num = self.num_codes if cutoff is None else cutoff
        w = self.mapping(z, classes)[:, None].repeat(1, self.num_codes, 1)
        if psi != 1:
            w[:, :num] = self.mapping(z, classes, psi)[:, None]
        return w

    def latents(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        """Labels [B] -> w [B,L+1,D] from z ~ N(0, I), without truncation; equal codes for all layers."""
        z = send(torch.randn(len(classes), self.description.z_dim, generator=rng), classes.device)
        asked = None if self.classes is None else self.classes[classes]
        with torch.no_grad():
            return self.codes(z.to(self.input.weight.dtype), asked)

    def features(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        """F_start -> F_stop; F_L is still in the network's own units, before its output is scaled."""
        x = self.input(w[:, 0]) if hidden is None else hidden
        if start < stop:
            for layer, code in zip(self.layers[start:stop], w[:, start + 1 : stop + 1].unbind(1), strict=True):
                x = layer(x, code)
        return x.to(w.dtype)

    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        """F_start -> F_stop."""
        x = self.features(w, hidden, start, stop)
        return x * (self.description.output_scale / 2) + 0.5 if start < stop == self.depth else x


def _inside(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def sides_after(shape: LayerShape, tensors: dict[str, Tensor], sides: tuple[int, int]) -> tuple[int, int]:
    """Height and width of what a layer gives, by its own numbers and the taps of its filters."""
    found = []
    for axis, side in enumerate(sides):
        taps = [len(tensors[name]) if name in tensors else 1 for name in ("up_filter", "down_filter")]
        padding = shape.padding[2:] if axis == 0 else shape.padding[:2]
        wide = (side + shape.conv_kernel - 1) * shape.up_factor
        between = wide + sum(padding) - taps[0] + 1
        if max(wide, between) > MAX_BETWEEN:
            raise DataError(f"layer '{shape.name}' would have maps of side {max(wide, between)} between its filters.")
        found.append((between - taps[1] + shape.down_factor) // shape.down_factor)
    return found[0], found[1]


def check_tensors(of: Description, tensors: dict[str, Tensor], name: str = "of the generator") -> None:
    """Raise DataError, one sentence, where a tensor is missing, has another shape than the description says, or holds what is
    not finite, or where the layers do not lead to images of its resolution."""
    for key, shape in tensor_shapes(of).items():
        _check_tensor(key, tensors.get(key), name)
        found = tuple(tensors[key].shape)
        if len(found) != len(shape) or any(want not in (None, side) for want, side in zip(shape, found, strict=True)):
            wanted = ["any" if side is None else side for side in shape]
            raise DataError(f"the tensor '{key}' {name} must have the shape {wanted}, got {list(found)}.")
    if of.c_dim and tensors["mapping.embed.weight"].shape[1] != tensors["mapping.embed_proj.weight"].shape[1]:
        raise DataError(f"the tensors 'mapping.embed.weight' and 'mapping.embed_proj.weight' {name} do not fit each other.")
    for key in filter_keys(of):
        _check_tensor(key, tensors.get(key), name)
        taps = list(tensors[key].shape)
        if len(taps) not in (1, 2) or len(set(taps)) != 1 or not 1 <= taps[0] <= MAX_TAPS:
            raise DataError(f"the filter '{key}' {name} must be [taps] or [taps, taps], at most {MAX_TAPS}, got {taps}.")
        if not bool(tensors[key].any()):
            raise DataError(f"the filter '{key}' {name} is zero.")
    _check_sides(of, tensors, name)


def _check_sides(of: Description, tensors: dict[str, Tensor], name: str) -> None:
    width, height = of.input.size
    sides = (height, width)
    for layer in of.layers:
        sides = sides_after(layer, _inside(f"synthesis.{layer.name}.", tensors), sides)
        if not 1 <= min(sides) <= max(sides) <= MAX_SIDE:
            raise DataError(f"layer '{layer.name}' {name} gives maps of {sides[0]} x {sides[1]}: its padding does not fit.")
        if max(layer.in_channels, layer.out_channels) * sides[0] * sides[1] > MAX_MAP:
            raise DataError(f"layer '{layer.name}' {name} gives maps of more than {MAX_MAP} numbers.")
    if sides != (of.img_resolution, of.img_resolution):
        raise DataError(f"the layers {name} give images of {sides[0]} x {sides[1]}, and it says {of.img_resolution} px.")


def _check_tensor(key: str, tensor: Tensor | None, name: str) -> None:
    if tensor is None:
        raise DataError(f"the tensor '{key}' {name} is missing.")
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64) or not tensor.numel():
        told = f"got {tensor.dtype} {list(tensor.shape)}"
        raise DataError(f"the tensor '{key}' {name} must hold floating-point numbers of 16 to 64 bits, {told}.")
    if not bool(tensor.isfinite().all()):
        raise DataError(f"the tensor '{key}' {name} holds numbers that are not finite.")


class Facts(Protocol):
    """What of a description decides which classes a generator is asked for."""

    @property
    def img_resolution(self) -> int:
        """The side of its images."""
        ...

    @property
    def img_channels(self) -> int:
        """Their channels."""
        ...

    @property
    def c_dim(self) -> int:
        """Its classes; 0: unconditional."""
        ...


def asked_classes(of: Facts, spec: Spec, name: str) -> tuple[int, ...] | None:
    """By label, the class that a generator is asked for; None: it knows no classes. `name` is the generator's in messages.

    A thousand classes are ImageNet's, in its order, where the data set says which of them it has; else as many as the data
    set's are its labels. Raises ConfigError where neither holds, or its images are others than the data set's.
    """
    wanted, made = spec.shape, (of.img_channels, of.img_resolution, of.img_resolution)
    if wanted != made:
        told = f"makes images of {made[0]} x {made[1]} x {made[2]} and data set '{spec.name}' has {' x '.join(map(str, wanted))}"
        raise ConfigError(f"generator '{name}' {told}: choose a generator of that size, or another size of the images.")
    if not of.c_dim:
        return None
    if of.c_dim == IMAGENET_CLASSES and spec.class_indices:
        return spec.class_indices
    if of.c_dim == spec.num_classes:
        return tuple(range(spec.num_classes))
    told = f"knows {of.c_dim} classes and data set '{spec.name}' has {spec.num_classes}, not known to be among them"
    raise ConfigError(f"generator '{name}' {told}: choose an unconditional generator, or one of these classes.")


def build(
    of: Description, tensors: dict[str, Tensor], device: torch.device, precision: str = "float32", form: Form = "fast",
    classes: Sequence[int] | None = None, name: str = "of the generator",
) -> StyleGAN:  # fmt: skip
    """The generator, frozen, in evaluation mode, on a device. `classes` is what `asked_classes` gives; `precision` float64, for
    tests, is that of everything. Raises DataError as `check_tensors`, ConfigError for a class outside of its table."""
    check_tensors(of, tensors, name)
    base = torch.float64 if precision == "float64" else torch.float32
    there = {key: tensor.to(device, base) for key, tensor in tensors.items()}
    if classes is not None and of.c_dim:
        rows = min(of.c_dim, len(there["mapping.embed.weight"]))
        if not all(0 <= number < rows for number in classes):
            raise ConfigError(f"classes {name} are 0..{rows - 1}, and {max(classes)} is asked for: choose another data set.")
    with torch.no_grad():
        made = StyleGAN(of, there, (base, getattr(torch, precision)), form).eval()
    if of.c_dim:
        made.classes = None if classes is None else torch.tensor(classes, device=device)
    return made.requires_grad_(False)
