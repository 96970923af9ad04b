"""Images that stay on the host give the bits of images on the device: what runs draw, train on, rank by and are judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranking import feature_distance, images_of
from torch import Tensor

from ddbench.api import Batch, Dataset, LabelledImages, Recipe, Spec, Split
from ddbench.compute.run import DistillRun
from ddbench.compute.train import predict, train
from ddbench.data import host
from ddbench.data.host import HostImages
from ddbench.data.sealed import open_test
from ddbench.data.subsets import TrainingData, load_training
from ddbench.grid.do import _state
from ddbench.ops.augment import SiameseAugment
from ddbench.ops.embedding import class_batches
from ddbench.ops.moves import send_network
from ddbench.testing import TOY_ARCH, toy_run, toy_spec
from ddbench.testing.devices import runs_ahead
from ddbench.testing.pretended import Pretended

CPU = torch.device("cpu")
SPEC = replace(toy_spec(channels=3), name="on the host")
COUNTS = (9, 12, 10)


@dataclass(frozen=True)
class Toy(Dataset):
    """Classes in no order; `mapped` is what is tried."""

    mapped: bool

    def spec(self) -> Spec:
        return SPEC

    def load(self, split: Split, root: Path | None) -> LabelledImages:
        labels = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
        rng = torch.Generator().manual_seed(len(split))
        labels = labels[torch.randperm(len(labels), generator=rng)]
        images = torch.randint(0, 256, (len(labels), *SPEC.shape), generator=rng, dtype=torch.uint8)
        return LabelledImages(images, labels, self.mapped)


def ref(mapped: bool) -> Any:
    toy = Toy(mapped)
    return SimpleNamespace(name="toy", make=lambda: toy, ask=lambda question: question(toy))


@pytest.fixture
def both() -> tuple[TrainingData, TrainingData]:
    """On the device, and on the host."""
    resident, on_host = (load_training(ref(mapped), None, 0.2, CPU) for mapped in (False, True))
    assert isinstance(resident.images, Tensor)
    assert isinstance(on_host.images, HostImages)
    assert isinstance(on_host.validation_images, HostImages)
    return resident, on_host


def run_of(data: TrainingData) -> DistillRun:
    return replace(toy_run(channels=3), data=data)


def test_they_are_the_same_images_without_a_copy(both: tuple[TrainingData, TrainingData]) -> None:
    resident, on_host = both
    assert (on_host.starts, on_host.counts) == (resident.starts, resident.counts)
    for one, other in zip(resident.everything(), on_host.everything(), strict=True):
        assert torch.equal(one[:], other[:])
    for name in ("images", "validation_images"):
        one, other = getattr(resident, name), getattr(on_host, name)
        assert (other.shape, other.dtype, len(other), other.numel()) == (one.shape, one.dtype, len(one), one.numel())
        assert all(map(torch.equal, one.split(4), other.split(4)))
    assert isinstance(on_host.images, HostImages)
    assert isinstance(on_host.validation_images, HostImages)
    assert on_host.images.source is on_host.validation_images.source
    assert on_host.num_bytes == on_host.labels.nbytes + on_host.validation_labels.nbytes


@pytest.mark.parametrize("num", [1, 4, 10**9])
def test_runs_draw_the_same(both: tuple[TrainingData, TrainingData], num: int) -> None:
    one, other = map(run_of, both)
    for label in range(3):
        assert torch.equal(one.real(label, num, one.rng("x")), other.real(label, num, other.rng("x")))
    own = [torch.zeros(6, *SPEC.shape), torch.eye(3).repeat_interleave(2, 0), torch.arange(3).repeat_interleave(2)]
    pairs = [class_batches(Batch(*own), run, num, augment=True)[1] for run in (one, other)]
    for label in range(3):
        assert torch.equal(*(real(label) for real in pairs))


def test_what_is_drawn_is_the_caller_s_own(both: tuple[TrainingData, TrainingData]) -> None:
    run = run_of(both[1])
    before = run.data.images[:].clone()
    for num in (3, 10**9):
        run.real(1, num, run.rng("x")).mul_(0.5)
    assert torch.equal(run.data.images[:], before)


def test_networks_are_trained_read_and_ranked_by_the_same_bits(both: tuple[TrainingData, TrainingData]) -> None:
    found = []
    for data in both:
        run = run_of(data)
        network = run.network("a")
        run.train(network, Recipe(epochs=2, lr=0.1, batch=7), "a")
        weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        score = feature_distance(network, run)
        images = run.spec.normalise(torch.full((3, *SPEC.shape), 100, dtype=torch.uint8))
        read = predict(network, data.validation_images, 4, data.seen)
        found.append((weights, read, score(images_of(images, torch.arange(3)), 0)))
    assert all(map(torch.equal, *found))


def test_the_sealed_split_may_stay_on_the_host() -> None:
    resident, on_host = (open_test(ref(mapped), None, CPU) for mapped in (False, True))
    assert isinstance(on_host.images, HostImages)
    assert torch.equal(resident.images[:], on_host.images[:])
    assert torch.equal(resident.labels, on_host.labels)


@pytest.mark.parametrize(("free", "stays"), [(4 * 31 * 3 * 8 * 8, True), (1 << 30, False)])
def test_a_device_holds_what_fits(free: int, stays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are mapped or not; more than RESIDENT_SHARE of what is free stays on the host."""
    images = Toy(False).load("train", None).images
    monkeypatch.setattr(host.torch.cuda, "mem_get_info", lambda device: (int(free * 0.9) if stays else free, 1 << 40))
    assert images.nbytes > 0.25 * free * 0.9 or not stays
    for mapped in (False, True):
        assert host.stays(images, mapped, torch.device("cuda", 0)) is stays


def pretended(fake: Pretended, action: Callable[[TrainingData], object]) -> Any:
    """What is asked of a pretended device with images that stay on the host, once everything is warm."""
    data = load_training(ref(True), None, 0.2, CPU)
    data = replace(
        data, images=data.images.to(fake.device), labels=data.labels.to(fake.device),
        validation_images=data.validation_images.to(fake.device), validation_labels=data.validation_labels.to(fake.device),
    )  # fmt: skip
    action(data)
    with fake.counting() as counts:
        action(data)
    return counts


def test_a_step_does_not_wait_for_them() -> None:
    with Pretended() as fake:

        def step(data: TrainingData) -> None:
            run = replace(run_of(data), device=fake.device)
            classes = torch.arange(3).repeat_interleave(2)
            syn = (torch.zeros(6, *SPEC.shape), torch.eye(3).repeat_interleave(2, 0), classes)
            images, labels, classes = (tensor.to(fake.device) for tensor in syn)
            _, real = class_batches(Batch(images, labels, classes), run, 4, augment=True)
            assert [len(real(label)) for label in range(3)] == [4] * 3

        counts = pretended(fake, step)
    blocking = [line for line in counts.blocking if "test_host_images" not in line]
    assert not blocking
    assert not counts.waits
    assert len(counts.copies) - len(counts.blocking) == 1  # of all classes, with the augmentation's parameters


def test_a_training_epoch_does_not_wait_for_them() -> None:
    recipe = Recipe(epochs=1, lr=0.1, batch=5)
    with Pretended() as fake:

        def epoch(data: TrainingData) -> None:
            network = send_network(TOY_ARCH.build(SPEC), fake.device)
            train(network, data.images, data.labels, recipe, ("x",), SiameseAugment(SPEC.augmentation), view=data.seen)

        counts = pretended(fake, epoch)
    steps = -(-sum(count - 2 for count in COUNTS) // recipe.batch)
    runs_ahead(replace(counts, waits=[line for line in counts.waits if "train.py" not in line]), "an epoch")  # its last loss
    assert len([line for line in counts.copies if "moves.py" in line]) >= steps


def test_whoever_writes_into_them_is_noticed(both: tuple[TrainingData, TrainingData]) -> None:
    data = both[1]
    assert isinstance(data.images, HostImages)
    before = _state(data)
    assert _state(data) == before
    data.images.source.add_(0)
    assert _state(data) != before
