"""Habits of published code, for measuring: iterates that are judged too, and generated images normalised by other constants."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import grid_runs
import in_process
import pytest
import stores
import torch
from in_process import CPU
from msgspec.structs import replace as replace_plan
from torch import Tensor

from ddbench import protocols
from ddbench.api import Generator, GeneratorConfig, Loss, Run, Space, Spec
from ddbench.cli import main
from ddbench.compute import clock
from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import Distillation, distill
from ddbench.compute.rank import StageBest
from ddbench.compute.run import DistillRun, open_run
from ddbench.data.sealed import open_test
from ddbench.data.subsets import Identity, TrainingData, identify, load_training
from ddbench.errors import ConfigError, DataError
from ddbench.evaluate import evaluator
from ddbench.evaluate.evaluator import Evaluator, Subject, evaluate_block
from ddbench.evaluate.sets import read_set
from ddbench.files import read_tensors, tensors_to_bytes
from ddbench.grid import runner
from ddbench.grid.do import Workplace, do_job
from ddbench.grid.jobs import Lister
from ddbench.grid.planning import Planned, with_needs
from ddbench.plan import Cell, Judging, PluginRef, SetPlan
from ddbench.results.contents import read_contents
from ddbench.results.layout import judgement_job, set_job
from ddbench.results.losses import read_losses
from ddbench.results.store import Store
from ddbench.schema import JobFile, Repeat
from ddbench.suite.load import load
from ddbench.suite.stages import iterate_steps
from ddbench.testing import Given, ToyGenerator, toy_data, toy_plan, toy_run, toy_spec
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.spaces.layered import glad, hpd
from ddbench_plugins.spaces.pixel import Pixel

MNIST = PluginRef.resolve("datasets", "mnist-5k", {})
NETWORK = PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1})
OTHER = PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1, "norm": "none"})
SMOKE = protocols.load("smoke-1")
Found = dict[int, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        in_process.be_light(patch)
        yield


class Interrupted(Exception):
    pass


# ---------------------------------------------------------------- iterates, in the engine


def by_hand(plan: SetPlan, run: DistillRun, steps: tuple[int, ...]) -> Found:
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


def walk(space: Space, loss: Loss | None = None, **changes: Any) -> SetPlan:
    rates = {"pixels": 1.0, "f": 0.5, "w": 0.05, "labels": 0.5}
    return toy_plan(loss or DistributionMatching(4), space, rates=rates, **({"steps": 10} | changes))


WALKS: dict[str, tuple[SetPlan, int, tuple[int, ...]]] = {  # with how many iterates are asked for, and where they lie
    "pixel": (walk(Pixel()), 4, (0, 2, 5, 7)),
    "learned labels": (walk(Pixel(), labels="learned", momentum=0.5), 4, (0, 2, 5, 7)),
    "glad, in chunks": (walk(glad(2), steps=6, chunk=4), 5, (0, 1, 2, 3, 4)),
    "three stages": (walk(hpd(first=1, step=2, samples=4), steps=3, chunk=4), 4, (0, 2, 4, 6)),
    "ranked by loss": (walk(hpd(first=1, step=2, samples=4), steps=3, rank_steps="loss"), 4, (0, 2, 4, 6)),
    "more than steps": (walk(Pixel(), steps=2), 5, (0, 1)),
    "none": (walk(Pixel()), 0, ()),
    "no steps": (walk(Pixel(), steps=0), 4, ()),
}


@pytest.fixture
def run() -> DistillRun:
    return toy_run(channels=3, depth=5)


class Shelf:
    """Where the engine puts iterates."""

    def __init__(self) -> None:
        self.found = Found()
        self.scores: dict[int, float | None] = {}

    def put_aside(self, step: int, images: Tensor, labels: Tensor, score: float | None) -> None:
        self.found[step] = (images.clone(), labels.clone())
        self.scores[step] = score


@pytest.mark.parametrize("name", WALKS)
def test_iterates_are_those_of_evenly_spaced_steps(run: DistillRun, name: str) -> None:
    (plan, num, steps), shelf = WALKS[name], Shelf()
    total = plan.steps * plan.space.make().num_stages(run)
    assert iterate_steps(num, total) == steps
    put: list[int] = []

    def put_aside(step: int, images: Tensor, labels: Tensor, score: float | None) -> None:
        put.append(step)
        shelf.put_aside(step, images, labels, score)

    made = distill(plan, run, Stopwatch(run.device), iterates=steps, put_aside=put_aside)
    assert put == list(steps)  # each once, in order
    assert_same(shelf.found, by_hand(plan, run, steps))
    if plan.rank_steps == "last":  # else a stage may begin with an iterate of the one before
        walked = [images for images, _ in shelf.found.values()] + [made.images] * bool(plan.steps)
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
    plan, _, steps = WALKS[name]
    wanted, counting = by_hand(plan, run, steps), Dying(None)
    distill(plan, run, Stopwatch(run.device), counting)
    assert counting.asked >= 8
    for at in range(counting.asked):
        shelf, dying = Shelf(), Dying(at)
        asked: dict[str, Any] = {"iterates": steps, "put_aside": shelf.put_aside}
        with pytest.raises(Interrupted):
            distill(plan, run, Stopwatch(run.device), dying, **asked)
        distill(plan, run, Stopwatch(run.device), Kept(tmp_path / "checkpoint", dying.kept), **asked)
        assert_same(shelf.found, wanted)


# ---------------------------------------------------------------- iterates, beside a set

STEPS = (0, 2, 5, 7)  # of ten


@pytest.fixture(scope="module")
def identity() -> Identity:
    return identify(MNIST, None)


@pytest.fixture(scope="module")
def few() -> TrainingData:
    """Sixteen training images of every digit."""
    data = load_training(MNIST, None, 0.1, CPU)
    chosen = [start + number for start in data.starts[:-1] for number in range(16)]
    return replace(data, images=data.images[chosen], labels=data.labels[chosen], starts=tuple(range(0, 161, 16)))


Open = Callable[..., Workplace]


@pytest.fixture(scope="module")
def opened(identity: Identity, few: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Workplaces with stores of their own, or another one in the same store, that train on few images."""

    def make(seconds: float = 1e9, store: Store | None = None) -> Workplace:
        here = in_process.workplace(store or Store(tmp_path_factory.mktemp("store")), checkpoint_seconds=seconds)
        here.training.put(identity.train_hash, 0.1, CPU, few)
        return here

    return make


def plan_of(identity: Identity, **changes: Any) -> SetPlan:
    """DM in pixels: ten steps."""
    plan = SetPlan(
        dataset=MNIST, train_hash=identity.train_hash, ipc=1, seed=3, held_out=0.1, backbone=NETWORK,
        loss=PluginRef.resolve("losses", "dm", {"batch_real": 4}), space=PluginRef.resolve("spaces", "pixel", {}), steps=10,
        rates={"pixels": 10.0, "f": 0.5, "w": 0.05},
    )  # fmt: skip
    return replace_plan(plan, **changes)


def baseline_of(identity: Identity, name: str, **changes: Any) -> SetPlan:
    everything: dict[str, Any] = {"ipc": 0, "held_out": 0.0} if name == "full-data" else {}
    about = {"dataset": MNIST, "train_hash": identity.train_hash, "ipc": 1, "seed": 3, "held_out": 0.1} | everything
    return SetPlan(baseline=PluginRef.resolve("baselines", name, {}), **(about | changes))


def set_file(plan: SetPlan, iterates: tuple[int, ...] = ()) -> JobFile:
    return JobFile(kind="set", name=set_job(plan.key), suite="suite", plan=plan, iterates=iterates)


def judgement_file(plan: SetPlan, identity: Identity, network: PluginRef, iterate: int | None, last: int = 0) -> JobFile:
    judging = Judging(
        network=network, numbers=SMOKE.judging, dataset=MNIST, test_hash=identity.test_hash, draw=plan.seed, iterate=iterate
    )
    name = judgement_job(plan.key, judging.key, 0, last)
    return JobFile(kind="judgement", name=name, suite="suite", plan=plan, judging=judging, last=last)


def done(file: JobFile, here: Workplace, stop: Callable[[str, float], bool] | None = None) -> Store:
    """The store after the job; Interrupted where `stop` says so."""

    def report(phase: str, fraction: float) -> None:
        if stop and stop(phase, fraction):
            raise Interrupted

    assert do_job(file, here, report) == "done"
    assert not here.store.work(file.name).exists()
    return here.store


def contents(store: Store) -> dict[str, bytes]:
    """What is the same wherever it is computed."""
    return grid_runs.contents(store.root)


def iterates_of(store: Store, key: str) -> Found:
    return {step: store.read_iterate(key, step)[:2] for step in store.iterates(key)}


def repeats_of(spec: Spec, judging: Judging, images: Tensor, labels: Tensor) -> tuple[Repeat, ...]:
    """What judging these images once gives."""
    judged = Evaluator(judging, spec, Subject(images, labels, "0" * 64), open_test(MNIST, None, CPU))
    finished = evaluate_block(judged, 0, 0, [], lambda finished: None, lambda fraction: None)
    return tuple(one.repeat for one in finished)


@pytest.fixture(scope="module")
def whole(identity: Identity, opened: Open) -> Store:
    """A set with its iterates, of an uninterrupted job."""
    return done(set_file(plan_of(identity), STEPS), opened())


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are taken from now on."""
    steps, one_step = list[int](), Distillation.one_step

    def spy(loop: Distillation) -> None:
        steps.append(loop.step)
        one_step(loop)

    monkeypatch.setattr(Distillation, "one_step", spy)
    return steps


def test_iterates_are_kept_beside_a_set_that_they_do_not_change(
    identity: Identity, opened: Open, few: TrainingData, whole: Store
) -> None:
    plan = plan_of(identity)
    assert_same(iterates_of(whole, plan.key), by_hand(plan, open_run(plan, few, CPU, {}), STEPS))
    assert len({record.sha256 for record in whole.iterates(plan.key).values()}) == 4  # no iterate is another
    losses = read_losses(whole, whole.read_record(plan.key))
    assert losses
    assert len(losses.values.unique()) == plan.steps
    assert [record.loss for record in whole.iterates(plan.key).values()] == losses.values[list(STEPS)].tolist()
    assert {record.step_score for record in whole.iterates(plan.key).values()} == {None}  # it ranks nothing
    plain = contents(done(set_file(plan), opened()))
    assert {path for path in contents(whole) if "iterates" not in path} == plain.keys()
    assert {path: contents(whole)[path] for path in plain} == plain


@pytest.mark.slow
def test_an_iterate_is_judged_as_a_set_of_its_images_would_be(
    identity: Identity, opened: Open, few: TrainingData, whole: Store
) -> None:
    plan, here = plan_of(identity), opened(store=whole)
    iterates = by_hand(plan, open_run(plan, few, CPU, {}), STEPS)
    files = [judgement_file(plan, identity, network, step) for step in (None, *STEPS) for network in (NETWORK, OTHER)]
    for file in files:
        done(file, here)
    records = read_contents(whole).judgements
    assert {record.key for record in records} == {file.judging.key for file in files if file.judging}
    hashes: dict[int | None, str] = {step: record.sha256 for step, record in whole.iterates(plan.key).items()}
    hashes[None] = whole.read_record(plan.key).set_sha256
    assert {record.judging.iterate: record.set_sha256 for record in records} == hashes
    finished, _ = whole.read_set(plan.key)
    for record in records:
        step = record.judging.iterate
        given = (finished["images"], finished["labels"]) if step is None else iterates[step]
        assert record.repeats == repeats_of(few.spec, record.judging, *given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fraction", "seconds", "left"),  # with a checkpoint after every so many seconds; steps to go
    [(0.0, 0.0, 10), (0.15, 0.0, 9), (0.3, 0.0, 8), (0.35, 0.0, 7), (0.35, 1e9, 10), (1.0, 0.0, 1)],
)
def test_a_killed_job_ends_with_the_same_iterates(
    identity: Identity, opened: Open, whole: Store, stepped: list[int], fraction: float, seconds: float, left: int
) -> None:
    """At a step, with a checkpoint of the one before, or with none."""
    file, here = set_file(plan_of(identity), STEPS), opened(seconds)
    with pytest.raises(Interrupted):
        done(file, here, lambda phase, share: phase == "distill" and share >= fraction)
    assert (here.store.work(file.name) / "iterates").is_dir()
    stepped.clear()
    again = done(file, opened(seconds, here.store))
    assert stepped == list(range(10 - left, 10))
    assert grid_runs.contents(again.root, "sets") == grid_runs.contents(whole.root, "sets")


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "left"), [(0.25, [0, 1]), (0.75, [1])])
def test_a_killed_judgement_of_an_iterate_ends_with_the_same_repeats(
    monkeypatch: pytest.MonkeyPatch, identity: Identity, opened: Open, fraction: float, left: list[int]
) -> None:
    plan, repeats, once = plan_of(identity), list[int](), evaluator.evaluate_once
    file, stores = judgement_file(plan, identity, NETWORK, 5, last=1), []

    def spy(judged: Evaluator, repeat: int, *more: Any) -> Any:
        repeats.append(repeat)
        return once(judged, repeat, *more)

    for stop in (None, lambda phase, share: phase == "judge" and share >= fraction):
        store = done(set_file(plan, (5,)), opened())
        stores.append(store)
        if stop:
            with pytest.raises(Interrupted):
                done(file, opened(store=store), stop)
            monkeypatch.setattr(evaluator, "evaluate_once", spy)
        done(file, opened(store=store))
    assert repeats == left
    assert contents(stores[0]) == contents(stores[1])


def test_iterates_asked_for_later_are_added_by_distilling_again(
    identity: Identity, opened: Open, whole: Store, stepped: list[int]
) -> None:
    plan = plan_of(identity)
    store = done(set_file(plan), opened())
    before = grid_runs.times(store.root, "sets")
    done(set_file(plan, (2, 7)), opened(store=store))
    assert_same(iterates_of(store, plan.key), {step: iterates_of(whole, plan.key)[step] for step in (2, 7)})
    done(set_file(plan, STEPS), opened(store=store))
    assert stepped == [*range(10)] * 3
    assert grid_runs.contents(store.root, "sets") == grid_runs.contents(whole.root, "sets")
    after = grid_runs.times(store.root, "sets")
    assert {path: after[path] for path in before} == before  # the set is not written again
    assert do_job(set_file(plan, STEPS), opened(store=store), lambda phase, share: None) == "found"
    assert len(stepped) == 30


@pytest.mark.slow
def test_a_checkpoint_behind_an_iterate_that_is_asked_for_later_is_dropped(
    identity: Identity, opened: Open, whole: Store, stepped: list[int]
) -> None:
    plan, here = plan_of(identity), opened(0.0)
    with pytest.raises(Interrupted):
        done(set_file(plan, (7,)), here, lambda phase, share: share >= 0.6)
    stepped.clear()
    again = done(set_file(plan, STEPS), opened(0.0, here.store))
    assert stepped == list(range(10))
    assert grid_runs.contents(again.root, "sets") == grid_runs.contents(whole.root, "sets")


def test_iterates_of_other_bits_are_not_added(identity: Identity, few: TrainingData, opened: Open) -> None:
    """As another machine, or another version of torch, may distil them."""
    plan = plan_of(identity, steps=2)
    store = done(set_file(plan), opened())
    here = opened(store=store)
    here.training.put(identity.train_hash, 0.1, CPU, replace(few, images=255 - few.images))
    with pytest.raises(DataError, match="distilling it again gave other bits than those that are kept"):
        do_job(set_file(plan, (1,)), here, lambda phase, share: None)
    assert store.iterates(plan.key) == {}


BEST_OF_TEST = """
schema = 1
protocol = "quick-1-best-of-test"
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = ["pixel"]
backbone = { name = "convnet", width = 4 }
networks = [{ name = "convnet", width = 4 }]
baselines = ["random", "full-data"]
[distill]
steps = 10
"""


def test_what_is_not_distilled_has_no_iterates(identity: Identity, opened: Open, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(BEST_OF_TEST)
    cells = load(str(tmp_path / "suite.toml"), identify, None).cells
    asked = {cell.set.method: (cell.iterates, {judging.iterate for judging in cell.all_judgings()}) for cell in cells}
    assert asked == {
        "dm / pixel": ((0, 2, 4, 6, 8), {None, 0, 2, 4, 6, 8}),
        "random": ((), {None}),
        "full-data": ((), {None}),
    }
    for name in ("random", "full-data"):  # nor does a job that is asked for some make any
        plan = baseline_of(identity, name)
        store = done(set_file(plan, STEPS), opened())
        assert store.has_set(plan.key)
        assert store.iterates(plan.key) == {}


# ---------------------------------------------------------------- iterates by seconds


class Time:
    """Stands still but for steps, and for what a test adds."""

    def __init__(self) -> None:
        self.now, self.step = 0.0, 2.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made, one_step = Time(), Distillation.one_step

    def timed(loop: Distillation) -> None:
        one_step(loop)
        made.now += made.step

    monkeypatch.setattr(clock, "time", made)
    monkeypatch.setattr(Distillation, "one_step", timed)
    return made


SECONDS = (0.0, 5.0, 6.0, 6.5, 100.0)  # of steps of two seconds: before steps 0, 3, 3 and 4, and never


def test_iterates_by_seconds_are_those_of_the_first_step_by_which_they_passed(run: DistillRun, time: Time) -> None:
    plan, shelf = walk(Pixel()), Shelf()

    def put_aside(step: int, images: Tensor, labels: Tensor, score: float | None) -> None:
        shelf.put_aside(step, images, labels, score)
        time.now += 50  # off the clock

    made = distill(plan, run, Stopwatch(run.device), iterates=(7,), put_aside=put_aside, iterate_seconds=SECONDS)
    assert_same(shelf.found, by_hand(plan, run, (0, 3, 4, 7)))
    assert made.timeline == tuple((step, 2.0 * step) for step in range(10))


@pytest.mark.parametrize(("total", "every"), [(1, 1), (150, 1), (200, 2), (1000, 10)])
def test_a_timeline_has_about_a_hundred_points(run: DistillRun, total: int, every: int) -> None:
    loop = Distillation(walk(Pixel()), run, Stopwatch(run.device))
    loop.total_steps = total
    for loop.step in range(total):
        loop.passes(())
    assert [step for step, _ in loop.timeline] == list(range(0, total, every))


def test_ranking_counts_and_stages_follow_one_another(run: DistillRun, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, offer = walk(hpd(first=1, step=2, samples=4), steps=3, rank_steps="loss"), StageBest.offer

    def slow(best: StageBest, *more: Any) -> None:
        offer(best, *more)
        time.now += 1

    monkeypatch.setattr(StageBest, "offer", slow)
    watch = Stopwatch(run.device)
    made = distill(plan, run, watch)
    assert watch.seconds()["rank"] == len(made.stages) * (plan.steps + 1)
    last = plan.steps * plan.space.make().num_stages(run) - 1
    assert made.timeline[:5] == ((0, 0.0), (1, 3.0), (2, 6.0), (3, 10.0), (4, 13.0))  # a stage's last iterate is offered too
    assert made.timeline[-1][0] == last


def seconds_file(plan: SetPlan, seconds: tuple[float, ...], iterates: tuple[int, ...] = ()) -> JobFile:
    return replace_plan(set_file(plan, iterates), iterate_seconds=seconds)


def test_a_killed_job_keeps_the_iterates_of_the_time_that_counts(
    identity: Identity, opened: Open, whole: Store, time: Time
) -> None:
    """What passed after the last checkpoint is lost, and passes again at another pace."""
    plan, here = plan_of(identity), opened(0.0)
    file = seconds_file(plan, (2.0, 8.0, 9.0), (7,))
    with pytest.raises(Interrupted):  # behind step 5, with a checkpoint of step 4
        done(file, here, lambda phase, share: phase == "distill" and share >= 0.5)
    work = here.store.work(file.name) / "iterates"
    assert sorted(int(path.stem) for path in work.glob("*.safetensors")) == [1, 4]
    time.step = 3.0
    store = done(file, opened(0.0, here.store))
    passed = (0.0, 2.0, 4.0, 6.0, 8.0, 11.0, 14.0, 17.0, 20.0, 23.0)
    record = store.read_record(plan.key)
    assert record.measured.timeline == tuple(enumerate(passed))
    assert record.measured.seconds == {"distill": 26.0, "rank": 0.0}
    assert list(store.iterates(plan.key)) == [1, 4, 5, 7]
    assert store.read_iterate(plan.key, 5)[2] == whole.iterates(plan.key)[5].sha256
    assert store.lacking(plan, file.iterates, file.iterate_seconds) == []
    assert read_contents(store).faults == ()


def test_what_only_the_killed_process_had_passed_in_time_is_no_iterate(identity: Identity, opened: Open, time: Time) -> None:
    plan, here = plan_of(identity), opened(1e9)
    file, time.step = seconds_file(plan, (10.0,)), 5.0
    with pytest.raises(Interrupted):
        done(file, here, lambda phase, share: phase == "distill" and share >= 0.5)
    time.step = 1.0
    store = done(file, opened(1e9, here.store))
    assert list(store.iterates(plan.key)) == []  # the whole took ten seconds, the last of which ended it


def test_iterates_asked_for_later_by_seconds_are_those_of_the_kept_record(
    identity: Identity, opened: Open, whole: Store, time: Time, stepped: list[int]
) -> None:
    plan = plan_of(identity)
    store = done(set_file(plan), opened())
    before = grid_runs.times(store.root, "sets")
    time.step = 100.0
    done(seconds_file(plan, (4.5, 9.9, 13.5, 1000.0), (0,)), opened(store=store))
    assert list(store.iterates(plan.key)) == [0, 3, 5, 7]
    assert store.read_iterate(plan.key, 5)[2] == whole.iterates(plan.key)[5].sha256
    after = grid_runs.times(store.root, "sets")
    assert {path: after[path] for path in before} == before
    again = seconds_file(plan, (4.2,))
    assert do_job(again, opened(store=store), lambda phase, share: None) == "found"
    assert len(stepped) == 20


@pytest.mark.slow
def test_what_is_judged_after_some_seconds_is_that_iterate_or_the_finished_set(
    identity: Identity, opened: Open, whole: Store, time: Time
) -> None:
    plan = plan_of(identity)
    store = done(seconds_file(plan, (4.0,)), opened())
    for seconds, sha256 in ((4.0, whole.iterates(plan.key)[2].sha256), (100.0, whole.read_record(plan.key).set_sha256)):
        file = judgement_file(plan, identity, NETWORK, None)
        assert file.judging is not None
        judging = replace_plan(file.judging, iterate_seconds=seconds)
        name = judgement_job(plan.key, judging.key, 0, 0)
        done(replace_plan(file, name=name, judging=judging), opened(store=store))
        (record,) = (one for one in read_contents(store).judgements if one.key == judging.key)
        assert record.set_sha256 == sha256
    path = store.folder(plan.key) / "iterates" / "2.json"
    path.unlink()
    (fault,) = (fault for fault in read_contents(store).faults if fault.path.parent.parent.name == "judgements")
    assert "is of the iterate at step 2, which is not there." in fault.sentence


def test_a_record_without_a_timeline_cannot_say_which_iterate_it_was(identity: Identity, opened: Open) -> None:
    plan, store = plan_of(identity, steps=2), opened().store
    record = stores.set_record(plan)
    store.publish_set(plan, record, stores.set_contents(plan))
    with pytest.raises(DataError, match="was made without noting which step it took when: ask for its iterates by steps"):
        store.lacking(plan, (), (1.0,))
    assert store.lacking(plan, (1,), ()) == [1]
    still = plan_of(identity, steps=0)  # nothing to note
    store.publish_set(still, stores.set_record(still), stores.set_contents(still))
    assert store.lacking(still, (), (1.0,)) == []


def test_a_suite_s_iterates_are_kept_judged_and_shown(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "run", in_process.run)
    monkeypatch.chdir(tmp_path)
    text = BEST_OF_TEST.replace("quick-1-best-of-test", "smoke-1").replace('["random", "full-data"]', "[]")
    Path("suite.toml").write_text(text.replace("[distill]", "iterates = { steps = [3], seconds = [5, 100] }\n[distill]"))
    words = ["suite.toml", "--store", "store", "--device", "cpu", "--json"]
    assert main(["run", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["total"], len(told["computed"])) == (5, 5)  # the set; itself, and three iterates
    assert main(["plan", *words]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert (cell["set"], cell["judged"]) == ("done", "4 of 4")
    page = Path("store/leaderboard/leaderboard.md").read_text().partition("## On the way")[2]
    assert re.findall(r"^\| dm / pixel \| (\S.*?) +\| +(\S+) \|", page, re.MULTILINE) == [
        ("step 3", "3"), ("5 s", "3"), ("100 s", "finished"), ("finished", "finished"),
    ]  # fmt: skip


# ---------------------------------------------------------------- other constants for generated images


@dataclass(frozen=True)
class Toys(GeneratorConfig):
    """The toy generator as a plugin."""

    def depth(self, run: Run) -> int:
        return 5

    def load(self, run: Run) -> Generator:
        return ToyGenerator(run.spec, 5)


TOYS = Given.of("generators", Toys(), "toys")
SPEC = replace(toy_spec(channels=3), mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
DATA = replace(toy_data(SPEC), spec=SPEC)
ODD: dict[str, Any] = {"synthetic_mean": (0.6,), "synthetic_std": (2.0,)}


def constants_of(id: str) -> dict[str, Any]:
    """What sets of a suite under that protocol are made with."""
    making = protocols.load(id).set
    return {"synthetic_mean": making.synthetic_mean, "synthetic_std": making.synthetic_std}


def run_of(id: str, space: Space, generator: PluginRef | None) -> DistillRun:
    return open_run(walk(space, generator=generator, **constants_of(id)), DATA, CPU, {})


@pytest.mark.parametrize(
    ("id", "mean", "std"),
    [
        ("glad-1", SPEC.mean, SPEC.std),
        ("glad-1-svhn-mean", (0.4377, 0.4438, 0.4728), SPEC.std),
        ("glad-1-unnormalised", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ],
)
def test_only_what_a_generator_makes_has_other_constants(id: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    own = run_of(id, Pixel(), None)
    assert own.spec == SPEC
    run = run_of(id, glad(2), TOYS)
    assert (run.spec.mean, run.spec.std) == (mean, std)
    assert replace(run.spec, mean=SPEC.mean, std=SPEC.std) == SPEC  # nothing else
    for one in (own, run):  # real images are what they are
        assert torch.equal(one.data.images, DATA.images)
        assert torch.equal(one.data.validation_images, DATA.validation_images)
        assert torch.equal(one.real(1, 12, one.rng("x")), SPEC.normalise(DATA.images[12:24]))
    base, space = run_of("glad-1", glad(2), TOYS), glad(2)
    normal, other = (space.decode(space.init(one), torch.arange(6), one) for one in (base, run))
    pixels = SPEC.denormalise(normal)
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
    wanted = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(other, wanted)
    assert torch.allclose(other, normal) == (id == "glad-1")


def generated(identity: Identity, **constants: Any) -> Planned:
    """GLaD in a generator of digits with random weights, which are a resource."""
    generator = PluginRef.resolve("generators", "cvae-random", {"width": 8})
    space = PluginRef.resolve("spaces", "glad", {"layer": 2})
    return with_needs([Cell(plan_of(identity, space=space, generator=generator, steps=3, **constants), (), 0, "habit")])


@pytest.fixture(scope="module")
def made_odd(identity: Identity, opened: Open) -> tuple[SetPlan, Store]:
    """A generated set of other constants."""
    here, planned = opened(), generated(identity, **ODD)
    for work in Lister(planned, here.store, read_contents(here.store), "suite").todo().work:
        done(work.file, here)
    return planned.cells[0].set, here.store


def test_a_set_says_the_constants_it_was_made_with(identity: Identity, opened: Open, made_odd: tuple[SetPlan, Store]) -> None:
    plan, odd = made_odd
    tensors, meta = odd.read_set(plan.key)
    assert (meta["mean"], meta["std"]) == ([0.6], [2.0])
    pixels = tensors["images"] * 2 + 0.6
    assert -0.2 < float(pixels.min()) < float(pixels.max()) < 1.2  # features have moved; a sigmoid comes last
    spec = MNIST.make().spec()
    read = read_set(odd.folder(plan.key) / "set.safetensors", spec)
    torch.testing.assert_close(spec.denormalise(read.images), pixels)
    assert not torch.allclose(read.images, tensors["images"], atol=0.1)
    # what is judged is the set as it was made
    file = judgement_file(plan, identity, NETWORK, None)
    (record,) = read_contents(done(file, opened(store=odd))).judgements
    assert record.repeats == repeats_of(spec, record.judging, tensors["images"], tensors["labels"])


def test_real_images_say_their_own_constants(identity: Identity, opened: Open) -> None:
    spec = MNIST.make().spec()
    for plan in (plan_of(identity, steps=1, **ODD), baseline_of(identity, "random", **ODD)):
        _, meta = done(set_file(plan), opened()).read_set(plan.key)
        assert (meta["mean"], meta["std"]) == (list(spec.mean), list(spec.std))


def test_the_verb_feeds_a_set_as_the_habit_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, made_odd: tuple[SetPlan, Store]
) -> None:
    (plan, odd), load, once, fed = made_odd, protocols.load, evaluator.evaluate_once, list[Tensor]()
    path, made = odd.folder(plan.key) / "set.safetensors", odd.read_set(plan.key)[0]["images"]
    habit = replace_plan(SMOKE, id="habit", ranked=False, set=replace_plan(SMOKE.set, **ODD))

    def spy(judged: Evaluator, *more: Any) -> Any:
        fed.append(judged.subject.images)
        return once(judged, *more)

    monkeypatch.setattr(evaluator, "evaluate_once", spy)
    monkeypatch.setattr(runner, "run", in_process.run)
    monkeypatch.setattr(protocols, "load", lambda id: habit if id == "habit" else load(id))

    def judged(id: str, store: Path, seed: int) -> str:
        words = ["--protocol", id, "--archs", "convnet(width=4,depth=1)", "--device", "cpu", "--seed", str(seed), "--json"]
        assert main(["evaluate", str(path), *words, "--store", str(store)]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["protocol"] == id
        return told["key"]

    imported = {judged("habit", tmp_path / "store", 0), judged("smoke-1", tmp_path / "store", 0)}
    assert len(imported | {plan.key}) == 3
    assert judged("habit", odd.root, 1) == plan.key  # where it lies
    torch.testing.assert_close(fed[0], made)
    torch.testing.assert_close(fed[1], read_set(path, MNIST.make().spec()).images)
    assert not torch.allclose(fed[0], fed[1], atol=0.1)
    assert torch.equal(fed[2], made)


# ---------------------------------------------------------------- a protocol for three channels

THREE = "constants of 3 channels cannot normalise 'mnist-5k', whose images have 1."
TOLD = f"protocol 'glad-1-svhn-mean' on 'mnist-5k': {THREE}"


def test_three_constants_do_not_fit_one_channel(identity: Identity, few: TrainingData) -> None:
    constants = constants_of("glad-1-svhn-mean")
    with pytest.raises(ConfigError, match=f"^{re.escape(THREE)}$"):
        open_run(generated(identity, **constants).cells[0].set, few, CPU, {})
    assert open_run(plan_of(identity, **constants), few, CPU, {}).spec == few.spec  # no generator, no matter


def test_the_verb_refuses_it_before_any_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "run", None)  # nothing is trained
    torch.save({"images": torch.rand(10, 1, 28, 28), "labels": torch.arange(10)}, tmp_path / "a.pt")
    words = ["--data", "mnist-5k", "--images", "pixels", "--protocol", "glad-1-svhn-mean", "--device", "cpu"]
    assert main(["evaluate", str(tmp_path / "a.pt"), *words, "--store", str(tmp_path / "store")]) == 2
    assert capsys.readouterr().err == f"ddbench: {TOLD}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]  # no store either


SUITE = """
schema = 1
protocol = "glad-1-svhn-mean"
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = [{ name = "glad", layer = 2 }, { name = "glad", layer = 3 }]
generator = "cvae-random"
backbone = { name = "convnet", width = 4 }
networks = [{ name = "convnet", width = 4 }]
baselines = []
"""


@pytest.mark.parametrize("verb", ["plan", "run", "prepare"])
def test_a_suite_says_so_before_any_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.toml").write_text(SUITE)
    assert main([verb, "suite.toml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(TOLD)
    assert [path.name for path in tmp_path.iterdir()] == ["suite.toml"]
