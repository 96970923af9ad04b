"""Recorded steps, on a pretended device: they are the plain ones, on whatever device, or are not taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from stacked_runs import ADAMW, FULL, NETWORKS, RECIPE, fresh, images_for, names_of
from torch import Tensor, nn

from ddbench.api import Objective, Recipe
from ddbench.compute import batches, capture, ways
from ddbench.compute.capture import Recorder, record
from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import Distillation, distill
from ddbench.compute.run import be_deterministic
from ddbench.compute.stacked import Stack, train_stacked
from ddbench.compute.streams import train_on_streams
from ddbench.compute.train import Steps, cross_entropy, train
from ddbench.data.sealed import TestData
from ddbench.evaluate.evaluator import Evaluator, Subject, evaluate_block
from ddbench.evaluate.teacher import follow
from ddbench.ops.augment import SiameseAugment
from ddbench.ops.layers import Dropout, lend
from ddbench.plan import Judging
from ddbench.protocols import Numbers
from ddbench.testing import TOY_ARCH, Given, prepared, toy_plan, toy_run, toy_spec
from ddbench.testing.pretended import Pretended, moved
from ddbench.testing.toys import TOY_RECIPE
from ddbench_plugins.losses.datadam import AttentionMatching
from ddbench_plugins.losses.dc import GradientMatching, dsa
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.losses.mtt import Tesla, TrajectoryMatching
from ddbench_plugins.spaces.pixel import Pixel

pytestmark = pytest.mark.slow
AUGMENT = SiameseAugment(FULL)
CASES = {"convnet-bn": RECIPE, "resnet18": RECIPE, "vit": RECIPE, "toy": ADAMW, "convnet": replace(RECIPE, batch=7)}


def states(networks: list[nn.Module]) -> list[dict[str, Tensor]]:
    return [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in networks]


def assert_equal(ones: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> None:
    for one, other in zip(ones, others, strict=True):
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name


# ---------------------------------------------------------------- a step of its own


def test_a_recorded_step_is_the_step() -> None:
    with Pretended(index=1, num_devices=2) as fake:
        torch.cuda.set_device(0)  # which is not where the step computes
        weight = torch.zeros(3, device=fake.device)

        def step(add: Tensor) -> tuple[Tensor]:
            weight.add_(add)
            return (weight.sum(),)

        recorded = record(step, (torch.ones(3, device=fake.device),), lambda: {"weight": weight}, (), fake.device)
        assert recorded is not None
        assert weight.tolist() == [0.0] * 3  # as before
        assert float(*recorded(torch.full((3,), 2.0, device=fake.device))) == 6.0
        assert float(*recorded(torch.full((3,), 0.5, device=fake.device))) == 7.5
        assert weight.tolist() == [2.5] * 3
        ones = torch.ones(3, device=fake.device)
        with fake.counting() as counts:
            recorded(ones)
        assert (counts.launches, counts.waits, counts.copies) == (2, [], [])


def test_a_step_that_a_graph_cannot_see_is_not_recorded() -> None:
    """A number on the host is frozen into the graph."""
    with Pretended() as fake:
        weight, calls = torch.zeros(3, device=fake.device), [0]

        def step(add: Tensor) -> tuple[Tensor]:
            calls[0] += 1
            weight.add_(add * calls[0])
            return (weight.sum(),)

        assert record(step, (torch.ones(3, device=fake.device),), lambda: {"weight": weight}, (), fake.device) is None
        assert weight.tolist() == [0.0] * 3


def test_an_empty_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one is that was captured on another device than the one that computes."""
    with Pretended() as fake:
        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: None)
        weight = torch.zeros(3, device=fake.device)

        def step(add: Tensor) -> tuple[Tensor]:
            weight.add_(add)
            return (weight.sum(),)

        assert record(step, (torch.ones(3, device=fake.device),), lambda: {"weight": weight}, (), fake.device) is None


# ---------------------------------------------------------------- stacks


def unhurried(names: Iterable[str]) -> list[Any]:
    """The networks that take seconds are for the long tests."""
    costly = ("resnet18", "resnet18-bn", "vit")
    return [pytest.param(name, marks=pytest.mark.long if name in costly else []) for name in names]


@pytest.mark.parametrize("name", unhurried(CASES))
def test_a_captured_stack_is_the_plain_one_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that is not the current one; batches of two sizes, dropout, buffers, both optimisers."""
    found = []
    for captured in (True, False):
        with Pretended(index=1, num_devices=2) as fake:
            torch.cuda.set_device(0)
            networks = [network.to(fake.device) for network in fresh(name, 2)]
            images, targets = (tensor.to(fake.device) for tensor in images_for(name))
            if not captured:
                monkeypatch.setattr("ddbench.compute.stacked.record", lambda *given, **named: None)
            last = train_stacked(networks, images, targets, CASES[name], names_of(2), AUGMENT)
        found.append((last, states(networks)))
    assert found[0][0] == found[1][0]
    assert_equal(found[0][1], found[1][1])


def test_a_stack_whose_graph_is_refused_trains_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_alike", lambda one, other: torch.zeros((), dtype=torch.bool, device=one.device))
    made: list[Any] = []
    own = Stack.step

    def spy(stack: Stack, *batch: Tensor) -> Tensor:
        losses = own(stack, *batch)
        made.append(set(stack.graphs.values()))
        return losses

    monkeypatch.setattr(Stack, "step", spy)
    before = fresh("toy", 2)
    with Pretended() as fake:
        networks = [network.to(fake.device) for network in fresh("toy", 2)]
        images, targets = (tensor.to(fake.device) for tensor in images_for("toy"))
        train_stacked(networks, images, targets, RECIPE, names_of(2), AUGMENT)
    assert made[-1] == {None}
    assert not any(torch.equal(a.weight, b.weight) for a, b in zip(heads(networks), heads(before), strict=True))


def heads(networks: list[nn.Module]) -> list[nn.Linear]:
    return [network.classifier for network in networks]  # type: ignore[misc]


# ---------------------------------------------------------------- the plain loop


def trained(
    name: str, recipe: Recipe, captured: bool, objective: Objective = cross_entropy, **more: Any
) -> tuple[float, dict[str, Tensor], list[int]]:
    """The last loss, the network's tensors, and what every epoch launched."""
    launches = list[int]()
    with Pretended(index=1, num_devices=2) as fake:
        torch.cuda.set_device(0)
        (network,), (images, targets) = fresh(name, 1), images_for(name)
        network, images, targets = network.to(fake.device), images.to(fake.device), targets.to(fake.device)

        def on_epoch(epoch: int) -> None:
            launches.append(fake.counts.launches)

        with fake.counting():
            last = train(network, images, targets, recipe, ("net",), AUGMENT, objective, on_epoch, captured=captured, **more)
    (state,) = states([network])
    return last, state, [after - before for before, after in zip([0, *launches], launches, strict=False)]


@pytest.mark.parametrize("name", unhurried([*CASES, "alexnet", "vgg11", "resnet18-bn"]))
def test_a_captured_training_is_the_plain_one_bit_for_bit(name: str) -> None:
    recipe = replace(CASES.get(name, RECIPE), epochs=4)
    plain, captured = trained(name, recipe, False), trained(name, recipe, True)
    assert captured[0] == plain[0]
    assert_equal([captured[1]], [plain[1]])
    assert captured[2][-1] < plain[2][-1] / 2  # once its graphs are there


@pytest.mark.parametrize("ahead", [0, 1, 2, 100])
def test_batches_made_ahead_change_nothing(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    recipe = replace(RECIPE, epochs=5)
    plain = trained("toy", recipe, False)
    monkeypatch.setattr(batches, "PREPARED_BYTES", ahead * 7 * 3 * 8 * 8 * 8)
    captured = trained("toy", recipe, True)
    assert captured[0] == plain[0]
    assert_equal([captured[1]], [plain[1]])


def test_bytes_are_seen_as_in_the_plain_loop() -> None:
    spec, found = toy_spec(3, 3, 8), []
    pixels = torch.randint(256, (7, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for captured in (True, False):
        with Pretended() as fake:
            network = fresh("toy", 1, torch.float32)[0].to(fake.device)
            targets = torch.arange(7, device=fake.device) % 3
            train(network, pixels.to(fake.device), targets, RECIPE, ("net",), AUGMENT, view=spec.normalise, captured=captured)
        found += states([network])
    assert_equal(found[:1], found[1:])


def noisy(network: nn.Module, images: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
    return cross_entropy(network, images + torch.rand((), generator=rng), targets, rng)


def test_an_objective_that_draws_is_not_captured() -> None:
    """Each step has a stream of its own, of which a graph knows nothing."""
    plain, captured = (trained("toy", RECIPE, way, noisy) for way in (False, True))
    assert captured[2] == plain[2]
    assert_equal([captured[1]], [plain[1]])


def test_a_network_that_draws_from_the_global_generator_is_not_captured() -> None:
    with Pretended() as fake:
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2)).to(fake.device)
        assert not Steps(network, RECIPE, ("net",), cross_entropy, fake.device, captured=True).captured
        assert Steps(network[2], RECIPE, ("net",), cross_entropy, fake.device, captured=True).captured
    assert not Steps(network[2], RECIPE, ("net",), cross_entropy, torch.device("cpu"), captured=True).captured


def test_a_teacher_s_labels_are_captured_too() -> None:
    found = []
    for captured in (True, False):
        with Pretended() as fake:
            network, teacher = (one.to(fake.device) for one in fresh("convnet", 2))
            images, targets = (tensor.to(fake.device) for tensor in images_for("convnet"))
            objective = follow(teacher.eval().requires_grad_(False), 4.0)
            steps = Steps(network, RECIPE, ("net",), objective, fake.device, captured)
            assert steps.captured is captured
            train(network, images, targets, RECIPE, ("net",), AUGMENT, objective, captured=captured)
        found += states([network])
    assert_equal(found[:1], found[1:])


# ---------------------------------------------------------------- side by side


@pytest.mark.parametrize("name", unhurried(["convnet-bn", "vit", "toy"]))
@pytest.mark.parametrize("ahead", [1, 100])
def test_networks_side_by_side_are_each_as_it_is_alone(monkeypatch: pytest.MonkeyPatch, name: str, ahead: int) -> None:
    recipe, found = replace(CASES[name], epochs=3), []
    monkeypatch.setattr(batches, "PREPARED_BYTES", ahead * 2 * 7 * 3 * NETWORKS[name][1] ** 2 * 8)
    for together in (True, False):
        with Pretended(index=1, num_devices=2) as fake:
            torch.cuda.set_device(0)
            networks = [network.to(fake.device) for network in fresh(name, 2)]
            images, targets = (tensor.to(fake.device) for tensor in images_for(name))
            told = list[int]()
            if together:
                last = train_on_streams(networks, images, targets, recipe, names_of(2), AUGMENT, on_epoch=told.append)
                assert told == [0, 1, 2]
            else:
                pairs = zip(networks, names_of(2), strict=True)
                last = [train(network, images, targets, recipe, own, AUGMENT) for network, own in pairs]
        assert not any(network.training for network in networks)
        found.append((last, states(networks)))
    assert found[0][0] == found[1][0]
    assert_equal(found[0][1], found[1][1])


# ---------------------------------------------------------------- which way


def test_auto_takes_what_was_measured_fastest_on_such_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"Pretended": {"convnet": "captured", "vit": "stacked", "resnet18": "serial", "vgg11": "nonsense"}, "Other": {}}
    monkeypatch.setattr(ways, "_table", lambda: table)
    with Pretended() as fake:
        found = {name: ways.fastest(name, fake.device) for name in ("convnet", "vit", "resnet18", "vgg11", "alexnet")}
        assert ways.is_captured("convnet", fake.device)
        assert not ways.is_captured("vit", fake.device)
        assert not ways.is_captured(None, fake.device)
    assert found == {"convnet": "captured", "vit": "stacked", "resnet18": "serial", "vgg11": None, "alexnet": None}
    assert ways.fastest("convnet", torch.device("cpu")) is None


def test_the_shipped_table_can_be_read() -> None:
    for device, networks in ways._table().items():
        assert device
        assert set(networks.values()) <= set(ways.WAYS)


@pytest.mark.parametrize("way", ["serial", "captured", "streams", "stacked", "auto"])
def test_a_block_is_judged_by_the_way_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, way: Any) -> None:
    """On a device; the captured repeats are the plain ones to the bit."""
    monkeypatch.setattr(ways, "_table", lambda: {"Pretended": {"toy": "captured"}})
    numbers = Numbers(**(msgspec.structs.asdict(TOY_RECIPE) | {"epochs": 3, "warmup_epochs": 1}))
    spec, found = toy_spec(3, 3, 8), {}
    images, labels = images_for("toy", dtype=torch.float32)
    for asked in ("serial", way):
        with Pretended() as fake:
            network, data = Given.of("architectures", TOY_ARCH), Given.of("datasets", None)
            judging = Judging(network=network, numbers=numbers, dataset=data, test_hash="0" * 64)
            pixels = torch.randint(256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
            test = TestData(pixels.to(fake.device), (torch.arange(6) % 3).to(fake.device))
            subject = Subject(images.to(fake.device), labels.to(fake.device), "0" * 64)
            judged = Evaluator(judging, spec, subject, test)
            with fake.counting() as counts:
                made = evaluate_block(judged, 0, 1, [], lambda done: None, lambda share: None, asked)
            if asked == "serial":  # the last epoch's loss, the accuracy and the bitmap of two repeats, and no step
                assert len(counts.waits) == 6
                assert len(counts.blocking) <= 2  # what the data set is normalised by, once
        found[asked] = made
    assert {one.way for one in found[way]} == {"captured" if way == "auto" else way}
    if way != "stacked":
        assert [one.repeat for one in found[way]] == [one.repeat for one in found["serial"]]


# ---------------------------------------------------------------- losses


REAL = {"batch_real": 4}
EXPERTS: dict[str, Any] = {"num_experts": 2, "syn_steps": 3, "max_start_epoch": 2, "expert_epochs": 1}
REPLAYED: dict[str, Any] = {
    "dm": DistributionMatching(**REAL), "dm, class by class": DistributionMatching(**REAL, batched=False),
    "dc": GradientMatching(**REAL), "dc, inner loop": GradientMatching(**REAL, outer_loop=2, inner_loop=1), "dsa": dsa(**REAL),
    "datadam": AttentionMatching(**REAL), "mtt": TrajectoryMatching(**EXPERTS), "tesla": Tesla(**EXPERTS),
    "mtt, mini-batches": TrajectoryMatching(**EXPERTS, batch_syn=4),
    "mtt, no views": TrajectoryMatching(**EXPERTS, augment="none"),
}  # fmt: skip


def distilled(loss: Any, is_on: bool, **changes: Any) -> tuple[dict[str, Tensor], list[int]]:
    """The tensors after four steps, and what each launched."""
    launches, ready = list[int](), prepared(loss, toy_run())
    with Pretended(index=1, num_devices=2) as fake:
        torch.cuda.set_device(0)
        run = dataclasses.replace(fake.run(ready), recorder=Recorder(is_on))
        assert run.replays is is_on
        loop = Distillation(toy_plan(loss, Pixel(), steps=5, **changes), run, Stopwatch(fake.device))
        loop.begin()
        for _ in range(4):
            with fake.counting() as counts:
                loop.one_step()
            launches.append(counts.launches)
        assert (counts.waits, counts.blocking) == ([], [])
    return {name: tensor.detach().clone() for name, tensor in (loop.state.params | loop.memory).items()}, launches


@pytest.mark.parametrize("name", REPLAYED)
def test_a_replayed_step_of_a_loss_is_the_plain_one(name: str) -> None:
    (plain, before), (replayed, after) = distilled(REPLAYED[name], False), distilled(REPLAYED[name], True)
    assert plain.keys() == replayed.keys()
    for key, tensor in plain.items():
        torch.testing.assert_close(replayed[key], tensor, rtol=1e-5, atol=1e-6)
    assert after[-1] < before[-1]


@pytest.mark.parametrize("loss", [GradientMatching(4), TrajectoryMatching(**EXPERTS), Tesla(**EXPERTS)])
def test_learned_labels_are_replayed_too(loss: Any) -> None:
    (plain, _), (replayed, _) = (distilled(loss, is_on, labels="learned") for is_on in (False, True))
    for key, tensor in plain.items():
        torch.testing.assert_close(replayed[key], tensor, rtol=1e-5, atol=1e-6)
    assert "labels" in replayed


@pytest.mark.parametrize("loss", [GradientMatching(4), TrajectoryMatching(**EXPERTS)])
def test_the_last_iterate_is_ranked_without_gradients_of_labels(loss: Any) -> None:
    """Its graph is not the one of the steps, whose shapes are the same."""
    with Pretended() as fake:
        run = dataclasses.replace(fake.run(prepared(loss, toy_run())), recorder=Recorder(True))
        made = distill(toy_plan(loss, Pixel(), labels="learned", rank_steps="loss"), run, Stopwatch(fake.device))
    assert made.images.isfinite().all()


def test_a_step_that_needs_too_much_memory_as_a_graph_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = list[bool]()
    with Pretended() as fake:
        weight = torch.zeros(3, device=fake.device)

        def step(add: Tensor) -> tuple[Tensor]:
            weight.add_(add)
            if fake.graph is not None:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return (weight.sum(),)

        inputs = (torch.ones(3, device=fake.device),)
        assert record(step, inputs, lambda: {"weight": weight}, (), fake.device, allowed.append) is None
        assert (weight.tolist(), allowed) == ([0.0] * 3, [True, False])


def test_a_network_that_draws_is_not_replayed() -> None:
    with Pretended() as fake:
        run = dataclasses.replace(fake.run(toy_run()), recorder=Recorder(True))
        network = nn.Sequential(Dropout(0.5)).to(fake.device)
        lend(network, torch.Generator("cuda").manual_seed(0))
        images = torch.ones(64, device=fake.device)
        seen = [run.replayed("x", lambda net, images: (net(images),), network, images)[0] for _ in "ab"]
        assert not torch.equal(*seen)
        assert not run.recorder._known


def test_other_shapes_and_names_are_other_graphs() -> None:
    with Pretended() as fake:
        recorder = Recorder(True)

        def forward(network: nn.Module, images: Tensor) -> tuple[Tensor]:
            return (network(images).detach(),)

        for size in (4, 5, 4):
            network, images = nn.Linear(3, 2).to(fake.device), torch.randn(size, 3, device=fake.device)
            wanted = network(images).detach()
            (found,) = recorder.call("f", forward, network, [images], fake.device)
            assert torch.equal(found, wanted)  # with the weights of this network
        recorder.call("g", forward, network, [images], fake.device)
        assert len(recorder._known) == 3


# ---------------------------------------------------------------- on a card

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CARD = torch.device("cuda", 0)


def on_card(name: str, num: int) -> tuple[list[nn.Module], Tensor, Tensor]:
    be_deterministic(1)
    images, targets = images_for(name)
    return [network.to(CARD) for network in fresh(name, num)], images.to(CARD), targets.to(CARD)


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize("name", [*CASES, "alexnet", "vgg11", "resnet18-bn"])
def test_captured_and_side_by_side_are_plain_on_a_card(name: str) -> None:
    recipe, found = replace(CASES.get(name, RECIPE), epochs=5), []
    for way in ("plain", "captured", "streams"):
        networks, images, targets = on_card(name, 2)
        if way == "streams":
            last = train_on_streams(networks, images, targets, recipe, names_of(2), AUGMENT)
        else:
            pairs = zip(networks, names_of(2), strict=True)
            last = [train(one, images, targets, recipe, own, AUGMENT, captured=way == "captured") for one, own in pairs]
        found.append((last, states(networks)))
    for last, tensors in found[1:]:
        assert last == pytest.approx(found[0][0], rel=1e-7)
        for one, other in zip(tensors, found[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize("name", ["convnet", "vit", "toy"])
def test_steps_are_really_recorded_on_a_card(name: str) -> None:
    """And not refused, which would be right, slow and unseen."""
    (network,), images, targets = on_card(name, 1)
    steps = Steps(network.train(), CASES[name], ("net",), cross_entropy, CARD, captured=True)
    steps.begin(0)
    for number in range(3):
        steps.step(images, targets, 0, number)
    assert None not in steps.graphs.values()


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize("name", REPLAYED)
def test_a_replayed_step_is_the_plain_one_on_a_card(name: str) -> None:
    be_deterministic(1)
    ready, found = prepared(REPLAYED[name], toy_run()), []
    for is_on in (False, True):
        run = dataclasses.replace(moved(ready, CARD), recorder=Recorder(is_on))
        loop = Distillation(toy_plan(REPLAYED[name], Pixel(), steps=5), run, Stopwatch(CARD))
        loop.begin()
        for _ in range(4):
            loop.one_step()
        found.append({key: tensor.detach().cpu() for key, tensor in (loop.state.params | loop.memory).items()})
        assert not is_on or None not in [recorded for _, recorded in run.recorder._known.values()]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
