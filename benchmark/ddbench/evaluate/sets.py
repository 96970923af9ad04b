"""Distilled sets from files: ours, and the layouts that others write, made ready to train on for a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import Spec
from ddbench.errors import ConfigError, DataError
from ddbench.evaluate.class_order import in_order_of
from ddbench.evaluate.set_doubts import doubts_of_counts, doubts_of_values
from ddbench.evaluate.set_layouts import INTEGERS, Found, open_set

Values = Literal["normalised", "pixels", "whitened"]
Labels = Literal["indices", "probabilities", "logits"]
Constants = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Whitening:
    """A ZCA transform of pixels in [0, 1]: (x - mean) matrix, on images flattened over C, H, W to D values."""

    mean: Tensor  # [D]
    matrix: Tensor  # [D,D]

    def __call__(self, pixels: Tensor) -> Tensor:
        """[B,C,H,W], uint8 or float in [0, 1], to whitened [B,C,H,W]."""
        pixels = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels
        return ((pixels.flatten(1) - self.mean) @ self.matrix).view_as(pixels)

    def to(self, device: torch.device) -> Whitening:
        """The same on a device."""
        return Whitening(self.mean.to(device), self.matrix.to(device))


@dataclass(frozen=True)
class ImportedSet:
    """A set, ready to train on, and what a user should know of it."""

    images: Tensor  # [N,C,H,W], normalised as the data set's real images are, or whitened
    labels: Tensor  # [N,K], probabilities
    dataset: str | None  # that the file names
    values: Values  # what its images were read as
    label_values: Labels  # what its labels were read as
    constants: Constants = ((), ())  # mean and std of the file's, where not the data set's
    warnings: tuple[str, ...] = ()
    learned_rate: float | None = None  # of the networks trained on it
    whitening: Whitening | None = None  # that the images went through, instead of a normalisation
    sha256: str = ""  # of the file; of several, or of a folder, of their hashes
    experiment: int | None = None  # which of the file's sets it is; None where there is one only

    @property
    def kind(self) -> str:
        """hard, where every label is one class, else soft; results of the two never share a column."""
        return "hard" if bool((self.labels.max(1).values == 1).all()) else "soft"


def read_set(
    paths: Path | Sequence[Path], spec: Spec, values: Values | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, kind: Labels | None = None,
    experiment: int | None = None,
) -> ImportedSet:  # fmt: skip
    """Read a set for a data set, in any layout of `set_layouts`: one path, or those of images, labels and learned rate.

    Ours say in the file how they are normalised. Of others', `values` must say whether the images are normalised (by `mean` and
    `std`, or else as the data set's own), pixels, bytes or floats in [0, 1], or whitened: then `zca_mean` [D] and `zca_matrix`
    [D,D] stand beside them, and the test images are whitened by them too. Bytes are pixels unless something else is said.
    Labels are [N] class indices, [N,K] probabilities or, where `kind` says so, logits; where `class_names` stand beside them,
    they count the classes in that order. `experiment` chooses one of a file's sets.
    Raises ConfigError for what the caller must say or correct, DataError for what is wrong in the file.
    """
    return fitted(open_set(paths, experiment), spec, values, mean, std, kind)


def fitted(
    found: Found, spec: Spec, values: Values | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, kind: Labels | None = None,
) -> ImportedSet:  # fmt: skip
    """A set that was opened, for a data set. Arguments and errors are those of `read_set`."""
    name, meta = found.name, found.meta
    order, told = in_order_of(found, spec)
    if meta:
        values = "whitened" if str(meta.get("images")).startswith("whitened") else "normalised"
        mean, std, kind = _own_constants(name, meta, spec), meta["std"], None
    images = _laid_out(found, spec)
    if values is None and images.dtype == torch.uint8:
        values = "pixels"
    if values is None:
        raise ConfigError(f"{name} does not say how its images are normalised: add --images normalised, pixels or whitened.")
    if images.is_floating_point() and not images.isfinite().all():
        raise DataError(f"{name}: images hold NaN or infinite values. Nothing can be learned from them.")
    whitening: Whitening | None = None
    constants: Constants = ((), ())
    doubts = doubts_of_values(images, values, spec)
    if values == "whitened":
        images, whitening = _floats(name, images, "whitened"), _whitening(found, spec)
    elif values == "pixels":
        images = _from_pixels(name, images, spec)
    else:
        constants = _constants(spec, mean, std)
        images = _normalised(name, images, spec, *constants)
    looks: Labels = "indices" if _is_indices(found.labels) else "probabilities"
    num_classes = spec.num_classes if order is None else len(order)
    labels = _probabilities(name, found.labels, len(images), num_classes, kind)
    if order is not None:  # the file's classes to those of the data set
        labels = torch.zeros(len(labels), spec.num_classes).index_copy_(1, torch.tensor(order), labels)
    how = (values, kind or looks, constants, (*doubts, *told, *doubts_of_counts(labels, spec)), _learned_rate(found), whitening)
    return ImportedSet(images, labels, meta.get("dataset"), *how, found.sha256, found.experiment)


def _own_constants(name: str, meta: dict[str, Any], spec: Spec) -> list[float]:
    """The mean in our metadata, which a stranger may have written; it and the deviation are checked."""
    mean, std = meta["mean"], meta["std"]
    if len(mean) != spec.shape[0] or len(std) != spec.shape[0] or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        told = f"its metadata must hold {spec.shape[0]} finite numbers each as mean and std, std above 0"
        raise DataError(f"{name}: {told}, got {mean[:4]} and {std[:4]}. Name another file.")
    return list(mean)


def _laid_out(found: Found, spec: Spec) -> Tensor:
    """Images as [N,C,H,W]: channels may come last, or be left out where there is one, and grey pictures may have three."""
    name, images, (channels, *sides) = found.name, found.images, spec.shape
    if images.dim() == 3 and channels == 1:
        images = images[:, None]
    if images.dim() == 4 and images.shape[1] != channels and images.shape[3] == channels:
        images = images.permute(0, 3, 1, 2)
    if images.dim() == 4 and images.shape[1] == 3 and channels == 1 and bool((images == images[:, :1]).all()):
        images = images[:, :1]
    if images.dim() != 4 or images.shape[1] != channels:
        raise DataError(f"{name}: images must be [N, {channels}, H, W] for '{spec.name}', got {list(found.images.shape)}.")
    if not len(images):
        raise DataError(f"{name} holds no image at all. Nothing can be learned from it.")
    if list(images.shape[2:]) != sides:
        raise DataError(f"{name}: images are {_sides(images.shape)} and those of '{spec.name}' {_sides(spec.shape)}.")
    return images.contiguous()


def _whitening(found: Found, spec: Spec) -> Whitening:
    """The transform in the file; the mean may be a row."""
    size = math.prod(spec.shape)
    mean, matrix = found.zca_mean, found.zca_matrix
    if isinstance(mean, Tensor) and list(mean.shape) == [1, size]:
        mean = mean[0]
    for what, tensor, shape in (("zca_mean", mean, [size]), ("zca_matrix", matrix, [size, size])):
        fits = isinstance(tensor, Tensor) and list(tensor.shape) == shape and tensor.is_floating_point()
        if not fits or not tensor.isfinite().all():
            raise DataError(f"{found.name}: whitened images need the tensor {what}, finite floats {shape}, that whitened them.")
    return Whitening(mean.float(), matrix.float())


def _learned_rate(found: Found) -> float | None:
    """The rate that the set has learned, from our metadata or a stranger's number."""
    value = found.meta.get("learned", {}).get("student_rate") if found.meta else found.rate
    if value is None:
        return None
    if isinstance(value, Tensor | np.ndarray | np.generic):
        with suppress(RuntimeError, ValueError):  # of no value, of several, and of tensors that hold none
            value = value.item()
    if type(value) not in (int, float) or not 0 < value < math.inf:
        got = f"{value:.6g}" if type(value) is float else type(value).__name__
        raise DataError(f"{found.name}: its learned rate must be a number above 0, got {got}.")
    return float(value)


def _floats(name: str, images: Tensor, what: str) -> Tensor:
    if not images.is_floating_point():
        raise DataError(f"{name}: {what} images must be floats, got {images.dtype}. Are they pixels? Say --images pixels.")
    return images.float()


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[-2:])) + " px"


def _from_pixels(name: str, images: Tensor, spec: Spec) -> Tensor:
    """[N,C,H,W], uint8 or floats in [0, 1], as the data set normalises."""
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise DataError(f"{name}: images must be floats or uint8 pixels, got {images.dtype}: save images.to(torch.uint8).")
    low, high = float(images.min()), float(images.max())
    if images.is_floating_point() and (low < -0.5 or high > 1.5):
        how = ": divide them by 255" if low >= 0 and 1.5 < high <= 255 else ""
        raise DataError(f"{name}: pixels must be uint8 or lie in [0, 1], and these lie in [{low:.2f}, {high:.2f}]{how}.")
    return spec.normalise(images if images.dtype == torch.uint8 else images.float())


def _constants(spec: Spec, mean: Sequence[float] | None, std: Sequence[float] | None) -> Constants:
    """What normalised images were normalised by, checked; nothing where that is the data set's own."""
    if mean is None and std is None:
        return (), ()
    if mean is None or std is None or not len(mean) == len(std) == len(spec.mean):
        raise ConfigError(f"--mean and --std go together, with {len(spec.mean)} numbers each for '{spec.name}'.")
    if (tuple(mean), tuple(std)) == (spec.mean, spec.std):
        return (), ()
    if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
        raise ConfigError(f"--mean and --std must be finite and --std above 0, got {list(mean)} and {list(std)}.")
    return tuple(mean), tuple(std)


def _normalised(name: str, images: Tensor, spec: Spec, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """[N,C,H,W] as the data set normalises."""
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise DataError(f"{name}: images must be floats or uint8 pixels, got {images.dtype}: save images.float().")
    images = _floats(name, images, "normalised")
    if mean:
        images = spec.normalise(images * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None])
    return images


def _is_indices(labels: Tensor) -> bool:
    """Whether labels are [N], or a column of integers."""
    return labels.dim() == 1 or (labels.dim() == 2 and labels.shape[1] == 1 and labels.dtype in INTEGERS)


def _probabilities(name: str, labels: Tensor, num: int, num_classes: int, kind: Labels | None) -> Tensor:
    """[N,K] from class indices, probabilities or logits."""
    looks = "indices" if _is_indices(labels) else "probabilities"
    if kind and (kind == "indices") != (looks == "indices"):
        raise DataError(f"{name}: labels {list(labels.shape)} are not {kind}. Say what they are with --labels.")
    if looks == "indices" and len(labels) == num and not labels.is_floating_point():
        indices = labels.long().flatten()
        if indices.min() < 0 or indices.max() >= num_classes:
            held = f"{int(indices.min())}..{int(indices.max())}"
            raise DataError(f"{name}: labels must lie in 0..{num_classes - 1}, got {held}.")
        return F.one_hot(indices, num_classes).float()
    if tuple(labels.shape) != (num, num_classes) or not labels.is_floating_point():
        how = ": save labels.long()" if looks == "indices" and len(labels) == num else ""
        wanted = f"[{num}] class indices or [{num}, {num_classes}] probabilities"
        raise DataError(f"{name}: labels must be {wanted}, got {labels.dtype} {list(labels.shape)}{how}.")
    if kind == "logits":
        if not labels.isfinite().all():
            raise DataError(f"{name}: its logits hold NaN or infinite values. Nothing can be learned from them.")
        return labels.float().softmax(1)
    sums = labels.float().sum(1)
    if not labels.isfinite().all() or labels.min() < 0 or (sums - 1).abs().max() > 1e-3:
        told = "at least 0, each row with the sum 1. If they are logits, say --labels logits."
        raise DataError(f"{name}: soft labels must be probabilities, not logits: {told}")
    return labels.float()
