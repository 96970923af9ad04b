"""The layouts in which others save sets, and what looks wrong about them: each loads, or a sentence says what to type."""

from __future__ import annotations

import io
import json
import re
import shlex
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from ddbench import protocols
from ddbench.api import Arch, Spec
from ddbench.cli import parser
from ddbench.data.subsets import TrainingData
from ddbench.errors import ConfigError, DataError, PluginError
from ddbench.evaluate.rehearsal import rehearse
from ddbench.evaluate.set_doubts import counts_of, doubts_of_classes
from ddbench.evaluate.set_layouts import open_set
from ddbench.evaluate.sets import ImportedSet, read_set
from ddbench.files import tensors_to_bytes
from ddbench.seeds import stream
from ddbench.testing import TOY_ARCH, Given, toy_spec

SPEC = replace(toy_spec(channels=3), shape=(3, 4, 5), class_names=("cat", "dog", "ship"), class_ids=("n1", "n2", "n3"))
GREY = replace(toy_spec(channels=1), shape=(1, 4, 5))
LABELS = torch.arange(6) % 3
PIXELS = torch.randint(256, (6, 3, 4, 5), generator=stream("pixels"), dtype=torch.uint8)
NORMALISED = SPEC.normalise(PIXELS)


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def is_as_saved(read: ImportedSet, spec: Spec = SPEC) -> bool:
    pixels = PIXELS if spec is SPEC else PIXELS[:, :1]
    return torch.equal(read.images, spec.normalise(pixels)) and torch.equal(read.labels, torch.eye(3)[LABELS])


def sentence(path: Path | Sequence[Path], told: str, *how: Any, kind: type[Exception] = DataError, **more: Any) -> str:
    with pytest.raises(kind, match=told) as caught:
        read_set(path, more.pop("spec", SPEC), *how, **more)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


# ---------------------------------------------------------------- layouts


PAIR = {
    "image, label": {"image": PIXELS, "label": LABELS},
    "syn, label": {"syn": PIXELS, "label": LABELS},
    "image_syn, label_syn": {"image_syn": PIXELS, "label_syn": LABELS},
    "data, label": {"data": PIXELS, "label": LABELS},
    "data, targets": {"data": PIXELS, "targets": LABELS},
    "a pair": (PIXELS, LABELS),
    "a list of two": [PIXELS, LABELS],
    "parameters": {"images": PIXELS, "labels": nn.Parameter(torch.eye(3)[LABELS])},
    "channels last": {"images": PIXELS.permute(0, 2, 3, 1).contiguous(), "labels": LABELS},
    "a view of channels last": {"images": PIXELS.permute(0, 2, 3, 1), "labels": LABELS},
    "a column of labels": {"images": PIXELS, "labels": LABELS[:, None]},
    "labels of 16 bits": {"images": PIXELS, "labels": LABELS.short()},
    "one experiment": {"data": [[PIXELS, LABELS]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}},
    "numpy arrays": {"images": PIXELS.numpy(), "labels": LABELS.numpy()},
}


@pytest.mark.parametrize("layout", PAIR)
def test_layouts_of_one_file(tmp_path: Path, layout: str) -> None:
    read = read_set(saved(tmp_path / "a.pt", PAIR[layout]), SPEC)  # bytes are pixels, unsaid
    assert is_as_saved(read)
    assert (read.values, read.warnings, read.learned_rate, read.experiment) == ("pixels", (), None, None)


@pytest.mark.parametrize("grey", [PIXELS[:, :1], PIXELS[:, 0], PIXELS[:, 0, :, :, None], PIXELS[:, :1].repeat(1, 3, 1, 1)])
def test_grey_images_need_no_channel_and_may_have_three(tmp_path: Path, grey: Tensor) -> None:
    assert is_as_saved(read_set(saved(tmp_path / "a.pt", (grey, LABELS)), GREY), GREY)


def test_coloured_images_are_not_grey(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", (PIXELS, LABELS))
    sentence(path, r"images must be \[N, 1, H, W\] for 'toy', got \[6, 3, 4, 5\]", spec=GREY)


def test_images_and_labels_in_files_of_their_own(tmp_path: Path) -> None:
    images, labels = saved(tmp_path / "images_best.pt", PIXELS), saved(tmp_path / "labels_best.pt", LABELS)
    assert is_as_saved(read_set([images, labels], SPEC))
    rate = saved(tmp_path / "lr_best.pt", torch.tensor(0.5))
    assert read_set([images, labels, rate], SPEC).learned_rate == 0.5
    arrays = [tmp_path / "images.npy", tmp_path / "labels.npy"]
    for path, value in zip(arrays, (PIXELS, LABELS), strict=True):
        np.save(path, value.numpy())
    assert is_as_saved(read_set(arrays, SPEC))
    assert is_as_saved(read_set([saved(tmp_path / "named.pt", {"images": PIXELS}), labels], SPEC))


def test_one_of_two_files_is_told_how_to_name_both(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    images, labels = saved(tmp_path / "a b" / "images_best.pt", PIXELS), saved(tmp_path / "a b" / "labels_best.pt", LABELS)
    for path, what in ((images, "images"), (labels, "labels")):
        text = sentence(path, f"holds {what} alone", kind=ConfigError)
        assert text.endswith(f"as in: ddbench evaluate '{images}' '{labels}'")
    sentence([images, saved(tmp_path / "set.pt", (PIXELS, LABELS))], "each must hold one tensor or array: images first")
    sentence([images] * 4, "got 4 paths", kind=ConfigError)


def test_several_files_are_another_set_than_one(tmp_path: Path) -> None:
    images, labels = saved(tmp_path / "images.pt", PIXELS), saved(tmp_path / "labels.pt", LABELS)
    once = read_set([images, labels], SPEC).sha256
    assert len(once) == 64
    assert read_set([images, labels], SPEC).sha256 == once
    assert read_set([images, saved(tmp_path / "others.pt", 2 - LABELS)], SPEC).sha256 != once


@pytest.mark.parametrize("rate", [torch.tensor(0.5), 0.5, torch.tensor([0.5])])
def test_a_triple_has_a_learned_rate(tmp_path: Path, rate: Any) -> None:
    for value in ((PIXELS, LABELS, rate), {"images": PIXELS, "labels": LABELS, "syn_lr": rate}):
        read = read_set(saved(tmp_path / "a.pt", value), SPEC)
        assert is_as_saved(read)
        assert read.learned_rate == 0.5


def test_an_experiment_is_chosen_by_number(tmp_path: Path) -> None:
    path = saved(tmp_path / "res.pt", {"data": [[NORMALISED * number, LABELS] for number in range(3)]})
    for number in range(3):
        read = read_set(path, SPEC, "normalised", experiment=number)
        assert torch.equal(read.images, NORMALISED * number)
        assert read.experiment == number
    sentence(path, "of 3 experiments: add --experiment N, from 0 to 2", "normalised", kind=ConfigError)
    sentence(path, "there is no --experiment 3", "normalised", kind=ConfigError, experiment=3)
    plain = saved(tmp_path / "a.pt", (PIXELS, LABELS))
    sentence(plain, "holds one set: leave out --experiment", kind=ConfigError, experiment=0)
    for data in ([], [PIXELS], [[PIXELS, LABELS], [PIXELS]]):
        sentence(saved(tmp_path / "b.pt", {"data": data}), "must hold a pair of images and labels for each experiment")


def npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_arrays_by_name_or_in_order(tmp_path: Path) -> None:
    images, labels = PIXELS.numpy(), LABELS.numpy()
    assert is_as_saved(read_set(npz(tmp_path / "a.npz", images=images, labels=labels), SPEC))
    np.savez(tmp_path / "b.npz", images, labels)
    assert is_as_saved(read_set(tmp_path / "b.npz", SPEC))
    swapped = npz(tmp_path / "c.npz", images=np.asfortranarray(images), labels=labels.astype(">i4"))
    assert is_as_saved(read_set(swapped, SPEC))
    whole = npz(tmp_path / "d.npz", images=images, labels=labels, learned_rate=np.float64(0.5))
    assert read_set(whole, SPEC).learned_rate == 0.5


def test_arrays_that_lie_or_hold_objects_are_refused_before_room_is_made_for_them(tmp_path: Path) -> None:
    objects = np.empty(2, dtype=object)
    sentence(npz(tmp_path / "a.npz", images=objects, labels=objects), "it holds Python objects")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    sentence(tmp_path / "b.npz", "an array is larger than its file")
    (tmp_path / "c.npy").write_bytes(header.getvalue())
    sentence(tmp_path / "c.npy", "an array is larger than its file")
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 nothing")
    sentence(tmp_path / "d.npz", "cannot be read as arrays of numbers")


def test_float8_in_safetensors_is_no_number_to_compute_with(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"images": NORMALISED.to(torch.float8_e4m3fn), "labels": LABELS}, path)
    sentence(path, r"got torch.float8_e4m3fn: save images.float\(\)", "normalised")


def test_the_commands_of_the_docs_are_those_of_the_command_line() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text()
    commands = [shlex.split(found) for found in re.findall(r"\| `(ddbench evaluate .*)` \|", text)]
    assert len(commands) == 11
    for command in commands:
        given = parser().parse_args(command[1:])
        assert given.protocol in protocols.names()
        assert len(given.set) == 1 + ("labels" in " ".join(command))


# ---------------------------------------------------------------- folders


def folder_of(path: Path, names: Sequence[str], labels: Tensor = LABELS, pixels: Tensor = PIXELS) -> Path:
    """Images of three classes, the first name that of class 0."""
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        (path / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / names[label] / f"{number}.png")
    return path


FOLDERS = {
    "names": ("cat", "dog", "ship"),
    "identifiers": ("n1", "n2", "n3"),
    "numbers": ("0", "1", "2"),
    "padded": ("new000", "new001", "new002"),
}


@pytest.mark.parametrize("names", FOLDERS)
def test_a_folder_of_images_by_class(tmp_path: Path, names: str) -> None:
    read = read_set(folder_of(tmp_path / "a", FOLDERS[names]), SPEC)
    by_class = [0, 3, 1, 4, 2, 5]
    assert torch.equal(read.images, SPEC.normalise(PIXELS[by_class]))
    assert torch.equal(read.labels, torch.eye(3)[LABELS[by_class]])
    assert (read.values, read.warnings) == ("pixels", ())
    again = read_set(folder_of(tmp_path / "b", FOLDERS[names]), SPEC)
    assert again.sha256 == read.sha256
    folder_of(tmp_path / "b", FOLDERS[names], pixels=PIXELS.flip(0))
    assert read_set(tmp_path / "b", SPEC).sha256 != read.sha256


def test_folders_are_classes_by_name_number_or_order(tmp_path: Path) -> None:
    many = replace(SPEC, class_names=tuple("abcdefghijkl"), class_ids=())
    folder = folder_of(tmp_path / "a", ("2", "10", "11"))  # the order of their names is another
    read = read_set(folder, many)
    assert read.labels.argmax(1).tolist() == [10, 10, 11, 11, 2, 2]
    (told,) = read.warnings
    assert told == "it has 6 images, 2 a class; none of 'a', 'b', 'd' and 6 more."
    (told,) = read_set(folder_of(tmp_path / "b", ("x", "y", "z")), SPEC).warnings
    assert "x, y, z are not named as the classes of 'toy', and were taken in the order of their names" in told
    sentence(folder_of(tmp_path / "c", ("x", "y", "z")), "was made for the classes x, y, z, and 'toy' has a, b, c", spec=many)


def test_a_grey_folder(tmp_path: Path) -> None:
    grey = PIXELS[:, :1].repeat(1, 3, 1, 1)
    read = read_set(folder_of(tmp_path / "a", ("0", "1", "2"), pixels=grey), GREY)
    assert torch.equal(read.images, GREY.normalise(PIXELS[[0, 3, 1, 4, 2, 5], :1]))


def test_folders_that_are_none(tmp_path: Path) -> None:
    sentence(tmp_path, "is a folder and not a folder of images for each class.*: name a file.$", kind=ConfigError)
    path = saved(tmp_path / "images_best.pt", PIXELS)
    sentence(tmp_path, f"name a file in it, such as {path}", kind=ConfigError)
    folder = folder_of(tmp_path / "a", FOLDERS["names"])
    Image.new("RGB", (9, 4)).save(folder / "dog" / "9.png")
    sentence(folder, "5 x 4 px and .*9.png 9 x 4 px: images of a set have one size")
    (folder / "dog" / "9.png").write_bytes(b"\x89PNG nothing")
    sentence(folder, "9.png cannot be read")


def ours(path: Path, **changes: Any) -> Path:
    """A file as ddbench writes it."""
    meta = {"schema": 1, "dataset": "toy", "class_names": SPEC.class_names, "mean": SPEC.mean, "std": SPEC.std, "learned": {}}
    tensors = {"images": NORMALISED, "labels": torch.eye(3)[LABELS]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tensors_to_bytes(tensors, meta | changes))
    return path


def test_the_folder_of_a_store_is_its_set(tmp_path: Path) -> None:
    path = ours(tmp_path / "sets" / "0123" / "set.safetensors")
    assert open_set(path.parent).paths == (path,)
    assert torch.equal(read_set(path.parent, SPEC).images, NORMALISED)


# ---------------------------------------------------------------- what is no set


HOSTILE: dict[str, tuple[Any, str]] = {
    "a list of labels": ((PIXELS, LABELS.tolist()), r"labels is a list: save torch.tensor\(labels\)"),
    "a list of images": ((list(PIXELS), LABELS), r"images is a list: save torch.stack\(images\)"),
    "no image": ((PIXELS[:0], LABELS[:0]), "holds no image at all"),
    "nothing": ((None, LABELS), "images must be a tensor, got NoneType"),
    "expanded": ((torch.zeros(1).expand(10**6, 3, 4, 5), LABELS), "expanded tensor, .*. Save dense tensors"),
    "sparse": ((NORMALISED.to_sparse(), LABELS), "holds a sparse tensor. Save dense tensors"),
    "meta": ((NORMALISED.to("meta"), LABELS), "holds a meta tensor. Save dense tensors"),
    "sparse labels": ((PIXELS, LABELS.to_sparse()), "holds a sparse tensor. Save dense tensors"),
    "float8": ((NORMALISED.to(torch.float8_e4m3fn), LABELS), "holds a .*tensor.*[.] Save dense tensors of floats"),
    "complex": ((NORMALISED.to(torch.complex64), LABELS), "holds complex numbers. Save dense tensors"),
    "a rate without value": ((PIXELS, LABELS, torch.empty((), device="meta")), "holds a meta tensor. Save dense tensors"),
    "logical labels": ((PIXELS, LABELS > 0), r"got torch.bool: save labels.long\(\)"),
    "no axis": ((torch.tensor(1.0), LABELS), r"images must be \[N, 3, H, W\]"),
    "a label": ((PIXELS, torch.tensor(1)), r"labels must be \[6\] class indices"),
    "float labels": ((PIXELS, LABELS.float()), r"got torch.float32 \[6\]: save labels.long\(\)"),
    "two of images": ({"images": PIXELS, "syn": PIXELS, "labels": LABELS}, "holds images and syn, which mean the same"),
    "four": ((PIXELS,) * 4, "must hold a dictionary of images and labels, a pair .*, got a tuple of 4"),
    "a number": (3, "got a int"),
    "odd names": ({"a\nb": 1, "x" * 100: 2, (1, 2): 3}, "it holds a str, x{40}.$"),
    "classes of no words": ({"images": PIXELS, "labels": LABELS, "class_names": ["\x1b[2J"] * 3}, "must be a list of words"),
    "a class twice": ({"images": PIXELS, "labels": LABELS, "class_names": ["cat"] * 3}, "name a class twice"),
    "classes that are none": ({"images": PIXELS, "labels": LABELS, "class_names": 3}, "must be a list of words"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_set_is_one_sentence(tmp_path: Path, case: str) -> None:
    value, told = HOSTILE[case]
    sentence(saved(tmp_path / "a.pt", value), told, "normalised" if case in ("sparse", "float8") else None)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", (torch.nested.nested_tensor([NORMALISED[0], NORMALISED[1]]), LABELS[:2]))
    sentence(path, "holds a nested tensor. Save dense tensors", "normalised")


META: dict[str, tuple[dict[str, Any], str]] = {
    "no std": ({"std": []}, r"must hold 3 finite numbers each as mean and std, std above 0, got \[0.5, 0.5, 0.5\] and \[\]"),
    "std of 0": ({"std": [0.0, 1.0, 1.0]}, "std above 0"),
    "many means": ({"mean": [0.5] * 10**5}, "3 finite numbers"),
    "later schema": ({"schema": 99}, "its metadata say schema 99, and this ddbench reads 1. Update ddbench"),
    "true": ({"schema": True}, "say schema bool"),
    "negative": ({"schema": -1}, "say schema -1"),
    "a word": ({"schema": "1"}, "say schema str"),
    "many classes": ({"class_names": [f"class {number}" for number in range(10**5)]}, "class 0, class 1, class 2 and 99997 more"),
    "escapes": ({"class_names": ["\x1b[2J"]}, "must be a list of words"),
    "a data set of no word": ({"dataset": "\x1b[2J"}, "its metadata must hold dataset"),
    "a nested rate": ({"learned": {"student_rate": [[0.1]]}}, "must be a number above 0, got list"),
}


@pytest.mark.parametrize("case", META)
def test_metadata_of_others_are_checked(tmp_path: Path, case: str) -> None:
    changes, told = META[case]
    sentence(ours(tmp_path / "a.safetensors", **changes), told)


def test_metadata_nested_thousands_deep(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"images": PIXELS, "labels": LABELS}, path, {"ddbench": '{"a":' + "[" * 50_000 + "]" * 50_000 + "}"})
    sentence(path, "is damaged or cut short")
    deep = json.dumps({"dataset": "toy"})[:-1] + ', "learned": {"student_rate": ' + "[" * 400 + "]" * 400 + "}}"
    save_file({"images": PIXELS, "labels": LABELS}, path, {"ddbench": deep})
    sentence(path, "its metadata must hold")


# ---------------------------------------------------------------- the order of classes


def test_labels_are_brought_into_the_order_of_the_data_set(tmp_path: Path) -> None:
    names = ["ship", "cat", "dog"]  # of the file's labels 0, 1, 2
    labels = (LABELS + 1) % 3
    read = read_set(saved(tmp_path / "a.pt", {"images": PIXELS, "labels": labels, "class_names": names}), SPEC)
    assert is_as_saved(read)
    (told,) = read.warnings
    assert told == "the file counts the classes in the order ship, cat, dog; its labels were brought into that of 'toy'."
    soft = torch.rand(6, 3, generator=stream("soft")).softmax(1)
    read = read_set(saved(tmp_path / "b.pt", {"images": PIXELS, "labels": soft, "class_names": names}), SPEC)
    assert torch.equal(read.labels, soft[:, [1, 2, 0]])
    known = read_set(saved(tmp_path / "c.pt", {"images": PIXELS, "labels": LABELS, "class_names": ["n1", "n2", "n3"]}), SPEC)
    assert is_as_saved(known)
    assert known.warnings == ()
    some = saved(tmp_path / "d.pt", {"images": PIXELS, "labels": LABELS % 2, "class_names": ["ship", "cat"]})
    assert read_set(some, SPEC).labels.argmax(1).tolist() == [2, 0, 2, 2, 0, 2]


def test_other_classes_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"images": PIXELS, "labels": LABELS, "class_names": ["eight", "five", "four"]})
    sentence(path, "was made for the classes eight, five, four, and 'toy' has cat, dog, ship: name its own data set with --data")
    sentence(ours(tmp_path / "b.safetensors", class_names=["cat", "dog", "bus"]), "was made for the classes cat, dog, bus")


# ---------------------------------------------------------------- doubts


DOUBTS: dict[str, tuple[Tensor, str, str | None]] = {
    "as they should be": (NORMALISED, "normalised", None),
    "of high contrast": (5 * NORMALISED, "normalised", None),
    "times 10,000": (1e4 * NORMALISED, "normalised", "real images about 1: were they scaled?"),
    "0 to 255": (PIXELS.float(), "normalised", "Are they pixels of 0 to 255? Then save images.to(torch.uint8), and say --images"),
    "0 to 1": (PIXELS / 255, "normalised", "Are they pixels?"),
    "pixels": (PIXELS / 255, "pixels", None),
    "divided twice": (PIXELS / 255**2, "pixels", "were they divided by 255 twice?"),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_values_that_look_like_something_else_are_told(tmp_path: Path, case: str) -> None:
    images, values, told = DOUBTS[case]
    warnings = read_set(saved(tmp_path / "a.pt", (images, LABELS)), SPEC, values).warnings
    assert len(warnings) == (told is not None)
    assert all(str(told) in warning for warning in warnings)


@pytest.mark.parametrize(
    ("labels", "counts", "is_told"),
    [
        ([0, 1, 2] * 2, "6 images, 2 a class", False),
        ([0, 1, 1, 1, 2, 2], "6 images, 1 to 3 a class", True),
        ([0, 0, 0, 1, 1, 1], "6 images, 3 a class; none of 'ship'", True),
        ([1], "1 image, 1 a class; none of 'cat', 'ship'", True),
    ],
)
def test_counts(tmp_path: Path, labels: list[int], counts: str, is_told: bool) -> None:
    read = read_set(saved(tmp_path / "a.pt", (PIXELS[: len(labels)], torch.tensor(labels))), SPEC)
    assert counts_of(read.labels, SPEC) == counts
    assert read.warnings == ((f"it has {counts}.",) if is_told else ())
    soft = 0.9 * read.labels + 0.1 / 3
    assert read_set(saved(tmp_path / "b.pt", (PIXELS[: len(labels)], soft)), SPEC).warnings == ()


def real_images(spread: float) -> TrainingData:
    """Images of three classes around a mean each, as bytes."""
    rng = stream("real")
    centres = torch.rand(3, 1, *SPEC.shape, generator=rng)
    images = (centres + spread * torch.randn(3, 40, *SPEC.shape, generator=rng)).clamp(0, 1).flatten(0, 1)
    labels = torch.arange(3).repeat_interleave(40)
    pixels = (255 * images).to(torch.uint8)
    return TrainingData(SPEC, pixels, labels, (0, 40, 80, 120), pixels[:0], labels[:0])


def test_labels_that_agree_with_real_classes_no_better_than_chance_are_told() -> None:
    real, one_hot = real_images(0.2), torch.eye(3)
    images, labels = SPEC.normalise(real.images[::4]), real.labels[::4]
    assert doubts_of_classes(images, one_hot[labels], SPEC.normalise, real) == ()
    (told,) = doubts_of_classes(images, one_hot[(labels + 1) % 3], SPEC.normalise, real)
    assert told.startswith("the labels of 0 of 30 images are those of the nearest mean of real training images, no more than")
    mixed = torch.arange(30) % 3  # ten of a class, of each a third
    assert doubts_of_classes(images, one_hot[mixed], SPEC.normalise, real) != ()
    assert doubts_of_classes(images[:1], one_hot[(labels[:1] + 1) % 3], SPEC.normalise, real) == ()  # one image proves nothing
    assert doubts_of_classes(images, one_hot[(labels + 1) % 3], SPEC.normalise, real_images(20.0)) == ()  # means say nothing


# ---------------------------------------------------------------- rehearsal


class Normed(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Linear(4, spec.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def arch_of(forward: Callable[[Normed, Tensor], Tensor]) -> Arch:
    return Arch(lambda spec: type("Odd", (Normed,), {"forward": forward})(spec), lr=0.1, min_size=1)


def test_a_last_batch_of_one_image_is_refused_for_networks_that_cannot() -> None:
    normed = Given.of("architectures", arch_of(Normed.forward))
    for num in (2, 256, 258, 512):
        rehearse(normed, SPEC, num, 256)
    for num, told in ((1, "the set has one image"), (257, "the last batch of 257 images in batches of 256 is one")):
        with pytest.raises(PluginError, match=f"cannot be trained on one image, .*, and {told} .*convnet.$"):
            rehearse(normed, SPEC, num, 256)
        rehearse(Given.of("architectures", TOY_ARCH), SPEC, num, 256)


def test_whatever_a_network_raises_names_it() -> None:
    def fails(self: Normed, images: Tensor) -> Tensor:
        raise KeyError("no\nlayer")

    def flat(self: Normed, images: Tensor) -> Tensor:
        return self.layers(images)[:, :2]

    for forward, told in ((fails, r"KeyError: 'no\\nlayer'"), (flat, r"it gives \[2, 2\] for \[2, 3\] logits")):
        ref = Given.of("architectures", arch_of(forward))
        with pytest.raises(PluginError, match=rf"network '{ref.label}' cannot be trained \(.*{told}\)") as caught:
            rehearse(ref, SPEC)
        assert "\n" not in str(caught.value)


def test_a_rehearsal_draws_nothing_from_global_generators() -> None:
    before = torch.get_rng_state()
    rehearse(Given.of("architectures", TOY_ARCH), SPEC, 1, 256)
    assert torch.equal(torch.get_rng_state(), before)


def test_words_in_a_path_are_no_fault_of_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "tensors and numbers.pt"
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"cannot be read: it is no file that torch\.save wrote\.$"):
        open_set(path)
