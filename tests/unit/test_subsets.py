"""Subsets: what a data set may hand over, what a subset's identity is, and how the validation split is drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddbench.api import Dataset, LabelledImages, Spec
from ddbench.data import subsets
from ddbench.data.subsets import TrainingCache, TrainingData, identify, load_split, load_training
from ddbench.errors import BenchError, DataError, PluginError

SPEC = Spec("toy", (1, 4, 4), ("a", "b"), (0.5,), (0.25,))
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Toy(Dataset):
    images: Any = None
    labels: Any = None
    the_spec: Spec = SPEC

    def spec(self) -> Spec:
        return self.the_spec

    def load(self, split: str, root: Path | None) -> LabelledImages:
        if isinstance(self.images, Exception):
            raise self.images
        return LabelledImages(self.images, self.labels)


IMAGES = torch.arange(20 * 16, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(20, 1, 4, 4)
LABELS = torch.arange(20).remainder(2)


def ref(images: Any = IMAGES, labels: Any = LABELS, spec: Spec = SPEC, name: str = "toy") -> Any:
    """A data set that no entry point names."""
    toy = Toy(images, labels, spec)
    return SimpleNamespace(name=name, make=lambda: toy, ask=lambda question: question(toy))


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (IMAGES.float(), LABELS, "its train images must be uint8 [N, 1, 4, 4], got torch.float32 [20, 1, 4, 4]."),
        (IMAGES[:, 0], LABELS, "its train images must be uint8 [N, 1, 4, 4], got torch.uint8 [20, 4, 4]."),
        (IMAGES[:0], LABELS[:0], "its train images must be uint8 [N, 1, 4, 4], got torch.uint8 [0, 1, 4, 4]."),
        (IMAGES, LABELS[:0], "its train labels must be int64 and hold each of 0..1 for 20 images."),
        (IMAGES, LABELS[:7], "its train labels must be int64 and hold each of 0..1 for 20 images."),
        (IMAGES, LABELS.float(), "its train labels must be int64 and hold each of 0..1 for 20 images."),
        (IMAGES, LABELS * 0, "its train labels must be int64 and hold each of 0..1 for 20 images."),
        (IMAGES, LABELS - 1, "its train labels must be int64 and hold each of 0..1 for 20 images."),
        (IMAGES, LABELS + 1, "its train labels must be int64 and hold each of 0..1 for 20 images."),
        (RuntimeError("oh"), None, "its train split cannot be loaded: RuntimeError: oh."),
        (KeyError("x"), None, "its train split cannot be loaded: KeyError"),
    ],
)
def test_what_does_not_fit_is_a_sentence(images: Any, labels: Any, told: str) -> None:
    with pytest.raises(BenchError) as caught:
        load_split(ref(images, labels), "train", None)
    assert str(caught.value).startswith(f"dataset 'toy': {told}")
    assert type(caught.value) is (PluginError if isinstance(images, Exception) else DataError)


def test_a_data_set_s_own_sentence_is_kept() -> None:
    with pytest.raises(DataError, match=r"^not there\.$"):
        load_split(ref(DataError("not there.")), "train", None)


def test_the_identity_is_of_everything_that_can_change_a_number() -> None:
    base = identify(ref(), None)
    brighter, swapped = IMAGES.clone(), LABELS.clone()
    brighter[3, 0, 2, 1] += 1
    swapped[:2] = swapped[:2].flip(0)
    different = [
        identify(one, None).hash
        for one in (
            ref(brighter), ref(labels=swapped), ref(IMAGES[:-2], LABELS[:-2]), ref(spec=replace(SPEC, name="other")),
            ref(spec=replace(SPEC, mean=(0.4,))), ref(spec=replace(SPEC, class_names=("b", "a"))),
        )
    ]  # fmt: skip
    assert len({base.hash, *different}) == 7
    assert identify(ref(IMAGES.clone(), LABELS.clone(), name="alias"), None) == base
    assert base.train_counts == base.test_counts == (10, 10)


def test_a_copy_is_called_one() -> None:
    original = identify(ref(), None)
    assert original.label("toy") == "toy"
    assert replace(original, original=False).label("toy") == f"toy (copy {original.hash[:8]})"


def test_validation_is_a_share_of_every_class_and_the_same_under_any_name() -> None:
    data = load_training(ref(), None, 0.2, CPU)
    assert data.counts == (8, 8)
    assert data.validation_labels.bincount().tolist() == [2, 2]
    assert data.labels.tolist() == [0] * 8 + [1] * 8
    alias = load_training(ref(name="alias"), None, 0.2, CPU)
    assert torch.equal(alias.images, data.images)
    assert torch.equal(alias.validation_images, data.validation_images)
    assert isinstance(data.images, Tensor)
    assert isinstance(data.validation_images, Tensor)
    both = torch.cat([data.images, data.validation_images])
    assert sorted(map(tuple, both.flatten(1).tolist())) == sorted(map(tuple, IMAGES.flatten(1).tolist()))


def test_training_images_stay_bytes_and_are_seen_normalised() -> None:
    data = load_training(ref(), None, 0.2, CPU)
    assert (data.images.dtype, data.validation_images.dtype) == (torch.uint8, torch.uint8)
    whole = SPEC.normalise(data.images)
    chosen = torch.tensor([3, 0, 15])
    assert torch.equal(data.seen(data.images[chosen]), whole[chosen])  # to the bit, one by one or all at once
    double = replace(data, dtype=torch.float64).seen(data.images)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, whole.double(), rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="are kept as uint8"):
        data.seen(whole)


# ---------------------------------------------------------------- kept for later cells


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, torch.device]]:
    """What was loaded, in order."""
    log: list[tuple[str, float, torch.device]] = []

    def load(ref: Any, root: Path | None, held_out: float, device: torch.device, tuning: float) -> TrainingData:
        log.append((ref.name, held_out, device))
        return load_training(ref, root, held_out, torch.device("cpu"), tuning)

    monkeypatch.setattr(subsets, "load_training", load)
    return log


SIZE = 20 * (16 + 8)  # bytes of the toy set: pixels and int64 labels


def test_training_data_are_loaded_once_a_subset_share_and_device(loaded: list[Any]) -> None:
    cache = TrainingCache()
    first, elsewhere = ("a", 0.2, CPU), ("a", 0.2, torch.device("meta"))
    asked = [first, first, ("b", 0.2, CPU), ("a", 0.1, CPU), elsewhere, first]
    found = [cache.load(ref(name=name), None, name, share, device) for name, share, device in asked]
    assert loaded == list(dict.fromkeys(asked))
    assert found[0] is found[1] is found[5]
    assert len({id(data) for data in found}) == 4
    assert found[0].num_bytes == SIZE


def test_the_subset_that_was_not_asked_for_longest_goes_first(loaded: list[Any]) -> None:
    cache = TrainingCache(2 * SIZE)
    for name in "abaca":  # c drives out b
        cache.load(ref(name=name), None, name, 0.2, CPU)
    assert [name for name, *_ in loaded] == ["a", "b", "c"]
    cache.load(ref(name="b"), None, "b", 0.2, CPU)  # and b drives out c
    for name in "ab":
        cache.load(ref(name=name), None, name, 0.2, CPU)
    assert [name for name, *_ in loaded] == ["a", "b", "c", "b"]


def test_one_subset_is_kept_however_large_it_is(loaded: list[Any]) -> None:
    cache = TrainingCache(1)
    for name in "aabb":
        cache.load(ref(name=name), None, name, 0.2, CPU)
    assert [name for name, *_ in loaded] == ["a", "b"]


def test_what_cannot_be_loaded_leaves_the_rest(loaded: list[Any]) -> None:
    cache = TrainingCache()
    cache.load(ref(name="a"), None, "a", 0.2, CPU)
    with pytest.raises(DataError, match="not there"):
        cache.load(ref(DataError("not there."), name="b"), None, "b", 0.2, CPU)
    cache.load(ref(name="a"), None, "a", 0.2, CPU)
    assert [name for name, *_ in loaded] == ["a", "b"]
