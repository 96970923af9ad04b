"""MTT, TESLA and DATM: the losses on a toy run with experts of its own, and the experts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace as replace_plan
from torch import Tensor, nn

from ddbench.api import Batch, Memory, Recipe, Run, State
from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import Distillation, distill
from ddbench.compute.rank import needs
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError
from ddbench.testing import CHECKS, Given, prepared, run_checks, toy_plan, toy_run
from ddbench_plugins.losses.mtt import ExpertTrajectory, StudentMatching, Tesla, TrajectoryMatching, datm
from ddbench_plugins.spaces.pixel import Pixel

FEW = {"num_experts": 3, "syn_steps": 4, "student_lr": 0.2, "expert_lr": 0.1, "expert_batch": 9}
KINDS = (TrajectoryMatching, Tesla)


@pytest.fixture(scope="module")
def run() -> DistillRun:
    """In float64, with three experts of seven epochs."""
    return prepared(TrajectoryMatching(**FEW), toy_run(channels=3, double=True))


def few(kind: Any = TrajectoryMatching, **changes: Any) -> Any:
    return kind(**{**FEW, **changes})


def batch_of(run: DistillRun, seed: int = 5, shift: Any = None) -> Batch:
    """Six images with soft labels, both leaves."""
    rng, classes = torch.Generator().manual_seed(seed), torch.arange(3).repeat_interleave(2)
    images = torch.randn(6, *run.spec.shape, generator=rng, dtype=torch.float64)
    labels = (4 * F.one_hot(classes, 3) + torch.randn(6, 3, generator=rng, dtype=torch.float64)).softmax(1)
    return Batch(images.requires_grad_(), labels.requires_grad_(), classes)


def step_of(loss: StudentMatching, run: DistillRun) -> tuple[Tensor, list[Tensor]]:
    """The value of a step, and the gradients of images, labels and rate."""
    syn, memory = batch_of(run), loss.init(run)
    value = loss.backward(syn, memory, run)
    return value, [tensor.grad for tensor in (*syn.leaves, memory["student_rate"]) if tensor.grad is not None]


def relative(got: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True))


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("augment", ["none", "dsa"])
@pytest.mark.parametrize("batch_syn", [None, 4])
def test_mtt_is_the_finite_difference(run: DistillRun, augment: Any, batch_syn: int | None) -> None:
    loss, now = few(augment=augment, batch_syn=batch_syn), run.at(2)
    _, got = step_of(loss, now)
    assert len(got) == 3
    for number, grad in enumerate(got):
        direction = torch.randn(grad.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)

        def value(shift: float, number: int = number, direction: Tensor = direction) -> float:
            syn, memory = batch_of(now), loss.init(now)
            with torch.no_grad():
                (syn.images, syn.labels, memory["student_rate"])[number].add_(shift * direction)
            return loss.backward(syn, memory, now).item()

        slope = (value(1e-5) - value(-1e-5)) / 2e-5
        assert slope == pytest.approx(float((grad * direction).sum()), rel=1e-6)


def forward_by_hand(vector: Tensor, images: Tensor) -> Tensor:
    """The toy network as a function of all its parameters in one vector."""
    shapes = [(6, 3, 3, 3), (6,), (8, 6, 3, 3), (8,), (3, 32), (3,)]
    parts = vector.split([torch.Size(shape).numel() for shape in shapes])
    a, b, c, d, e, f = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
    hidden = F.avg_pool2d(F.softplus(F.conv2d(images, a, b, padding=1)), 2)
    hidden = F.avg_pool2d(torch.tanh(F.conv2d(hidden, c, d, padding=1)), 2)
    return hidden.flatten(1) @ e.T + f


@pytest.mark.parametrize("augment", ["none", "dsa"])
@pytest.mark.parametrize("batch_syn", [None, 4])
def test_mtt_is_the_hand_written_unroll(run: DistillRun, augment: Any, batch_syn: int | None) -> None:
    loss, now = few(augment=augment, batch_syn=batch_syn, syn_steps=5), run.at(1)
    expert = run.resource(loss.needs(run)[int(torch.randperm(3, generator=run.rng("expert", "order", 0))[1])])
    epoch = int(torch.randint(0, 5, (), generator=run.rng("expert", "start", 1)))
    names = [name for name, _ in run.network("any").named_parameters()]
    theta, target = (torch.cat([expert[f"{at}/{name}"].reshape(-1) for name in names]) for at in (epoch, epoch + 3))
    scale = (theta - target) @ (theta - target)
    syn, beta = batch_of(run), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    order, left = run.rng("student-order", 1), list[Tensor]()
    theta = theta.clone().requires_grad_()
    for step in range(5):
        if batch_syn and not left:
            left = list(torch.randperm(6, generator=order).split(batch_syn))
        part = left.pop() if batch_syn else torch.arange(6)
        images = syn.images[part]
        if augment == "dsa":
            images = run.augment.draw(run.rng("student-augment", 1, step), len(part))(images)
        error = -(syn.labels[part] * forward_by_hand(theta, images).log_softmax(1)).sum(1).mean()
        theta = theta - beta * torch.autograd.grad(error, theta, create_graph=True)[0]
    plain = (theta - target) @ (theta - target) / scale
    wanted = torch.autograd.grad(plain, [syn.images, syn.labels, beta])
    value, got = step_of(loss, now)
    assert value.item() == pytest.approx(plain.item(), rel=1e-12)
    assert relative(got, list(wanted)) < 1e-10


@pytest.mark.parametrize("augment", ["none", "dsa"])
def test_tesla_is_mtt_at_one_step_and_only_there(run: DistillRun, augment: Any) -> None:
    for num_steps, batch_syn in ((1, None), (1, 4), (3, None), (8, 4)):
        changes = {"syn_steps": num_steps, "batch_syn": batch_syn, "augment": augment}
        (value, exact), (other, approximate) = (step_of(few(kind, **changes), run) for kind in KINDS)
        assert other.item() == pytest.approx(value.item(), rel=1e-12)
        gap = relative(approximate, exact)
        assert gap < 1e-12 if num_steps == 1 else gap > 0.01


def test_both_say_what_they_are() -> None:
    assert (TrajectoryMatching.exact, Tesla.exact) == (True, False)
    assert TrajectoryMatching.order == Tesla.order == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_syn", [None, 4])
def test_a_step_twice_gives_the_same_bits(kind: Any, batch_syn: int | None) -> None:
    loss = few(kind, batch_syn=batch_syn)
    run = prepared(loss, toy_run(channels=3)).at(7)
    found = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            syn, memory = batch_of(run), loss.init(run)
            syn = Batch(syn.images.detach().float().requires_grad_(), syn.labels.detach().float().requires_grad_(), syn.classes)
            value = loss.backward(syn, memory, run)
        assert value.dtype == torch.float32, "a rate in float64 makes nothing else double"
        found.append([value, syn.images.grad, syn.labels.grad, memory["student_rate"].grad])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("kind", KINDS)
def test_hard_labels_get_no_gradient(run: DistillRun, kind: Any) -> None:
    soft, loss = batch_of(run), few(kind)
    syn = Batch(soft.images, soft.labels.detach(), soft.classes)
    loss.backward(syn, loss.init(run), run)
    assert syn.labels.grad is None
    assert syn.images.grad is not None


# ---------------------------------------------------------------- experts


def test_an_expert_is_plain_training_looked_at_after_every_epoch(run: DistillRun) -> None:
    expert = ExpertTrajectory(0, 3, 0.1, 9, 0.0, 0.0, True)
    held = expert.build(run)
    network = run.network("expert")
    names = [name for name, _ in network.named_parameters()]
    assert set(held) == {f"{epoch}/{name}" for epoch in range(4) for name in names}
    assert all(torch.equal(held[f"0/{name}"], tensor) for name, tensor in network.named_parameters())
    run.train(network, Recipe(3, 0.1, 9, 0.0, 0.0, augment=True), "expert")
    for name, tensor in network.named_parameters():
        assert torch.equal(held[f"3/{name}"], tensor)
        for before, after in pairwise(range(4)):
            assert not torch.equal(held[f"{before}/{name}"], held[f"{after}/{name}"]), "snapshots alias the live weights"
    assert not any(tensor.requires_grad for tensor in held.values())
    assert all(map(torch.equal, held.values(), expert.build(run).values())), "the same expert twice"
    assert len({tensor.data_ptr() for tensor in held.values()}) == len(held)


def test_experts_are_resources_of_their_own(run: DistillRun) -> None:
    needs = TrajectoryMatching().needs(run)
    assert len(set(needs)) == 100
    assert [need.index for need in needs] == list(range(100))  # type: ignore[attr-defined]
    assert vars(needs[7]) == {
        "index": 7, "epochs": 7, "lr": 0.01, "batch": 256, "momentum": 0.0, "weight_decay": 0.0, "augment": True,
    }  # fmt: skip
    assert needs[7].describe() == "expert trajectory 7 of the backbone, 7 epochs"
    assert needs[7].uses_backbone
    assert Tesla().needs(run) == needs, "methods share them"
    own = TrajectoryMatching(5, 4, 2, 9, epochs_trained=20, expert_momentum=0.5).needs(run)[0]
    assert (own.epochs, own.momentum) == (20, 0.5)  # type: ignore[attr-defined]
    assert TrajectoryMatching(5, 4, 2, 9).needs(run)[0].epochs == 12  # type: ignore[attr-defined]
    first, second = (list(run.resource(need).values()) for need in few().needs(run)[:2])
    assert not any(map(torch.equal, first, second))


@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_of_another_network_is_refused_before_the_first_step(run: DistillRun, kind: Any) -> None:
    loss, last = few(kind), few(kind).needs(run)[2]
    held = run.resource(last)
    renamed = {key.replace("3/classifier", "3/head"): tensor for key, tensor in held.items()}
    turned = {key: tensor.transpose(0, 1) if key == "6/features.3.weight" else tensor for key, tensor in held.items()}
    short = {key: tensor for key, tensor in held.items() if key != "5/features.0.bias"}
    more = held | {"2/features.9.bias": torch.zeros(4)}
    for wrong, sentence in (
        (renamed, "only the network has '3/classifier.weight'"),
        (turned, r"the shapes of '6/features.3.weight' are \[6, 8, 3, 3\] and \[8, 6, 3, 3\]"),
        (short, "only the network has '5/features.0.bias'"),
        (more, "only the trajectory has '2/features.9.bias'"),
    ):
        broken = replace(run, resources={**run.resources, last: wrong})
        with pytest.raises(ConfigError, match=rf"^expert trajectory 2 of the backbone, 7 epochs, does not fit.*{sentence}"):
            loss.init(broken)


def test_parameters_in_another_order_are_the_same_network(run: DistillRun) -> None:
    loss = few()
    turned = {need: dict(reversed(held.items())) for need, held in run.resources.items()}
    value, got = step_of(loss, run)
    other, again = step_of(loss, replace(run, resources=turned))
    assert torch.equal(value, other)
    assert all(map(torch.equal, got, again))


# ---------------------------------------------------------------- what a step starts from


def test_every_expert_has_its_turn_before_one_has_another(run: DistillRun) -> None:
    loss = TrajectoryMatching(num_experts=7)
    chosen = [loss.choose(run.at(step))[0] for step in range(70)]
    rounds = [chosen[first : first + 7] for first in range(0, 70, 7)]
    assert all(sorted(own) == list(range(7)) for own in rounds)
    assert len({tuple(own) for own in rounds}) > 1, "a new order each round"
    assert [loss.choose(run.at(step)) for step in (3, 40)] == [Tesla(num_experts=7).choose(run.at(step)) for step in (3, 40)]


def test_start_epochs_lie_in_their_range(run: DistillRun) -> None:
    plain = TrajectoryMatching(min_start_epoch=1)
    assert {plain.choose(run.at(step))[1] for step in range(200)} == {1, 2, 3, 4}
    loss = datm(min_start_epoch=2, first_max_start_epoch=3, max_start_epoch=9, expanding_steps=60, num_experts=2)
    bounds = [loss.start_bound(step) for step in range(100)]
    assert bounds[:21] == [3] * 10 + [4] * 10 + [5]
    assert bounds[59:62] == [8, 9, 9]
    assert set(bounds[60:]) == {9}
    assert bounds == sorted(bounds)
    epochs = [loss.choose(run.at(step))[1] for step in range(400)]
    assert all(2 <= epoch < bound for epoch, bound in zip(epochs, bounds, strict=False))
    assert set(epochs[60:]) == set(range(2, 9))


def test_datm_is_a_preset() -> None:
    own = datm()
    assert own == TrajectoryMatching(80, 2, 0, 20, 10, 1000)
    assert type(datm(form="tesla")) is Tesla
    changed = {
        "syn_steps": 3, "expert_epochs": 4, "min_start_epoch": 1, "max_start_epoch": 6, "first_max_start_epoch": 2,
        "expanding_steps": 8, "batch_syn": 5, "student_lr": 0.5, "augment": "none", "num_experts": 9, "epochs_trained": 11,
        "expert_lr": 0.25, "expert_batch": 12, "expert_momentum": 0.75, "expert_weight_decay": 0.125, "expert_augment": False,
    }  # fmt: skip
    assert datm("tesla", **changed) == Tesla(**changed)
    assert all(getattr(own, name) != value for name, value in changed.items())


def test_the_first_step_of_datm_uses_early_epochs(run: DistillRun) -> None:
    """The unroll starts and ends at the snapshots that `choose` names."""
    loss = few(first_max_start_epoch=1, expanding_steps=10)
    for step in (0, 40):
        now = run.at(step)
        index, epoch = loss.choose(now)
        assert epoch == 0 or step == 40
        unroll, held = loss.unroll(batch_of(now), loss.init(now), now), run.resource(loss.needs(now)[index])
        for at, side in ((epoch, unroll.start), (epoch + 3, unroll.target)):
            assert all(torch.equal(held[f"{at}/{name}"], tensor) for name, tensor in side.items())


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_rate_is_learned(kind: Any) -> None:
    loss, space = few(kind), Pixel()
    run = prepared(loss, toy_run())
    rates = {"pixels": 1.0, "labels": 2.0, "student_rate": 1e-3}
    plan = toy_plan(loss, space, steps=6, labels="learned", rates=rates)
    made = distill(plan, run, Stopwatch(run.device))
    assert made.learned["student_rate"] != pytest.approx(0.2, rel=1e-6)
    assert made.images.isfinite().all()
    hard = distill(replace_plan(plan, labels="hard"), run, Stopwatch(run.device))
    assert not torch.equal(made.labels, hard.labels), "learned labels move"


@pytest.mark.parametrize("kind", KINDS)
def test_matching_brings_the_value_down(run: DistillRun, kind: Any) -> None:
    """One expert and one start, so that the values of different steps can be compared."""
    loss = few(kind, max_start_epoch=1, num_experts=1, augment="none", batch_syn=None)
    run = prepared(loss, replace(run, resources={}))
    syn, memory, values = batch_of(run), Memory(loss.init(run)), []
    for step in range(30):
        values.append(loss.backward(syn, memory, run.at(step)).item())
        with torch.no_grad():
            assert syn.images.grad is not None
            syn.images.sub_(2 * syn.images.grad / syn.images.grad.norm() / (1 + step / 5))
        syn.images.grad = None
    assert min(values[-5:]) < 0.9 * values[0]


CONTRACTED = [
    few(), few(Tesla, batch_syn=4), few(batch_syn=2, syn_steps=2), few(Tesla, batch_syn=2, syn_steps=2),
    datm("mtt", 3, 2, 1, 4, 2, 3, num_experts=2),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("loss", CONTRACTED)
def test_the_contract(loss: StudentMatching) -> None:
    outcome = run_checks("losses", loss, toy_run())
    assert set(outcome.skipped) == (set() if loss.exact else {"loss_gradient_is_the_slope"})
    assert len(outcome.met) + len(outcome.skipped) == len(CHECKS["losses"])


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_backbones(run: DistillRun, kind: Any) -> None:
    assert run.backbone is not None
    inner = run.backbone.make()

    def build(spec: Any) -> nn.Module:
        network = inner.build(spec)
        network.features.insert(1, nn.BatchNorm2d(6, dtype=torch.float64))
        network.features.insert(2, nn.Dropout(0.5))
        return network

    loss = few(kind)
    own = replace(run, backbone=Given.of("architectures", replace(inner, build=build)), resources={})
    with pytest.raises(ConfigError, match="does not fit the network"):
        loss.init(replace(own, resources=run.resources))
    own = prepared(loss, own)
    assert not any("running" in key for key in own.resource(loss.needs(own)[0]))
    (value, first), (other, second) = step_of(loss, own), step_of(loss, own)
    assert torch.equal(value, other)
    assert all(map(torch.equal, first, second))
    assert first[0].isfinite().all()


# ---------------------------------------------------------------- mini-batches


def test_only_the_images_of_a_step_s_mini_batches_are_picked(run: DistillRun) -> None:
    loss, now = few(batch_syn=2, syn_steps=2), run.at(3)
    index = loss.picks(6, now)
    order = torch.randperm(6, generator=run.rng("student-order", 3))
    assert index is not None
    assert index.tolist() == sorted(order[2:].tolist())  # chunks are used up from the last
    assert loss.picks(6, run.at(4)).tolist() != index.tolist() or loss.picks(6, run.at(5)).tolist() != index.tolist()
    assert few().picks(6, now) is None
    assert few(batch_syn=2, syn_steps=3).picks(6, now) is None  # all of them
    assert few(batch_syn=4, syn_steps=2).picks(6, now) is None


class Counting(Pixel):
    """Counts the images that it decodes with a graph."""

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        DECODED.extend([len(index)] if torch.is_grad_enabled() else [])
        return Pixel.decode(self, state, index, run)


DECODED: list[int] = []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", ["hard", "learned", "teacher"])
@pytest.mark.parametrize("rank_steps", ["last", "loss", "feature-distance"])
def test_picking_changes_no_bit(monkeypatch: pytest.MonkeyPatch, kind: Any, labels: str, rank_steps: str) -> None:
    loss = few(kind, batch_syn=2, syn_steps=2)
    run, rates = prepared(loss, toy_run()), {"pixels": 1.0, "labels": 2.0, "student_rate": 1e-4}
    plan = toy_plan(loss, Counting(), steps=5, labels=labels, rates=rates, momentum=0.5, rank_steps=rank_steps)
    if rank_steps == "feature-distance":
        (need,) = needs(plan)
        run = replace(run, resources={**run.resources, need: need.build(run)})
    found, counts = [], []
    for picking in (True, False):
        if not picking:
            monkeypatch.setattr(StudentMatching, "picks", lambda self, num_images, run: None)
        DECODED.clear()
        found.append(distill(plan, run, Stopwatch(run.device)))
        counts.append(list(DECODED))
    assert counts == [[4] * 5, [6] * 5]
    assert torch.equal(found[0].images, found[1].images)
    assert torch.equal(found[0].labels, found[1].labels)
    assert found[0].learned == found[1].learned
    assert found[0].stages == found[1].stages


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", KINDS)
def test_a_mini_batch_larger_than_the_set_is_refused(run: DistillRun, kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"^batch_syn 500 is larger than the set of 6 images: lower it, or leave it out"):
        few(kind, batch_syn=500).check(6, run)
    few(kind, batch_syn=6).check(6, run)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"syn_steps": 0}, "'syn_steps' must be at least 1, got 0"),
        ({"expert_epochs": 0}, "'expert_epochs' must be at least 1, got 0"),
        ({"num_experts": 0}, "'num_experts' must be at least 1, got 0"),
        ({"expert_batch": 0}, "'expert_batch' must be at least 1, got 0"),
        ({"batch_syn": 0}, "'batch_syn' must be at least 1, got 0; leave it out"),
        ({"student_lr": 0.0}, "'student_lr' must be above 0, got 0.0"),
        ({"expert_lr": -1.0}, "'expert_lr' must be above 0, got -1.0"),
        ({"expert_lr": float("nan")}, "'expert_lr' must be above 0, got nan"),
        ({"expert_momentum": 1.0}, r"'expert_momentum' must lie in \[0, 1\)"),
        ({"expert_weight_decay": -0.1}, "'expert_weight_decay' be at least 0, got 0.0 and -0.1"),
        ({"min_start_epoch": 5}, "'min_start_epoch' must lie in 0..max_start_epoch - 1, got 5 with max_start_epoch 5"),
        ({"min_start_epoch": -1}, "'min_start_epoch' must lie in"),
        ({"epochs_trained": 6}, r"'epochs_trained' must be at least 7 \(max_start_epoch - 1 \+ expert_epochs\), got 6"),
        ({"first_max_start_epoch": 2}, "go together: set both, or neither; got 2 and 0"),
        ({"expanding_steps": 9}, "go together: set both, or neither; got none and 9"),
        ({"expanding_steps": -1}, "go together"),
        ({"first_max_start_epoch": 6, "expanding_steps": 9}, r"must lie in 1..5 \(above min, up to max\), got 6"),
        ({"min_start_epoch": 2, "first_max_start_epoch": 2, "expanding_steps": 9}, r"must lie in 3..5 .*, got 2"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_settings_that_cannot_run_are_refused(kind: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        kind(**settings)


class Unwatched(DistillRun):
    """Lets the drawing of networks wait for the device, which is the core's affair."""

    def network(self, *name: str | int) -> nn.Module:
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return DistillRun.network(self, *name)
        finally:
            torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_does_not_wait_for_the_device(kind: Any) -> None:
    loss, toy, cuda = few(kind, batch_syn=4), toy_run(), torch.device("cuda")
    data = replace(toy.data, images=toy.data.images.to(cuda), labels=toy.data.labels.to(cuda))
    run = prepared(loss, Unwatched(toy.root, data, toy.backbone, toy.ipc, cuda, {}))
    classes = torch.arange(3, device=cuda).repeat_interleave(2)
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(cuda)
    syn, memory = Batch(images.requires_grad_(), F.one_hot(classes, 3).float(), classes), loss.init(run)
    loss.backward(syn, memory, run)  # the first use of a kernel may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = loss.backward(syn, memory, run.at(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert value.isfinite()


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_expert_labels_every_step(run: DistillRun, kind: Any) -> None:
    loss = few(kind)
    plan = replace_plan(toy_plan(loss, Pixel()), labels="teacher", steps=2)
    loop, seen = Distillation(plan, run, Stopwatch(run.device)), []
    loop.begin()
    matching: Any = loop.loss
    inner = matching.unroll

    def watched(syn: Batch, memory: Any, now: DistillRun) -> Any:
        seen.append((syn.images.detach().clone(), syn.labels.detach().clone()))
        return inner(syn, memory, now)

    object.__setattr__(loop.loss, "unroll", watched)
    for _ in range(2):
        loop.one_step()
    loop.leave_stage()
    made = loop.result()
    seen.append((made.images.double(), made.labels))
    for step, (images, labels) in enumerate(seen):  # the last is the finished set
        index, epoch = loss.choose(run.at(step))
        network = run.network("by hand").double()
        held = run.resource(loss._expert(index))
        network.load_state_dict({name: held[f"{epoch + loss.expert_epochs}/{name}"] for name, _ in network.named_parameters()})
        with torch.no_grad():
            torch.testing.assert_close(labels.double(), network(images).softmax(1), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(seen[0][1], seen[1][1])
