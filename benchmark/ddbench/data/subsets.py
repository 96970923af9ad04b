"""Subsets of real data: loaded once, checked, given an identity, and split so that selection has images of its own."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.api import Dataset, LabelledImages, Spec, Split
from ddbench.data.host import HostImages, Images, joined, stays
from ddbench.data.recall import recall, remember, state_of_files
from ddbench.errors import BenchError, ConfigError, DataError, PluginError
from ddbench.files import canonical, digest
from ddbench.ops.split import stratified_split
from ddbench.refs import PluginRef
from ddbench.seeds import stream

SPLITS: tuple[Split, Split] = ("train", "test")
CACHE_BYTES = 4 << 30  # of training data that a process keeps for later cells


def default_root() -> Path | None:
    """The folder that the environment variable DDBENCH_DATA names, or None."""
    value = os.environ.get("DDBENCH_DATA")
    return expanded(value) if value else None


def expanded(path: str) -> Path:
    """A path with ~ for the home folder. Raises ConfigError where that is nobody's."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError) as error:
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

    train_hash: str  # of what distilled sets depend on: the training split, and the whole spec
    test_hash: str  # of what judgements depend on: the test split, and the spec without its name
    original: bool
    train_counts: tuple[int, ...]  # by class, before the validation split
    test_counts: tuple[int, ...]

    @property
    def hash(self) -> str:
        """Of both."""
        return digest([self.train_hash, self.test_hash])

    def label(self, name: str) -> str:
        """The name that records and tables show; a copy is never mixed with the original."""
        return name if self.original else f"{name} (copy {self.hash[:8]})"


def known_identity(ref: PluginRef, root: Path | None) -> Identity | None:
    """What a subset was when its files were last hashed, if they are the same by size and time; None where nobody knows. Raises
    DataError where data are missing."""
    state = state_of_files(ref, root)
    return None if state is None else _kept_identity(recall(state))


def identify(ref: PluginRef, root: Path | None) -> Identity:
    """Hash a subset, or say what is known of it. Raises DataError where data are missing."""
    state = state_of_files(ref, root)
    known = None if state is None else _kept_identity(recall(state))
    if known:
        return known
    (train_hash, train_counts), (test_hash, test_counts) = (_hash_split(ref, split, root) for split in SPLITS)
    original = ref.ask(lambda dataset: dataset.is_original(root))
    identity = Identity(train_hash, test_hash, original, train_counts, test_counts)
    if state is not None and state == state_of_files(ref, root):  # nobody has changed a file meanwhile
        remember(state, asdict(identity))
    return identity


def _hash_split(ref: PluginRef, split: Split, root: Path | None) -> tuple[str, tuple[int, ...]]:
    """The hash of a split's shape, images and labels in order and of the facts that its numbers hang on; its images by class."""
    data = load_split(ref, split, root)
    sha = hashlib.sha256(canonical(_facts(ref.ask(lambda dataset: dataset.spec()), split)).encode())
    for tensor in (data.images, data.labels):
        sha.update(canonical([split, list(tensor.shape)]).encode())
        sha.update(tensor.contiguous().numpy().data)
    return sha.hexdigest(), tuple(torch.bincount(data.labels).tolist())


def _facts(spec: Spec, split: Split) -> dict[str, Any]:
    """What of a spec can change a number. Its name draws the validation split; identifiers of classes tell a generator what to
    make, and nothing where there are none."""
    facts = asdict(spec)
    idle = [name for name in ("class_ids", "class_indices") if split == "test" or not facts[name]]
    for name in [*idle, *(["name"] if split == "test" else [])]:
        del facts[name]
    return facts


def _kept_identity(answer: dict[str, Any] | None) -> Identity | None:
    """An identity from JSON; None where it is none."""
    match answer:
        case {
            "train_hash": str(train), "test_hash": str(test), "original": bool(original),
            "train_counts": [*train_counts], "test_counts": [*test_counts],
        } if all(type(count) is int for count in (*train_counts, *test_counts)):  # fmt: skip
            return Identity(train, test, original, tuple(train_counts), tuple(test_counts))
    return None


@dataclass(frozen=True)
class TrainingData:
    """The real training images on a device, as bytes, sorted by class, and a held-out part of them for selection. No test image.

    Bytes take a quarter of the memory; whoever reads a batch of them has it normalised by `seen`, to the same bits as if all
    had been normalised beforehand. Images that are mapped from a file, or too many for the device, stay on the host: then
    `images` and `validation_images` are `HostImages`, which give the same batches.
    """

    spec: Spec
    images: Images  # uint8 [N,C,H,W], sorted by class
    labels: Tensor  # [N] int64
    starts: tuple[int, ...]  # class c lies at starts[c] .. starts[c + 1]
    validation_images: Images  # uint8
    validation_labels: Tensor
    dtype: torch.dtype = torch.float32  # of what networks see; float64 where derivatives are checked

    def seen(self, images: Tensor) -> Tensor:
        """What networks see of bytes [B,C,H,W]: normalised by the data set's own constants, never a view of them. Raises
        DataError for what is normalised already."""
        if images.dtype != torch.uint8:
            raise DataError(f"training images are kept as uint8 and normalised when they are read; these are {images.dtype}.")
        return self.spec.normalise(images, self.dtype)

    def everything(self) -> tuple[Images, Tensor]:
        """The whole training split: bytes and labels, the held-out part last; for the row full-data, which selects nothing."""
        return joined(self.images, self.validation_images), torch.cat([self.labels, self.validation_labels])

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of training images of every class."""
        return tuple(stop - start for start, stop in zip(self.starts, self.starts[1:], strict=False))

    @property
    def num_bytes(self) -> int:
        """What its images and labels take; nothing for images that stay on the host."""
        return sum(part.nbytes for part in (self.images, self.labels, self.validation_images, self.validation_labels))


def _parts(labels: Tensor, held_out: float, tuning: float, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the training images: to train on, to validate by, to score trials by; drawn from streams that no plan can
    change. The validation images are the same whatever `tuning` is."""
    kept, validation = stratified_split(labels, held_out, stream("validation-split", name))
    rest, scoring = stratified_split(labels[kept], tuning, stream("tuning-split", name))
    return kept[rest], validation, kept[scoring]


def load_training(
    ref: PluginRef, root: Path | None, validation_fraction: float, device: torch.device, tuning: float = 0.0
) -> TrainingData:
    """The training split, less the same share of every class for validation, and of what is left less the share `tuning`, which
    scores trials and which nothing here leads to."""
    dataset: Dataset = ref.make()
    spec, data = dataset.spec(), load_split(ref, "train", root)
    train, held_out, _ = _parts(data.labels, validation_fraction, tuning, spec.name)
    train = train[data.labels[train].argsort(stable=True)]
    labels = data.labels[train]
    on_host = stays(data.images, data.mapped, device)

    def images(rows: Tensor) -> Images:
        return HostImages(data.images, rows, device) if on_host else data.images[rows].to(device)

    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(labels, minlength=spec.num_classes).cumsum(0)])
    return TrainingData(
        spec,
        images(train),
        labels.to(device),
        tuple(starts.tolist()),
        images(held_out),
        data.labels[held_out].to(device),
    )


def load_scoring(ref: PluginRef, root: Path | None, validation_fraction: float, tuning: float) -> tuple[Tensor, Tensor]:
    """The training images that score trials, uint8 [N,C,H,W], and their labels [N]: what `load_training` leaves out for them."""
    dataset: Dataset = ref.make()
    data = load_split(ref, "train", root)
    _, _, scoring = _parts(data.labels, validation_fraction, tuning, dataset.spec().name)
    return data.images[scoring], data.labels[scoring]


class TrainingCache:
    """The training data of the subsets that were asked for last, for a process that computes cell after cell."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        """`max_bytes` over all subsets; the one asked for last is kept however large it is."""
        self.max_bytes = max_bytes
        self._kept: dict[tuple[str, float, float, torch.device], TrainingData] = {}  # the one asked for last comes last

    def has(self, train_hash: str, held_out: float, device: torch.device, tuning: float = 0.0) -> bool:
        """Whether they are there."""
        return (train_hash, held_out, tuning, device) in self._kept

    @property
    def num_bytes(self) -> int:
        """Of all that is kept."""
        return sum(kept.num_bytes for kept in self._kept.values())

    def load(
        self, ref: PluginRef, root: Path | None, train_hash: str, held_out: float, device: torch.device, tuning: float = 0.0
    ) -> TrainingData:
        """What `load_training` gives for a subset of that training hash and shares held out, loaded if it is not there."""
        key = (train_hash, held_out, tuning, device)
        data = self._kept.pop(key, None)
        data = load_training(ref, root, held_out, device, tuning) if data is None else data
        self.put(train_hash, held_out, device, data, tuning)
        return self._kept[key]

    def put(self, train_hash: str, held_out: float, device: torch.device, data: TrainingData, tuning: float = 0.0) -> None:
        """Keep data as those asked for last, and drop those that were not asked for longest until all fit."""
        key = (train_hash, held_out, tuning, device)
        self._kept.pop(key, None)
        self._kept[key] = data
        while len(self._kept) > 1 and self.num_bytes > self.max_bytes:
            del self._kept[next(iter(self._kept))]
