"""Decoders that a JSON document describes, operation by operation: read strictly, checked shape by shape, built as a module.

The document is data. It names operations out of a fixed list, with sizes within bounds, and the tensors that each takes by the
first part of their names; docs/decoders.md explains every field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import msgspec
import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor, nn

from ddbench.errors import DataError
from ddbench.ops.checkpoints import check_plain
from ddbench.ops.operations import AnyOperation, Name, Operations, Shape, Size, check_size
from ddbench.ops.pickles.records import printable


class Noise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The random part of a code."""

    size: Size
    distribution: Literal["normal", "uniform"] = "normal"  # N(0, 1), or between -1 and 1


class Classes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The part of a code that says which class is wanted, behind the noise."""

    num: Size
    size: Size  # numbers it takes in the code
    embedding: Name | None = None  # tensors with a row for each class; None: 1 for the class and 0 for all others


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A decoder: code [noise.size + classes.size] --start--> F_0 --layers--> F_L, an image's values between black and white."""

    schema: Literal[1]
    kind: Literal["decoder"]
    source: Annotated[str, Meta(min_length=1, max_length=1000)]  # of the tensors, with their licence
    noise: Noise
    classes: Classes | None = None  # None: it knows none
    start: Operations = ()
    layers: Annotated[tuple[Annotated[Operations, Meta(min_length=1)], ...], Meta(min_length=1, max_length=256)]
    black: Annotated[float, Meta(ge=-1000, le=1000)]  # the value of a pixel 0
    white: Annotated[float, Meta(ge=-1000, le=1000)]  # and of a pixel 1

    @property
    def code_size(self) -> int:
        """D."""
        return self.noise.size + (self.classes.size if self.classes else 0)

    def blocks(self) -> Iterator[tuple[str, tuple[AnyOperation, ...]]]:
        """Start and layers, with what messages and modules call them."""
        yield "start", self.start
        for number, layer in enumerate(self.layers):
            yield f"layers.{number}", layer

    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W of what it makes. Raises ValueError, with the fault, where its parts do not fit each other."""
        if self.black == self.white:
            raise ValueError("'black' and 'white' are equal")
        if self.classes and not self.classes.embedding and self.classes.size != self.classes.num:
            raise ValueError("'classes' without an embedding takes as many numbers as there are classes")
        if self.classes:
            check_size(self.classes.num, self.classes.size)
        shape: Shape = (self.code_size,)
        for name, block in self.blocks():
            for place, operation in enumerate(block):
                try:
                    shape = operation.makes(shape)
                    check_size(*shape)
                except ValueError as fault:
                    raise ValueError(f"operation {place} of {name} {fault}") from None
        if len(shape) != 3:
            raise ValueError(f"its last layer gives {list(shape)}, no image")
        return (shape[0], shape[1], shape[2])


def read(content: bytes, name: str) -> Description:
    """A description from JSON; `name` is what messages call it. Raises DataError, one sentence, for anything else."""
    try:
        description = msgspec.json.decode(content, type=Description)
        description.image_shape()
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise DataError(f"the description '{name}' is not one of a decoder: {told}.") from error
    return description


class Decoder(nn.Module):
    """What a description says: codes [B,D] to F_0, and layers from one F to the next; pixels in about [0, 1] at the end."""

    def __init__(self, description: Description) -> None:
        """Without weights that mean anything."""
        super().__init__()
        self.description = description
        classes = description.classes
        self.embedding = nn.Embedding(classes.num, classes.size) if classes and classes.embedding else None
        self.start = nn.Sequential(*(operation.module() for operation in description.start))
        self.layers = nn.ModuleList(nn.Sequential(*(operation.module() for operation in layer)) for layer in description.layers)

    def codes(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        """[B] -> [B,D]: noise, then the class."""
        noise, known = self.description.noise, self.description.classes
        z = torch.empty(len(classes), noise.size)
        z = z.normal_(generator=rng) if noise.distribution == "normal" else z.uniform_(-1, 1, generator=rng)
        z = z.to(classes.device)
        if known is None:
            return z
        told = self.embedding(classes) if self.embedding else F.one_hot(classes, known.num).to(z.dtype)
        return torch.cat([z, told], 1)

    def forward(self, x: Tensor, start: int, stop: int) -> Tensor:
        """F_start -> F_stop."""
        for layer in list(self.layers)[start:stop]:
            x = layer(x)
        black, white = self.description.black, self.description.white
        return (x - black) / (white - black) if start < stop == len(self.layers) else x

    def fit(self, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """The tensors of a file by this module's names. `what` begins each message. Raises DataError where they are not just
        those that the description names, in their shapes, or not plain."""
        wanted, left = self.state_dict(), dict(tensors)
        fitted: dict[str, Tensor] = {}
        for ours, theirs in self._names():
            like, tensor = wanted[ours], left.pop(theirs, None)
            if tensor is None:
                raise DataError(f"{what} do not fit their description: they lack '{theirs}'.")
            check_plain(tensor, f"{what}: '{theirs}'")
            if tensor.shape != like.shape or not tensor.is_floating_point():
                told = f"is {tensor.dtype} {list(tensor.shape)}, and must be floats {list(like.shape)}"
                raise DataError(f"{what} do not fit their description: '{theirs}' {told}.")
            fitted[ours] = tensor.to(like.dtype)
        extra = next((name for name in left if not name.endswith(".num_batches_tracked")), None)
        if extra is not None:
            raise DataError(f"{what} do not fit their description: it does not name '{printable(extra)}'.")
        return fitted

    def _names(self) -> Iterator[tuple[str, str]]:
        """Every tensor by this module's name and by the file's."""
        prefixes = {}
        if self.description.classes and self.description.classes.embedding:
            prefixes["embedding"] = self.description.classes.embedding
        for name, block in self.description.blocks():
            for place, operation in enumerate(block):
                prefixes[f"{name}.{place}"] = getattr(operation, "tensors", "")
        for ours in self.state_dict():
            module, _, last = ours.rpartition(".")
            yield ours, f"{prefixes[module]}.{last}"
