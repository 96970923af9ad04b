"""The evaluator: one repeat after the other or several at once, in whole blocks or in parts; what judging costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace as replace_plan
from torch import Tensor, nn

from ddbench import protocols
from ddbench.api import Arch, Spec
from ddbench.compute import precision
from ddbench.compute.run import be_deterministic
from ddbench.data.host import HostImages
from ddbench.data.sealed import TestData
from ddbench.errors import DataError, UntrainableError
from ddbench.evaluate import cost, evaluator
from ddbench.evaluate.evaluator import Evaluator, Finished, Subject, evaluate_block, evaluate_once, unpack, way_of
from ddbench.evaluate.sets import Whitening
from ddbench.plan import Judging
from ddbench.refs import PluginRef
from ddbench.schema import JudgementMeasured, Repeat
from ddbench.testing import TOY_ARCH, Given, toy_data, toy_spec
from ddbench_plugins.architectures.convnet import convnet

CPU = torch.device("cpu")
SPEC = toy_spec(channels=3)
DATA = toy_data(SPEC, per_class=4)
NUMBERS = replace_plan(
    protocols.load("smoke-1").judging,
    epochs=20, warmup_epochs=3, lr=0.2, lr_factor=1.0, batch=6, ema=0.0, test_batch=5,
)  # fmt: skip
SHORT = {"epochs": 2, "warmup_epochs": 1, "batch": 12}
TOY = Given.of("architectures", TOY_ARCH)
NORMED = Given.of("architectures", convnet(width=8, depth=2, norm="batch"), "normed")


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[None]:
    """Memory is not handed back to the system before each block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "reset_peak_memory", lambda device: None)
        be_deterministic(1)
        yield


def evaluator_of(network: PluginRef = TOY, draw: int = 0, **changes: Any) -> Evaluator:
    """Real toy images as the set, the held-out ones as the test split."""
    numbers, dataset = replace_plan(NUMBERS, **changes), Given.of("datasets", None)
    judging = Judging(network=network, numbers=numbers, dataset=dataset, test_hash="0" * 64, draw=draw)
    subject = Subject(DATA.seen(DATA.images), F.one_hot(DATA.labels, SPEC.num_classes).float(), "1" * 64)
    return Evaluator(judging, SPEC, subject, TestData(DATA.validation_images, DATA.validation_labels))


def with_subject(judged: Evaluator, **changes: Any) -> Evaluator:
    return replace(judged, subject=replace(judged.subject, **changes))


def judge(judged: Evaluator, first: int = 0, last: int = 2, kept: Any = (), way: Any = "auto") -> list[Finished]:
    return evaluate_block(judged, first, last, kept, lambda finished: None, lambda fraction: None, way)


def read(finished: list[Finished]) -> list[Repeat]:
    return [one.repeat for one in finished]


def numbers_of(finished: list[Finished]) -> list[int]:
    return [one.repeat.repeat for one in finished]


def ways(finished: list[Finished]) -> list[str]:
    return [one.way for one in finished]


# ---------------------------------------------------------------- one by one, or all at once


@pytest.mark.parametrize("ref", [TOY, NORMED], ids=lambda ref: ref.label)
def test_stacked_repeats_are_the_serial_ones(ref: PluginRef) -> None:
    judged = evaluator_of(ref)
    serial, stacked = judge(judged, way="serial"), judge(judged, way="stacked")
    assert numbers_of(serial) == numbers_of(stacked) == [0, 1, 2]
    assert ways(serial) == ["serial"] * 3
    assert ways(stacked) == ["stacked"] * 3
    for one, other in zip(read(serial), read(stacked), strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-3)
        assert other.num_test == one.num_test == 12
    assert len({one.train_loss for one in read(serial)}) == 3  # no two networks are one


def test_a_repeat_is_what_the_network_says_of_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, own = [], evaluator.predict

    def spy(*args: Any) -> Tensor:
        predictions.append(own(*args))
        return predictions[-1]

    monkeypatch.setattr(evaluator, "predict", spy)
    finished = read(judge(evaluator_of(epochs=5)))
    assert len(finished) == len(predictions) == 3
    for repeat, predicted in zip(finished, predictions, strict=True):
        correct = predicted == DATA.validation_labels
        assert torch.equal(unpack(repeat.correct, 12), correct)
        assert repeat.accuracy == int(correct.sum()) / 12


def test_auto_follows_what_the_architecture_says() -> None:
    refs = {kinds: Given.of("architectures", replace(TOY_ARCH, stacked=kinds)) for kinds in ((), ("cpu",), ("cuda",))}
    judged = [evaluator_of(ref, **SHORT) for ref in refs.values()]
    assert [way_of(one, "auto", 3) for one in judged] == ["serial", "stacked", "serial"]
    assert {way_of(one, "stacked", 3) for one in judged} == {"stacked"}
    assert {way_of(one, way, 3) for one in judged for way in ("serial", "captured")} == {"serial"}
    full = [with_subject(one, everything=True) for one in judged]
    assert {way_of(one, way, 3) for one in full for way in ("auto", "stacked")} == {"serial"}
    assert [ways(judge(one)) for one in judged[:2]] == [["serial"] * 3, ["stacked"] * 3]


def with_dropout(spec: Spec) -> nn.Module:
    network = TOY_ARCH.build(spec)
    network.pool = nn.Dropout(0.2)
    return network


def test_what_cannot_be_stacked_is_trained_one_by_one() -> None:
    judged = evaluator_of(Given.of("architectures", Arch(with_dropout, lr=0.05, min_size=4, stacked=("cpu",))), **SHORT)
    assert {way_of(judged, way, 3) for way in ("auto", "stacked")} == {"serial"}
    assert ways(judge(judged, way="stacked")) == ["serial"] * 3


def test_one_repeat_is_no_stack() -> None:
    assert ways(judge(evaluator_of(**SHORT), 4, 4, way="stacked")) == ["serial"]


# ---------------------------------------------------------------- blocks


def test_two_blocks_are_one_to_the_bit() -> None:
    judged = evaluator_of(**SHORT)
    whole = judge(judged, 0, 3, way="serial")
    parts = judge(judged, 0, 1, way="serial") + judge(judged, 2, 3, way="serial")
    assert numbers_of(whole) == [0, 1, 2, 3]
    assert read(parts) == read(whole)
    assert len({one.train_loss for one in read(whole)}) == 4


def test_a_stack_is_that_of_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks, own = [], evaluator.train_stacked

    def spy(networks: Any, images: Any, labels: Any, recipe: Any, names: Any, *more: Any) -> list[float]:
        stacks.append([name[-1] for name in names])
        return own(networks, images, labels, recipe, names, *more)

    monkeypatch.setattr(evaluator, "train_stacked", spy)
    judged = evaluator_of(**SHORT)
    assert numbers_of(judge(judged, 0, 3, way="stacked")) == [0, 1, 2, 3]
    assert numbers_of(judge(judged, 2, 3, way="stacked")) == [2, 3]
    assert stacks == [[0, 1, 2, 3], [2, 3]]


def test_streams_are_named_by_draw_network_and_repeat_and_nothing_else() -> None:
    judged = evaluator_of(**SHORT)
    assert judged.name(3) == (*judged.judging.stream, 3)
    same = replace_plan(TOY, label="renamed")
    assert evaluator_of(same, **SHORT).name(3) == judged.name(3)
    other_rate = replace_plan(TOY, what=TOY.what | {"lr": 0.5})
    assert evaluator_of(other_rate, **SHORT).name(3) == judged.name(3)
    names = {judged.name(0), judged.name(1), evaluator_of(draw=1).name(0), evaluator_of(NORMED).name(0)}
    assert len(names) == 4
    weights = [next(one.network(repeat).parameters()) for one, repeat in ((judged, 0), (judged, 1), (evaluator_of(draw=1), 0))]
    assert torch.equal(weights[0], next(with_subject(judged, images=DATA.images[:3]).network(0).parameters()))
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_rate_that_a_set_has_learned_counts_where_the_protocol_asks_for_it() -> None:
    judged = with_subject(evaluator_of(learned_rate=True), learned_rate=0.0125)
    assert judged.recipe.lr == 0.0125
    assert with_subject(evaluator_of(learned_rate=False), learned_rate=0.0125).recipe.lr == 0.2
    assert evaluator_of(learned_rate=True).recipe.lr == 0.2
    assert evaluator_of(lr=0.0, lr_factor=3.0).recipe.lr == pytest.approx(3 * TOY_ARCH.lr)
    with pytest.raises(UntrainableError, match="the set has learned the rate -1"):
        judge(with_subject(judged, learned_rate=-1.0))


def test_a_divergence_is_a_sentence() -> None:
    with pytest.raises(DataError, match=r"^training diverged: the loss of the last epoch is nan at rate 1e\+30"):
        judge(evaluator_of(lr=1e30), way="serial")


# ---------------------------------------------------------------- going on


class Interrupted(Exception):
    pass


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The repeats that are trained from now on."""
    trained, once, stacked = list[int](), evaluator.evaluate_once, evaluator.evaluate_stacked

    def note_once(judged: Evaluator, repeat: int, *more: Any) -> Finished:
        trained.append(repeat)
        return once(judged, repeat, *more)

    def note_stacked(judged: Evaluator, repeats: range, *more: Any) -> list[Finished]:
        trained.extend(repeats)
        return stacked(judged, repeats, *more)

    monkeypatch.setattr(evaluator, "evaluate_once", note_once)
    monkeypatch.setattr(evaluator, "evaluate_stacked", note_stacked)
    return trained


@pytest.mark.parametrize("way", ["serial", "stacked"])
@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.6, 0.95])
def test_an_interruption_costs_what_was_unfinished_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: Any, fraction: float
) -> None:
    """What is kept goes through a file, as a worker keeps it."""
    judged, path = evaluator_of(**SHORT), tmp_path / "finished.json"
    whole = judge(judged, 1, 6, way=way)
    path.write_bytes(b"[]")

    def tick(now: float) -> None:
        if now >= fraction:
            raise Interrupted

    with pytest.raises(Interrupted):
        evaluate_block(judged, 1, 6, [], lambda finished: path.write_bytes(msgspec.json.encode(finished)) and None, tick, way)
    kept = msgspec.json.decode(path.read_bytes(), type=list[Finished])
    assert len(kept) == (int(fraction * 6) if way == "serial" else 0)  # an interrupted stack begins anew
    trained = watched(monkeypatch)
    again = judge(judged, 1, 6, kept, way)
    assert trained == numbers_of(whole)[len(kept) :]
    assert again[: len(kept)] == kept
    assert read(again) == read(whole)


def test_what_is_finished_is_kept_at_once_and_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, lengths = evaluator_of(**SHORT), list[int]()
    whole = evaluate_block(judged, 0, 2, [], lambda finished: lengths.append(len(finished)), lambda fraction: None, "serial")
    evaluate_block(judged, 0, 2, [], lambda finished: lengths.append(len(finished)), lambda fraction: None, "stacked")
    assert lengths == [1, 2, 3, 3]
    trained = watched(monkeypatch)
    assert judge(judged, 0, 2, whole) == whole
    assert trained == []


def test_a_stack_holds_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = evaluator_of(**SHORT)
    serial = judge(judged, 3, 5, way="serial")
    trained = watched(monkeypatch)
    finished = judge(judged, 3, 5, serial[:1], "stacked")
    assert trained == [4, 5]
    assert numbers_of(finished) == [3, 4, 5]
    assert finished[0] == serial[0]


@pytest.mark.parametrize("way", ["serial", "stacked"])
def test_progress_goes_from_nothing_to_one(way: Any) -> None:
    ticks: list[float] = []
    evaluate_block(evaluator_of(**SHORT), 2, 4, [], lambda finished: None, ticks.append, way)
    assert ticks == pytest.approx([step / 6 for step in range(1, 7)] if way == "serial" else [0.5, 1.0])


# ---------------------------------------------------------------- the sealed test split


class Sealed:
    """A test split that notes when it is looked at."""

    def __init__(self, data: TestData, log: list[str]) -> None:
        self.data, self.log = data, log

    @property
    def images(self) -> Tensor | HostImages:
        self.log.append("images")
        return self.data.images

    @property
    def labels(self) -> Tensor:
        self.log.append("labels")
        return self.data.labels


@pytest.mark.parametrize("way", ["serial", "stacked"])
def test_the_test_split_is_read_once_a_network_and_after_its_last_epoch(monkeypatch: pytest.MonkeyPatch, way: Any) -> None:
    log: list[str] = []
    judged, own = evaluator_of(epochs=3, warmup_epochs=1), evaluator.predict
    data = judged.test
    judged = replace(judged, test=Sealed(data, log))

    def spy(network: nn.Module, images: Tensor, *more: Any) -> Tensor:
        assert not network.training
        assert torch.equal(images, data.images)
        log.append("predict")
        return own(network, images, *more)

    monkeypatch.setattr(evaluator, "predict", spy)
    evaluate_block(judged, 0, 1, [], lambda finished: log.append("keep"), lambda fraction: log.append("epoch"), way)
    reading = ["images", "predict", "labels"]
    one = ["epoch"] * 3 + reading + ["keep"]
    together = ["epoch"] * 3 + reading * 2 + ["keep"]
    assert log == (one * 2 if way == "serial" else together)


# ---------------------------------------------------------------- what it costs


def done(repeat: int, train: float, test: float, peak: int, way: str) -> Finished:
    return Finished(Repeat(repeat=repeat, accuracy=0.5, num_test=2, correct="gA==", train_loss=1.0), train, test, peak, way)


def test_costs_of_a_block_are_sums_and_ratios() -> None:
    judged = evaluator_of(TOY, **SHORT)  # twelve images, two epochs
    found = cost.measured(judged, [done(0, 2.0, 0.5, 100, "serial"), done(1, 4.0, 0.25, 70, "serial")], 1e6, processes=2)
    flops = cost.flops_of_step(TOY, SPEC)
    assert (found.seconds_train, found.seconds_test, found.peak_memory_bytes) == (6.0, 0.75, 100)
    assert found.images_per_second == 8.0  # 2 repeats of 12 images over 2 epochs in 6 seconds
    assert found.flops_per_image == flops > 0
    assert found.peak_share == pytest.approx(8.0 * flops / 1e6)
    assert (found.way, found.processes) == ("serial", 2)
    mixed = cost.measured(judged, [done(0, 0.0, 0.5, 100, "stacked"), done(1, 0.0, 0.25, 70, "serial")], 1e6)
    assert (mixed.images_per_second, mixed.peak_share, mixed.way) == (0.0, 0.0, "stacked/serial")


def test_costs_of_several_blocks_together() -> None:
    told = {"flops_per_image": 10, "commit": None, "finished": "now", "processes": 1}
    one = JudgementMeasured(
        seconds_train=2.0, seconds_test=1.0, images_per_second=100.0, peak_share=0.5, peak_memory_bytes=7, way="serial", **told
    )
    other = JudgementMeasured(
        seconds_train=6.0, seconds_test=2.0, images_per_second=50.0, peak_share=0.25, peak_memory_bytes=9, way="stacked", **told
    )
    assert cost.together([(one, 1.0), (other, 1.0)]) == {
        "seconds_train": 8.0,
        "seconds_test": 3.0,
        "images_per_second": 62.5,  # 200 and 300 images in 8 seconds
        "flops_per_image": 10,
        "peak_share": (2 * 0.5 + 6 * 0.25) / 8,
        "peak_memory_bytes": 9,
        "way": "serial/stacked",
        "processes": 1,
    }
    half = cost.together([(one, 1.0), (other, 0.5)])
    assert (half["seconds_train"], half["seconds_test"], half["images_per_second"]) == (5.0, 2.0, 70.0)


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


# ---------------------------------------------------------------- how it is computed


def test_channels_last_changes_the_layout_and_no_number() -> None:
    plain, last = evaluator_of(NORMED), evaluator_of(NORMED, channels_last=True)
    for one, wanted in ((plain, False), (last, True)):
        convs = [layer for layer in one.network(0).modules() if isinstance(layer, nn.Conv2d)]
        for tensor in (convs[1].weight, one.training_images(), one.seen(one.test.images)):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == wanted
            assert tensor.is_contiguous() != wanted
    for way in ("serial", "stacked"):
        for one_repeat, other in zip(read(judge(plain, way=way)), read(judge(last, way=way)), strict=True):
            assert other.train_loss == pytest.approx(one_repeat.train_loss, rel=1e-3)


def test_a_whitening_is_felt_by_the_test_images_alone() -> None:
    size = DATA.images[0].numel()
    negative = Whitening(torch.full((size,), 0.5), -3 * torch.eye(size))
    plain = evaluator_of(**SHORT)
    whitened = with_subject(plain, whitening=negative)
    assert not torch.allclose(whitened.seen(plain.test.images), plain.seen(plain.test.images))
    assert evaluate_once(whitened, 0).repeat.train_loss == evaluate_once(plain, 0).repeat.train_loss


@pytest.fixture
def tf32() -> Iterator[None]:
    yield
    be_deterministic(1)


def test_tf32_is_what_is_asked_for(tf32: None) -> None:
    for wanted in (True, False):
        be_deterministic(1, wanted)
        assert bool({"tf32", "high"} & set(precision.settings().values())) is wanted  # high: as old releases say it
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
