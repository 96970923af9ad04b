"""Losses that match features, attention, regressions and unrolled training, against their formulas written again here."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import Batch, Loss, Memory, Spec
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError
from ddbench.ops import activations, embedding
from ddbench.ops.activations import maps_and_embedding, recorded, stages
from ddbench.ops.layers import Dropout
from ddbench.testing import CHECKS, Check, Given, toy_run, toy_spec
from ddbench_plugins.architectures.alexnet import alexnet
from ddbench_plugins.architectures.convnet import convnet
from ddbench_plugins.architectures.resnet import resnet18
from ddbench_plugins.architectures.vit import vit
from ddbench_plugins.losses.cafe import FeatureAlignment
from ddbench_plugins.losses.datadam import AttentionMatching, attention
from ddbench_plugins.losses.dc import GradientMatching
from ddbench_plugins.losses.dd import DatasetDistillation
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.losses.krr import FeatureRegression, regress

LOSSES: dict[str, Loss] = {
    "dm, class by class": DistributionMatching(5, batched=False),
    "dc, class by class": GradientMatching(5, "dsa", batched=False),
    "datadam": AttentionMatching(5),
    "datadam, class by class": AttentionMatching(5, "none", power=2.0, weight=0.5, batched=False),
    "cafe": FeatureAlignment(5),
    "cafe with augmentation": FeatureAlignment(5, "dsa", weight=3.0),
    "krr": FeatureRegression(5),
    "krr with a new network every step": FeatureRegression(5, pool=0),
    "krr with short lives": FeatureRegression(5, pool=2, max_steps=1),
    "dd": DatasetDistillation(5),
    "dd of one step": DatasetDistillation(5, inner_steps=1, inner_lr=0.3),
}


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


def real_set(run: DistillRun) -> Batch:
    """The real images themselves as the synthetic ones."""
    return Batch(run.data.seen(run.data.images).requires_grad_(), F.one_hot(run.data.labels, 3).double(), run.data.labels)


def leaves_of(syn: Batch) -> tuple[Tensor, Tensor]:
    return syn.images.detach().clone().requires_grad_(), syn.labels.detach().clone().requires_grad_()


@pytest.mark.parametrize("check", CHECKS["losses"], ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", LOSSES)
def test_the_contract(name: str, check: Check) -> None:
    check(LOSSES[name], toy_run())


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("krr")])
def test_another_step_is_another_network(name: str, run: DistillRun) -> None:
    values = set()
    for step in (0, 1, 0):
        syn = batch_of(run)
        values.add(LOSSES[name].backward(syn, LOSSES[name].init(run), run.at(step)).item())
    assert len(values) == 2


# ---------------------------------------------------------------- several classes a pass


def test_classes_go_in_groups_that_fit() -> None:
    groups = embedding.class_groups
    assert groups(5, 2, 4) == [range(0, 2), range(2, 4), range(4, 5)]
    assert groups(3, 10, 4) == [range(0, 1), range(1, 2), range(2, 3)]
    assert groups(3, 10, sys.maxsize) == [range(0, 3)]
    assert groups(3, 1, 3) == [range(0, 3)]


@pytest.mark.parametrize("at_once", [1, 3, 4, 7, 9, 100])
def test_class_means_in_passes(at_once: int) -> None:
    rng = torch.Generator().manual_seed(1)
    batches = [torch.randn(size, 2, 3, 3, generator=rng, dtype=torch.float64) for size in (3, 1, 6, 2, 2)]
    sizes: list[int] = []

    def features(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images.flatten(1)[:, :5] ** 2

    means = embedding.class_means(features, iter(batches), at_once)
    torch.testing.assert_close(means, torch.stack([(batch.flatten(1)[:, :5] ** 2).mean(0) for batch in batches]))
    assert sizes == {1: [3, 1, 6, 2, 2], 3: [3, 1, 6, 2, 2], 4: [4, 6, 4], 7: [4, 6, 4], 9: [4, 8, 2], 100: [14]}[at_once]


def test_a_pass_is_bounded_in_pixels_unless_images_mix() -> None:
    images = torch.zeros(1, 3, 32, 32)
    plain = convnet(width=4).build(toy_spec(3, 3, 32))
    assert embedding.images_a_pass(plain, images) == 128
    assert embedding.images_a_pass(plain, torch.zeros(7, 2, 3, 128, 128)) == 8
    assert embedding.images_a_pass(plain, torch.zeros(1, 3, 512, 512)) == 1
    assert embedding.images_a_pass(plain, images.to("meta")) == 1024
    for mixing in (convnet(width=4, norm="batch").build(toy_spec(3, 3, 32)), nn.Sequential(nn.Dropout(0.5)), Dropout(0.5)):
        assert embedding.images_a_pass(mixing, images) == sys.maxsize


def test_the_two_sides_share_a_view_and_classes_do_not(run: DistillRun) -> None:
    syn, run = real_set(run), run.at(2)
    fake, real = embedding.class_batches(syn, run, 12, augment=True)
    for label in range(3):
        view = run.augment.draw(run.rng("augment", 2, label))
        assert torch.equal(fake(label), real(label))
        assert torch.equal(fake(label), view(run.data.seen(run.data.images[12 * label : 12 * label + 12])))
    _, plain = embedding.class_batches(syn, run, 5, augment=False)
    assert torch.equal(plain(1), run.real(1, 5, run.rng("real", 2, 1)))


# ---------------------------------------------------------------- maps inside a network


def test_maps_are_taken_after_activations_and_blocks() -> None:
    network = convnet(width=4).build(toy_spec(3, 3, 32))
    assert [type(layer) for layer in stages(network)] == [nn.ReLU] * 3
    images = torch.randn(2, 3, 32, 32)
    maps, last = maps_and_embedding(network, images)
    assert [tuple(layer.shape) for layer in maps] == [(2, 4, 32, 32), (2, 4, 16, 16), (2, 4, 8, 8)]
    first = network.features[:3](images)
    assert torch.equal(maps[0], first)
    assert torch.equal(last, embedding.embed(network, images))
    assert len(stages(alexnet(4).build(toy_spec(3, 3, 32)))) == 5
    assert len(stages(resnet18(4).build(toy_spec(3, 3, 32)))) == 1 + 8
    assert not any(layer._forward_hooks for layer in network.modules())


def test_hooks_go_even_where_the_network_fails() -> None:
    network = convnet(width=4).build(toy_spec(3, 3, 32))
    with pytest.raises(RuntimeError, match="size"), recorded(stages(network)):
        network(torch.randn(2, 5, 32, 32))
    assert not any(layer._forward_hooks for layer in network.modules())


@pytest.mark.parametrize("loss", [AttentionMatching(), FeatureAlignment()], ids=["datadam", "cafe"])
def test_a_backbone_without_maps_is_refused_before_the_first_step(loss: Loss, run: DistillRun) -> None:
    assert loss.needs(run) == ()
    tokens = replace(run, backbone=Given.of("architectures", vit(width=16, depth=1)))
    with pytest.raises(ConfigError, match=r"are compared, and this one shows none. Name a convolutional"):
        loss.needs(tokens)


# ---------------------------------------------------------------- DataDAM


def plain_maps(network: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The toy network layer by layer."""
    first = F.softplus(network.features[0](images))
    second = torch.tanh(network.features[3](F.avg_pool2d(first, 2)))
    return [first, second], F.avg_pool2d(second, 2).reshape(len(images), -1)


def test_attention_by_hand() -> None:
    maps = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]]], dtype=torch.float64)  # one image, two channels, 1 x 2 places
    wanted = torch.tensor([1 + 9.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(attention(maps, 2.0), (wanted / wanted.norm())[None])
    wanted = torch.tensor([1 + 81.0, 16.0], dtype=torch.float64)
    torch.testing.assert_close(attention(maps, 4.0), (wanted / wanted.norm())[None])
    zero = torch.zeros(1, 2, 2, 2, requires_grad=True)
    attention(zero, 4.0).sum().backward()
    assert zero.grad is not None
    assert zero.grad.eq(0).all(), "maps of zeros attend to nothing, and have a gradient"


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("augment", ["none", "dsa"])
def test_datadam_is_the_plain_sum_over_classes_and_layers(run: DistillRun, augment: Any, batched: bool) -> None:
    syn, run = batch_of(run), run.at(3)
    value = AttentionMatching(5, augment, 3.0, 0.2, batched).backward(syn, {}, run)
    network, (images, _) = run.network("datadam", 3), leaves_of(syn)
    plain = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        real, fake = run.real(c, 5, run.rng("real", 3, c)), images[2 * c : 2 * c + 2]
        if augment == "dsa":
            view = run.augment.draw(run.rng("augment", 3, c))
            real, fake = view(real), view(fake)
        (real_maps, real_last), (fake_maps, fake_last) = (plain_maps(network, side) for side in (real, fake))
        for a, b in zip(real_maps, fake_maps, strict=True):
            means = []
            for layer in (a, b):
                vectors = [(image.abs() ** 3).sum(0).reshape(-1) for image in layer]
                means.append(torch.stack([vector / vector.square().sum().sqrt() for vector in vectors]).mean(0))
            plain = plain + ((means[0] - means[1]) ** 2).sum()
        plain = plain + 0.2 * ((real_last.mean(0) - fake_last.mean(0)) ** 2).sum()
    plain.backward()
    assert value.item() == pytest.approx(plain.item(), rel=1e-11)
    torch.testing.assert_close(syn.images.grad, images.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("augment", ["none", "dsa"])
def test_datadam_is_zero_for_the_real_set_itself(run: DistillRun, augment: Any) -> None:
    syn = real_set(run)
    assert AttentionMatching(augment=augment).backward(syn, {}, run).item() == pytest.approx(0, abs=1e-20)
    assert syn.images.grad is not None
    assert syn.images.grad.abs().max() < 1e-10


def test_datadam_without_attention_is_dm(run: DistillRun, monkeypatch: pytest.MonkeyPatch) -> None:
    network = DistillRun.network(run, "shared")
    monkeypatch.setattr(DistillRun, "network", lambda run, *name: network)
    only = AttentionMatching(5, weight=4.0).backward(batch_of(run), {}, run)
    monkeypatch.setattr("ddbench_plugins.losses.datadam.attention", lambda maps, power: maps.new_zeros(len(maps), 1))
    rest = AttentionMatching(5, weight=4.0).backward(batch_of(run), {}, run)
    torch.testing.assert_close(rest, 4 * DistributionMatching(5).backward(batch_of(run), {}, run))
    assert only > rest


# ---------------------------------------------------------------- CAFE


@pytest.mark.parametrize("augment", ["none", "dsa"])
def test_cafe_is_the_plain_alignment_and_discrimination(run: DistillRun, augment: Any) -> None:
    syn, run = batch_of(run), run.at(3)
    value = FeatureAlignment(5, augment, 0.7).backward(syn, {}, run)
    network, (images, _) = run.network("cafe", 3), leaves_of(syn)
    plain, centres, real_rows = torch.zeros((), dtype=torch.float64), [], []
    for c in range(3):
        real, fake = run.real(c, 5, run.rng("real", 3, c)), images[2 * c : 2 * c + 2]
        if augment == "dsa":
            view = run.augment.draw(run.rng("augment", 3, c))
            real, fake = view(real), view(fake)
        (real_maps, real_last), (fake_maps, fake_last) = (plain_maps(network, side) for side in (real, fake))
        for a, b in zip(real_maps, fake_maps, strict=True):
            plain = plain + ((a.mean(0) - b.mean(0)) ** 2).sum()
        centres.append(fake_last.mean(0))
        real_rows.append(real_last)
    crossed = torch.zeros((), dtype=torch.float64)
    for c, rows in enumerate(real_rows):
        for row in rows:
            scores = torch.stack([row @ centre for centre in centres])
            crossed = crossed - (scores[c] - scores.exp().sum().log())
    plain = plain + 0.7 * crossed / 15
    plain.backward()
    assert value.item() == pytest.approx(plain.item(), rel=1e-10)
    torch.testing.assert_close(syn.images.grad, images.grad, rtol=1e-8, atol=1e-11)


def test_cafe_aligns_the_real_set_with_itself(run: DistillRun) -> None:
    assert FeatureAlignment(weight=0.0).backward(real_set(run), {}, run).item() == pytest.approx(0, abs=1e-20)
    weights = (1.0, 2.0)
    one, two = (FeatureAlignment(weight=weight).backward(real_set(run), {}, run).item() for weight in weights)
    assert two == pytest.approx(2 * one, rel=1e-12), "what is left is the discrimination"


# ---------------------------------------------------------------- KRR


def test_regress_is_ridge_regression() -> None:
    rng = torch.Generator().manual_seed(1)
    known, asked, labels = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((4, 9), (6, 9), (4, 3)))
    penalty = 0.1 * (known**2).sum(1).mean()
    weights = torch.linalg.solve(known.T @ known + penalty * torch.eye(9), known.T @ labels)  # the primal form
    torch.testing.assert_close(regress(known, labels, asked, 0.1), asked @ weights)
    torch.testing.assert_close(regress(known, labels, known, 1e-9), labels, rtol=1e-6, atol=1e-6)
    twice = torch.cat([known, known])
    assert regress(twice, torch.cat([labels, labels]), asked, 1e-6).isfinite().all(), "equal images are no fault"


def test_krr_is_the_plain_regression(run: DistillRun) -> None:
    syn, run = batch_of(run, soft=True), run.at(4)
    value = FeatureRegression(5, 0.01, pool=0).backward(syn, {}, run)
    network, (images, labels) = run.network("krr", 4), leaves_of(syn)
    real = torch.cat([run.real(c, 5, run.rng("real", 4, c)) for c in range(3)])
    known, asked = plain_maps(network, images)[1], plain_maps(network, real)[1]
    kernel = torch.stack([torch.stack([a @ b for b in known]) for a in known])
    kernel = kernel + 0.01 * kernel.trace() / 6 * torch.eye(6)
    answer = torch.stack([torch.stack([a @ b for b in known]) for a in asked]) @ kernel.inverse() @ (labels - 1 / 3)
    wanted = F.one_hot(torch.arange(3).repeat_interleave(5), 3) - 1 / 3
    plain = 0.5 * ((answer - wanted) ** 2).sum() / 15
    plain.backward()
    assert value.item() == pytest.approx(plain.item(), rel=1e-9)
    torch.testing.assert_close(syn.images.grad, images.grad, rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(syn.labels.grad, labels.grad, rtol=1e-7, atol=1e-11)


def test_krr_prefers_real_images_to_noise(run: DistillRun) -> None:
    real, noise = (FeatureRegression(pool=0).backward(syn, {}, run).item() for syn in (real_set(run), batch_of(run)))
    assert real < 0.01 < noise


def weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


def test_krr_networks_take_turns_are_trained_and_replaced(run: DistillRun, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Tensor] = []
    plain_embed = embedding.embed

    def watched(network: nn.Module, images: Tensor) -> Tensor:
        used.append(weights(network))
        return plain_embed(network, images)

    monkeypatch.setattr("ddbench_plugins.losses.krr.embed", watched)
    loss, memory, now = FeatureRegression(4, pool=2, max_steps=4, inner_lr=0.1), Memory(), []
    for step in range(12):
        used.clear()
        loss.backward(batch_of(run, soft=True, seed=step), memory, run.at(step))
        now.append(used[-1])

    def fresh(slot: int, life: int) -> Tensor:
        return weights(DistillRun.network(run, "krr", slot, life))

    # network 0 is due at steps 0, 2, 4, ..., network 1 at 1, 3, 5, ...; network 1 begins in the middle of its life
    assert [step for step in range(0, 12, 2) if torch.equal(now[step], fresh(0, step // 8))] == [0, 8]
    assert [step for step in range(1, 12, 2) if torch.equal(now[step], fresh(1, (step // 2 + 2) // 4))] == [1, 5]
    network, syn = DistillRun.network(run, "krr", 0, 0), batch_of(run, soft=True, seed=0)
    inner = -(syn.labels.detach() * network(syn.images.detach()).log_softmax(1)).sum(1).mean()
    gradients = torch.autograd.grad(inner, list(network.parameters()))
    stepped = weights(network) - 0.1 * torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.testing.assert_close(now[2], stepped, rtol=1e-12, atol=1e-14)
    assert {name.split(".")[0] for name in memory} == {"net0", "net1"}
    assert loss.backward(batch_of(run), Memory(), run.at(0)).isfinite()


def test_krr_without_a_pool_keeps_nothing(run: DistillRun) -> None:
    memory = Memory()
    values = {FeatureRegression(4, pool=0).backward(batch_of(run), memory, run.at(step)).item() for step in range(3)}
    assert memory == {}
    assert len(values) == 3


# ---------------------------------------------------------------- DD


def test_dd_is_the_loss_after_plain_gradient_descent(run: DistillRun) -> None:
    syn, run = batch_of(run, soft=True), run.at(2)
    loss = DatasetDistillation(4, inner_steps=3, inner_lr=0.2)
    memory = loss.init(run)
    memory["inner_lr"] = torch.tensor([0.2, 0.5, 0.1], dtype=torch.float64, requires_grad=True)
    value = loss.backward(syn, memory, run)
    (images, labels), rates = leaves_of(syn), memory["inner_lr"].detach().clone().requires_grad_()
    network = run.network("dd", 2)
    theta = [parameter.detach().clone().requires_grad_() for parameter in network.parameters()]

    def logits(theta: list[Tensor], images: Tensor) -> Tensor:
        a, b, c, d, e, f = theta
        images = F.avg_pool2d(F.softplus(F.conv2d(images, a, b, padding=1)), 2)
        images = F.avg_pool2d(torch.tanh(F.conv2d(images, c, d, padding=1)), 2)
        return images.reshape(len(images), -1) @ e.T + f

    for step in range(3):
        inner = -(labels * logits(theta, images).log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(inner, theta, create_graph=True)
        theta = [weight - rates[step] * gradient for weight, gradient in zip(theta, gradients, strict=True)]
    real = torch.cat([run.real(c, 4, run.rng("real", 2, c)) for c in range(3)])
    scores = logits(theta, real).log_softmax(1)
    plain = -torch.stack([scores[row, row // 4] for row in range(12)]).mean()
    plain.backward(inputs=[images, labels, rates])
    assert value.item() == pytest.approx(plain.item(), rel=1e-11)
    torch.testing.assert_close(syn.images.grad, images.grad, rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(syn.labels.grad, labels.grad, rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(memory["inner_lr"].grad, rates.grad, rtol=1e-8, atol=1e-13)


def test_dd_declares_what_it_learns(run: DistillRun) -> None:
    loss = DatasetDistillation(inner_steps=4)
    memory = loss.init(run)
    assert memory["inner_lr"].tolist() == [0.02] * 4
    assert loss.params(memory).keys() == set(loss.learned) <= loss.rates.keys()
    assert loss.order == 2


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    ("kind", "field", "value", "sentence"),
    [
        (AttentionMatching, "batch_real", 0, "'batch_real' must be at least 1, got 0"),
        (AttentionMatching, "power", 0.5, "'power' must be at least 1, got 0.5"),
        (AttentionMatching, "weight", -1.0, "'weight' must be at least 0, got -1.0"),
        (FeatureAlignment, "batch_real", 0, "'batch_real' must be at least 1, got 0"),
        (FeatureAlignment, "weight", -1.0, "'weight' must be at least 0, got -1.0"),
        (FeatureRegression, "batch_real", 0, "'batch_real' must be at least 1, got 0"),
        (FeatureRegression, "max_steps", 0, "'max_steps' must be at least 1, got 0"),
        (FeatureRegression, "pool", -1, "'pool' must be at least 0, got -1"),
        (FeatureRegression, "ridge", 0.0, "'ridge' must be above 0, got 0.0"),
        (FeatureRegression, "inner_lr", 0.0, "'inner_lr' must be above 0, got 0.0"),
        (DatasetDistillation, "batch_real", 0, "'batch_real' must be at least 1, got 0"),
        (DatasetDistillation, "inner_steps", 0, "'inner_steps' must be at least 1, got 0"),
        (DatasetDistillation, "inner_lr", 0.0, "'inner_lr' must be above 0, got 0.0"),
    ],
)
def test_refusals(kind: type[Loss], field: str, value: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        kind(**{field: value})


@pytest.mark.parametrize("name", LOSSES)
def test_networks_with_batch_statistics_match_too(name: str, run: DistillRun) -> None:
    inner = run.backbone.make()

    def build(spec: Spec) -> nn.Module:
        network = inner.build(spec)
        network.features.insert(1, nn.BatchNorm2d(6, dtype=torch.float64))
        return network

    run, memory = replace(run, backbone=Given.of("architectures", replace(inner, build=build))), LOSSES[name].init(run)
    for step in range(3):
        syn = batch_of(run)
        assert LOSSES[name].backward(syn, memory, run.at(step)).isfinite()
        assert syn.images.grad is not None
        assert syn.images.grad.isfinite().all()


def test_every_activation_that_our_networks_use_counts() -> None:
    assert {nn.ReLU, nn.Softplus, nn.Tanh} <= set(activations.ACTIVATIONS)
