"""CIFAR-100, SVHN, MNIST and Fashion-MNIST: their published files, made small here, and what is no such file."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from ddbench import registry
from ddbench.api import Dataset
from ddbench.errors import DataError
from ddbench_plugins.datasets import cifar100, mnist, svhn

RNG = np.random.default_rng(7)
COLOUR = {split: RNG.integers(0, 256, (num, 3, 32, 32), dtype=np.uint8) for split, num in (("train", 12), ("test", 10))}
GREY = {split: RNG.integers(0, 256, (num, 28, 28), dtype=np.uint8) for split, num in (("train", 12), ("test", 10))}
LABELS = {"train": [*range(10), 3, 0], "test": list(range(10))}


def make_cifar100(root: Path) -> None:
    folder = root / cifar100.FOLDER
    folder.mkdir()
    for split, images in COLOUR.items():
        content = {"data": images.reshape(len(images), -1), "fine_labels": LABELS[split], "coarse_labels": [0] * len(images)}
        (folder / split).write_bytes(pickle.dumps(content, protocol=2))


def make_svhn(root: Path) -> None:
    (root / "svhn").mkdir()
    for split, images in COLOUR.items():
        labels = np.array([[label or 10] for label in LABELS[split]], np.uint8)
        savemat(root / "svhn" / f"{split}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": labels})


def idx(split: str) -> tuple[bytes, bytes]:
    num = len(GREY[split]).to_bytes(4, "big")
    side = (28).to_bytes(4, "big")
    return b"\0\0\x08\x03" + num + side + side + GREY[split].tobytes(), b"\0\0\x08\x01" + num + bytes(LABELS[split])


def make_mnist(folder: str, packed: bool = False) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        raw = root / folder / "raw"
        raw.mkdir(parents=True)
        for split, part in mnist.PARTS.items():
            for what, content in zip(("images-idx3", "labels-idx1"), idx(split), strict=True):
                name = f"{part}-{what}-ubyte"
                (raw / f"{name}.gz").write_bytes(gzip.compress(content)) if packed else (raw / name).write_bytes(content)

    return make


MADE: dict[str, tuple[str, Callable[[Path], None], dict[str, np.ndarray]]] = {
    "cifar100": ("cifar100", make_cifar100, COLOUR),
    "svhn": ("svhn", make_svhn, COLOUR),
    "mnist": ("mnist", make_mnist("MNIST"), GREY),
    "mnist, packed": ("mnist", make_mnist("MNIST", True), GREY),
    "fashion-mnist": ("fashion-mnist", make_mnist("FashionMNIST"), GREY),
}


@pytest.mark.parametrize("case", MADE)
def test_images_and_labels_are_read_in_the_files_order(case: str, tmp_path: Path) -> None:
    name, make, images = MADE[case]
    make(tmp_path)
    plugin: Dataset = registry.datasets.make(name)
    spec = plugin.spec()
    assert spec.name == name
    for split in ("train", "test"):
        data = plugin.load(split, tmp_path)
        assert np.array_equal(data.images.numpy(), images[split].reshape(-1, *spec.shape))
        assert data.labels.tolist() == LABELS[split]
    assert not plugin.is_original(tmp_path)
    files = plugin.files(tmp_path)
    assert sorted(files) == sorted(path for path in tmp_path.rglob("*") if path.is_file())


def test_originals_are_told_by_their_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _, make, _ in (MADE["cifar100"], MADE["svhn"], MADE["mnist, packed"]):
        make(tmp_path)

    def md5(content: bytes) -> str:
        return hashlib.md5(content).hexdigest()

    monkeypatch.setattr(cifar100, "MD5", {name: md5((tmp_path / cifar100.FOLDER / name).read_bytes()) for name in cifar100.FILES})
    files = {split: tmp_path / "svhn" / f"{split}_32x32.mat" for split in ("train", "test")}
    monkeypatch.setattr(svhn, "MD5", {split: md5(path.read_bytes()) for split, path in files.items()})
    monkeypatch.setattr(mnist, "MD5", {"mnist": tuple(md5(part) for split in ("train", "test") for part in idx(split))})
    for name in ("cifar100", "svhn", "mnist"):
        assert registry.datasets.make(name).is_original(tmp_path), name


@pytest.mark.parametrize("name", ["cifar100", "svhn", "mnist", "fashion-mnist"])
def test_what_is_missing_is_named_with_its_place(name: str, tmp_path: Path) -> None:
    plugin: Dataset = registry.datasets.make(name)
    with pytest.raises(DataError, match=rf"dataset '{name}' is not under DDBENCH_DATA: expected .*, in {tmp_path}\. Put"):
        plugin.load("train", tmp_path)
    with pytest.raises(DataError, match=rf"dataset '{name}' .* and DDBENCH_DATA is not set\. .*ddbench download {name}"):
        plugin.files(None)


class Malice:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def spoiled(name: str, root: Path) -> Path:
    return {
        "cifar100": root / cifar100.FOLDER / "train", "svhn": root / "svhn" / "train_32x32.mat",
        "mnist": root / "MNIST" / "raw" / "train-images-idx3-ubyte",
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cifar100", pickle.dumps({"data": Malice()}), r"it asks for posix\.system, which CIFAR-100 does not need"),
        ("cifar100", b"nonsense", "cannot read it"),
        ("cifar100", pickle.dumps([1]), "with 'data' of uint8"),
        ("cifar100", pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "fine_labels": [1, 2]}), "with 'data' of uint8"),
        ("cifar100", pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1]}), "with 'data' of uint8"),
        ("cifar100", pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 100]}), "fine_labels from 0 to 99"),
        ("cifar100", pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 1.5]}), "fine_labels from 0 to 99"),
        ("svhn", b"nonsense" * 50, "cannot read it"),
        ("mnist", b"", "a whole file of 28x28 images for train"),
        ("mnist", idx("train")[0][:-1], "a whole file of 28x28 images"),
        ("mnist", idx("train")[0] + b"x", "a whole file of 28x28 images"),
        ("mnist", idx("train")[1], "a whole file of 28x28 images"),
        ("mnist", idx("test")[0], "a whole file of 10 labels"),
    ],
    ids=range(13),
)
def test_what_is_no_such_file_is_a_sentence(name: str, content: bytes, says: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    MADE[name][1](tmp_path)
    spoiled(name, tmp_path).write_bytes(content)
    with pytest.raises(DataError, match=f"dataset '{name}' .*{says}"):
        registry.datasets.make(name).load("train", tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{"X": np.zeros((32, 32, 3, 2)), "y": [1, 2]}, {"X": COLOUR["test"], "y": [1]}, {"y": [1]}])
def test_svhn_checks_what_it_read(content: dict[str, Any], tmp_path: Path) -> None:
    make_svhn(tmp_path)
    savemat(spoiled("svhn", tmp_path), content)
    with pytest.raises(DataError, match=r"dataset 'svhn' .*expected .*train_32x32"):
        registry.datasets.make("svhn").load("train", tmp_path)


@pytest.mark.parametrize(("name", "module"), [("cifar100", cifar100), ("svhn", svhn)])
def test_huge_files_are_refused(name: str, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MADE[name][1](tmp_path)
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(DataError, match=f"dataset '{name}' .*at most 100 bytes"):
        registry.datasets.make(name).load("train", tmp_path)


def test_a_packed_file_is_unpacked_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MADE["mnist, packed"][1](tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx("train")[0] + bytes(50 << 20)))
    with pytest.raises(DataError, match="a whole file of 28x28 images"):
        registry.datasets.make("mnist").load("train", tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot read it"):
        registry.datasets.make("mnist").load("train", tmp_path)
