"""The evaluators: the plain one, the stacked one and processes side by side give the same; what judging costs."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench import protocols
from ddbench.api import Arch, Spec
from ddbench.cli import main
from ddbench.compute.run import be_deterministic, build_network
from ddbench.compute.train import train
from ddbench.data.sealed import TestData, open_test
from ddbench.data.subsets import identify
from ddbench.errors import BenchError, DataError
from ddbench.evaluate import cost, evaluator, parallel
from ddbench.evaluate.evaluator import Entry, Exam, evaluate, is_stacked, unpack
from ddbench.evaluate.parallel import evaluate_side_by_side
from ddbench.evaluate.sets import Whitening
from ddbench.grid import cell
from ddbench.grid.cell import Desk, run_cell
from ddbench.plan import Plan, PluginRef
from ddbench.protocols import Protocol
from ddbench.results.store import Store
from ddbench.seeds import stream
from ddbench.testing import TOY_ARCH, Given, toy_data, toy_spec
from ddbench_plugins.architectures.convnet import convnet
from ddbench_plugins.datasets import mnist_5k

CPU = torch.device("cpu")
SPEC = toy_spec(channels=3)
DATA = toy_data(SPEC, per_class=4)
PROTOCOL = replace(
    protocols.load("smoke-1"), epochs=20, warmup_epochs=3, repeats=3, lr=0.2, lr_factor=1.0, batch=6, ema=0.0, test_batch=5
)
TOY = Given.of("architectures", TOY_ARCH)
NORMED = Given.of("architectures", convnet(width=8, depth=2, norm="batch"), "normed")
MNIST = PluginRef.resolve("datasets", "mnist-5k", {})


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[None]:
    """The table of digits is unpacked once, and memory is not handed back to the system before each network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist_5k, "_read", cache(mnist_5k._read))
        for module in (cell, evaluator):
            patch.setattr(module, "reset_peak_memory", lambda device: None)
        yield


def exam_of(*networks: PluginRef, **changes: Any) -> Exam:
    """Real toy images as the set, the held-out ones as the test split."""
    networks = networks or (TOY, NORMED)
    protocol = replace(PROTOCOL, **changes)
    plan = Plan(Given.of("datasets", None), "0" * 64, protocol, networks, networks[0], ipc=4, seed=0)
    pixels = (SPEC.denormalise(DATA.validation_images).clamp(0, 1) * 255).round().to(torch.uint8)
    labels = F.one_hot(DATA.labels, SPEC.num_classes).float()
    return Exam(plan, SPEC, DATA.images, labels, TestData(pixels, DATA.validation_labels))


def judged(exam: Exam, entries: list[Entry] | None = None, way: Any = "auto") -> list[Entry]:
    return evaluate(exam, entries or [], lambda entries: None, lambda fraction: None, way)


def places(entries: list[Entry]) -> list[tuple[str, int]]:
    return [(entry["network"], entry["repeat"]) for entry in entries]


# ---------------------------------------------------------------- one by one, or all at once


def test_stacked_repeats_are_the_serial_ones() -> None:
    exam = exam_of()
    serial, stacked = judged(exam, way="serial"), judged(exam, way="stacked")
    assert places(serial) == places(stacked) == [(name, repeat) for name in ("toy", "normed") for repeat in range(3)]
    assert {entry["cost"]["way"] for entry in serial} == {"serial"}
    assert {entry["cost"]["way"] for entry in stacked} == {"stacked"}
    for one, other in zip(serial, stacked, strict=True):
        assert one["accuracy"] > 0.9
        assert other["accuracy"] == pytest.approx(one["accuracy"], abs=1 / 12)  # one of twelve test images may flip
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
        assert other["num_test"] == one["num_test"] == 12
    assert len({entry["train_loss"] for entry in serial}) == 6  # no two networks are one


def test_entries_are_what_the_network_says_of_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, own = [], evaluator.predict

    def spy(*args: Any) -> Tensor:
        predictions.append(own(*args))
        return predictions[-1]

    monkeypatch.setattr(evaluator, "predict", spy)
    exam = exam_of(TOY, epochs=5)
    for entry, predicted in zip(judged(exam), predictions, strict=True):
        correct = predicted == DATA.validation_labels
        assert torch.equal(unpack(entry["correct"], 12), correct)
        assert entry["accuracy"] == int(correct.sum()) / 12
        assert entry["accuracy"] > 0


def test_auto_follows_what_the_architecture_says() -> None:
    exam = exam_of(epochs=1, warmup_epochs=1)
    refs = {kinds: Given.of("architectures", replace(TOY_ARCH, stacked=kinds), "toy") for kinds in ((), ("cpu",), ("cuda",))}
    assert [is_stacked(exam, ref, "auto") for ref in refs.values()] == [False, True, False]
    assert all(is_stacked(exam, ref, "stacked") for ref in refs.values())
    assert not any(is_stacked(exam, ref, "serial") for ref in refs.values())
    full = replace(exam, plan=replace(exam.plan, baseline="full-data"))
    assert not any(is_stacked(full, ref, way) for ref in refs.values() for way in ("auto", "stacked"))
    for kinds, way in (((), "serial"), (("cpu",), "stacked")):
        entries = judged(replace(exam, plan=replace(exam.plan, networks=(refs[kinds],))))
        assert [entry["cost"]["way"] for entry in entries] == [way] * 3


def with_dropout(spec: Spec) -> nn.Module:
    network = TOY_ARCH.build(spec)
    network.pool = nn.Dropout(0.2)
    return network


def test_what_cannot_be_stacked_is_trained_one_by_one() -> None:
    ref = Given.of("architectures", Arch(with_dropout, lr=0.05, min_size=4, stacked=("cpu",)), "dropping")
    assert not is_stacked(exam_of(ref), ref, "auto")
    assert not is_stacked(exam_of(ref), ref, "stacked")
    assert [entry["cost"]["way"] for entry in judged(exam_of(ref, epochs=1, warmup_epochs=1))] == ["serial"] * 3


def test_one_repeat_is_no_stack() -> None:
    entries = judged(exam_of(TOY, repeats=1, epochs=1, warmup_epochs=1), way="stacked")
    assert [entry["cost"]["way"] for entry in entries] == ["serial"]


# ---------------------------------------------------------------- going on


class Interrupted(Exception):
    pass


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The networks and repeats that are trained from now on."""
    trained, once, stacked = [], evaluator.evaluate_once, evaluator.evaluate_stacked

    def note_once(exam: Exam, ref: PluginRef, repeat: int, on_epoch: Any) -> Entry:
        trained.append((ref.label, repeat))
        return once(exam, ref, repeat, on_epoch)

    def note_stacked(exam: Exam, ref: PluginRef, repeats: range, on_epoch: Any) -> list[Entry]:
        trained.extend((ref.label, repeat) for repeat in repeats)
        return stacked(exam, ref, repeats, on_epoch)

    monkeypatch.setattr(evaluator, "evaluate_once", note_once)
    monkeypatch.setattr(evaluator, "evaluate_stacked", note_stacked)
    return trained


@pytest.mark.parametrize("way", ["serial", "stacked"])
@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.6, 0.95])
def test_an_interruption_costs_what_was_unfinished_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: Any, fraction: float
) -> None:
    exam, path = exam_of(epochs=2, warmup_epochs=1, batch=12), tmp_path / "entries.json"
    whole = judged(exam, way=way)
    path.write_text("[]")

    def tick(now: float) -> None:
        if now >= fraction:
            raise Interrupted

    with pytest.raises(Interrupted):
        evaluate(exam, [], lambda entries: path.write_text(json.dumps(entries)), tick, way)
    kept = json.loads(path.read_text())
    a_piece = 1 if way == "serial" else 3  # an interrupted stack begins anew
    assert len(kept) == int(fraction * 6) // a_piece * a_piece
    trained = watched(monkeypatch)
    again = judged(exam, kept, way)
    assert trained == places(whole)[len(kept) :]
    assert again[: len(kept)] == kept
    assert cost.untimed(again) == cost.untimed(whole)


def test_what_is_finished_is_kept_at_once_and_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    exam, lengths = exam_of(epochs=1, warmup_epochs=1), []
    whole = evaluate(exam, [], lambda entries: lengths.append(len(entries)), lambda fraction: None, "serial")
    evaluate(exam, [], lambda entries: lengths.append(len(entries)), lambda fraction: None, "stacked")
    assert lengths == [1, 2, 3, 4, 5, 6, 3, 6]
    trained = watched(monkeypatch)
    assert judged(exam, whole) == whole
    assert trained == []


def test_a_stack_holds_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    exam = exam_of(TOY, epochs=1, warmup_epochs=1)
    serial = judged(exam, way="serial")
    trained = watched(monkeypatch)
    entries = judged(exam, serial[:1], "stacked")
    assert trained == places(serial)[1:]
    assert places(entries) == places(serial)
    assert entries[0] == serial[0]


@pytest.mark.parametrize("way", ["serial", "stacked"])
def test_progress_goes_from_nothing_to_one(way: Any) -> None:
    ticks: list[float] = []
    evaluate(exam_of(epochs=2, warmup_epochs=1), [], lambda entries: None, ticks.append, way)
    wanted = [step / 12 for step in range(1, 13)] if way == "serial" else [step / 4 for step in range(1, 5)]
    assert ticks == pytest.approx(wanted)


# ---------------------------------------------------------------- the sealed test split


class Sealed:
    """A test split that notes when it is looked at."""

    def __init__(self, data: TestData, log: list[str]) -> None:
        self.data, self.log = data, log

    @property
    def images(self) -> Tensor:
        self.log.append("images")
        return self.data.images

    @property
    def labels(self) -> Tensor:
        self.log.append("labels")
        return self.data.labels


@pytest.mark.parametrize("way", ["serial", "stacked"])
def test_the_test_split_is_read_once_a_network_and_after_its_last_epoch(monkeypatch: pytest.MonkeyPatch, way: Any) -> None:
    log: list[str] = []
    exam, own = exam_of(epochs=3, warmup_epochs=1), evaluator.predict
    exam = replace(exam, test=Sealed(exam.test, log))  # type: ignore[arg-type]

    def spy(network: nn.Module, images: Tensor, *more: Any) -> Tensor:
        assert not network.training
        assert torch.equal(images, exam.test.data.images)  # type: ignore[attr-defined]
        log.append("predict")
        return own(network, images, *more)

    monkeypatch.setattr(evaluator, "predict", spy)
    evaluate(exam, [], lambda entries: log.append("keep"), lambda fraction: log.append("epoch"), way)
    reading = ["images", "predict", "labels"]
    one = ["epoch"] * 3 + reading + ["keep"]
    together = ["epoch"] * 3 + reading * 3 + ["keep"]
    assert log == (one * 6 if way == "serial" else together * 2)


# ---------------------------------------------------------------- side by side


def mnist_exam(protocol: Protocol, *networks: PluginRef, **more: Any) -> Exam:
    """Ten real digits of every class, which train; the real test split."""
    spec: Spec = MNIST.make().spec()
    plan = Plan(MNIST, "0" * 64, protocol, networks, networks[0], ipc=10, seed=0)
    images, labels = digits(10)
    return Exam(plan, spec, images, F.one_hot(labels, 10).float(), open_test(MNIST, None, CPU), **more)


def digits(per_class: int) -> tuple[Tensor, Tensor]:
    """[10 n,1,28,28] normalised real training images, and their classes [10 n]."""
    dataset = MNIST.make()
    data = dataset.load("train", None)
    chosen = torch.cat([(data.labels == label).nonzero()[:per_class, 0] for label in range(10)])
    return dataset.spec().normalise(data.images[chosen]), data.labels[chosen]


def taught(exam: Exam) -> tuple[Exam, dict[str, Tensor]]:
    """The exam with a teacher that has learned the digits, and the teacher's state."""
    ref = tiny(width=16)
    plan = replace(exam.plan, teacher=ref, protocol=replace(exam.plan.protocol, teacher=protocols.load("sre2l-1").teacher))
    network = build_network(ref, exam.spec, CPU, "teacher")
    recipe = replace(exam.recipe(ref), epochs=10, warmup_epochs=1, lr=0.01)
    train(network, *digits(40), recipe, ("teacher",), None)
    network.eval().requires_grad_(False)
    return replace(exam, plan=plan, teacher=network), network.state_dict()


def tiny(**settings: Any) -> PluginRef:
    return PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1} | settings)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Those of the pools that are made."""
    made: list[Any] = []

    class Pool(ProcessPoolExecutor):
        def submit(self, *args: Any, **more: Any) -> Any:
            future = super().submit(*args, **more)
            made.extend(process for process in self._processes.values() if process not in made)
            return future

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", Pool)
    return made


@pytest.mark.slow
def test_processes_side_by_side_give_the_numbers_of_one(processes: list[Any]) -> None:
    """To the bit; a teacher, a learned rate and a whitening travel with the set."""
    protocol = replace(protocols.load("smoke-1"), learned_rate=True, repeats=1, epochs=10, batch=20, ema=0.0)
    negative = Whitening(torch.full((784,), 0.5), -3 * torch.eye(784))  # the test images alone are turned to negatives
    exam, state = taught(mnist_exam(protocol, tiny(), tiny(norm="batch"), learned_rate=0.02, whitening=negative))
    be_deterministic(1)
    ticks: list[float] = []
    plain = judged(exam)
    side_by_side = evaluate_side_by_side(exam, None, state, 2, ticks.append)
    assert cost.untimed(side_by_side) == cost.untimed(plain)
    assert places(plain) == [(ref.label, 0) for ref in exam.plan.networks]
    assert plain[0]["train_loss"] != plain[1]["train_loss"]
    assert ticks[-1] == 1
    assert ticks == sorted(ticks)
    assert len(processes) == 2
    # Each of them is felt, so each of them has arrived.
    for other in (replace(exam, teacher=None), replace(exam, learned_rate=None)):
        entry = evaluator.evaluate_once(other, exam.plan.networks[0], 0)
        assert entry["train_loss"] != pytest.approx(plain[0]["train_loss"], rel=0.01)
    entry = evaluator.evaluate_once(replace(exam, whitening=None), exam.plan.networks[0], 0)
    assert entry["train_loss"] == plain[0]["train_loss"]
    assert int((unpack(entry["correct"], 1000) != unpack(plain[0]["correct"], 1000)).sum()) > 100


class Endless(nn.Module):
    """Never answers; has a weight, as every network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        while True:
            time.sleep(60)


def endless(spec: Spec) -> nn.Module:
    return Endless()


@pytest.mark.slow
def test_a_divergence_in_a_process_arrives_and_ends_the_others(processes: list[Any]) -> None:
    """One network diverges; the other would never be through."""
    protocol = replace(protocols.load("smoke-1"), lr_factor=1e30, epochs=12)
    exam = mnist_exam(protocol, Given.of("architectures", Arch(endless, lr=0.01, min_size=1)), tiny())
    ticks: list[float] = []
    with pytest.raises(DataError, match=r"^training diverged: the loss of the last epoch is nan at rate 1e\+27"):
        evaluate_side_by_side(exam, None, None, 2, ticks.append)
    assert ticks[-1] < 1
    assert len(processes) == 2
    for process in processes:
        while process.exitcode is None:  # the pool's own thread waits for them too, and one of the two hears of the end later
            time.sleep(0.01)
        assert process.exitcode in (0, -signal.SIGTERM)
    assert -signal.SIGTERM in {process.exitcode for process in processes}
    assert not set(processes) & set(multiprocessing.active_children())


def test_a_failure_does_not_wait_for_what_still_runs() -> None:
    running: list[Future[Entry]] = [Future() for _ in range(3)]
    running[0].set_result({})
    running[2].set_exception(DataError("training diverged."))
    looks: list[int] = []
    with pytest.raises(DataError, match="training diverged"):
        parallel._watch(running, lambda: looks.append(1))
    assert looks
    assert not running[1].done()


class Dying:
    """Ends the process that it travels to."""

    def __reduce__(self) -> Any:
        return signal.raise_signal, (signal.SIGKILL,)


@pytest.mark.slow
def test_a_process_that_dies_is_a_sentence() -> None:
    exam = mnist_exam(protocols.load("smoke-1"), tiny())
    plan = replace(exam.plan, dataset=Given.of("datasets", Dying()))
    exam = replace(exam, plan=plan, images=exam.images[:10], labels=exam.labels[:10])
    with pytest.raises(
        BenchError, match=r"^a process of the evaluation died, perhaps for lack of memory\. Try fewer with --workers"
    ):
        evaluate_side_by_side(exam, None, None, 1, lambda fraction: None)


# ---------------------------------------------------------------- what it costs


def test_costs_by_network_are_sums_and_ratios() -> None:
    def entry(network: str, train: float, test: float, peak: int, way: str) -> Entry:
        told = {"seconds_train": train, "seconds_test": test, "peak_memory_bytes": peak, "way": way}
        return {"network": network, "accuracy": 0.5, "cost": told}

    entries = [entry("a", 2.0, 0.5, 100, "stacked"), entry("b", 8.0, 1.0, 50, "serial"), entry("a", 3.0, 0.25, 70, "serial")]
    found = cost.by_network(entries, {"a": 1000, "b": 400}, {"a": 10**6, "b": 10**9}, peak=1e10, streams=2)
    assert list(found) == ["a", "b"]
    assert found["a"] == {
        "seconds_train": 5.0,
        "seconds_test": 0.75,
        "images_per_second": 400.0,  # 2 repeats of 1,000 images in 5 seconds
        "flops_per_image": 10**6,
        "peak_share": 400.0 * 10**6 / 1e10,
        "peak_memory_bytes": 100,
        "way": "stacked/serial",
        "processes": 2,
    }
    assert (found["b"]["images_per_second"], found["b"]["peak_share"]) == (50.0, 5.0)
    assert [cost.seconds(one) for one in entries] == [2.5, 9.0, 3.25]
    assert cost.untimed(entries) == [{"network": name, "accuracy": 0.5} for name in "aba"]
    assert "cost" in entries[0]


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("shape", "side"), [((3, 16, 16), 16), ((1, 28, 28), 32)])  # one channel: a border makes 28 px 32
def test_operations_of_a_step_by_hand(norm: str, shape: tuple[int, int, int], side: int) -> None:
    """A product and a sum for every weight and position, forward; the same again for the gradient of the weights, and again
    for that of the input, which the first layer has no use for."""
    ref = PluginRef.resolve("architectures", "convnet", {"width": 5, "depth": 2, "norm": norm})
    first = 2 * 5 * shape[0] * 3 * 3 * side * side
    second = 2 * 5 * 5 * 3 * 3 * (side // 2) ** 2
    linear = 2 * 5 * (side // 4) ** 2 * 7
    assert cost.flops_of_step(ref, replace(toy_spec(7, shape[0]), shape=shape)) == 2 * first + 3 * second + 3 * linear


def test_the_peak_is_the_best_rate_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the test turns: the tries take 4, 2 and then 3 seconds each."""
    marks = itertools.accumulate([0, *itertools.chain.from_iterable((took, 100) for took in (4, 2, *[3] * cost.PEAK_TRIES))])
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: float(next(marks))))
    assert cost.peak_flops(CPU) == 2 * cost.PEAK_SIDE["cpu"] ** 3 / 2


def test_costs_of_a_cell_stand_beside_its_numbers(tmp_path: Path) -> None:
    identity, network = identify(MNIST, None), tiny()
    protocol = replace(protocols.load("smoke-1"), repeats=2)
    plan = Plan(MNIST, identity.hash, protocol, (network,), network, ipc=1, seed=0, baseline="random")
    store, fractions = Store(tmp_path), list[float]()
    run_cell(plan, "suite", identity, Desk(store, CPU, None), lambda phase, fraction: fractions.append(fraction))
    record = store.record(plan.key)
    assert not any("cost" in entry for entry in record["evaluations"])
    assert places(record["evaluations"]) == [(network.label, 0), (network.label, 1)]
    own = record["measured"]["networks"][network.label]
    assert math.isfinite(own["peak_share"])
    assert own["peak_share"] > 0
    assert own["flops_per_image"] == cost.flops_of_step(network, MNIST.make().spec())
    assert own["images_per_second"] == pytest.approx(2 * 10 * 2 / own["seconds_train"])  # repeats, images, epochs
    assert (own["way"], own["processes"]) == ("serial", 1)
    assert record["measured"]["seconds"]["evaluate"] == pytest.approx(own["seconds_train"] + own["seconds_test"])
    assert record["measured"]["peak_memory_bytes"] >= own["peak_memory_bytes"] > 0
    assert fractions[-1] == 1


# ---------------------------------------------------------------- how it is computed


def test_channels_last_changes_the_layout_and_no_accuracy() -> None:
    exam = exam_of(NORMED)
    last = replace(exam, plan=replace(exam.plan, protocol=replace(exam.plan.protocol, channels_last=True)))
    for one, wanted in ((exam, False), (last, True)):
        convs = [layer for layer in one.network(NORMED, 0).modules() if isinstance(layer, nn.Conv2d)]
        for tensor in (convs[1].weight, one.training_images(), one.seen(one.test.images)):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == wanted
            assert tensor.is_contiguous() != wanted
    for way in ("serial", "stacked"):
        for plain, other in zip(judged(exam, way=way), judged(last, way=way), strict=True):
            assert other["accuracy"] == pytest.approx(plain["accuracy"], abs=1 / 12)
            assert other["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-3)


@pytest.fixture
def tf32() -> Iterator[None]:
    yield
    be_deterministic(1)


def test_tf32_is_what_is_asked_for(tf32: None) -> None:
    for wanted in (True, False):
        be_deterministic(1, wanted)
        assert torch.backends.cuda.matmul.allow_tf32 is wanted
        assert torch.backends.cudnn.allow_tf32 is wanted
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("wanted", [True, False])
def test_the_protocol_decides_on_tf32(
    tf32: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, wanted: bool
) -> None:
    protocol = replace(protocols.load("smoke-1"), tf32=wanted)
    monkeypatch.setattr(protocols, "load", lambda id: protocol)
    be_deterministic(1, not wanted)
    torch.save({"images": torch.rand(10, 1, 28, 28, generator=stream("set")), "labels": torch.arange(10)}, tmp_path / "set.pt")
    words = ["--data", "mnist-5k", "--images", "pixels", "--archs", "convnet(width=4)", "--device", "cpu", "--json"]
    assert main(["evaluate", str(tmp_path / "set.pt"), *words]) == 0
    assert torch.backends.cuda.matmul.allow_tf32 is wanted
    (row,) = json.loads(capsys.readouterr().out)["networks"]
    assert row["peak_share"] > 0
