"""The cache of decoded images: built once, by several processes, made anew when a source changes, refused when damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_trees import class_tree, jpeg

from ddbench.data.subsets import identify
from ddbench.errors import DataError
from ddbench.ops import caches, decoding, image_building, image_cache, image_set
from ddbench.ops.class_folders import find_classes
from ddbench.ops.image_set import ImageSet
from ddbench.ops.pictures import decode
from ddbench.refs import PluginRef
from ddbench_plugins.datasets.image_folder import ImageFolder, image_folder

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with `zoo`: 4 images a class to train, 2 to test; caches are kept in the test's own folders."""
    monkeypatch.delenv("DDBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    class_tree(tmp_path / "data" / "zoo", CLASSES, {"train": 4, "val": 2})
    return tmp_path / "data"


def zoo(**settings: Any) -> ImageFolder:
    return image_folder("zoo", CLASSES, **{"side": 8, **settings})


def cached(root: Path) -> Path:
    (path,) = (root / "cache").glob("zoo-8-*.images")
    return path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were decoded, each time that a cache was built."""
    log: list[int] = []
    own = image_building.decode_into

    def count(target: Path, jobs: Any, done: Callable[[int], None]) -> Any:
        log.append(sum(len(places) for _, places in jobs.values()))
        return own(target, jobs, done)

    monkeypatch.setattr(image_building, "decode_into", count)
    return log


def test_images_are_decoded_once_and_then_mapped(root: Path, built: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        for split, folder, each in (("train", "train", 4), ("test", "val", 2)):
            data = zoo().load(split, root)
            files = [root / "zoo" / folder / name / f"{number}.jpg" for name in CLASSES for number in range(each)]
            assert data.mapped
            assert np.array_equal(data.images.numpy(), np.stack([decode(file.read_bytes(), 8) for file in files]))
            assert data.labels.tolist() == [label for label in range(3) for _ in range(each)]
    assert built == [18]
    out, told = capsys.readouterr()
    assert (out, told.count("zoo at 8 px: 18 of 18 images decoded")) == ("", 1)
    assert zoo().is_original(root)


def test_a_split_s_memory_holds_nothing_of_the_other(root: Path) -> None:
    train, test = zoo().load("train", root), zoo().load("test", root)
    assert train.images.untyped_storage().nbytes() == train.images.nbytes == 12 * 3 * 8 * 8
    assert test.images.untyped_storage().nbytes() == test.images.nbytes


def test_writing_into_images_reaches_neither_file_nor_others(root: Path) -> None:
    first, second = zoo().load("train", root), zoo().load("train", root)
    before = second.images.clone()
    first.images.zero_()
    assert torch.equal(second.images, before)
    assert torch.equal(zoo().load("train", root).images, before)


def test_the_identity_does_not_hang_on_the_cache(root: Path) -> None:
    ref = PluginRef.resolve("datasets", "image-folder", {"folder": str(root / "zoo"), "side": 8, "classes": list(CLASSES)})
    first = identify(ref, root)
    shutil.rmtree(root / "cache")
    shutil.rmtree(root.parent / "own", ignore_errors=True)
    moved = root.parent / "elsewhere"
    moved.mkdir()
    (root / "zoo").rename(moved / "zoo")
    again = PluginRef.resolve("datasets", "image-folder", {"folder": "zoo", "side": 8, "classes": list(CLASSES)})
    assert identify(again, moved) == first
    assert first.train_counts == (4, 4, 4)
    assert first.test_counts == (2, 2, 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "0.jpg").write_bytes(jpeg(77)),
        lambda folder: (folder / "9.jpg").write_bytes(jpeg(77)),
        lambda folder: (folder / "3.jpg").unlink(),
        lambda folder: (folder / "3.jpg").rename(folder / "8.jpg"),
        lambda folder: os.utime(folder / "1.jpg", (1, 1)),
    ],
    ids=["content", "more", "fewer", "name", "time"],
)
def test_a_changed_source_makes_it_anew(root: Path, built: list[int], change: Callable[[Path], None]) -> None:
    zoo().load("train", root)
    change(root / "zoo" / "train" / "bee")
    data = zoo().load("train", root)
    files = sorted((root / "zoo" / "train" / "bee").iterdir())
    assert np.array_equal(data.images[data.labels == 1].numpy(), np.stack([decode(file.read_bytes(), 8) for file in files]))
    assert len(built) == 2
    assert cached(root)  # one file, the old one is gone


def test_another_decoder_makes_it_anew(root: Path, built: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    zoo().load("train", root)
    monkeypatch.setattr(image_set, "decoder", lambda: "another")
    zoo().load("train", root)
    assert len(built) == 2


def test_every_side_and_choice_of_classes_has_a_file(root: Path, built: list[int]) -> None:
    sides = {side: zoo(side=side).load("train", root).images.shape for side in (8, 16)}
    assert sides == {8: (12, 3, 8, 8), 16: (12, 3, 16, 16)}
    fewer = image_folder("zoo", ("cat", "ant"), side=8).load("train", root)
    assert torch.equal(fewer.images[:4], zoo().load("train", root).images[8:])
    assert len(built) == 3


def spoil(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: spoil(path, image_cache.PAGE + 5, b"\1\2\3\4\5\6\7"), "its bytes are not those that were written"),
        (lambda path: os.truncate(path, image_cache.PAGE + 10), "cut short"),
        (lambda path: os.truncate(path, 10), "does not begin as one"),
        (lambda path: spoil(path, 0, b"nonsense"), "does not begin as one"),
        (lambda path: spoil(path, 20, b"\xff\xff\xff"), "."),
    ],
    ids=["bytes", "cut", "head cut", "magic", "head"],
)
def test_a_damaged_one_is_refused_by_name(root: Path, damage: Callable[[Path], None], says: str) -> None:
    zoo().load("train", root)
    damage(cached(root))
    with pytest.raises(DataError, match=rf"the cache of decoded images .*zoo-8-.*\.images is damaged \(.*{says}.*\): remove it"):
        zoo().load("train", root)


def test_bytes_are_hashed_again_only_where_something_touched_them(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo().load("train", root)
    hashed: list[Path] = []
    own = image_cache.hash_of
    monkeypatch.setattr(image_cache, "hash_of", lambda path: hashed.append(path) or own(path))
    zoo().load("train", root)
    assert hashed == []
    os.utime(cached(root), (2, 2))
    for _ in range(2):
        zoo().load("test", root)
    assert len(hashed) == 1
    zoo().prepare(root)
    assert len(hashed) == 2  # for who asks, always


def test_preparing_tells_how_far_it_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, float]] = []
    zoo().prepare(root, lambda what, fraction: told.append((what, fraction)))
    assert [fraction for _, fraction in told][-1] == 1
    assert told[-1][0].startswith("18 of 18 images decoded")
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------- unreadable images


def test_unreadable_images_are_named_counted_and_refused(root: Path) -> None:
    for number in range(4):
        (root / "zoo" / "train" / "bee" / f"x{number}.jpg").write_bytes(jpeg(1)[:200])
    (root / "zoo" / "val" / "ant" / "0.jpg").write_bytes(b"")
    said = r"5 of 22 images of dataset 'zoo' cannot be read: train/bee/x0\.jpg \(Truncated.*\), .* and 2 more\. Fetch"
    with pytest.raises(DataError, match=said):
        zoo().load("train", root)
    assert not list((root / "cache").glob("*.images"))


def test_unreadable_images_are_left_out_where_that_is_allowed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("train/ant/1.jpg", "train/bee/3.jpg", "val/cat/0.jpg"):
        (root / "zoo" / place).write_bytes(b"not an image")
    lenient = zoo(unreadable="skip")
    train, test = lenient.load("train", root), lenient.load("test", root)
    wanted = {"ant": [0, 2, 3], "bee": [0, 1, 2], "cat": [0, 1, 2, 3]}
    files = [root / "zoo" / "train" / name / f"{number}.jpg" for name, numbers in wanted.items() for number in numbers]
    assert np.array_equal(train.images.numpy(), np.stack([decode(file.read_bytes(), 8) for file in files]))
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([3, 3, 4], [2, 2, 1])
    assert "3 images cannot be read and are left out: train/ant/1.jpg, train/bee/3.jpg, val/cat/0.jpg" in capsys.readouterr().err
    assert not lenient.is_original(root)


def test_a_class_of_which_nothing_can_be_read_is_refused(root: Path) -> None:
    for number in range(2):
        (root / "zoo" / "val" / "cat" / f"{number}.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match="dataset 'zoo': no test image of cat can be read"):
        zoo(unreadable="skip").load("train", root)


# ---------------------------------------------------------------- processes and places


def many(monkeypatch: pytest.MonkeyPatch, cores: int = 3) -> None:
    monkeypatch.setattr(decoding, "usable_cores", lambda: cores)
    monkeypatch.setattr(decoding, "WORTH_A_PROCESS", 2)


@pytest.mark.slow
def test_several_processes_write_the_same_bytes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "zoo" / "train" / "ant" / "1.jpg").write_bytes(b"not an image")
    zoo(unreadable="skip").load("train", root)
    alone = cached(root).read_bytes()
    cached(root).unlink()
    many(monkeypatch)
    started: list[Any] = []
    own = decoding._start
    monkeypatch.setattr(decoding, "_start", lambda: started.append(own()) or started[-1])
    zoo(unreadable="skip").load("train", root)
    assert cached(root).read_bytes() == alone
    assert len(started) == 3
    assert all(worker.poll() is not None for worker in started)


def test_a_process_that_dies_is_a_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many(monkeypatch, 2)
    monkeypatch.setattr(decoding, "BOOTSTRAP", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(DataError, match="a process that decodes images has died"):
        zoo().load("train", root)
    assert not [path for path in (root / "cache").iterdir() if path.suffix != ".lock"]


@pytest.mark.slow
def test_commands_at_the_same_time_build_it_once(root: Path) -> None:
    code = """
import sys
from pathlib import Path
from ddbench_plugins.datasets.image_folder import image_folder
print(image_folder("zoo", ("ant", "bee", "cat"), side=8).load("train", Path(sys.argv[1])).images.sum().item())
"""
    command = [sys.executable, "-c", code, str(root)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [one.communicate(timeout=300) for one in both]
    assert len({out for out, _ in said}) == 1
    assert sum(err.count("18 of 18") for _, err in said) == 1, said


def test_it_lies_in_the_data_folder_or_where_the_user_can_write(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert caches.image_folders(root) == (root / "cache", root.parent / "own" / "ddbench" / "images")
    (root / "cache").write_text("a file, so that no folder can be made")
    zoo().load("train", root)
    assert list((root.parent / "own" / "ddbench" / "images").glob("zoo-8-*.images"))
    monkeypatch.setenv("DDBENCH_CACHE", str(root.parent / "third"))
    zoo().load("train", root)
    assert list((root.parent / "third").glob("zoo-8-*.images"))
    monkeypatch.setenv("DDBENCH_CACHE", str(root / "cache" / "x"))
    with pytest.raises(DataError, match=r"decoded images of 'zoo' cannot be kept: .* can be written to. Set DDBENCH_CACHE"):
        zoo().load("train", root)


def test_a_full_disc_is_a_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_building.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"decoded images of 'zoo' take 1 MiB in .*cache, and there is no room for them"):
        zoo().load("train", root)


def test_what_a_killed_one_has_left_goes(root: Path) -> None:
    zoo().load("train", root)
    left = cached(root).with_name(f".{cached(root).name}.0123.tmp")
    left.write_bytes(b"half of it")
    cached(root).unlink()
    zoo().load("train", root)
    assert not left.exists()


def test_a_file_system_without_reservations_will_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(handle: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(image_building.os, "posix_fallocate", cannot, raising=False)
    assert len(zoo().load("train", root).images) == 12

    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_building.os, "posix_fallocate", full, raising=False)
    with pytest.raises(DataError, match=r"there is no room for them \(No space left on device\)"):
        zoo(side=16).load("train", root)
    assert not list((root / "cache").glob("zoo-16-*.images"))


def test_cores_are_counted_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.os, "sched_getaffinity", lambda which: set(range(8)), raising=False)
    monkeypatch.setattr(decoding.Path, "read_text", lambda path: "250000 100000\n")
    assert decoding.usable_cores() == 2
    monkeypatch.setattr(decoding.Path, "read_text", lambda path: "max 100000\n")
    assert decoding.usable_cores() == 8


def test_the_head_says_what_follows(root: Path) -> None:
    images = ImageSet("zoo", 8, CLASSES, root / "zoo", lambda split: find_classes("zoo", root / "zoo" / "train", CLASSES, 1))
    image_cache.load(images, "train", root)
    head = json.loads(cached(root).read_bytes()[len(image_cache.MAGIC) : image_cache.PAGE].rstrip(b"\0"))
    assert head["side"] == 8
    assert head["parts"]["train"]["num"] == 12
