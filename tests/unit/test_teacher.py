"""Soft labels: the divergence from a teacher, which is trained once and labels every batch of every network.

The tests of the verb start the real runner and its workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace as replace_plan
from torch import Tensor, nn

import ddbench.compute.run
from ddbench import protocols
from ddbench.api import Recipe
from ddbench.cli import main
from ddbench.compute.run import DistillRun, be_deterministic, build_network
from ddbench.compute.stacked import train_stacked
from ddbench.compute.train import cross_entropy, train
from ddbench.data.sealed import TestData
from ddbench.data.subsets import TrainingData
from ddbench.errors import ConfigError
from ddbench.evaluate import evaluator
from ddbench.evaluate.evaluator import Evaluator, Subject, evaluate_block
from ddbench.evaluate.teacher import SoftTeacher, follow, gift, load_teacher, teacher_needs
from ddbench.ops.crops import CropFlip
from ddbench.plan import Judging
from ddbench.protocols import Protocol
from ddbench.refs import PluginRef
from ddbench.schema import Repeat
from ddbench.seeds import global_stream, stream
from ddbench.testing import toy_data, toy_network, toy_spec
from ddbench_plugins.datasets import mnist_5k

CPU = torch.device("cpu")
SPEC = toy_spec(channels=3)
IMAGES = torch.randn(5, *SPEC.shape, generator=stream("images"), dtype=torch.float64)
TARGETS = torch.tensor([0, 1, 2, 0, 1])
MNIST = PluginRef.resolve("datasets", "mnist-5k", {})
STUDENT = PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1})
TEACHER = PluginRef.resolve("architectures", "convnet", {"width": 4, "norm": "batch"})


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[None]:
    """The table of digits is unpacked once, and memory is not handed back to the system before each block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist_5k, "_read", cache(mnist_5k._read))
        patch.setattr(evaluator, "reset_peak_memory", lambda device: None)
        be_deterministic(1)
        yield


def fresh(seed: int) -> nn.Module:
    with global_stream("network", seed):
        return toy_network(SPEC).double()


def small() -> Protocol:
    """sre2l-1 with few epochs of everything."""
    protocol = protocols.load("sre2l-1")
    assert protocol.judging.teacher
    teacher = replace_plan(protocol.judging.teacher, network="convnet", epochs=1, warmup_epochs=0, lr=0.05)
    numbers = replace_plan(protocol.judging, epochs=1, warmup_epochs=0, test_batch=500, teacher=teacher)
    full = replace_plan(protocol.full_data, epochs=1, warmup_epochs=0)
    return replace_plan(protocol, repeats=2, judging=numbers, full_data=full)


def judging_of(**changes: Any) -> Judging:
    judging = Judging(network=STUDENT, numbers=small().judging, dataset=MNIST, test_hash="0" * 64, teacher=TEACHER)
    return replace_plan(judging, **changes)


# ---------------------------------------------------------------- the divergence


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_value_and_gradient_are_those_of_the_divergence_by_hand(temperature: float) -> None:
    teacher, student = fresh(0), fresh(1)
    logits = student(IMAGES).detach().requires_grad_()
    loss = follow(teacher, temperature)(lambda images: logits, IMAGES, TARGETS, stream("x"))
    loss.backward()
    wanted, got = (torch.exp(values / temperature) for values in (teacher(IMAGES).detach(), logits.detach()))
    wanted, got = wanted / wanted.sum(1, keepdim=True), got / got.sum(1, keepdim=True)
    by_hand = temperature**2 * (wanted * (wanted.log() - got.log())).sum() / 5
    torch.testing.assert_close(loss.detach(), by_hand, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logits.grad, temperature * (got - wanted) / 5, rtol=1e-9, atol=1e-12)
    assert float(by_hand) > 1e-3


def test_a_student_that_is_the_teacher_has_nothing_to_learn() -> None:
    teacher = fresh(0)
    student = deepcopy(teacher)
    loss = follow(teacher, 20.0)(student, IMAGES, TARGETS, stream("x"))
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert max(float(parameter.grad.abs().max()) for parameter in student.parameters() if parameter.grad is not None) < 1e-13
    assert all(parameter.grad is not None for parameter in student.parameters())
    loss = follow(teacher, 20.0)(fresh(1), IMAGES, TARGETS, stream("x"))
    assert loss.item() > 1e-3


def test_the_teacher_sees_the_students_images_and_learns_nothing() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fresh(0)

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return self.inner(images)

    teacher = Watching()
    losses = [follow(teacher, 4.0)(fresh(1), IMAGES, targets, stream("x")) for targets in (TARGETS, 2 - TARGETS)]
    sum(losses).backward()
    assert all(images is IMAGES for images in seen)
    assert len(seen) == 2
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(*losses)  # the targets do not count


# ---------------------------------------------------------------- GIFT's cosine


def by_hand(got: Tensor, soft: Tensor, classes: Tensor) -> Tensor:
    """The loss of each image, written out: one minus the cosine with u(soft) + 0.1 u(smoothed class)."""
    losses = []
    for outputs, label, number in zip(got, soft, classes.tolist(), strict=True):
        smooth = torch.full_like(label, 0.1 / (len(label) - 1))
        smooth[number] = 0.9
        wanted = label / label.norm() + 0.1 * smooth / smooth.norm()
        losses.append(1 - (outputs * wanted).sum() / (outputs.norm() * wanted.norm()))
    return torch.stack(losses)


@pytest.mark.parametrize("kind", ["teacher", "probabilities", "classes"])
def test_gift_is_the_cosine_with_the_refined_label_by_hand(kind: str) -> None:
    teacher = fresh(0) if kind == "teacher" else None
    soft = torch.tensor(
        [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.9, 0.1, 0.0], [0.3, 0.4, 0.3]], dtype=torch.float64
    )
    targets = soft if kind == "probabilities" else TARGETS
    label = (
        teacher(IMAGES).detach() if teacher else soft if kind == "probabilities" else torch.eye(3, dtype=torch.float64)[TARGETS]
    )
    logits, again = (fresh(1)(IMAGES).detach().requires_grad_() for _ in range(2))
    loss = gift(teacher)(lambda images: logits, IMAGES, targets, stream("x"))
    wanted = by_hand(again, label, TARGETS).mean()
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logits.grad, again.grad, rtol=1e-9, atol=1e-12)
    assert float(loss.detach()) > 1e-3
    torch.testing.assert_close(gift(teacher)(lambda images: 7 * logits, IMAGES, targets, stream("x")), loss)


def test_the_class_of_an_image_counts_in_gift_and_the_teacher_learns_nothing() -> None:
    teacher = fresh(0)
    losses = [gift(teacher)(fresh(1), IMAGES, targets, stream("x")) for targets in (TARGETS, 2 - TARGETS)]
    sum(losses).backward()
    assert not torch.equal(*losses)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_an_evaluator_takes_the_objective_of_its_protocol() -> None:
    gift_1, sre2l = (protocols.load(id).judging for id in ("gift-1", "sre2l-1"))
    teacher, student = fresh(0), fresh(1)
    for numbers, wanted in ((gift_1, gift(teacher)), (sre2l, follow(teacher, 20.0)), (gift_1.own_labels(), cross_entropy)):
        own = Evaluator(judging_of(numbers=numbers), SPEC, None, None, teacher if numbers.teacher else None)
        values = [objective(student, IMAGES, TARGETS, stream("x")) for objective in (own.objective, wanted)]
        assert torch.equal(*values)
        assert getattr(own.objective, "draws_nothing", False)


def test_gift_trains_stacked_repeats_as_it_trains_them_alone() -> None:
    numbers = replace_plan(protocols.load("gift-1").judging, epochs=2, warmup_epochs=0, augment="none")
    recipe, images, objective = numbers.recipe(0.1), IMAGES.float(), gift(fresh(0).float())
    names: list[Any] = [("gift", repeat) for repeat in range(2)]
    alone, together = ([fresh(repeat).float() for repeat in range(2)] for _ in range(2))
    for network, name in zip(alone, names, strict=True):
        train(network, images, TARGETS, recipe, name, None, objective)
    train_stacked(together, images, TARGETS, recipe, names, None, objective)
    for one, other in zip(alone, together, strict=True):
        for own, stacked in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(own, stacked, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- trained once


@pytest.fixture(scope="module")
def few() -> TrainingData:
    """Toy images of three classes, and some held out."""
    return toy_data(SPEC, per_class=8)


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Recipe, Any]]:
    """How many images, by what recipe and augmentation, for every network that is trained on real images."""
    taken, own = [], ddbench.compute.run.train

    def spy(network: nn.Module, images: Tensor, targets: Tensor, recipe: Recipe, name: Any, augment: Any, *more: Any) -> float:
        taken.append((len(images), recipe, augment))
        return own(network, images, targets, recipe, name, augment, *more)

    monkeypatch.setattr(ddbench.compute.run, "train", spy)
    return taken


def trained(data: TrainingData) -> dict[str, Tensor]:
    """The state of the teacher, as the runner builds it."""
    (need,) = teacher_needs(judging_of())
    return need.build(DistillRun(("resource", "teacher"), data, None, 0, CPU, {}))


def test_only_a_protocol_with_a_teacher_needs_one() -> None:
    judging = judging_of()
    told = judging.numbers.teacher
    assert told
    assert teacher_needs(judging) == (SoftTeacher(TEACHER, told.recipe()),)
    assert teacher_needs(judging)[0].describe() == f"teacher {TEACHER.label}, 1 epochs"
    assert teacher_needs(judging_of(numbers=protocols.load("glad-1").judging, teacher=None)) == ()
    with pytest.raises(ConfigError, match="the plan names no teacher"):
        teacher_needs(judging_of(teacher=None))


def test_networks_draws_and_all_real_images_share_one_teacher() -> None:
    others = [judging_of(network=TEACHER), judging_of(draw=3), judging_of(numbers=small().numbers(everything=True))]
    assert len({teacher_needs(judging) for judging in (judging_of(), *others)}) == 1
    other = judging_of(teacher=STUDENT)
    assert teacher_needs(other) != teacher_needs(judging_of())


def test_a_teacher_learns_the_training_images_with_random_crops(few: TrainingData, lessons: Any) -> None:
    """For an epoch; and not what is held out."""
    state = trained(few)
    assert [(num, recipe) for num, recipe, _ in lessons] == [(24, small().judging.teacher.recipe())]
    assert isinstance(lessons[0][2], CropFlip)
    untrained = build_network(TEACHER, SPEC, CPU, "teacher").state_dict()
    assert state.keys() == untrained.keys()
    assert all(not torch.equal(state[name], untrained[name]) for name in state)


def repeats(judged: Evaluator) -> list[Repeat]:
    finished = evaluate_block(judged, 0, 1, [], lambda finished: None, lambda fraction: None)
    return [one.repeat for one in finished]


def evaluator_of(data: TrainingData, labels: Tensor, teacher: nn.Module | None, **changes: Any) -> Evaluator:
    """The toy images as a set."""
    pixels = (SPEC.denormalise(data.validation_images).clamp(0, 1) * 255).to(torch.uint8)
    test = TestData(pixels, data.validation_labels)
    return Evaluator(judging_of(**changes), SPEC, Subject(data.images, labels, "1" * 64), test, teacher)


def test_networks_are_judged_by_the_trained_teacher_and_not_by_labels(few: TrainingData) -> None:
    state = trained(few)
    teacher = load_teacher(judging_of(), state, SPEC, CPU)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    torch.testing.assert_close(teacher.state_dict(), state, rtol=0, atol=0)
    labels = F.one_hot(few.labels, 3).float()
    judged = evaluator_of(few, labels, teacher)
    assert repeats(judged) == repeats(evaluator_of(few, torch.zeros(24).long(), teacher))
    without = repeats(replace(judged, teacher=None))
    assert all(one.train_loss != other.train_loss for one, other in zip(repeats(judged), without, strict=True))


def test_an_evaluator_follows_at_the_temperature_of_its_protocol(few: TrainingData) -> None:
    teacher, student = fresh(0), fresh(1)
    judged = evaluator_of(few, few.labels, teacher)
    full = replace(judged, subject=replace(judged.subject, everything=True))
    objectives = (judged.objective, full.objective, follow(teacher, 20.0), follow(teacher, 1.0))
    got, of_full, at_20, at_1 = (objective(student, IMAGES, TARGETS, stream("x")) for objective in objectives)
    assert torch.equal(got, at_20)
    assert torch.equal(of_full, at_20)  # the real images follow the teacher too
    assert not torch.allclose(got, at_1, rtol=0.01)
    assert replace(judged, teacher=None).objective is cross_entropy


# ---------------------------------------------------------------- the verb


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`ddbench evaluate --protocol sre2l-1`, cut down: one epoch, and convnets of width 4. Plans travel to the workers."""
    protocol, resolve = small(), PluginRef.resolve

    def narrow(kind: str, name: str, given: Any) -> PluginRef:
        return resolve(kind, name, {"width": 4, "depth": 1} | given if name == "convnet" else given)

    monkeypatch.setattr(PluginRef, "resolve", staticmethod(narrow))
    monkeypatch.setattr(protocols, "load", {"sre2l-1": protocol}.__getitem__)

    def call(path: Path, *words: object) -> dict[str, Any]:
        told = ["--protocol", "sre2l-1", "--archs", "convnet", "--data", "mnist-5k", "--images", "pixels", "--device", "cpu"]
        more = ["--store", tmp_path / "store", "--workers", 1, "--threads", 1, "--json", *words]
        assert main(["evaluate", str(path), *told, *map(str, more)]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def write(path: Path, labels: Tensor) -> Path:
    torch.save({"images": torch.rand(10, 1, 28, 28, generator=stream("pixels")), "labels": labels}, path)
    return path


@pytest.mark.slow
def test_the_verb_trains_a_teacher_and_uses_it_again(verb: Any, tmp_path: Path) -> None:
    first = verb(write(tmp_path / "a.pt", torch.arange(10)))
    assert first["labels"] == "teacher"
    (folder,) = (path for path in (tmp_path / "store" / "resources").iterdir() if (path / "tensors.safetensors").is_file())
    before = (folder / "tensors.safetensors").stat()
    second = verb(write(tmp_path / "b.pt", 9 - torch.arange(10)))  # other labels, which do not count
    assert [path for path in (tmp_path / "store" / "resources").iterdir() if (path / "tensors.safetensors").is_file()] == [folder]
    assert (folder / "tensors.safetensors").stat() == before, "the teacher was trained again"
    assert first["key"] != second["key"]
    assert first["evaluations"] == second["evaluations"]
    assert len(first["evaluations"]) == 2
