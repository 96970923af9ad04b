"""ImageNet's subsets: the published lists in order, every layout of the tree, and what is not ImageNet is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_trees import jpeg, tar_of, write

from ddbench import registry
from ddbench.api import LabelledImages
from ddbench.errors import BenchError, ConfigError, DataError
from ddbench.ops import imagenet_tree
from ddbench.ops.imagenet import class_facts, imagenet_classes
from ddbench.ops.pictures import decode
from ddbench_plugins.datasets.imagenet import ImageNetSubset, imagenette

GOLDEN: dict[str, list[Any]] = json.loads((Path(__file__).parents[1] / "golden" / "imagenet_subsets.json").read_text())
NETTE = tuple(wnid for _, wnid, _ in GOLDEN["imagenette"])
OTHER = "n01443537"  # goldfish, in none of them
NUM = 3  # training images of a class


# ---------------------------------------------------------------- lists


def test_the_thousand_classes_are_in_the_order_of_networks() -> None:
    wnids, names = zip(*imagenet_classes(), strict=True)
    assert len(wnids) == len(set(names)) == 1000
    assert list(wnids) == sorted(set(wnids))
    assert (wnids[0], names[0], wnids[999], names[999]) == ("n01440764", "tench", "n15075141", "toilet tissue")
    assert class_facts(["n02123045", "n01440764"]) == (("tabby", "tench"), (281, 0))
    assert class_facts(["n02123045", "n99999999"]) is None


@pytest.mark.parametrize("name", GOLDEN)
def test_a_subset_s_classes_are_the_published_ones_in_their_order(name: str) -> None:
    spec = registry.datasets.make(name).spec()
    assert [list(one) for one in zip(spec.class_indices, spec.class_ids, spec.class_names, strict=True)] == GOLDEN[name]
    assert (spec.name, spec.shape) == (name, (3, 128, 128))
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert spec.augmentation == "color_crop_cutout_flip_scale_rotate"


def test_the_union_and_the_whole() -> None:
    union, whole = registry.datasets.make("imagenet-94").spec(), registry.datasets.make("imagenet-1k").spec()
    indices = {index for classes in GOLDEN.values() for index, _, _ in classes}
    assert union.class_indices == tuple(sorted(indices))
    assert union.num_classes == 94
    assert whole.class_indices == tuple(range(1000))
    assert whole.shape == (3, 64, 64)


@pytest.mark.parametrize("side", [31, 513])
def test_a_side_that_nothing_was_made_for_is_refused(side: int) -> None:
    with pytest.raises(ConfigError, match=rf"data set 'imagenette': 'side' must lie in 32\.\.512, got {side}\."):
        registry.datasets.make("imagenette", {"side": side})


# ---------------------------------------------------------------- trees


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An ImageNet of 2 to 4 training images a class and 2 to test, of which 24 are 12 classes'."""
    monkeypatch.setattr(imagenet_tree, "COUNTS", {"train": (2, 4), "test": (2, 2)})
    monkeypatch.setattr(imagenet_tree, "NUM_VALIDATION", 24)
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "decoded"))


TRAIN = {
    wnid: {f"{wnid}_{number}.JPEG": jpeg(100 * at + number, 60, 50) for number in range(NUM)} for at, wnid in enumerate(NETTE)
}
SHOWN = [(*NETTE, OTHER, OTHER)[at % 12] for at in range(24)]  # by the validation images in turn, two of each
SHOWN = sorted(SHOWN, key=lambda wnid: wnid[::-1])
VALIDATION = {f"ILSVRC2012_val_{at:08}.JPEG": jpeg(5000 + at, 50, 60) for at in range(1, 25)}


def train_folders(base: Path) -> None:
    for wnid, members in TRAIN.items():
        for name, content in members.items():
            write(base / "train" / wnid / name, content)
    write(base / "train" / OTHER / f"{OTHER}_0.JPEG", jpeg(1))


def wnid_folders(base: Path) -> None:
    train_folders(base)
    for folder in (base / "train").iterdir():
        folder.rename(base / folder.name)
    (base / "train").rmdir()


def class_tars(base: Path) -> None:
    for wnid, members in TRAIN.items():
        write(base / "train" / f"{wnid}.tar", tar_of(dict(reversed(members.items()))))


def train_tar(base: Path) -> None:
    inner = {f"{wnid}.tar": tar_of(members) for wnid, members in reversed(TRAIN.items())}
    write(base / imagenet_tree.TRAIN_TAR, tar_of(inner))


def val_folders(base: Path) -> None:
    for (name, content), wnid in zip(VALIDATION.items(), SHOWN, strict=True):
        write(base / "val" / wnid / name, content)


def flat(base: Path) -> None:
    for name, content in VALIDATION.items():
        write(base / "val" / name, content)


def val_tar(base: Path) -> None:
    write(base / imagenet_tree.VALIDATION_TAR, tar_of(dict(reversed(VALIDATION.items()))))


def solution(base: Path) -> None:
    rows = [f"{name[:-5]},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for name, wnid in zip(VALIDATION, SHOWN, strict=True)]
    write(base / imagenet_tree.SOLUTION, ("ImageId,PredictionString\n" + "\n".join(reversed(rows)) + "\n").encode())


def wnid_lines(base: Path) -> None:
    write(base / imagenet_tree.WNIDS, ("\n".join(SHOWN) + "\n").encode())


def kit(base: Path) -> None:
    """Its numbers are in no order of ids."""
    from scipy.io import savemat

    known = [OTHER, *reversed(NETTE)]
    rows = np.array([(number, wnid) for number, wnid in enumerate(known, 1)], [("ILSVRC2012_ID", "i4"), ("WNID", object)])
    folder = base / imagenet_tree.KIT[0]
    write(folder / imagenet_tree.TRUTH, "".join(f"{known.index(wnid) + 1}\n" for wnid in SHOWN).encode())
    savemat(folder / "meta.mat", {"synsets": rows})


Layout = tuple[Callable[[Path], None], ...]
LAYOUTS: dict[str, Layout] = {
    "torchvision": (train_folders, val_folders),
    "folder of wnids": (wnid_folders, val_folders),
    "class tars": (class_tars, flat, solution),
    "official tars": (train_tar, val_tar, kit),
    "tar and ids": (train_tar, val_tar, wnid_lines),
    "flat and kit": (train_folders, flat, kit),
}


def expected(split: str) -> tuple[np.ndarray, list[int]]:
    if split == "train":
        files = [content for wnid in NETTE for _, content in sorted(TRAIN[wnid].items())]
        return np.stack([decode(content, 32) for content in files]), [label for label in range(10) for _ in range(NUM)]
    pairs = sorted((NETTE.index(wnid), name) for name, wnid in zip(VALIDATION, SHOWN, strict=True) if wnid != OTHER)
    return np.stack([decode(VALIDATION[name], 32) for _, name in pairs]), [label for label, _ in pairs]


@pytest.mark.parametrize("place", ["imagenet", "ILSVRC2012", "imagenet/ILSVRC/Data/CLS-LOC", "."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images(layout: str, place: str, tmp_path: Path) -> None:
    if place != "imagenet" and layout != "torchvision":
        place = "imagenet"
    for lay in LAYOUTS[layout]:
        lay(tmp_path / place)
    plugin = imagenette(side=32)
    for split in ("train", "test"):
        data: LabelledImages = plugin.load(split, tmp_path)
        images, labels = expected(split)
        assert np.array_equal(data.images.numpy(), images)
        assert data.labels.tolist() == labels
    assert plugin.is_original(tmp_path)
    files = plugin.files(tmp_path)
    assert len(files) == len(set(files))
    assert all(path.is_file() for path in files)


def test_labels_of_kaggle_lie_above_its_images(tmp_path: Path) -> None:
    base = tmp_path / "imagenet" / "ILSVRC" / "Data" / "CLS-LOC"
    train_folders(base)
    flat(base)
    solution(tmp_path / "imagenet")
    assert imagenette(side=32).load("test", tmp_path).labels.tolist() == expected("test")[1]


def test_labels_are_in_the_order_of_the_list(tmp_path: Path) -> None:
    for lay in LAYOUTS["torchvision"]:
        lay(tmp_path / "imagenet")
    data = imagenette(side=32).load("train", tmp_path)
    assert torch.equal(data.labels, torch.arange(10).repeat_interleave(NUM))


# ---------------------------------------------------------------- faults


def fails(root: Path, *says: str, error: type[BenchError] = DataError, plugin: ImageNetSubset | None = None) -> None:
    for action in ("files", "load"):
        made = plugin or imagenette(side=32)
        with pytest.raises(error) as caught:
            made.files(root) if action == "files" else made.load("train", root)
        for part in says:
            assert part in str(caught.value)


def test_nothing_there_says_what_was_expected_where(tmp_path: Path) -> None:
    told = "dataset 'imagenette' is not under DDBENCH_DATA: expected imagenet/train/n01440764/ and 9 more folders"
    fails(tmp_path, told, str(tmp_path))
    with pytest.raises(DataError, match="'imagenette' needs ImageNet under DDBENCH_DATA, and that is not set"):
        imagenette().load("train", None)


BOTH, FLAT = LAYOUTS["torchvision"], LAYOUTS["flat and kit"]
META = f"{imagenet_tree.KIT[0]}/meta.mat"


def unlink(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()


def away(path: Path) -> None:
    path.rename(path.parents[1] / "away")


FAULTS: dict[str, tuple[Layout, Callable[[Path], Any], tuple[str, ...]]] = {
    "class missing": (BOTH, lambda base: away(base / "train" / NETTE[3]), ("misses n03000684/", "train")),
    "test class missing": (BOTH, lambda base: away(base / "val" / NETTE[3]), ("misses n03000684/", "val")),
    "too few": (
        BOTH, lambda base: unlink(base / "train" / NETTE[1] / f"{NETTE[1]}_{at}.JPEG" for at in (0, 1)),
        ("expected 2 to 4 images in", NETTE[1], "finds 1"),
    ),
    "empty": (BOTH, lambda base: unlink((base / "val" / NETTE[0]).iterdir()), ("expected 2 images in", "finds 0")),
    "fastai's names": (
        BOTH, lambda base: write(base / "val" / NETTE[0] / f"{NETTE[0]}_9.JPEG", jpeg(3)),
        ("ImageNet's own val images", f"finds {NETTE[0]}_9.JPEG", "fastai-imagenette"),
    ),
    "validation among training": (
        BOTH, lambda base: write(base / "train" / NETTE[0] / "ILSVRC2012_val_00000001.JPEG", jpeg(3)),
        ("ImageNet's own train images", "fastai-imagenette"),
    ),
    "no validation": ((train_folders,), lambda base: None, ("the official validation images in", "ILSVRC2012_img_val.tar")),
    "no training": ((val_folders,), lambda base: None, ("expected training images in", "ILSVRC2012_img_train.tar")),
    "no labels": ((train_folders, flat), lambda base: None, ("says what validation images show: LOC_val_solution.csv",)),
    "labels short": (
        (train_folders, flat), lambda base: write(base / imagenet_tree.WNIDS, "\n".join(SHOWN[:20]).encode()),
        ("to name 24 images",),
    ),
    "labels of others": (
        (train_folders, flat), lambda base: write(base / imagenet_tree.WNIDS, b"x\n" * 24), ("2 of every class",),
    ),
    "kit damaged": (FLAT, lambda base: (base / META).write_bytes(b"x" * 400), ("meta.mat cannot be read",)),
    "image missing": (FLAT, lambda base: unlink(sorted((base / "val").iterdir())[1:]), ("ILSVRC2012_val_",)),
    "tar missing": (
        LAYOUTS["class tars"], lambda base: (base / "train" / f"{NETTE[2]}.tar").unlink(), (f"misses {NETTE[2]}.tar",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_imagenet_is_refused_by_name(fault: str, tmp_path: Path) -> None:
    layout, spoil, says = FAULTS[fault]
    for lay in layout:
        lay(tmp_path / "imagenet")
    spoil(tmp_path / "imagenet")
    fails(tmp_path, "'imagenette'" if "meta.mat" not in says[0] else "meta.mat", *says)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda base: write(base / imagenet_tree.TRAIN_TAR, b"x" * 5000), "cannot be read as a tar"),
        (lambda base: write(base / imagenet_tree.TRAIN_TAR, tar_of({"n01440764.tar": b"x" * 5000})), "n02102040.tar"),
        (lambda base: write(base / imagenet_tree.VALIDATION_TAR, tar_of({"other": b""})), "ILSVRC2012_val_"),
    ],
    ids=["no tar", "class missing", "image missing"],
)
def test_a_damaged_tar_is_named_when_it_is_read(spoil: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    for lay in LAYOUTS["official tars"]:
        lay(tmp_path / "imagenet")
    spoil(tmp_path / "imagenet")
    with pytest.raises(DataError, match=says):
        imagenette(side=32).load("train", tmp_path)


def test_an_unreadable_image_in_a_tar_is_named(tmp_path: Path) -> None:
    members = {wnid: dict(own) for wnid, own in TRAIN.items()}
    members[NETTE[4]][f"{NETTE[4]}_1.JPEG"] = b"no image"
    inner = {f"{wnid}.tar": tar_of(own) for wnid, own in members.items()}
    write(tmp_path / "imagenet" / imagenet_tree.TRAIN_TAR, tar_of(inner))
    val_folders(tmp_path / "imagenet")
    with pytest.raises(DataError, match=rf"1 of 50 images of dataset 'imagenette' cannot be read: {NETTE[4]}/{NETTE[4]}_1\.JPEG"):
        imagenette(side=32).load("train", tmp_path)
    lenient = imagenette(side=32, unreadable="skip")
    assert lenient.load("train", tmp_path).labels.bincount().tolist() == [3, 3, 3, 3, 2, 3, 3, 3, 3, 3]
    assert not lenient.is_original(tmp_path)
