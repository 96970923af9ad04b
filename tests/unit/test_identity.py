"""A data set's identity: a hash for either split, and what an earlier command found, taken again while the files are the same."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddbench.api import Dataset, LabelledImages, Spec, Split
from ddbench.data import recall
from ddbench.data.subsets import Identity, identify
from ddbench.errors import ConfigError, PluginError
from ddbench.refs import PluginRef

SPEC = Spec("toy", (1, 4, 4), ("a", "b"), (0.5,), (0.25,))
OLD = 1_500_000_000  # seconds: long ago


@dataclass(frozen=True)
class Stored(Dataset):
    """Two files of bytes, 16 a picture; it counts how often it is read."""

    the_spec: Spec = SPEC
    read: list[Split] = field(default_factory=list)

    def spec(self) -> Spec:
        return self.the_spec

    def load(self, split: Split, root: Path | None) -> LabelledImages:
        assert root is not None
        self.read.append(split)
        images = torch.frombuffer(bytearray((root / split).read_bytes()), dtype=torch.uint8).reshape(-1, 1, 4, 4)
        return LabelledImages(images, torch.arange(len(images)) % 2)

    def files(self, root: Path | None) -> tuple[Path, ...]:
        assert root is not None
        return (root / "train", root / "test")

    def is_original(self, root: Path | None) -> bool:
        return False


def ref(dataset: Dataset, label: str = "toy") -> Any:
    return SimpleNamespace(name="toy", label=label, make=lambda: dataset, ask=lambda question: question(dataset))


def write(path: Path, content: bytes, at: int = OLD) -> None:
    path.write_bytes(content)
    os.utime(path, (at, at))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the two files, a cache of its own, and a clock by which the files are not new."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    now = time.time() + 60
    monkeypatch.setattr(recall, "time", SimpleNamespace(time=lambda: now))
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train", bytes(range(96)))
    write(tmp_path / "data" / "test", bytes(range(64)))
    return tmp_path / "data"


def kept(root: Path) -> list[Path]:
    return sorted((root.parent / "cache" / "ddbench" / "identities").glob("*"))


def reads(root: Path, **more: Any) -> tuple[Identity, bool]:
    """The identity, and whether the files were decoded for it."""
    dataset = Stored(**more)
    return identify(ref(dataset), root), bool(dataset.read)


def test_each_split_has_a_hash_of_its_own(root: Path) -> None:
    base = reads(root)[0]
    write(root / "test", bytes(range(1, 65)), OLD + 1)
    other = reads(root)[0]
    assert base.train_hash == other.train_hash
    assert base.test_hash != other.test_hash
    assert base.hash != other.hash
    write(root / "train", bytes(range(1, 97)), OLD + 1)
    third = reads(root)[0]
    assert (third.train_hash == other.train_hash, third.test_hash == other.test_hash) == (False, True)
    assert (base.train_counts, base.test_counts, base.original) == ((3, 3), (2, 2), False)


@pytest.mark.parametrize(
    ("change", "train", "test"),
    [
        ({"mean": (0.4,)}, True, True),
        ({"std": (0.5,)}, True, True),
        ({"class_names": ("b", "a")}, True, True),
        ({"augmentation": "flip"}, True, True),
        ({"name": "other"}, True, False),  # it names the stream of the validation split
        ({"class_ids": ("n01440764", "n02102040")}, True, False),
        ({"class_indices": (0, 217)}, True, False),
        ({"class_ids": (), "class_indices": ()}, False, False),
    ],
)
def test_what_of_a_spec_counts_for_a_split(root: Path, change: dict[str, Any], train: bool, test: bool) -> None:
    base, other = reads(root)[0], reads(root, the_spec=replace(SPEC, **change))[0]
    assert (base.train_hash != other.train_hash, base.test_hash != other.test_hash) == (train, test)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_ids": ("n01440764",)}, r"^data set 'toy': 'class_ids' must name each of the 2 classes once or be empty, got"),
        ({"class_ids": ("x", "x")}, "'class_ids' must name each of"),
        ({"class_indices": (1, 2, 3)}, "'class_indices' must name each of"),
        ({"class_indices": (5, 5)}, "'class_indices' must name each of"),
        ({"class_indices": (0, 1000)}, r"'class_indices' must lie in 0\.\.999, got \(0, 1000\)\."),
        ({"class_indices": (-1, 3)}, r"'class_indices' must lie in 0\.\.999"),
    ],
)
def test_identifiers_are_one_a_class(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(SPEC, **change)
    assert replace(SPEC, class_ids=("x", "y"), class_indices=(999, 0)).class_indices == (999, 0)


def test_the_files_are_decoded_once(root: Path) -> None:
    first, again = reads(root), reads(root)
    assert (first[1], again[1]) == (True, False)
    assert first[0] == again[0]
    assert len(kept(root)) == 1


@pytest.mark.parametrize("name", ["train", "test"])
def test_another_size_or_time_has_them_decoded_anew(root: Path, name: str) -> None:
    base = reads(root)[0]
    content = (root / name).read_bytes()
    os.utime(root / name, (OLD + 9, OLD + 9))
    assert reads(root) == (base, True)
    write(root / name, content[::-1], OLD + 10)  # of the same size
    changed, decoded = reads(root)
    assert decoded
    assert changed.hash != base.hash
    write(root / name, content + content[:32], OLD + 10)  # of the same time
    longer, decoded = reads(root)
    assert decoded
    assert len({base.hash, changed.hash, longer.hash}) == 3
    assert reads(root) == (longer, False)
    assert len(kept(root)) == 1  # the newest state


def test_another_spec_code_label_or_folder_is_another_answer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads(root)
    assert reads(root, the_spec=replace(SPEC, mean=(0.4,)))[1]
    dataset = Stored()
    identify(ref(dataset, "toy(size=4)"), root)
    assert dataset.read
    monkeypatch.setattr(recall, "source_hash", lambda dataset: "other")
    assert reads(root)[1]
    monkeypatch.setattr(recall, "source_hash", lambda dataset: None)
    assert reads(root)[1]
    assert reads(root)[1]  # code that cannot be read is never trusted
    link = root.parent / "link"
    link.symlink_to(root)
    assert reads(link)[1]


def test_a_file_that_was_just_written_is_not_trusted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "time", SimpleNamespace(time=lambda: OLD + 1))
    assert reads(root)[1]
    assert kept(root) == []
    assert reads(root)[1]


def test_a_file_that_changes_meanwhile_is_not_kept(root: Path) -> None:
    class Restless(Stored):
        def is_original(self, root: Path | None) -> bool:
            assert root is not None
            write(root / "test", bytes(range(32)))
            return True

    identify(ref(Restless()), root)
    assert kept(root) == []


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"answer": 3}', "state only", "answer only"])
def test_a_damaged_cache_is_not_used(root: Path, damage: str) -> None:
    base = reads(root)[0]
    (path,) = kept(root)
    whole = json.loads(path.read_text())
    if damage == "state only":
        damage = json.dumps({"state": whole["state"], "answer": {**whole["answer"], "train_counts": ["3", 3]}})
    if damage == "answer only":
        damage = json.dumps({"state": {**whole["state"], "schema": 0}, "answer": whole["answer"]})
    path.write_text(damage)
    assert reads(root) == (base, True)
    assert reads(root) == (base, False)


def test_where_nothing_can_be_written_all_works_without(root: Path) -> None:
    (root.parent / "cache").write_text("a file in its place")
    base, decoded = reads(root)
    assert decoded
    assert reads(root) == (base, True)


@pytest.mark.parametrize(("given", "found"), [("relative", ".cache"), ("", ".cache"), (None, ".cache")])
def test_without_a_folder_named_it_is_the_home_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, found: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert recall.cache_folder() == tmp_path / found / "ddbench"


def test_nobody_s_home_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert recall.cache_folder() is None


def test_code_is_hashed_with_its_package() -> None:
    digits = PluginRef.resolve("datasets", "mnist-5k", {}).make()
    own = recall.source_hash(Stored())
    assert own is not None
    assert own != recall.source_hash(digits)
    made_up = type("MadeUp", (Stored,), {"__module__": "nowhere"})()
    assert recall.source_hash(made_up) is None


def test_a_broken_list_of_files_is_the_plugin_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddbench_plugins.datasets.mnist_5k import Mnist5k

    monkeypatch.setattr(Mnist5k, "files", lambda self, root: 3)
    with pytest.raises(PluginError, match=r"dataset 'mnist-5k' \(from ddbench .*\) is broken: TypeError"):
        identify(PluginRef.resolve("datasets", "mnist-5k", {}), None)
