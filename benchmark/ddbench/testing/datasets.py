"""The contract of data sets."""

# ruff: noqa: PT018 (one sentence often covers two conditions)

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ddbench.api import (
    Dataset,
    Split,
)
from ddbench.compute.run import DistillRun
from ddbench.data.subsets import default_root
from ddbench.errors import DataError
from ddbench.seeds import stream
from ddbench.testing.checks import Check, Skipped

SPLITS: tuple[Split, ...] = ("train", "test")


def _load(dataset: Dataset, split: Split) -> tuple[Tensor, Tensor]:
    try:
        data = dataset.load(split, default_root())
    except DataError as error:
        raise Skipped(str(error)) from error
    return data.images, data.labels


def dataset_spec_is_sound(dataset: Dataset, run: DistillRun) -> None:
    """Without a file: three positive sizes, distinct class names, a mean and a positive deviation for each channel."""
    spec = dataset.spec()
    assert spec == dataset.spec(), "spec gives something else the second time."
    assert len(spec.shape) == 3 and min(spec.shape) > 0, f"the shape must be C, H, W, got {spec.shape}."
    assert len(set(spec.class_names)) == len(spec.class_names) > 1, "class names must be distinct, and more than one."
    assert len(spec.mean) == len(spec.std) == spec.shape[0], (
        f"mean and std must have {spec.shape[0]} entries, got {spec.mean} and {spec.std}."
    )
    assert all(0 <= value <= 1 for value in spec.mean) and all(value > 0 for value in spec.std), (
        "mean lies in [0, 1], std above 0."
    )
    replace(run, data=replace(run.data, spec=spec)).augment.draw(stream("view"))


def dataset_fits_its_spec(dataset: Dataset, run: DistillRun) -> None:
    """Both splits: uint8 images [N,C,H,W] of the spec's shape, an int64 label for each."""
    for split in SPLITS:
        images, labels = _load(dataset, split)
        assert images.dtype == torch.uint8, f"the {split} images must be uint8, got {images.dtype}."
        assert tuple(images.shape[1:]) == dataset.spec().shape, (
            f"the {split} images are {list(images.shape)}, the spec says {dataset.spec().shape}."
        )
        assert labels.dtype == torch.int64 and labels.shape == images.shape[:1], (
            f"the {split} labels must be int64 [{len(images)}]."
        )


def dataset_covers_its_classes(dataset: Dataset, run: DistillRun) -> None:
    """Both splits have images of every class, and no other."""
    num = dataset.spec().num_classes
    for split in SPLITS:
        found = _load(dataset, split)[1].unique().tolist()
        assert found == list(range(num)), f"the {split} labels must be all of 0..{num - 1}, got {found}."


def dataset_loads_the_same_every_time(dataset: Dataset, run: DistillRun) -> None:
    """Both splits have the same images and labels in the same order, twice."""
    for split in SPLITS:
        for first, second in zip(_load(dataset, split), _load(dataset, split), strict=True):
            assert torch.equal(first, second), f"the {split} split is another the second time."
    assert isinstance(dataset.is_original(default_root()), bool), "is_original must say True or False."


def dataset_names_its_files(dataset: Dataset, run: DistillRun) -> None:
    """What `files` names is there, each once; nothing but a change of these would be noticed."""
    _load(dataset, "train")
    files = dataset.files(default_root())
    if not files:
        raise Skipped("the data set names no files, so it is decoded at every command")
    missing = [str(path) for path in files if not path.is_file()]
    assert not missing, f"files names what is no file: {', '.join(missing)}."
    assert len(set(files)) == len(files), "files names a file twice."


def dataset_says_whether_it_is_prepared(dataset: Dataset, run: DistillRun) -> None:
    """Once it was loaded, nothing is left to be written: `is_prepared` is True."""
    _load(dataset, "train")
    prepared = dataset.is_prepared(default_root())
    assert prepared is True, f"is_prepared must be True once a split was loaded, got {prepared!r}."


dataset_checks: list[Check] = [
    dataset_spec_is_sound,
    dataset_fits_its_spec,
    dataset_covers_its_classes,
    dataset_loads_the_same_every_time,
    dataset_names_its_files,
    dataset_says_whether_it_is_prepared,
]
