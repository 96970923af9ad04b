"""Distilled sets from files: ours, and the layouts that others write, read as data and never as code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import Spec
from ddbench.errors import ConfigError, DataError
from ddbench.files import read_json, read_tensors, sha256_file
from ddbench.ops.pickles.torch_files import read_torch

MAX_SET_BYTES = 8 << 30
Values = Literal["normalised", "pixels", "whitened"]
Labels = Literal["indices", "probabilities", "logits"]


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
    constants: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())  # mean and std of the file's, where not the data set's
    warnings: tuple[str, ...] = ()
    learned_rate: float | None = None  # of the networks trained on it
    whitening: Whitening | None = None  # that the images went through, instead of a normalisation

    @property
    def kind(self) -> str:
        """hard, where every label is one class, else soft; results of the two never share a column."""
        return "hard" if bool((self.labels.max(1).values == 1).all()) else "soft"


def metadata(path: Path) -> dict[str, Any]:
    """What one of our files says of itself: `dataset`, the `key` of its plan, and more; nothing for others."""
    _, _, meta, _ = _tensors(path)
    return meta


def read_set(
    path: Path, spec: Spec, values: Values | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, kind: Labels | None = None,
) -> ImportedSet:  # fmt: skip
    """Read a set for a data set.

    Ours say in the file how they are normalised. Others hold `images` [N,C,H,W] and `labels`, [N] class indices, [N,K]
    probabilities or, where `kind` says so, logits, in a .safetensors, or in a .pt as a dictionary or a pair, read as
    data and never as code; `values` then must say whether the images are normalised (by `mean` and `std`, or else as the
    data set's own), pixels, uint8 or floats in [0, 1], or whitened: then the file also holds `zca_mean` [D] and
    `zca_matrix` [D,D], and the test images are whitened by them too. A number `learned_rate` may stand beside.
    Raises ConfigError for what the caller must say or correct, DataError for what is wrong in the file.
    """
    images, labels, meta, tensors = _tensors(path)
    if meta:
        values = "whitened" if str(meta.get("images")).startswith("whitened") else "normalised"
        mean, std, kind = meta["mean"], meta["std"], None
        if meta["class_names"] != list(spec.class_names):
            raise DataError(f"{path} was made for the classes {', '.join(meta['class_names'])}, not those of '{spec.name}'.")
    elif values is None:
        raise ConfigError(f"{path} does not say how its images are normalised: add --images normalised, pixels or whitened.")
    channels = spec.shape[0]
    if images.dim() != 4 or images.shape[1] != channels or not len(images):
        raise DataError(f"{path}: images must be [N, {channels}, H, W] for '{spec.name}', got {list(images.shape)}.")
    if tuple(images.shape[1:]) != spec.shape:
        raise DataError(f"{path}: images are {_sides(images.shape)} and those of '{spec.name}' {_sides(spec.shape)}.")
    if images.is_floating_point() and not images.isfinite().all():
        raise DataError(f"{path}: images hold NaN or infinite values. Nothing can be learned from them.")
    whitening: Whitening | None = None
    constants: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    warnings: tuple[str, ...] = ()
    if values == "whitened":
        images, whitening = _floats(path, images, "whitened"), _whitening(path, tensors, spec)
    elif values == "pixels":
        images = _from_pixels(path, images, spec)
    else:
        constants = _constants(spec, mean, std)
        images, warnings = _normalised(path, images, spec, *constants)
    looks: Labels = "indices" if labels.dim() == 1 else "probabilities"
    probabilities = _probabilities(path, labels, len(images), spec, kind)
    rate = _learned_rate(path, meta, tensors)
    how = (values, kind or looks, constants)
    return ImportedSet(images, probabilities, meta.get("dataset"), *how, warnings, rate, whitening)


def _whitening(path: Path, tensors: Mapping[str, Any], spec: Spec) -> Whitening:
    """The transform in the file."""
    size = math.prod(spec.shape)
    mean, matrix = tensors.get("zca_mean"), tensors.get("zca_matrix")
    for name, tensor, shape in (("zca_mean", mean, [size]), ("zca_matrix", matrix, [size, size])):
        fits = isinstance(tensor, Tensor) and list(tensor.shape) == shape and tensor.is_floating_point()
        if not fits or not tensor.isfinite().all():  # type: ignore[union-attr]
            raise DataError(f"{path}: whitened images need the tensor {name}, finite floats {shape}, that whitened them.")
    assert isinstance(mean, Tensor)
    assert isinstance(matrix, Tensor)
    return Whitening(mean.detach().float(), matrix.detach().float())


def _learned_rate(path: Path, meta: Mapping[str, Any], tensors: Mapping[str, Any]) -> float | None:
    """The rate that the set has learned, from our metadata or a stranger's number."""
    value = meta.get("learned", {}).get("student_rate") if meta else tensors.get("learned_rate")
    if value is None:
        return None
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if type(value) not in (int, float) or not 0 < value < math.inf:
        got = " ".join(repr(value).split())[:60]  # of a tensor: several lines
        raise DataError(f"{path}: its learned rate must be a number above 0, got {got}.")
    return float(value)


def _floats(path: Path, images: Tensor, what: str) -> Tensor:
    if not images.is_floating_point():
        raise DataError(f"{path}: {what} images must be floats, got {images.dtype}. Are they pixels? Say --images pixels.")
    return images.float()


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[-2:])) + " px"


def _tensors(path: Path) -> tuple[Tensor, Tensor, dict[str, Any], Mapping[str, Any]]:
    """images, labels, our metadata, if it is ours, and everything that the file holds."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}. Name a .safetensors or .pt file of images and labels.")
    if path.stat().st_size > MAX_SET_BYTES:
        raise DataError(f"{path} is larger than {MAX_SET_BYTES} bytes: it is hardly a distilled set.")
    if path.suffix == ".safetensors":
        _check_beside(path)
        tensors, meta = read_tensors(path, "distilled set", remedy="Name another file.")
        _check_meta(path, meta)
    elif path.suffix in (".pt", ".pth"):
        tensors, meta = _unpickled(path), {}
    else:
        raise ConfigError(f"{path} is neither a .safetensors nor a .pt file.")
    found = [tensors.get(name) for name in ("images", "labels")]
    if not all(isinstance(tensor, Tensor) for tensor in found):
        held = ", ".join(sorted(map(str, tensors))) or "none"
        raise DataError(f"{path} must hold the tensors images and labels; it holds {held}.")
    images, labels = found
    assert isinstance(images, Tensor)
    assert isinstance(labels, Tensor)
    return images.detach().cpu(), labels.detach().cpu(), meta, tensors


def _check_beside(path: Path) -> None:
    """Raise DataError where the file lies in a store, and its record there names other bytes."""
    record = path.parent / "record.json"
    if path.name == "set.safetensors" and record.is_file():
        files = read_json(record, "record", "Name another file.").get("files")
        wanted = files.get(path.name) if isinstance(files, dict) else None
        if isinstance(wanted, str) and sha256_file(path) != wanted:
            raise DataError(f"{path} is damaged: its bytes are not those that {record} names. Name another file.")


def _check_meta(path: Path, meta: Any) -> None:
    """That the metadata of one of our files, where there are any, say what ours say; a stranger may have written them."""
    lists = {"class_names": str, "mean": float, "std": float}
    fit = meta == {} or (
        isinstance(meta, dict)
        and isinstance(meta.get("dataset"), str)
        and all(isinstance(meta.get(name), list) for name in lists)
        and all(type(value) is kind for name, kind in lists.items() for value in meta[name])
        and isinstance(meta.get("learned", {}), dict)
    )
    if not fit:
        raise DataError(f"{path}: its metadata must hold dataset, class_names, mean and std, and do not. Name another file.")


def _unpickled(path: Path) -> dict[Any, Any]:
    """A dictionary, or a pair as a dictionary, of a file that torch.save wrote, without executing anything of it."""
    with path.open("rb") as file:
        content = read_torch(file, str(path))
    if isinstance(content, list | tuple) and len(content) == 2:
        content = dict(zip(("images", "labels"), content, strict=True))
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a dictionary or a pair of images and labels, got {type(content).__name__}.")
    return content


def _from_pixels(path: Path, images: Tensor, spec: Spec) -> Tensor:
    """[N,C,H,W], uint8 or floats in [0, 1], as the data set normalises."""
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise DataError(f"{path}: images must be floats or uint8 pixels, got {images.dtype}.")
    low, high = float(images.min()), float(images.max())
    if images.is_floating_point() and (low < -0.5 or high > 1.5):
        raise DataError(f"{path}: pixels must be uint8 or lie in [0, 1], and these lie in [{low:.2f}, {high:.2f}].")
    return spec.normalise(images if images.dtype == torch.uint8 else images.float())


def _constants(
    spec: Spec, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What normalised images were normalised by, checked; nothing where that is the data set's own."""
    if (mean is None) != (std is None) or any(len(given or spec.mean) != len(spec.mean) for given in (mean, std)):
        raise ConfigError(f"--mean and --std go together, with {len(spec.mean)} numbers each for '{spec.name}'.")
    if mean is None or std is None or (tuple(mean), tuple(std)) == (spec.mean, spec.std):
        return (), ()
    if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
        raise ConfigError(f"--mean and --std must be finite and --std above 0, got {list(mean)} and {list(std)}.")
    return tuple(mean), tuple(std)


def _normalised(
    path: Path, images: Tensor, spec: Spec, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, tuple[str, ...]]:
    """[N,C,H,W] as the data set normalises, and a warning where the values look like something else."""
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise DataError(f"{path}: images must be floats or uint8 pixels, got {images.dtype}.")
    images = _floats(path, images, "normalised")
    low, high = float(images.min()), float(images.max())
    if mean:
        images = spec.normalise(images * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None])
    looks = low >= 0 and high <= 1
    told = f"the images are said to be normalised and lie in [{low:.2f}, {high:.2f}]. Are they pixels?"
    return images, ((told,) if looks else ())


def _probabilities(path: Path, labels: Tensor, num: int, spec: Spec, kind: Labels | None) -> Tensor:
    """[N,K] from class indices, probabilities or logits."""
    looks = "indices" if labels.dim() == 1 else "probabilities"
    if kind and (kind == "indices") != (looks == "indices"):
        raise DataError(f"{path}: labels {list(labels.shape)} are not {kind}. Say what they are with --labels.")
    if labels.dim() == 1 and len(labels) == num and not labels.is_floating_point():
        if labels.min() < 0 or labels.max() >= spec.num_classes:
            found = f"{int(labels.min())}..{int(labels.max())}"
            raise DataError(f"{path}: labels must lie in 0..{spec.num_classes - 1}, got {found}.")
        return F.one_hot(labels.long(), spec.num_classes).float()
    if tuple(labels.shape) != (num, spec.num_classes) or not labels.is_floating_point():
        wanted = f"[{num}] class indices or [{num}, {spec.num_classes}] probabilities"
        raise DataError(f"{path}: labels must be {wanted}, got {labels.dtype} {list(labels.shape)}.")
    if kind == "logits":
        if not labels.isfinite().all():
            raise DataError(f"{path}: its logits hold NaN or infinite values. Nothing can be learned from them.")
        return labels.float().softmax(1)
    sums = labels.sum(1)
    if not labels.isfinite().all() or labels.min() < 0 or (sums - 1).abs().max() > 1e-3:
        told = "at least 0, each row with the sum 1. If they are logits, say --labels logits."
        raise DataError(f"{path}: soft labels must be probabilities, not logits: {told}")
    return labels.float()
