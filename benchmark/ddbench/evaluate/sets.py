"""Distilled sets from files: ours, and the layouts that others write, read as data and never as code."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import Spec
from ddbench.errors import ConfigError, DataError
from ddbench.files import read_tensors

MAX_SET_BYTES = 8 << 30
Values = Literal["normalised", "pixels"]


@dataclass(frozen=True)
class ImportedSet:
    """A set, ready to train on, and what a user should know of it."""

    images: Tensor  # [N,C,H,W], normalised as the data set's real images are
    labels: Tensor  # [N,K], probabilities
    dataset: str | None  # that the file names
    warnings: tuple[str, ...]

    @property
    def kind(self) -> str:
        """hard, where every label is one class, else soft; results of the two never share a column."""
        return "hard" if bool((self.labels.max(1).values == 1).all()) else "soft"


def named_dataset(path: Path) -> str | None:
    """The data set that one of our files names; None for others."""
    _, _, meta = _tensors(path)
    return meta.get("dataset")


def read_set(
    path: Path, spec: Spec, values: Values | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
) -> ImportedSet:  # fmt: skip
    """Read a set for a data set.

    Ours say in the file how they are normalised. Others hold `images` [N,C,H,W] and `labels`, [N] class indices or [N,K]
    probabilities, in a .safetensors, or in a .pt as a dictionary or a pair, loaded without executing pickled code; `values`
    then must say whether the images are normalised (by `mean` and `std`, or else as the data set's own) or pixels, uint8 or
    floats in [0, 1]. Raises ConfigError for what the caller must say or correct, DataError for what is wrong in the file.
    """
    images, labels, meta = _tensors(path)
    if meta:
        values, mean, std = "normalised", meta["mean"], meta["std"]
        if meta["class_names"] != list(spec.class_names):
            raise DataError(f"{path} was made for the classes {', '.join(meta['class_names'])}, not those of '{spec.name}'.")
    elif values is None:
        raise ConfigError(f"{path} does not say how its images are normalised: add --images normalised or --images pixels.")
    channels = spec.shape[0]
    if images.dim() != 4 or images.shape[1] != channels or not len(images):
        raise DataError(f"{path}: images must be [N, {channels}, H, W] for '{spec.name}', got {list(images.shape)}.")
    if tuple(images.shape[1:]) != spec.shape:
        raise DataError(f"{path}: images are {_sides(images.shape)} and those of '{spec.name}' {_sides(spec.shape)}.")
    if images.is_floating_point() and not images.isfinite().all():
        raise DataError(f"{path}: images hold NaN or infinite values. Nothing can be learned from them.")
    images, warnings = _normalised(path, images, spec, values, mean, std)
    return ImportedSet(images, _probabilities(path, labels, len(images), spec), meta.get("dataset"), warnings)


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[-2:])) + " px"


def _tensors(path: Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """images, labels and our metadata, if it is ours."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}. Name a .safetensors or .pt file of images and labels.")
    if path.stat().st_size > MAX_SET_BYTES:
        raise DataError(f"{path} is larger than {MAX_SET_BYTES} bytes: it is hardly a distilled set.")
    if path.suffix == ".safetensors":
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
    return images.detach().cpu(), labels.detach().cpu(), meta


def _check_meta(path: Path, meta: Any) -> None:
    """That the metadata of one of our files, where there are any, say what ours say; a stranger may have written them."""
    lists = {"class_names": str, "mean": float, "std": float}
    fit = meta == {} or (
        isinstance(meta, dict)
        and isinstance(meta.get("dataset"), str)
        and all(isinstance(meta.get(name), list) for name in lists)
        and all(type(value) is kind for name, kind in lists.items() for value in meta[name])
    )
    if not fit:
        raise DataError(f"{path}: its metadata must hold dataset, class_names, mean and std, and do not. Name another file.")


def _unpickled(path: Path) -> dict[Any, Any]:
    """A dictionary, or a pair as a dictionary, of a file that torch.save wrote, without executing anything of it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        told = "holds more than tensors, and pickled code is never run. Save images and labels alone."
        raise DataError(f"{path} {told}") from error
    except Exception as error:  # damaged bytes can raise anything at all
        raise DataError(f"{path} cannot be read ({type(error).__name__}). Name another file.") from error
    if isinstance(content, list | tuple) and len(content) == 2:
        content = dict(zip(("images", "labels"), content, strict=True))
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a dictionary or a pair of images and labels, got {type(content).__name__}.")
    return content


def _normalised(
    path: Path, images: Tensor, spec: Spec, values: Values | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Tensor, tuple[str, ...]]:
    """[N,C,H,W] as the data set normalises, and a warning where the values look like something else."""
    if images.is_complex() or (not images.is_floating_point() and images.dtype != torch.uint8):
        raise DataError(f"{path}: images must be floats or uint8 pixels, got {images.dtype}.")
    low, high = float(images.min()), float(images.max())
    if values == "pixels":
        if images.is_floating_point() and (low < -0.5 or high > 1.5):
            raise DataError(f"{path}: pixels must be uint8 or lie in [0, 1], and these lie in [{low:.2f}, {high:.2f}].")
        return spec.normalise(images if images.dtype == torch.uint8 else images.float()), ()
    if not images.is_floating_point():
        raise DataError(f"{path}: normalised images must be floats, got {images.dtype}. Are they pixels? Say --images pixels.")
    images = images.float()
    if (mean is None) != (std is None) or any(len(given or spec.mean) != len(spec.mean) for given in (mean, std)):
        raise ConfigError(f"--mean and --std go together, with {len(spec.mean)} numbers each for '{spec.name}'.")
    if mean is not None and std is not None and (tuple(mean), tuple(std)) != (spec.mean, spec.std):
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise ConfigError(f"--mean and --std must be finite and --std above 0, got {list(mean)} and {list(std)}.")
        images = spec.normalise(images * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None])
    looks = low >= 0 and high <= 1
    told = f"{path}: the images are said to be normalised and lie in [{low:.2f}, {high:.2f}]. Are they pixels?"
    return images, ((told,) if looks else ())


def _probabilities(path: Path, labels: Tensor, num: int, spec: Spec) -> Tensor:
    """[N,K] from class indices or probabilities."""
    if labels.dim() == 1 and len(labels) == num and not labels.is_floating_point():
        if labels.min() < 0 or labels.max() >= spec.num_classes:
            found = f"{int(labels.min())}..{int(labels.max())}"
            raise DataError(f"{path}: labels must lie in 0..{spec.num_classes - 1}, got {found}.")
        return F.one_hot(labels.long(), spec.num_classes).float()
    if tuple(labels.shape) != (num, spec.num_classes) or not labels.is_floating_point():
        wanted = f"[{num}] class indices or [{num}, {spec.num_classes}] probabilities"
        raise DataError(f"{path}: labels must be {wanted}, got {labels.dtype} {list(labels.shape)}.")
    sums = labels.sum(1)
    if not labels.isfinite().all() or labels.min() < 0 or (sums - 1).abs().max() > 1e-3:
        raise DataError(f"{path}: soft labels must be probabilities, not logits: at least 0, each row with the sum 1.")
    return labels.float()
