"""Folders of class folders, fastai's archives, Tiny-ImageNet: layouts, settings and faults; the real ones where they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_trees import class_tree, jpeg, write

from ddbench import registry
from ddbench.data.subsets import identify, load_split
from ddbench.errors import BenchError, ConfigError, DataError
from ddbench.ops.pictures import decode
from ddbench.refs import PluginRef
from ddbench_plugins.datasets import tiny_imagenet
from ddbench_plugins.datasets.image_folder import image_folder
from ddbench_plugins.datasets.tiny_imagenet import TinyImageNet

NETTE = "imagenette-224-subset"
TINY = "tiny-imagenet-200-subset"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDBENCH_CACHE", str(tmp_path / "decoded"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with `zoo`."""
    class_tree(tmp_path / "data" / "zoo", ("bee", "ant", "cat"), {"train": 3, "val": 2})
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


# ---------------------------------------------------------------- image-folder


def test_classes_are_the_training_folders_sorted_by_name(root: Path) -> None:
    plugin = registry.datasets.make("image-folder/zoo", {"side": 16})
    spec = plugin.spec()
    assert (spec.name, spec.shape, spec.class_names) == ("zoo", (3, 16, 16), ("ant", "bee", "cat"))
    assert (spec.class_ids, spec.class_indices, spec.mean) == ((), (), (0.485, 0.456, 0.406))
    data = plugin.load("test", root)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(data.images[2], decode((root / "zoo/val/bee/0.jpg").read_bytes(), 16))


def test_a_suite_may_choose_and_order_them_and_then_no_file_is_needed(root: Path) -> None:
    given = {"folder": "zoo", "classes": ["cat", "ant"], "side": 16}
    ref = PluginRef.resolve("datasets", "image-folder", given)
    assert identify(ref, root).train_counts == (3, 3)
    assert load_split(ref, "train", root).labels.tolist() == [0, 0, 0, 1, 1, 1]
    (root / "zoo").rename(root / "gone")
    assert ref.make().spec().class_names == ("cat", "ant")
    with pytest.raises(DataError, match=r"dataset 'zoo' expected the folder .*zoo, which is not there\."):
        load_split(ref, "train", root)


def test_folders_may_have_other_names_and_places(root: Path) -> None:
    (root / "zoo" / "val").rename(root / "zoo" / "holdout")
    elsewhere = str(root / "zoo")
    plugin = registry.datasets.make("image-folder", {"folder": elsewhere, "test": "holdout", "side": 16})
    assert len(plugin.load("test", None).labels) == 6
    assert plugin.spec().name == "zoo"


def test_wnids_bring_imagenet_s_names_and_indices(root: Path) -> None:
    class_tree(root / "two", ("n02123045", "n01440764"), {"train": 2, "val": 1})
    spec = image_folder("two").spec()
    assert (spec.class_ids, spec.class_names) == (("n01440764", "n02123045"), ("tench", "tabby"))
    assert spec.class_indices == (0, 281)
    named = image_folder("zoo", class_ids=("n02219486", "n02206856", "n02123045")).spec()
    assert (named.class_names, named.class_indices) == (("ant", "bee", "tabby"), (310, 309, 281))


def test_images_may_lie_one_folder_deeper_and_other_files_are_passed_over(root: Path) -> None:
    bee = root / "zoo" / "train" / "bee"
    (bee / "images").mkdir()
    for path in sorted(bee.glob("*.jpg")):
        path.rename(bee / "images" / path.name)
    write(bee / "bee_boxes.txt", b"1 2 3")
    write(root / "zoo" / "train" / "ant" / ".DS_Store", b"x")
    write(root / "zoo" / "train" / "ant" / "Thumbs.db", b"x")
    (root / "zoo" / "train" / ".hidden").mkdir()
    (root / "zoo" / "train" / "ant" / "0.jpg").rename(root / "zoo" / "train" / "ant" / "0.JPEG")
    assert image_folder("zoo", side=16).load("train", root).labels.bincount().tolist() == [3, 3, 3]


def test_content_decides_and_not_the_suffix(root: Path) -> None:
    from PIL import Image

    Image.new("RGB", (20, 20), (10, 200, 30)).save(root / "zoo" / "train" / "ant" / "0.jpg", "PNG")
    assert image_folder("zoo", side=16).load("train", root).images[0, :, 8, 8].tolist() == [10, 200, 30]


FOLDER_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda zoo: zoo.rename(zoo.with_name("gone")), r"'zoo' expected the folder .*zoo, which is not there\."),
    "no split": (lambda zoo: (zoo / "val").rename(zoo / "test"), "expected the folder .*val, with a folder of images for each"),
    "class missing": (lambda zoo: (zoo / "val" / "cat").rename(zoo / "x"), "finds 2 of 3 classes in .*val, and misses cat/"),
    "one class": (
        lambda zoo: [(zoo / "train" / name).rename(zoo / name) for name in ("ant", "bee")],
        "expected a folder for each class in .*train, two at least, and finds 1",
    ),
    "too few": (
        lambda zoo: [(zoo / "train" / "bee" / f"{at}.jpg").unlink() for at in range(2)],
        "expected at least 2 images in .*bee, and finds 1",
    ),
    "empty": (
        lambda zoo: [(zoo / "val" / "bee" / f"{at}.jpg").unlink() for at in range(2)],
        "expected at least 1 images in .*bee, and finds 0",
    ),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_what_does_not_fit_is_a_sentence(fault: str, root: Path) -> None:
    spoil, says = FOLDER_FAULTS[fault]
    spoil(root / "zoo")
    with pytest.raises((DataError, ConfigError), match=says):  # ConfigError where its classes cannot even be looked up
        image_folder("zoo", side=16).load("train", root)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"side": 4}, r"'side' must lie in 8\.\.512, got 4"),
        ({"classes": ("ant",)}, "'classes' must name two folders or more"),
        ({"classes": ("ant", "ant")}, "each once"),
        ({"classes": ("ant", "../bee")}, r"\['../bee'\] must be names of folders inside of 'zoo'"),
        ({"train": "/etc"}, r"\['/etc'\] must be names of folders"),
        ({"class_ids": ("n1", "n2", "n3")}, "'class_ids' must be WordNet ids of ImageNet-1K"),
        ({"class_ids": ("n01440764",)}, "'class_ids' must name each class once, got 1 ids for 3 classes"),
    ],
)
def test_settings_that_cannot_be_are_refused(root: Path, given: Mapping[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        image_folder("zoo", **given).spec()


def test_a_relative_folder_needs_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDBENCH_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"is the folder 'zoo' below .*, and DDBENCH_DATA is not set.* or name its 'classes'"):
        image_folder("zoo")


def test_a_class_to_test_on_and_not_to_train_on_is_told(root: Path) -> None:
    (root / "zoo" / "val" / "yak").mkdir()
    with pytest.raises(ConfigError, match="has the classes yak and train has not: put their images there, or name the 'classes'"):
        image_folder("zoo")
    assert image_folder("zoo", classes=("ant", "bee")).classes == ("ant", "bee")


@pytest.mark.parametrize(
    ("name", "folder", "first"), [("fastai-imagenette", "imagenette2", 0), ("fastai-imagewoof", "imagewoof2", 155)]
)
def test_fastai_s_archives_are_called_so(name: str, folder: str, first: int, root: Path) -> None:
    plugin = registry.datasets.make(name, {"side": 16})
    spec = plugin.spec()
    assert (spec.name, spec.num_classes, spec.class_indices[0]) == (name, 10, first)
    assert list(spec.class_ids) == sorted(spec.class_ids)
    plain = registry.datasets.make(name.removeprefix("fastai-")).spec()
    assert set(spec.class_ids) == set(plain.class_ids)
    class_tree(root / folder, spec.class_ids, {"train": 2, "val": 1})
    assert plugin.load("train", root).labels.bincount().tolist() == [2] * 10
    with pytest.raises(DataError, match=f"'{name}' expected the folder .*{folder}-160, which is not there"):
        registry.datasets.make(name, {"folder": f"{folder}-160"}).load("train", root)


# ---------------------------------------------------------------- Tiny-ImageNet


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All 200 classes, with 2 images to train and 1 to test."""
    monkeypatch.setattr(tiny_imagenet, "SPLITS", {"train": ("train", 2), "test": ("val", 1)})
    base, rows, contents = tmp_path / tiny_imagenet.FOLDER, list[str](), [jpeg(at, 64, 64) for at in range(5)]
    for label, wnid in enumerate(TinyImageNet().wnids):
        for number in range(2):
            write(base / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", contents[(label + number) % 5])
        write(base / "val" / "images" / f"val_{199 - label}.JPEG", contents[label % 5])
        rows.append(f"val_{199 - label}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    write(base / "val" / "val_annotations.txt", "".join(rows).encode())
    return tmp_path


def test_tiny_imagenet_s_classes() -> None:
    spec = TinyImageNet().spec()
    assert (spec.num_classes, spec.shape, spec.name) == (200, (3, 64, 64), "tiny-imagenet")
    assert list(spec.class_ids) == sorted(set(spec.class_ids))
    assert (spec.class_names[0], spec.class_indices[0], spec.class_names[-1]) == ("goldfish", 1, "acorn")
    assert list(spec.class_indices) == sorted(spec.class_indices)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["annotated", "folders", "folders of folders"])
def test_tiny_imagenet_in_its_own_layout_and_in_folders(tiny: Path, form: str) -> None:
    base = tiny / tiny_imagenet.FOLDER
    if form != "annotated":
        for line in (base / "val" / "val_annotations.txt").read_text().splitlines():
            name, wnid, *_ = line.split("\t")
            target = base / "val" / wnid / ("images" if form == "folders of folders" else "") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (base / "val" / "images" / name).rename(target)
    plugin = TinyImageNet()
    train, test = plugin.load("train", tiny), plugin.load("test", tiny)
    assert train.labels.tolist() == [label for label in range(200) for _ in range(2)]
    assert test.labels.tolist() == list(range(200))
    assert np.array_equal(test.images[7], decode(jpeg(2, 64, 64), 64))


@pytest.mark.slow
def test_a_part_of_tiny_imagenet_is_refused(tiny: Path) -> None:
    base = tiny / tiny_imagenet.FOLDER
    (base / "train" / "n01443537").rename(base / "away")
    with pytest.raises(DataError, match=r"finds 199 of 200 classes in .*train, and misses n01443537/\. A part of it is an image"):
        TinyImageNet().load("train", tiny)
    (base / "away").rename(base / "train" / "n01443537")
    (base / "val" / "images" / "val_199.JPEG").unlink()
    with pytest.raises(DataError, match=r"expected 1 images of n01443537 in .*val_annotations\.txt, and finds 0"):
        TinyImageNet().load("train", tiny)


# ---------------------------------------------------------------- the real ones


def real(user_data: Path | None, name: str) -> Path:
    if user_data is None or not (user_data / name).is_dir():
        pytest.skip(f"DDBENCH_DATA names no folder with {name}")
    return user_data


@pytest.mark.slow
def test_real_images_of_ten_classes(user_data: Path | None) -> None:
    """Photographs, some of them grey, as PIL and numpy decode them."""
    root = real(user_data, NETTE)
    ref = PluginRef.resolve("datasets", f"image-folder/{NETTE}", {"side": 64})
    found = identify(ref, root)
    assert (found.train_counts, found.test_counts, found.original) == ((100,) * 10, (50,) * 10, True)
    spec, data = ref.make().spec(), ref.make().load("test", root)
    assert (spec.class_names[4], spec.class_indices) == ("church", (0, 217, 482, 491, 497, 566, 569, 571, 574, 701))
    files = sorted((root / NETTE / "val" / spec.class_ids[4]).iterdir())
    assert np.array_equal(data.images[data.labels == 4], np.stack([decode(path.read_bytes(), 64) for path in files]))
    means = data.images.double().mean((0, 2, 3)) / 255
    assert np.abs(means.numpy() - spec.mean).max() < 0.05


@pytest.mark.slow
def test_real_images_are_no_subset_of_imagenet(user_data: Path | None, tmp_path: Path) -> None:
    """The split of fastai's archives is not ImageNet's, and says so where it is put in ImageNet's place."""
    root = real(user_data, NETTE)
    (tmp_path / "imagenet").symlink_to(root / NETTE)
    with pytest.raises(DataError, match=r"'imagenette' expected ImageNet's own .* fastai-imagenette"):
        registry.datasets.make("imagenette").load("train", tmp_path)


@pytest.mark.slow
def test_twenty_real_classes_are_an_image_folder_and_not_tiny_imagenet(user_data: Path | None, tmp_path: Path) -> None:
    root = real(user_data, TINY)
    (tmp_path / tiny_imagenet.FOLDER).symlink_to(root / TINY)
    with pytest.raises(BenchError) as caught:
        registry.datasets.make("tiny-imagenet").load("train", tmp_path)
    said = r"dataset 'tiny-imagenet' finds 20 of 200 classes in [^.]*\. A part of it is an image-folder\."
    assert re.fullmatch(said, str(caught.value))
    ref = PluginRef.resolve("datasets", f"image-folder/{TINY}", {"side": 64})
    found = identify(ref, root)
    assert (found.train_counts, found.test_counts) == ((100,) * 20, (20,) * 20)
    assert ref.make().spec().class_names[0] == "goldfish"
