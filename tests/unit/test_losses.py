"""The built-in losses against their formulas, written again here without what the plugins share."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import Batch, Memory
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError
from ddbench.ops import embedding
from ddbench.testing import Given, toy_run
from ddbench_plugins.losses.dc import GradientMatching, dsa
from ddbench_plugins.losses.dm import DistributionMatching


@pytest.fixture
def run() -> DistillRun:
    return toy_run(channels=3, double=True)


def batch_of(run: DistillRun, soft: bool = False, seed: int = 5) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    num = run.spec.num_classes
    classes = torch.arange(num).repeat_interleave(run.ipc)
    images = torch.randn(len(classes), *run.spec.shape, generator=rng, dtype=torch.float64)
    labels = F.one_hot(classes, num).double()
    if soft:
        labels = (4 * labels + torch.randn(labels.shape, generator=rng)).softmax(1)
    return Batch(images.requires_grad_(), labels.requires_grad_(soft), classes)


# ---------------------------------------------------------------- DM


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("augment", ["none", "dsa"])
@pytest.mark.parametrize("batch_real", [5, 256])
def test_dm_is_the_plain_loop_over_classes(run: DistillRun, augment: Any, batch_real: int, batched: bool) -> None:
    syn, run = batch_of(run), run.at(3)
    value = DistributionMatching(batch_real, augment, batched).backward(syn, {}, run)
    network = run.network("dm", 3)
    images = syn.images.detach().clone().requires_grad_()
    plain = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        real = run.real(c, batch_real, run.rng("real", 3, c))
        fake = images[2 * c : 2 * c + 2]
        if augment == "dsa":
            view = run.augment.draw(run.rng("augment", 3, c))
            real, fake = view(real), view(fake)
        means = [network.features(side).flatten(1).mean(0) for side in (real, fake)]
        plain = plain + ((means[0] - means[1]) ** 2).sum()
    plain.backward()
    assert value.item() == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(syn.images.grad, images.grad, rtol=1e-10, atol=1e-12)
    assert len(run.real(0, batch_real, run.rng("x"))) == min(batch_real, 12)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("augment", ["none", "dsa"])
def test_dm_is_zero_for_the_real_set_itself(run: DistillRun, augment: Any, batched: bool) -> None:
    classes, loss = run.data.labels, DistributionMatching(augment=augment, batched=batched)
    syn = Batch(run.data.seen(run.data.images).requires_grad_(), F.one_hot(classes, 3).double(), classes)
    assert loss.backward(syn, {}, run).item() == pytest.approx(0, abs=1e-20)
    assert syn.images.grad is not None
    assert syn.images.grad.abs().max() < 1e-12
    moved = Batch((run.data.seen(run.data.images) + 0.1).requires_grad_(), syn.labels, classes)
    assert loss.backward(moved, {}, run) > 1e-6


@pytest.mark.parametrize("pixels", [1, 64, 5 * 64, 7 * 64, 1 << 20], ids=lambda pixels: f"{pixels} pixels a pass")
def test_dm_does_not_depend_on_the_size_of_a_pass(run: DistillRun, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (pixels, 1 << 15):
        monkeypatch.setitem(embedding.PIXELS_A_PASS, "cpu", size)
        syn = batch_of(run)
        found.append((DistributionMatching(5).backward(syn, {}, run), syn.images.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-13)


def test_dm_draws_another_network_every_step(run: DistillRun) -> None:
    loss = DistributionMatching(augment="none")
    values = {loss.backward(batch_of(run), {}, run.at(step)).item() for step in (0, 1, 2)}
    assert len(values) == 3
    assert loss.backward(batch_of(run), {}, run.at(1)).item() in values


# ---------------------------------------------------------------- DC and DSA


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("augment", ["none", "dsa"])
@pytest.mark.parametrize("distance", ["rowwise-cosine", "cosine", "mse"])
def test_dc_is_plain_autograd_class_by_class(run: DistillRun, augment: Any, distance: str, batched: bool) -> None:
    syn, run = batch_of(run, soft=True), run.at(4)
    value = GradientMatching(6, augment, distance, batched=batched).backward(syn, {}, run)
    network = run.network("dc", 4)
    params = dict(network.named_parameters())
    images, labels = (tensor.detach().clone().requires_grad_() for tensor in (syn.images, syn.labels))
    plain = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        own = slice(2 * c, 2 * c + 2)
        real, fake = run.real(c, 6, run.rng("real", 4, c)), images[own]
        if augment == "dsa":
            view = run.augment.draw(run.rng("augment", 4, c))
            real, fake = view(real), view(fake)
        real_loss = -network(real).log_softmax(1)[:, c].mean()
        fake_loss = -(labels[own] * network(fake).log_softmax(1)).sum(1).mean()
        g_real = torch.autograd.grad(real_loss, list(params.values()))
        g_fake = torch.autograd.grad(fake_loss, list(params.values()), create_graph=True)
        if distance == "rowwise-cosine":
            for name, t, s in zip(params, g_real, g_fake, strict=True):
                if name.endswith("weight"):
                    for row_t, row_s in zip(t.reshape(len(t), -1), s.reshape(len(s), -1), strict=True):
                        plain = plain + 1 - row_t @ row_s / (row_t.norm() * row_s.norm() + 1e-6)
        else:
            t, s = (torch.cat([tensor.reshape(-1) for tensor in side]) for side in (g_real, g_fake))
            plain = plain + (((s - t) ** 2).sum() if distance == "mse" else 1 - t @ s / (t.norm() * s.norm() + 1e-6))
    plain.backward()
    assert value.item() == pytest.approx(plain.item(), rel=1e-10)
    torch.testing.assert_close(syn.images.grad, images.grad, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(syn.labels.grad, labels.grad, rtol=1e-8, atol=1e-12)


def test_dc_is_near_zero_for_the_real_set_itself(run: DistillRun) -> None:
    classes = run.data.labels
    syn = Batch(run.data.seen(run.data.images).requires_grad_(), F.one_hot(classes, 3).double(), classes)
    assert GradientMatching(distance="mse").backward(syn, {}, run).item() < 1e-20
    assert 0 < GradientMatching().backward(syn, {}, run).item() < 0.1  # what the epsilon leaves of 3 x 17 rows


@pytest.mark.parametrize("pixels", [64, 4 * 64, 1 << 20], ids=["one class", "two classes", "all classes"])
def test_dc_does_not_depend_on_the_size_of_a_pass(run: DistillRun, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(embedding.PIXELS_A_PASS, "cpu", pixels)
    found = []
    for batched in (True, False):
        syn = batch_of(run, soft=True)
        found.append((dsa(6, batched=batched).backward(syn, {}, run), syn.images.grad, syn.labels.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)


def test_dsa_is_dc_with_augmentation() -> None:
    assert dsa() == GradientMatching(augment="dsa")
    given = (0.7, "given", False)
    assert dsa(3, "mse", 4, 5, 6, *given) == GradientMatching(3, "dsa", "mse", 4, 5, 6, *given)
    assert list(inspect.signature(dsa).parameters) == [f.name for f in fields(GradientMatching) if f.name != "augment"]


@pytest.mark.parametrize(
    ("ipc", "outer", "inner"), [(1, 1, 1), (10, 10, 50), (20, 20, 25), (30, 30, 20), (40, 40, 15), (50, 50, 10)]
)
def test_dc_loops_by_ipc(run: DistillRun, ipc: int, outer: int, inner: int) -> None:
    run, loss = watched(replace(run, ipc=ipc)), GradientMatching(2, loops="by-ipc", inner_lr=0.1)
    assert loss.needs(run) == ()
    last = outer - 1  # the last step that the first network is matched at
    memory = {f"net.{name}": tensor for name, tensor in DistillRun.network(run, "dc", 0).state_dict().items()}
    values = []
    for given in (loss, GradientMatching(2, outer_loop=outer, inner_loop=inner, inner_lr=0.1)):
        values.append(given.backward(batch_of(replace(run, ipc=1)), dict(memory), run.at(last)))
        given.backward(batch_of(replace(run, ipc=1)), dict(memory), run.at(outer))
    assert torch.equal(*values)
    assert [name for name, _ in run.asked] == [("dc", 0), ("dc", 1)] * 2


def test_dc_refuses_an_ipc_without_loops(run: DistillRun) -> None:
    with pytest.raises(ConfigError, match=r"knows the IPCs 1, 10, 20, 30, 40, 50, not 2: .* or say loops = 'given'"):
        dsa(loops="by-ipc").check(6, replace(run, ipc=2))
    assert dsa().needs(replace(run, ipc=2)) == ()
    with pytest.raises(ConfigError, match="'by-ipc' sets outer_loop and inner_loop: remove those two"):
        GradientMatching(outer_loop=10, loops="by-ipc")


@dataclass(frozen=True)
class Watched(DistillRun):
    """Keeps which networks were asked for, with weights or without, and the networks."""

    asked: Any = None

    def network(self, *name: str | int) -> nn.Module:
        network = DistillRun.network(self, *name)
        self.asked.append((name, network))
        return network

    def skeleton(self, *name: str | int) -> nn.Module:
        network = DistillRun.skeleton(self, *name)
        self.asked.append((name, network))
        return network


def watched(run: DistillRun) -> Watched:
    fields = {name: getattr(run, name) for name in ("root", "data", "backbone", "ipc", "device", "resources", "loaded", "step")}
    return Watched(**fields, asked=[])


def weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


def test_dc_draws_a_network_every_outer_loop_and_trains_it_in_between(run: DistillRun) -> None:
    run, loss, memory = watched(run), GradientMatching(4, outer_loop=3, inner_loop=2, inner_batch=4, inner_lr=0.1), Memory()
    used = []
    for step in range(5):
        syn = batch_of(run, soft=True, seed=step)  # as if the last step had moved the set
        loss.backward(syn, memory, run.at(step))
        used.append(weights(run.asked[-1][1]))
        if step == 1:
            image, label = syn.images.detach(), syn.labels.detach()
    fresh = [weights(DistillRun.network(run, "dc", iteration)) for iteration in (0, 1)]
    assert [name for name, _ in run.asked] == [("dc", 0)] * 3 + [("dc", 1)] * 2
    assert torch.equal(used[0], fresh[0])
    assert torch.equal(used[3], fresh[1])
    assert not torch.equal(used[1], used[0])
    assert not torch.equal(used[2], used[1])
    plain = DistillRun.network(run, "dc", 0)  # what step 1 should have matched with
    for epoch in range(2):
        order = torch.randperm(6, generator=run.rng("inner-order", 1, epoch))
        for part in (order[:4], order[4:]):
            loss_of = -(label[part] * plain(image[part]).log_softmax(1)).sum(1).mean()
            grads = torch.autograd.grad(loss_of, list(plain.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(plain.parameters(), grads, strict=True):
                    parameter.sub_(0.1 * grad)
    torch.testing.assert_close(used[1], weights(plain), rtol=1e-10, atol=1e-12)


def test_dc_with_one_outer_step_keeps_no_network(run: DistillRun) -> None:
    run, memory = watched(run), Memory()
    for step in range(3):
        GradientMatching(4).backward(batch_of(run), memory, run.at(step))
    assert memory == {}
    assert [name for name, _ in run.asked] == [("dc", step) for step in range(3)]


def test_dc_memory_goes_through_a_checkpoint(run: DistillRun) -> None:
    loss, memory = GradientMatching(4, "dsa", outer_loop=4, inner_loop=1), Memory()
    for step in range(2):
        loss.backward(batch_of(run), memory, run.at(step))
    assert memory
    copied = {name: tensor.clone() for name, tensor in memory.items()}
    values = []
    for held in (memory, copied):
        syn = batch_of(run)
        values.append((loss.backward(syn, held, run.at(2)), syn.images.grad))
    assert torch.equal(values[0][0], values[1][0])
    assert torch.equal(values[0][1], values[1][1])


def test_the_inner_loop_leaves_the_set_alone(run: DistillRun) -> None:
    loss, memory = GradientMatching(4, outer_loop=2, inner_loop=3), Memory()
    loss.backward(batch_of(run), memory, run.at(0))
    syn = batch_of(run)
    before = syn.images.detach().clone()
    loss.backward(syn, memory, run.at(1))
    assert torch.equal(syn.images, before)
    assert syn.labels.grad is None


@pytest.mark.parametrize("field", ["batch_real", "outer_loop", "inner_loop", "inner_batch"])
def test_dc_refuses_numbers_below_one(field: str) -> None:
    with pytest.raises(ConfigError, match=f"'{field}' must be at least 1, got 0"):
        GradientMatching(**{field: 0})


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"unknown distance 'cosin'. Did you mean 'cosine'"):
        GradientMatching(distance="cosin")
    with pytest.raises(ConfigError, match="'batch_real' must be at least 1"):
        DistributionMatching(batch_real=0)


def test_batch_norm_networks_match_too(run: DistillRun) -> None:
    inner = run.backbone.make()

    def build(spec: Any) -> nn.Module:
        network = inner.build(spec)
        network.features.insert(1, nn.BatchNorm2d(6, dtype=torch.float64))
        return network

    run, memory = replace(run, backbone=Given.of("architectures", replace(inner, build=build))), Memory()
    loss = GradientMatching(4, outer_loop=2, inner_loop=1)
    for step in range(3):
        assert loss.backward(batch_of(run), memory, run.at(step)).isfinite()
    assert DistributionMatching(4).backward(batch_of(run), {}, run).isfinite()
