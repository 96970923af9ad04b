"""SRe2L's recovery: the statistics by hand, the value by its formula, groups, augmentation, the teacher, and its optimiser."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace as replace_plan
from torch import Tensor, nn

from ddbench.api import Batch
from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import Distillation, distill
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError
from ddbench.ops.crops import CropFlip
from ddbench.ops.moments import batch_norms, moment_distances
from ddbench.seeds import stream
from ddbench.testing import TOY_NORMED_ARCH, prepared, toy_plan, toy_run
from ddbench_plugins.losses.bn_statistics import BatchNormStatistics, Squeezed
from ddbench_plugins.spaces.pixel import Pixel

PLAIN = BatchNormStatistics(bn_weight=0.5, crop=False, roll=0, teacher_epochs=2)


def ready(loss: BatchNormStatistics, ipc: int = 2) -> DistillRun:
    return prepared(loss, toy_run(ipc=ipc, double=True, arch=TOY_NORMED_ARCH))


def batch(run: DistillRun) -> Batch:
    classes = torch.arange(3).repeat_interleave(run.ipc)
    images = torch.randn(len(classes), *run.spec.shape, generator=stream("images"), dtype=torch.float64)
    return Batch(images.requires_grad_(), F.one_hot(classes, 3).double(), classes)


def test_moments_are_those_by_hand() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Tanh(), nn.BatchNorm2d(2)).double().eval()
    network[0].running_mean.copy_(torch.tensor([0.5, -1.0]))
    network[0].running_var.copy_(torch.tensor([2.0, 0.25]))
    images = torch.randn(3, 2, 4, 5, generator=stream("x"), dtype=torch.float64)
    with moment_distances(network) as found:
        out = network[1](network[0](images))
        network[2](out)
    flat = images.transpose(0, 1).reshape(2, -1)
    mean = flat.sum(1) / 60
    var = ((flat - mean[:, None]) ** 2).sum(1) / 60  # biased
    wanted = ((mean - network[0].running_mean) ** 2).sum().sqrt() + ((var - network[0].running_var) ** 2).sum().sqrt()
    assert len(found) == 2
    torch.testing.assert_close(found[0], wanted)
    assert not network[0]._forward_pre_hooks


def by_formula(loss: BatchNormStatistics, syn: Batch, run: DistillRun, groups: list[list[int]]) -> Tensor:
    """The value with every layer's input computed by running the layers before it."""
    teacher = run.network("teacher").double()
    teacher.load_state_dict(run.resource(loss._teacher()))
    teacher.eval()
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        maps, first = syn.images[group], True
        for layer in teacher.features:
            if isinstance(layer, nn.BatchNorm2d):
                mean = (maps.mean((0, 2, 3)) - layer.running_mean).norm()
                var = (maps.var((0, 2, 3), unbiased=False) - layer.running_var).norm()
                total = total + loss.bn_weight * (loss.first_multiplier if first else 1.0) * (mean + var)
                first = False
            maps = layer(maps)
        logits = teacher.classifier(maps.flatten(1))
        total = total - (syn.labels[group] * logits.log_softmax(1)).sum(1).mean()
    return total


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, [[0, 2, 4], [1, 3, 5]]),  # one image of each class
        ({"classes_a_group": 2}, [[0, 2], [4], [1, 3], [5]]),
        ({"by_class": True}, [[0, 1], [2, 3], [4, 5]]),
    ],
)
def test_the_value_is_the_formula_and_groups_are_apart(changes: dict[str, object], groups: list[list[int]]) -> None:
    loss = replace(PLAIN, **changes)
    run = ready(loss)
    syn = batch(run)
    value = loss.backward(syn, {}, run)
    torch.testing.assert_close(value, by_formula(loss, syn, run, groups).detach())
    (wanted,) = torch.autograd.grad(by_formula(loss, syn, run, groups), syn.images)
    assert syn.images.grad is not None
    torch.testing.assert_close(syn.images.grad, wanted)


def test_one_view_serves_a_group() -> None:
    loss = replace(PLAIN, crop=True, roll=3, roll_both_ways=True)
    run = ready(loss).at(7)
    images = batch(run).images.detach()
    views = loss._views(run, 2)
    seen = views[1](images[:3])
    cropped = CropFlip().draw(run.rng("crop", 7, 1))(images[:3])
    down, right = torch.randint(-3, 4, (2,), generator=run.rng("roll", 7, 1)).tolist()
    assert (down, right) != (0, 0)
    torch.testing.assert_close(seen, cropped.roll((down, right), (2, 3)))
    assert not torch.equal(seen, views[0](images[:3]))


def test_shifts_stay_in_their_range() -> None:
    for both in (False, True):
        loss = replace(PLAIN, roll=2, roll_both_ways=both)
        run = toy_run(arch=TOY_NORMED_ARCH)
        image = torch.zeros(1, 1, 8, 8)
        image[0, 0, 4, 4] = 1
        found = {tuple(loss._views(run.at(step), 1)[0](image)[0, 0].nonzero()[0].tolist()) for step in range(200)}
        low = 2 if both else 4
        assert found == {(y, x) for y in range(low, 7) for x in range(low, 7)}


def test_a_backbone_without_statistics_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match="the backbone has none: name another, such as resnet18-bn"):
        PLAIN.check(6, toy_run())
    PLAIN.check(6, toy_run(arch=TOY_NORMED_ARCH))
    assert PLAIN.needs(toy_run(arch=TOY_NORMED_ARCH)) == (Squeezed(2, 0.2, 256, 0.9, 1e-4, 5, "crop"),)
    assert len(batch_norms(toy_run(arch=TOY_NORMED_ARCH).network("x"))) == 2


def test_the_teacher_is_trained_and_told() -> None:
    run = toy_run(arch=TOY_NORMED_ARCH)
    teacher = Squeezed(30, 0.1, 12, 0.9, 1e-4, 5, "crop")
    network = run.network("teacher")
    network.load_state_dict(teacher.build(run))
    right = network.eval()(run.data.seen(run.data.images)).argmax(1) == run.data.labels
    assert float(right.float().mean()) > 0.9
    effort = teacher.effort(run)
    assert effort.images == 30 * 36
    assert effort.bytes >= 4 * sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("wrong", [{"roll": -1}, {"bn_weight": -0.1}, {"teacher_lr": 0.0}, {"classes_a_group": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"must be at least|above 0"):
        BatchNormStatistics(**wrong)


# ---------------------------------------------------------------- what a plan for it needs of the engine


def test_adam_and_cosine_are_torchs() -> None:
    loss, space = PLAIN, Pixel(init_from="noise")
    run = prepared(loss, toy_run(arch=TOY_NORMED_ARCH))
    plan = replace_plan(toy_plan(loss, space), optimizer="adam", schedule="cosine", steps=5, rates={"pixels": 0.1})
    loop = Distillation(plan, run, Stopwatch(run.device))
    loop.begin()
    pixels = loop.state.params["pixels"].detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], 0.1, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for step in range(5):
        optimizer.zero_grad()
        loss.backward(Batch(pixels, loop.hard, loop.classes), {}, run.at(step))
        optimizer.step()
        schedule.step()
        loop.one_step()
        torch.testing.assert_close(loop.state.params["pixels"], pixels)


def test_adam_survives_a_checkpoint() -> None:
    loss, space = PLAIN, Pixel(init_from="noise", clamp=True)
    run = prepared(loss, toy_run(arch=TOY_NORMED_ARCH))
    plan = replace_plan(toy_plan(loss, space), optimizer="adam", schedule="cosine", steps=6, rates={"pixels": 0.1})
    whole = distill(plan, run, Stopwatch(run.device))
    first = Distillation(plan, run, Stopwatch(run.device))
    first.begin()
    for _ in range(3):
        first.one_step()
    second = Distillation(plan, run, Stopwatch(run.device))
    second.take_up(*first.put_away())
    while second.step < 6:
        second.one_step()
    second.leave_stage()
    assert torch.equal(second.result().images, whole.images)


def test_clamped_pixels_stay_in_the_range_of_real_ones() -> None:
    loss = replace(PLAIN, bn_weight=5.0)
    run = prepared(loss, toy_run(arch=TOY_NORMED_ARCH))
    sets = {}
    for clamp in (False, True):
        space = Pixel(init_from="noise", clamp=clamp)
        plan = replace_plan(toy_plan(loss, space), steps=3, optimizer="adam", rates={"pixels": 1.0})
        sets[clamp] = run.spec.denormalise(distill(plan, run, Stopwatch(run.device)).images)
    assert float(sets[False].abs().max()) > 1.01
    assert -1e-6 < float(sets[True].min()) <= 0.01
    assert 0.99 <= float(sets[True].max()) < 1 + 1e-6


# ---------------------------------------------------------------- labels


def test_the_teacher_labels_the_finished_set_and_no_step() -> None:
    run = prepared(PLAIN, toy_run(arch=TOY_NORMED_ARCH))
    plan = replace_plan(toy_plan(PLAIN, Pixel(init_from="noise")), steps=3, rates={"pixels": 0.1})
    hard, soft = (distill(replace_plan(plan, labels=kind), run, Stopwatch(run.device)) for kind in ("hard", "teacher"))
    assert torch.equal(hard.images, soft.images)  # the steps matched the classes
    assert torch.equal(hard.labels, F.one_hot(hard.classes, 3).float())
    teacher = run.network("any")
    teacher.load_state_dict(run.resource(PLAIN._teacher()))
    with torch.no_grad():
        wanted = teacher.eval()(soft.images).softmax(1)
    torch.testing.assert_close(soft.labels, wanted)
    assert not torch.allclose(soft.labels, hard.labels, atol=0.01)


def test_priors_are_added_for_every_group() -> None:
    weighted = replace(PLAIN, variation_weight=0.3, norm_weight=0.7)
    run = ready(PLAIN)
    syn, plain = batch(run), batch(run)
    value, without = weighted.backward(syn, {}, run), PLAIN.backward(plain, {}, run)
    extra = torch.zeros((), dtype=torch.float64)
    x = syn.images.detach()
    for group in ([0, 2, 4], [1, 3, 5]):
        part, squares = x[group], [0.0] * 4
        for image in part:
            for channel in image:
                for i in range(8):
                    for j in range(8):
                        for number, (down, right) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
                            if i + down < 8 and 0 <= j + right < 8:
                                squares[number] += float(channel[i + down, j + right] - channel[i, j]) ** 2
        extra += 0.3 * sum(square**0.5 for square in squares)
        extra += 0.7 * sum(float((image**2).sum()) ** 0.5 for image in part) / 3
    torch.testing.assert_close(value - without, extra)
    assert syn.images.grad is not None
    assert plain.images.grad is not None
    assert not torch.allclose(syn.images.grad, plain.images.grad)


def test_squeezing_can_shift_instead_of_crop() -> None:
    run = toy_run(arch=TOY_NORMED_ARCH)
    crop, shift = (Squeezed(2, 0.1, 12, 0.9, 1e-4, 0, kind).build(run) for kind in ("crop", "shift"))
    assert not torch.equal(crop["features.0.weight"], shift["features.0.weight"])
