"""Habits of published code, for measuring: iterates that are judged too, and generated images normalised by other constants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddbench import protocols
from ddbench.api import Generator, GeneratorConfig, Loss, Run, Space, Spec
from ddbench.cli import main
from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import Distillation, distill
from ddbench.compute.run import DistillRun, open_run
from ddbench.data.sealed import open_test
from ddbench.data.subsets import Identity, identify, load_training
from ddbench.errors import ConfigError
from ddbench.evaluate import evaluator
from ddbench.evaluate.cost import untimed
from ddbench.evaluate.evaluator import Exam, evaluate
from ddbench.evaluate.sets import read_set
from ddbench.files import read_tensors, tensors_to_bytes
from ddbench.grid import cell
from ddbench.grid.cell import Desk, run_cell
from ddbench.plan import Plan, PluginRef
from ddbench.protocols import Protocol
from ddbench.results.store import Store, stable
from ddbench.testing import Given, ToyGenerator, toy_data, toy_plan, toy_run, toy_spec
from ddbench_plugins.datasets import mnist_5k
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.spaces.layered import glad, hpd
from ddbench_plugins.spaces.pixel import Pixel

CPU = torch.device("cpu")
MNIST = PluginRef.resolve("datasets", "mnist-5k", {})
NETWORK = PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1})
Found = dict[int, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[None]:
    """The table of digits is unpacked once, and memory is not handed back to the system before each network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist_5k, "_read", cache(mnist_5k._read))
        for module in (cell, evaluator):
            patch.setattr(module, "reset_peak_memory", lambda device: None)
        yield


def habit(**changes: Any) -> Protocol:
    """smoke-1, and not ranked."""
    return replace(protocols.load("smoke-1"), id="habit", ranked=False, **changes)


class Interrupted(Exception):
    pass


# ---------------------------------------------------------------- iterates, in the engine


def by_hand(plan: Plan, run: DistillRun, steps: list[int]) -> Found:
    """The iterates of an uninterrupted walk before these steps, decoded."""
    loop, found = Distillation(plan, run, Stopwatch(run.device)), Found()
    loop.begin()
    while True:
        if loop.step in steps:
            images = loop.images(loop.state)
            found[loop.step] = (images.clone(), loop.labels(loop.state, images).detach().clone())
        if loop.step == loop.total_steps:
            return found
        loop.one_step()
        if loop.step % plan.steps == 0 and loop.step < loop.total_steps:
            loop.leave_stage()


def assert_same(found: Found, wanted: Found) -> None:
    assert list(found) == list(wanted)
    for step, (images, labels) in wanted.items():
        assert torch.equal(found[step][0], images), f"other images at step {step}"
        assert torch.equal(found[step][1], labels), f"other labels at step {step}"


def walk(space: Space, loss: Loss | None = None, snapshots: int = 4, **changes: Any) -> Plan:
    rates = {"pixels": 1.0, "f": 0.5, "w": 0.05, "labels": 0.5}
    plan = toy_plan(loss or DistributionMatching(4), space, rates=rates, **({"steps": 10} | changes))
    return replace(plan, protocol=replace(plan.protocol, snapshots=snapshots))


WALKS: dict[str, tuple[Plan, list[int]]] = {
    "pixel": (walk(Pixel()), [0, 2, 5, 7]),
    "learned labels": (walk(Pixel(), labels="learned", momentum=0.5), [0, 2, 5, 7]),
    "glad, in chunks": (walk(glad(2), steps=6, snapshots=5, chunk=4), [0, 1, 2, 3, 4]),
    "three stages": (walk(hpd(first=1, step=2, samples=4), steps=3, chunk=4), [0, 2, 4, 6]),
    "ranked by loss": (walk(hpd(first=1, step=2, samples=4), steps=3, rank_steps="loss"), [0, 2, 4, 6]),
    "more than steps": (walk(Pixel(), steps=2, snapshots=5), [0, 1]),
    "none": (walk(Pixel(), snapshots=0), []),
    "no steps": (walk(Pixel(), steps=0), []),
}


@pytest.fixture
def run() -> DistillRun:
    return toy_run(channels=3, depth=5)


@pytest.mark.parametrize("name", WALKS)
def test_iterates_are_those_of_evenly_spaced_steps(run: DistillRun, name: str) -> None:
    (plan, steps), found = WALKS[name], Found()

    def put_aside(step: int, images: Tensor, labels: Tensor) -> None:
        assert step not in found
        found[step] = (images.clone(), labels.clone())

    made = distill(plan, run, Stopwatch(run.device), snapshot=put_aside)
    assert list(found) == steps
    assert_same(found, by_hand(plan, run, steps))
    if plan.rank_steps == "last":  # else a stage may begin with an iterate of the one before
        walked = [images for images, _ in found.values()] + [made.images] * bool(plan.steps)
        assert not any(torch.equal(images, later) for images, later in pairwise(walked))
    without = distill(plan, run, Stopwatch(run.device))
    assert torch.equal(made.images, without.images)  # looking changes nothing
    assert torch.equal(made.labels, without.labels)


class Dying:
    """Keeps checkpoints in memory, every step, and dies after one of them."""

    def __init__(self, at: int | None) -> None:
        self.at, self.asked, self.kept = at, 0, b""

    def load(self) -> Any:
        return None

    def due(self) -> bool:
        self.asked += 1
        return self.asked - 1 == self.at

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.kept = tensors_to_bytes(tensors, meta)
        raise Interrupted


class Kept(Dying):
    """Goes on from a checkpoint."""

    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__(None)
        self.path = path
        path.write_bytes(content)

    def load(self) -> Any:
        return read_tensors(self.path, "checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned labels", "three stages", "ranked by loss"])
def test_iterates_survive_an_interruption_anywhere(run: DistillRun, tmp_path: Path, name: str) -> None:
    plan, steps = WALKS[name]
    wanted, counting = by_hand(plan, run, steps), Dying(None)
    distill(plan, run, Stopwatch(run.device), counting)
    assert counting.asked >= 8
    for at in range(counting.asked):
        found, dying = Found(), Dying(at)

        def put_aside(step: int, images: Tensor, labels: Tensor, found: Found = found) -> None:
            found[step] = (images.clone(), labels.clone())

        with pytest.raises(Interrupted):
            distill(plan, run, Stopwatch(run.device), dying, snapshot=put_aside)
        distill(plan, run, Stopwatch(run.device), Kept(tmp_path / "checkpoint", dying.kept), snapshot=put_aside)
        assert_same(found, wanted)


# ---------------------------------------------------------------- iterates, in a cell


@pytest.fixture(scope="module")
def identity() -> Identity:
    return identify(MNIST, None)


@pytest.fixture(scope="module")
def desks(identity: Identity, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Desk]:
    """Desks with stores of their own and sixteen training images of every digit."""
    data = load_training(MNIST, None, 0.1, CPU)
    chosen = [start + number for start in data.starts[:-1] for number in range(16)]
    few = replace(data, images=data.images[chosen], labels=data.labels[chosen], starts=tuple(range(0, 161, 16)))

    def make(name: str, seconds: float = 1e9) -> Desk:
        return Desk(Store(tmp_path_factory.mktemp(name)), CPU, None, seconds, {(identity.hash, 0.1): few})

    return make


def plan_of(identity: Identity, **changes: Any) -> Plan:
    """DM in pixels: ten steps; iterates before steps 0, 2, 5 and 7 of it."""
    loss, space = PluginRef.resolve("losses", "dm", {"batch_real": 4}), PluginRef.resolve("spaces", "pixel", {})
    networks = (NETWORK, PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1, "norm": "none"}))
    plan = Plan(
        MNIST, identity.hash, habit(snapshots=4), networks, NETWORK, ipc=1, seed=3, loss=loss, space=space, steps=10,
        rates={"pixels": 10.0, "f": 0.5, "w": 0.05},
    )  # fmt: skip
    return replace(plan, **changes)


def computed(plan: Plan, identity: Identity, desk: Desk, stop: Callable[[str, float], bool] | None = None) -> dict[str, Any]:
    """The cell's record; Interrupted where `stop` says so."""

    def report(phase: str, fraction: float) -> None:
        if stop and stop(phase, fraction):
            raise Interrupted

    run_cell(plan, "suite", identity, desk, report)
    return desk.store.record(plan.key)


@pytest.fixture(scope="module")
def whole(identity: Identity, desks: Any) -> dict[str, Any]:
    """The record of an uninterrupted cell."""
    return computed(plan_of(identity), identity, desks("whole"))


@pytest.mark.slow
def test_a_record_holds_what_judging_the_iterates_gave(identity: Identity, desks: Any, whole: dict[str, Any]) -> None:
    plan, record = plan_of(identity), whole
    data = desks("data").training_data(plan)
    assert [entry["step"] for entry in record["snapshots"]] == [0, 2, 5, 7]
    iterates = by_hand(plan, open_run(plan, data, CPU, {}), [0, 2, 5, 7])
    for entry in record["snapshots"]:
        exam = Exam(plan, data.spec, *iterates[entry["step"]], open_test(MNIST, None, CPU))
        assert entry["evaluations"] == untimed(evaluate(exam, [], lambda entries: None, lambda fraction: None))
    losses = {part["evaluations"][0]["train_loss"] for part in (*record["snapshots"], record)}
    assert len(losses) == 5  # no iterate is another

    base = replace(plan, protocol=replace(plan.protocol, id="smoke-1", snapshots=0, ranked=True))
    assert base.protocol == protocols.load("smoke-1")
    plain = computed(base, identity, desks("plain"))
    assert "snapshots" not in plain
    assert plain["evaluations"] == record["evaluations"]
    assert plain["distilled"]["stages"] == record["distilled"]["stages"]
    assert plain["measured"]["networks"].keys() == record["measured"]["networks"].keys()
    whole, final = (part["measured"]["seconds"]["evaluate"] for part in (record, plain))
    assert whole > sum(network["seconds_train"] + network["seconds_test"] for network in record["measured"]["networks"].values())
    assert final == pytest.approx(sum(n["seconds_train"] + n["seconds_test"] for n in plain["measured"]["networks"].values()))


@pytest.mark.parametrize("baseline", ["random", "full-data"])
def test_what_is_not_distilled_has_no_iterates(identity: Identity, desks: Any, baseline: str) -> None:
    assert computed(plan_of(identity, baseline=baseline), identity, desks("habit"))["snapshots"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "fraction", "seconds", "left"),  # with a checkpoint after every so many seconds; steps or networks to go
    [
        ("distill", 0.0, 0.0, 10),
        ("distill", 0.15, 0.0, 8),
        ("distill", 0.3, 0.0, 5),
        ("distill", 0.35, 1e9, 10),
        ("evaluate", 0.56, 0.0, 9),
        ("evaluate", 0.83, 0.0, 4),
    ],
)
def test_a_killed_cell_ends_with_the_same_record(
    monkeypatch: pytest.MonkeyPatch, identity: Identity, desks: Any, whole: dict[str, Any],
    phase: str, fraction: float, seconds: float, left: int,
) -> None:  # fmt: skip
    """At a step, with a checkpoint of the one before or none; or between five sets of two networks each."""
    plan, desk = plan_of(identity), desks("killed", seconds)
    with pytest.raises(Interrupted):
        computed(plan, identity, desk, lambda now, done: now == phase and done >= fraction)
    assert (desk.store.work(plan.key) / "snapshots").is_dir()
    steps, trained, one_step, once = [], [], Distillation.one_step, evaluator.evaluate_once

    def step(loop: Distillation) -> None:
        steps.append(loop.step)
        one_step(loop)

    def train(exam: Exam, ref: PluginRef, repeat: int, on_epoch: Any) -> Any:
        trained.append(ref.label)
        return once(exam, ref, repeat, on_epoch)

    monkeypatch.setattr(Distillation, "one_step", step)
    monkeypatch.setattr(evaluator, "evaluate_once", train)
    again = computed(plan, identity, desk)
    assert stable(again) == stable(whole)
    assert steps == (list(range(10 - left, 10)) if phase == "distill" else [])
    assert len(trained) == (10 if phase == "distill" else left)
    assert not desk.store.work(plan.key).exists()


# ---------------------------------------------------------------- other constants for generated images


@dataclass(frozen=True)
class Toys(GeneratorConfig):
    """The toy generator as a plugin."""

    def depth(self, spec: Spec) -> int:
        return 5

    def load(self, run: Run) -> Generator:
        return ToyGenerator(run.spec, 5)


TOYS = Given.of("generators", Toys(), "toys")
SPEC = replace(toy_spec(channels=3), mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
DATA = replace(toy_data(SPEC), spec=SPEC)


def opened(id: str, space: Space, generator: PluginRef | None) -> DistillRun:
    return open_run(replace(walk(space), protocol=protocols.load(id), generator=generator), DATA, CPU, {})


@pytest.mark.parametrize(
    ("id", "mean", "std"),
    [
        ("glad-1", SPEC.mean, SPEC.std),
        ("glad-1-svhn-mean", (0.4377, 0.4438, 0.4728), SPEC.std),
        ("glad-1-unnormalised", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ],
)
def test_only_what_a_generator_makes_has_other_constants(id: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    own = opened(id, Pixel(), None)
    assert own.spec == SPEC
    run = opened(id, glad(2), TOYS)
    assert (run.spec.mean, run.spec.std) == (mean, std)
    assert replace(run.spec, mean=SPEC.mean, std=SPEC.std) == SPEC  # nothing else
    for one in (own, run):  # real images are what they are
        assert torch.equal(one.data.images, DATA.images)
        assert torch.equal(one.data.validation_images, DATA.validation_images)
        assert torch.equal(one.real(1, 12, one.rng("x")), DATA.images[12:24])
    base = opened("glad-1", glad(2), TOYS)
    space = glad(2)
    normal, other = (space.decode(space.init(one), torch.arange(6), one) for one in (base, run))
    pixels = SPEC.denormalise(normal)
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
    wanted = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(other, wanted)
    assert torch.allclose(other, normal) == (id == "glad-1")


def generated(identity: Identity, **constants: Any) -> Plan:
    """GLaD in a generator of digits with random weights."""
    generator = PluginRef.resolve("generators", "cvae-random", {"width": 8})
    space = PluginRef.resolve("spaces", "glad", {"layer": 2})
    return plan_of(identity, protocol=habit(**constants), space=space, generator=generator, networks=(NETWORK,), steps=3)


def test_a_set_says_the_constants_it_was_made_with(identity: Identity, desks: Any) -> None:
    plan, desk = generated(identity, synthetic_mean=(0.6,), synthetic_std=(2.0,)), desks("habit")
    record, path = computed(plan, identity, desk), desk.store.cell(plan.key) / "distilled.safetensors"
    tensors, meta = read_tensors(path, "set")
    assert (meta["mean"], meta["std"]) == ([0.6], [2.0])
    pixels = tensors["images"] * 2 + 0.6
    assert -0.2 < float(pixels.min()) < float(pixels.max()) < 1.2  # features have moved; a sigmoid comes last
    spec = MNIST.make().spec()
    read = read_set(path, spec)
    torch.testing.assert_close(spec.denormalise(read.images), pixels)
    assert not torch.allclose(read.images, tensors["images"], atol=0.1)
    # what was judged is the set as it was made
    exam = Exam(plan, spec, tensors["images"], tensors["labels"], open_test(MNIST, None, CPU))
    assert record["evaluations"] == untimed(evaluate(exam, [], lambda entries: None, lambda fraction: None))


def test_real_images_say_their_own_constants(identity: Identity, desks: Any) -> None:
    spec = MNIST.make().spec()
    wrong = {"synthetic_mean": (0.6,), "synthetic_std": (2.0,)}
    for plan in (
        plan_of(identity, protocol=habit(**wrong), steps=1),
        plan_of(identity, protocol=habit(**wrong), baseline="random"),
    ):
        desk = desks(plan.method.replace(" / ", "-"))
        computed(plan, identity, desk)
        _, meta = read_tensors(desk.store.cell(plan.key) / "distilled.safetensors", "set")
        assert (meta["mean"], meta["std"]) == (list(spec.mean), list(spec.std))


def test_the_verb_feeds_a_set_as_the_habit_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], identity: Identity, desks: Any
) -> None:
    plan, desk, load, fed = generated(identity, synthetic_mean=(0.6,), synthetic_std=(2.0,)), desks("habit"), protocols.load, []
    computed(plan, identity, desk)
    path = desk.store.cell(plan.key) / "distilled.safetensors"
    made = read_tensors(path, "set")[0]["images"]
    once = evaluator.evaluate_once

    def spy(exam: Exam, *more: Any) -> Any:
        fed.append(exam.images)
        return once(exam, *more)

    monkeypatch.setattr(evaluator, "evaluate_once", spy)
    monkeypatch.setattr(protocols, "load", lambda id: plan.protocol if id == "habit" else load(id))
    for id in ("habit", "smoke-1"):
        words = ["--protocol", id, "--archs", "convnet(width=4,depth=1)", "--device", "cpu", "--workers", "1", "--json"]
        assert main(["evaluate", str(path), *words]) == 0
        assert json.loads(capsys.readouterr().out)["protocol"] == id
    torch.testing.assert_close(fed[0], made)
    torch.testing.assert_close(fed[1], read_set(path, MNIST.make().spec()).images)
    assert not torch.allclose(*fed, atol=0.1)


# ---------------------------------------------------------------- a protocol for three channels

THREE = r"protocol 'glad-1-svhn-mean' is for images of 3 channels, and 'mnist-5k' has 1\."


def test_three_constants_do_not_fit_one_channel(identity: Identity, desks: Any) -> None:
    plan = replace(generated(identity), protocol=protocols.load("glad-1-svhn-mean"))
    data = desks("habit").training_data(plan)
    with pytest.raises(ConfigError, match=f"^{THREE}$"):
        open_run(plan, data, CPU, {})
    assert open_run(plan_of(identity, protocol=plan.protocol), data, CPU, {}).spec == data.spec  # no generator, no matter


def test_the_verb_refuses_it_before_any_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(evaluator, "train", None)  # nothing is trained
    torch.save({"images": torch.rand(10, 1, 28, 28), "labels": torch.arange(10)}, tmp_path / "a.pt")
    words = ["--data", "mnist-5k", "--images", "pixels", "--protocol", "glad-1-svhn-mean", "--device", "cpu", "--workers", "1"]
    assert main(["evaluate", str(tmp_path / "a.pt"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "ddbench: protocol 'glad-1-svhn-mean' is for images of 3 channels, and 'mnist-5k' has 1."


SUITE = """
schema = 1
protocol = "glad-1-svhn-mean"
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = [{ name = "glad", layer = 2 }]
generator = "cvae-random"
backbone = { name = "convnet", width = 4 }
networks = [{ name = "convnet", width = 4 }]
baselines = []
"""


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_suite_says_so_before_any_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.toml").write_text(SUITE)
    assert main([verb, "suite.toml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("protocol 'glad-1-svhn-mean' is for images of 3 channels, and 'mnist-5k' has 1.")
    assert [path.name for path in tmp_path.iterdir()] == ["suite.toml"]
