"""Soft labels: the divergence from a teacher, which is trained once and labels every batch of every network."""

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
from torch import Tensor, nn

import ddbench.compute.run
import ddbench.evaluate.desk
from ddbench import protocols
from ddbench.api import Recipe
from ddbench.cli import main
from ddbench.compute.resources import need_of
from ddbench.compute.run import build_network
from ddbench.compute.train import cross_entropy
from ddbench.data.sealed import TestData, open_test
from ddbench.data.subsets import Identity, TrainingData, identify, load_training
from ddbench.errors import ConfigError
from ddbench.evaluate import evaluator
from ddbench.evaluate.cost import untimed
from ddbench.evaluate.evaluator import Exam, evaluate
from ddbench.evaluate.teacher import SoftTeacher, follow, load_teacher, teacher_needs
from ddbench.files import read_tensors
from ddbench.grid import cell
from ddbench.grid.cell import Desk, run_cell
from ddbench.grid.planning import needs_of_plan
from ddbench.ops.crops import CropFlip
from ddbench.plan import Plan, PluginRef
from ddbench.protocols import Protocol
from ddbench.results.store import Store
from ddbench.seeds import global_stream, stream
from ddbench.testing import toy_network, toy_spec
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
    """The table of digits is unpacked once, and memory is not handed back to the system before each network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist_5k, "_read", cache(mnist_5k._read))
        for module in (cell, evaluator):
            patch.setattr(module, "reset_peak_memory", lambda device: None)
        yield


def fresh(seed: int) -> nn.Module:
    with global_stream("network", seed):
        return toy_network(SPEC).double()


def small() -> Protocol:
    """sre2l-1 with one epoch of everything."""
    protocol = protocols.load("sre2l-1")
    assert protocol.teacher
    teacher = replace(protocol.teacher, network="convnet", epochs=1, warmup_epochs=0, lr=0.05)
    short = {"epochs": 1, "full_data_epochs": 1, "warmup_epochs": 0, "full_data_warmup_epochs": 0}
    return replace(protocol, **short, repeats=2, test_batch=500, teacher=teacher)


# ---------------------------------------------------------------- the divergence


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_value_and_gradient_are_those_of_the_divergence_by_hand(temperature: float) -> None:
    teacher, student = fresh(0), fresh(1)
    logits = student(IMAGES).detach().requires_grad_()
    loss = follow(teacher, temperature)(lambda images: logits, IMAGES, TARGETS, stream("x"))  # type: ignore[arg-type]
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
    sum(losses).backward()  # type: ignore[union-attr]
    assert all(images is IMAGES for images in seen)
    assert len(seen) == 2
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(*losses)  # the targets do not count


# ---------------------------------------------------------------- trained once


@pytest.fixture(scope="module")
def identity() -> Identity:
    return identify(MNIST, None)


@pytest.fixture(scope="module")
def few(identity: Identity) -> TrainingData:
    """Eight training images of every digit, and ten held out."""
    data = load_training(MNIST, None, 0.1, CPU)
    chosen = [start + number for start in data.starts[:-1] for number in range(8)]
    return replace(
        data, images=data.images[chosen], labels=data.labels[chosen], starts=tuple(range(0, 81, 8)),
        validation_images=data.validation_images[:10], validation_labels=data.validation_labels[:10],
    )  # fmt: skip


@pytest.fixture
def desk(identity: Identity, few: TrainingData, tmp_path: Path) -> Desk:
    return Desk(Store(tmp_path / "cells"), CPU, None, training={(identity.hash, 0.1): few})


def plan_of(identity: Identity, **changes: Any) -> Plan:
    plan = Plan(MNIST, identity.hash, small(), (STUDENT,), STUDENT, ipc=1, seed=0, baseline="random", teacher=TEACHER)
    return replace(plan, **changes)


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Recipe, Any]]:
    """How many images, by what recipe and augmentation, for every network that is trained on real images."""
    taken, own = [], ddbench.compute.run.train

    def spy(network: nn.Module, images: Tensor, targets: Tensor, recipe: Recipe, name: Any, augment: Any, *more: Any) -> float:
        taken.append((len(images), recipe, augment))
        return own(network, images, targets, recipe, name, augment, *more)

    monkeypatch.setattr(ddbench.compute.run, "train", spy)
    return taken


def test_only_a_protocol_with_a_teacher_needs_one(identity: Identity) -> None:
    plan = plan_of(identity)
    assert plan.protocol.teacher
    assert teacher_needs(plan) == (SoftTeacher(TEACHER, plan.protocol.teacher.recipe()),)
    assert teacher_needs(plan)[0].describe() == f"teacher {TEACHER.label}, 1 epochs"
    assert teacher_needs(replace(plan, protocol=protocols.load("glad-1"), teacher=None)) == ()
    with pytest.raises(ConfigError, match="the plan names no teacher"):
        teacher_needs(replace(plan, teacher=None))


def test_cells_share_one_teacher(identity: Identity, desk: Desk, lessons: Any) -> None:
    """Trained on the training images for an epoch, with random crops, and not on what is held out."""
    plans = [plan_of(identity), plan_of(identity, seed=1)]
    for plan in plans:
        run_cell(plan, "suite", identity, desk, lambda phase, fraction: None)
    assert [(num, recipe) for num, recipe, _ in lessons] == [(80, plans[0].protocol.teacher.recipe())]  # type: ignore[union-attr]
    assert isinstance(lessons[0][2], CropFlip)
    records = [desk.store.record(plan.key) for plan in plans]
    for record in records:
        assert [need["describe"] for need in record["resources"]] == [f"teacher {TEACHER.label}, 1 epochs"]
        assert len(record["evaluations"]) == 2
        assert record["plan"]["teacher"]["label"] == TEACHER.label
    assert records[0]["resources"] == records[1]["resources"]
    assert records[0]["evaluations"] != records[1]["evaluations"]


def test_a_cell_is_judged_by_the_teacher_in_the_store(identity: Identity, desk: Desk) -> None:
    plan = plan_of(identity, protocol=replace(small(), repeats=1))
    run_cell(plan, "suite", identity, desk, lambda phase, fraction: None)
    (need,) = needs_of_plan(plan, CPU)
    state, _ = desk.store.resources.load(need.key, CPU)
    spec = MNIST.make().spec()
    teacher = load_teacher(plan, state, spec, CPU)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    torch.testing.assert_close(teacher.state_dict(), state, rtol=0, atol=0)
    untrained = build_network(TEACHER, spec, CPU, "teacher").state_dict()
    assert all(not torch.equal(state[name], untrained[name]) for name in state)
    made, _ = read_tensors(desk.store.cell(plan.key) / "distilled.safetensors", "set")
    exams = [
        Exam(plan, spec, made["images"], labels, open_test(MNIST, None, CPU), teacher)
        for labels in (made["labels"], torch.zeros(10).long())
    ]
    one, other = (untimed(evaluate(exam, [], lambda entries: None, lambda fraction: None)) for exam in exams)
    assert one == desk.store.record(plan.key)["evaluations"]
    assert one == other  # whatever the labels of the set
    without = untimed(evaluate(replace(exams[0], teacher=None), [], lambda entries: None, lambda fraction: None))
    assert without != one


def test_an_exam_follows_at_the_temperature_of_its_protocol(identity: Identity) -> None:
    plan, teacher, student = plan_of(identity), fresh(0), fresh(1)
    exam = Exam(plan, SPEC, IMAGES, TARGETS, TestData(torch.empty(0), torch.empty(0)), teacher)
    objectives = (exam.objective, follow(teacher, 20.0), follow(teacher, 1.0))
    got, at_20, at_1 = (objective(student, IMAGES, TARGETS, stream("x")) for objective in objectives)
    assert torch.equal(got, at_20)
    assert not torch.allclose(got, at_1, rtol=0.01)
    assert replace(exam, teacher=None).objective is cross_entropy


def test_the_real_images_follow_the_teacher_too(identity: Identity, desk: Desk, lessons: Any) -> None:
    plan = plan_of(identity, baseline="full-data")
    run_cell(plan, "suite", identity, desk, lambda phase, fraction: None)
    assert [num for num, *_ in lessons] == [80]
    record = desk.store.record(plan.key)
    assert record["distilled"]["num_images"] == 90
    assert len(record["resources"]) == 1


# ---------------------------------------------------------------- the verb


@pytest.fixture
def verb(
    few: TrainingData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """`ddbench evaluate --protocol sre2l-1`, cut down: one epoch, and convnets of width 4."""
    protocol, resolve, loaded = small(), PluginRef.resolve, list[int]()

    def narrow(kind: str, name: str, given: Any) -> PluginRef:
        return resolve(kind, name, {"width": 4, "depth": 1} | given if name == "convnet" else given)

    monkeypatch.setattr(PluginRef, "resolve", staticmethod(narrow))
    monkeypatch.setattr(ddbench.evaluate.desk, "load_training", lambda *told: loaded.append(1) or few)
    monkeypatch.setattr(protocols, "load", {"sre2l-1": protocol}.__getitem__)

    def call(path: Path, *words: object) -> dict[str, Any]:
        told = ["--protocol", "sre2l-1", "--archs", "convnet", "--data", "mnist-5k", "--images", "pixels", "--device", "cpu"]
        more = ["--store", tmp_path / "store", "--workers", 1, "--json", *words]
        assert main(["evaluate", str(path), *told, *map(str, more)]) == 0
        return json.loads(capsys.readouterr().out) | {"times_loaded": len(loaded)}

    return call


def write(path: Path, labels: Tensor) -> Path:
    torch.save({"images": torch.rand(10, 1, 28, 28, generator=stream("pixels")), "labels": labels}, path)
    return path


def test_the_verb_trains_a_teacher_and_uses_it_again(verb: Any, lessons: Any, tmp_path: Path, identity: Identity) -> None:
    first = verb(write(tmp_path / "a.pt", torch.arange(10)))
    assert len(lessons) == 1
    assert first["labels"] == "teacher"
    (folder,) = [path for path in (tmp_path / "store" / "resources").iterdir() if path.is_dir()]
    before = (folder / "tensors.safetensors").stat()
    second = verb(write(tmp_path / "b.pt", 9 - torch.arange(10)))  # other labels, which do not count
    assert len(lessons) == 1, "the teacher was trained again"
    assert (folder / "tensors.safetensors").stat() == before
    assert first["times_loaded"] == second["times_loaded"] == 1  # nor are the images that it learned from looked at
    assert first["evaluations"] == second["evaluations"]
    assert len(first["evaluations"]) == 2
    verb(tmp_path / "a.pt", "--store", tmp_path / "elsewhere")
    assert len(lessons) == 2


def test_the_verb_and_a_cell_would_share_a_store(verb: Any, tmp_path: Path, identity: Identity) -> None:
    verb(write(tmp_path / "a.pt", torch.arange(10)), "--threads", 1)
    plan = plan_of(identity, teacher=PluginRef.resolve("architectures", "convnet", {}))
    (need,) = needs_of_plan(plan, CPU)
    assert need.key == need_of(teacher_needs(plan)[0], None, plan, CPU).key
    assert Store(tmp_path / "a store").resources.folder(need.key).name in {
        path.name for path in (tmp_path / "store" / "resources").iterdir()
    }
