"""Subsets of real data: loaded once, checked, given an identity, and split so that selection has images of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddbench.api import Dataset, LabelledImages, Spec, Split
from ddbench.errors import BenchError, ConfigError, DataError, PluginError
from ddbench.ops.split import stratified_split
from ddbench.plan import PluginRef, canonical
from ddbench.seeds import stream


def default_root() -> Path | None:
    """The folder that the environment variable DDBENCH_DATA names, or None."""
    value = os.environ.get("DDBENCH_DATA")
    return expanded(value) if value else None


def expanded(path: str) -> Path:
    """A path with ~ for the home folder. Raises ConfigError where that is nobody's."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"the folder '{path}' names the home of a user who is not there.") from error


def load_split(ref: PluginRef, split: Split, root: Path | None) -> LabelledImages:
    """A split of a data set, checked against its spec. Raises DataError where it does not fit."""
    dataset: Dataset = ref.make()
    try:
        spec, data = dataset.spec(), dataset.load(split, root)
        images, labels = data.images, data.labels
    except BenchError:
        raise
    except Exception as error:  # a stranger's code
        what = f"{type(error).__name__}: {error}"
        raise PluginError(f"dataset '{ref.name}': its {split} split cannot be loaded: {what}.") from error
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != spec.shape or len(images) == 0:
        raise DataError(
            f"dataset '{ref.name}': its {split} images must be uint8 [N, {', '.join(map(str, spec.shape))}], "
            f"got {images.dtype} {list(images.shape)}. This is a fault of the plugin or of the files."
        )
    fit = labels.dtype == torch.int64 and labels.shape == images.shape[:1]
    if not fit or labels.unique().tolist() != list(range(spec.num_classes)):
        raise DataError(
            f"dataset '{ref.name}': its {split} labels must be int64 and hold each of 0..{spec.num_classes - 1} for "
            f"{len(images)} images. This is a fault of the plugin or of the files."
        )
    return data


@dataclass(frozen=True)
class Identity:
    """What a subset is: the SHA-256 of everything that can change a number, and whether the files are the published ones."""

    hash: str
    original: bool
    train_counts: tuple[int, ...]  # by class, before the validation split
    test_counts: tuple[int, ...]

    def label(self, name: str) -> str:
        """The name that records and tables show; a copy is never mixed with the original."""
        return name if self.original else f"{name} (copy {self.hash[:8]})"


def identify(ref: PluginRef, root: Path | None) -> Identity:
    """Hash a subset: its spec, then both splits' shapes, images and labels in order. Raises DataError where data are missing."""
    sha = hashlib.sha256(canonical(asdict(ref.ask(lambda dataset: dataset.spec()))).encode())
    counts: Mapping[Split, list[int]] = {"train": [], "test": []}
    for split, into in counts.items():
        data = load_split(ref, split, root)
        into.extend(torch.bincount(data.labels).tolist())
        for tensor in (data.images, data.labels):
            sha.update(canonical([split, list(tensor.shape)]).encode())
            sha.update(tensor.contiguous().numpy().data)
    original = ref.ask(lambda dataset: dataset.is_original(root))
    return Identity(sha.hexdigest(), original, tuple(counts["train"]), tuple(counts["test"]))


@dataclass(frozen=True)
class TrainingData:
    """The real training images on a device, sorted by class, and a held-out part of them for selection. No test image."""

    spec: Spec
    images: Tensor  # [N,C,H,W], normalised, sorted by class
    labels: Tensor  # [N] int64
    starts: tuple[int, ...]  # class c lies at starts[c] .. starts[c + 1]
    validation_images: Tensor
    validation_labels: Tensor

    def everything(self) -> tuple[Tensor, Tensor]:
        """The whole training split: images and labels, the held-out part last; for the row full-data, which selects nothing."""
        return torch.cat([self.images, self.validation_images]), torch.cat([self.labels, self.validation_labels])

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of training images of every class."""
        return tuple(stop - start for start, stop in zip(self.starts, self.starts[1:], strict=False))


def load_training(ref: PluginRef, root: Path | None, validation_fraction: float, device: torch.device) -> TrainingData:
    """The training split, less the same share of every class for validation, drawn from a stream that no plan can change."""
    dataset: Dataset = ref.make()
    spec, data = dataset.spec(), load_split(ref, "train", root)
    train, held_out = stratified_split(data.labels, validation_fraction, stream("validation-split", spec.name))
    train = train[data.labels[train].argsort(stable=True)]
    labels = data.labels[train]
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(labels, minlength=spec.num_classes).cumsum(0)])
    return TrainingData(
        spec,
        spec.normalise(data.images[train].to(device)),
        labels.to(device),
        tuple(starts.tolist()),
        spec.normalise(data.images[held_out].to(device)),
        data.labels[held_out].to(device),
    )
