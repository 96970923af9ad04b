"""Several networks trained at once: every one as the plain loop trains it alone, up to the rounding of sums."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stacked_runs import ADAMW, FULL, NETWORKS, NUM_CLASSES, RECIPE, fresh, images_for, names_of
from torch import Tensor, nn

from ddbench.api import Augment, Recipe, View
from ddbench.compute.run import be_deterministic
from ddbench.compute.stacked import Stack, train_stacked
from ddbench.compute.train import can_stack, cross_entropy, train
from ddbench.errors import DataError
from ddbench.evaluate.teacher import follow
from ddbench.ops.augment import OPS, SiameseAugment, apply_together
from ddbench.ops.crops import CropFlip
from ddbench.ops.layers import Dropout
from ddbench.seeds import global_stream, stream
from ddbench.testing import toy_network, toy_spec


def plain(networks: list[nn.Module], images: Tensor, targets: Tensor, recipe: Recipe, augment: Augment | None, **more: Any):
    """Each by itself: the losses of the last epoch, and those of every step, [R, steps]."""
    own, objective = [], more.pop("objective", cross_entropy)
    steps: list[list[Tensor]] = []

    def spy(network: nn.Module, images: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
        loss = objective(network, images, targets, rng)
        steps[-1].append(loss.detach())
        return loss

    for network, name in zip(networks, names_of(len(networks)), strict=True):
        steps.append([])
        own.append(train(network, images, targets, recipe, name, augment, spy, **more))
    return own, torch.stack([torch.stack(losses) for losses in steps])


def stacked(networks: list[nn.Module], images: Tensor, targets: Tensor, recipe: Recipe, augment: Augment | None, **more: Any):
    """All at once, likewise."""
    steps: list[Tensor] = []
    step = Stack.step

    def spy(stack: Stack, images: Tensor, targets: Tensor) -> Tensor:
        losses = step(stack, images, targets)
        steps.append(losses.clone())
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "step", spy)
        last = train_stacked(networks, images, targets, recipe, names_of(len(networks)), augment, **more)
    return last, torch.stack(steps, 1)


def assert_alike(ones: list[nn.Module], others: list[nn.Module], bound: float = 1e-9) -> None:
    """Every weight and every buffer."""
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=bound, atol=bound)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).double() for tensor in network.state_dict().values()])


def distance(one: nn.Module, other: nn.Module) -> float:
    """The largest of their parameters' differences."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((mine - theirs).detach().abs().max()) for mine, theirs in pairs)


def compare(name: str, recipe: Recipe, augment: Augment | None, num: int = 2, targets: Tensor | None = None, **more: Any) -> None:
    """Train both ways; losses of every step, last losses, weights and buffers must agree, and must have moved."""
    images, classes = images_for(name)
    targets, before = classes if targets is None else targets, fresh(name, num)
    alone, together = deepcopy(before), deepcopy(before)
    last, steps = plain(alone, images, targets, recipe, augment, **more)
    last_together, steps_together = stacked(together, images, targets, recipe, augment, **more)
    assert steps.shape == (num, recipe.epochs * -(-len(images) // recipe.batch))
    torch.testing.assert_close(steps_together, steps, rtol=1e-9, atol=1e-9)
    assert last_together == pytest.approx(last, rel=1e-9)
    assert_alike(together, alone)
    assert all(distance(one, other) > 1e-3 for one, other in zip(alone, before, strict=True))
    assert distance(alone[0], alone[1]) > 1e-2
    assert not any(network.training for network in together)


# ---------------------------------------------------------------- as the plain loop


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_trained_as_the_plain_loop_trains_it(name: str) -> None:
    compare(name, RECIPE, SiameseAugment(FULL))


@pytest.mark.parametrize("name", ["convnet-bn", "vit"])
@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.0},
        {"batch": 7},
        {"batch": 100},
        {"augment": False},
        {"schedule": "step", "warmup_epochs": 0},
        {"epochs": 1, "schedule": "constant", "warmup_epochs": 0},
    ],
    ids=lambda changes: ", ".join(f"{key} {value}" for key, value in changes.items()),
)
def test_whatever_the_recipe(name: str, changes: dict[str, Any]) -> None:
    compare(name, replace(RECIPE, **changes), SiameseAugment(FULL))


@pytest.mark.parametrize("ema", [0.0, 0.6])
@pytest.mark.parametrize("batch", [3, 100])
def test_adamw(ema: float, batch: int) -> None:
    """On smooth layers without normalisation: a gradient that is 0 but for rounding makes a step of full length."""
    compare("toy", replace(ADAMW, ema=ema, batch=batch), SiameseAugment(FULL))


def test_soft_labels_crops_and_a_teacher() -> None:
    soft = torch.rand(7, NUM_CLASSES, generator=stream("soft"), dtype=torch.float64).softmax(1)
    compare("convnet-bn", RECIPE, CropFlip(), targets=soft)
    (teacher,) = fresh("convnet-bn", 3)[2:]
    compare("convnet-bn", replace(RECIPE, lr=0.01), CropFlip(), objective=follow(teacher.eval().requires_grad_(False), 4.0))


@pytest.mark.parametrize("name", ["convnet-bn", "resnet18-bn"])
def test_networks_and_images_with_their_channels_last(name: str) -> None:
    """The layout of a tensor in memory is none of its values."""
    (images, targets), before = images_for(name), fresh(name, 2)
    alone = deepcopy(before)
    together = [network.to(memory_format=torch.channels_last) for network in deepcopy(before)]  # type: ignore[call-overload]
    _, steps = plain(alone, images, targets, RECIPE, SiameseAugment(FULL))
    images = images.contiguous(memory_format=torch.channels_last)
    _, steps_together = stacked(together, images, targets, RECIPE, SiameseAugment(FULL))
    torch.testing.assert_close(steps_together, steps, rtol=1e-9, atol=1e-9)
    assert_alike(together, alone)


def test_no_augmentation_at_hand_is_none() -> None:
    compare("convnet", RECIPE, None)


def test_images_prepared_ahead_of_their_epochs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (images, targets), results = images_for("convnet"), []
    for size in (1, 1 << 30):  # an epoch at a time; all at once
        monkeypatch.setattr("ddbench.compute.batches.PREPARED_BYTES", size)
        networks = fresh("convnet", 2)
        stacked(networks, images, targets, RECIPE, SiameseAugment(FULL))
        results.append(networks)
    for one, other in zip(*results, strict=True):
        assert torch.equal(weights(one), weights(other))


def test_epochs_are_told_in_order() -> None:
    (images, targets), told = images_for("toy"), list[int]()
    stacked(fresh("toy", 2), images, targets, RECIPE, None, on_epoch=told.append)
    assert told == [0, 1, 2]


# ---------------------------------------------------------------- the same draws


class Spy(SiameseAugment):
    """Notes what is drawn, by the seed of the stream it is drawn from."""

    drawn: dict[int, tuple[str, list[float]]]

    def draw(self, rng: torch.Generator, num: int | None = None) -> Any:
        view = super().draw(rng, num)
        assert rng.initial_seed() not in self.drawn
        self.drawn[rng.initial_seed()] = (view.op, view.uniforms.flatten().tolist())
        return view


def test_augmentation_is_drawn_as_the_plain_loop_draws_it() -> None:
    (images, targets), drawn = images_for("toy"), []
    for way in (plain, stacked):
        spy = Spy(FULL)
        object.__setattr__(spy, "drawn", {})
        way(fresh("toy", 2), images, targets, RECIPE, spy)
        drawn.append(spy.drawn)
    assert len(drawn[0]) == 2 * 3 * 3  # networks, epochs, steps
    assert drawn[0] == drawn[1]
    assert {len(uniforms) for _, uniforms in drawn[0].values()} >= {1, 3}  # the last batch holds one image


def test_dropout_masks_are_those_of_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    (images, targets), draw = images_for("vit"), Dropout.draw
    drawn: list[Any] = []

    def spy(layer: Dropout, like: Tensor, rng: torch.Generator) -> Tensor:
        mask = draw(layer, like, rng)
        drawn[-1].setdefault(rng.initial_seed(), []).append(mask.clone())
        return mask

    monkeypatch.setattr(Dropout, "draw", spy)
    for way in (plain, stacked):
        drawn.append({})
        way(fresh("vit", 2), images, targets, replace(RECIPE, epochs=2), None)
    assert drawn[0].keys() == drawn[1].keys()
    assert len(drawn[0]) == 2
    for seed, masks in drawn[0].items():
        assert len(masks) == 2 * 3 * 7  # epochs, steps, layers
        assert all(torch.equal(mask, other) for mask, other in zip(masks, drawn[1][seed], strict=True))
        assert {float(value) for value in masks[0].unique()} == {0.0, 1 / 0.9}


class Backwards(nn.Module):
    """The toy network between two dropouts, of which the later one is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.inner, self.first = Dropout(0.2), toy_network(toy_spec(NUM_CLASSES, 3, 8)).double(), Dropout(0.4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.inner(self.first(images)))


def test_masks_are_drawn_in_the_order_of_the_calls() -> None:
    results = []
    for way in (plain, stacked):
        with global_stream("network"):
            networks: list[nn.Module] = [Backwards(), Backwards()]
        _, steps = way(networks, *images_for("toy"), RECIPE, None)
        results.append((networks, steps))
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-9, atol=1e-9)
    assert_alike(results[1][0], results[0][0])


def test_networks_draw_masks_again_after_a_stack() -> None:
    networks = fresh("vit", 2)
    stacked(networks, *images_for("vit"), replace(RECIPE, epochs=1), None)
    for network in networks:
        assert all(layer.mask is None for layer in network.modules() if isinstance(layer, Dropout))
        network.train()(images_for("vit", num=2)[0])  # masks of other sizes


# ---------------------------------------------------------------- the company a network keeps


@pytest.mark.parametrize("name", ["convnet-bn", "vit"])
def test_a_network_is_the_same_in_any_company(name: str) -> None:
    (images, targets), results = images_for(name), []
    for num in (1, 2, 3, 4):
        networks = fresh(name, num)
        last, _ = stacked(networks, images, targets, RECIPE, SiameseAugment(FULL))
        results.append((networks, last))
    for networks, last in results:
        assert_alike(networks, results[-1][0][: len(networks)])
        assert last == pytest.approx(results[-1][1][: len(networks)], rel=1e-9)


@pytest.mark.parametrize("name", ["convnet-bn", "vit"])
def test_two_stacks_are_bit_equal_whatever_the_global_generator(name: str) -> None:
    (images, targets), results = images_for(name, dtype=torch.float32), []
    for seed in (1, 2):
        networks = fresh(name, 3, torch.float32)
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        last, steps = stacked(networks, images, targets, RECIPE, SiameseAugment(FULL))
        assert torch.equal(before, torch.random.get_rng_state()), "training moved torch's global generator"
        results.append((networks, last, steps))
    assert results[0][1] == results[1][1]
    assert torch.equal(results[0][2], results[1][2])
    for one, other in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(weights(one), weights(other))


# ---------------------------------------------------------------- what is trained, and what is not


@pytest.mark.parametrize("ema", [0.0, 0.6])
def test_buffers_are_written_back(ema: float) -> None:
    networks = fresh("convnet-bn", 2)
    stacked(networks, *images_for("convnet-bn"), replace(RECIPE, ema=ema), None)
    norms = [[layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)] for network in networks]
    assert len(norms[0]) == 2
    for one, other in zip(*norms, strict=True):
        assert one.num_batches_tracked == other.num_batches_tracked == 9
        assert one.running_mean is not None
        assert other.running_mean is not None
        assert not torch.equal(one.running_mean, other.running_mean)
        assert bool((one.running_mean != 0).all())


class Counting(nn.Module):
    """The toy network; puts another tensor into the place of its buffers with every batch."""

    brightest: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = toy_network(toy_spec(NUM_CLASSES, 3, 8)).double()
        self.register_buffer("brightest", torch.zeros((), dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.brightest, self.batches = torch.maximum(self.brightest, images.max()), self.batches + 1
        return self.inner(images - self.brightest)


def test_buffers_that_are_replaced_are_written_back_too() -> None:
    results = []
    for way in (plain, stacked):
        with global_stream("network"):
            networks = [Counting(), Counting()]
        way(networks, *images_for("toy"), replace(RECIPE, ema=0.0), SiameseAugment("color"))
        assert [network.batches for network in networks] == [9, 9]
        results.append(networks)
    assert_alike(*results)
    assert results[0][0].brightest != results[0][1].brightest


@pytest.mark.parametrize("ema", [0.0, 0.6])
def test_frozen_parameters_stay_and_their_buffers_do_not(ema: float) -> None:
    recipe, results = replace(RECIPE, ema=ema), []
    for way in (plain, stacked):
        networks = fresh("convnet-bn", 2)
        for network in networks:
            network.features.requires_grad_(False)
        before = deepcopy(networks)
        way(networks, *images_for("convnet-bn"), recipe, None)
        for network, old in zip(networks, before, strict=True):
            for (name, parameter), earlier in zip(network.named_parameters(), old.parameters(), strict=True):
                assert parameter.requires_grad == (not name.startswith("features."))
                assert torch.equal(parameter, earlier) == (not parameter.requires_grad), name
        results.append(networks)
    assert_alike(*results)


def test_tensors_stay_where_they_are() -> None:
    """Who holds a parameter of a network holds it after training too."""
    networks = fresh("toy", 2)
    before = [tensor.data_ptr() for network in networks for tensor in network.state_dict().values()]
    stacked(networks, *images_for("toy"), RECIPE, None)
    assert [tensor.data_ptr() for network in networks for tensor in network.state_dict().values()] == before


class Behind(nn.Module):
    """The toy network behind a layer."""

    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.inner = layer, toy_network(toy_spec(NUM_CLASSES, 3, 8)).double()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(self.layer(images))


def test_what_can_be_stacked() -> None:
    for name in NETWORKS:
        assert can_stack(fresh(name, 1)[0]), name
    assert can_stack(Behind(nn.Dropout(0.0)))
    assert can_stack(Behind(Dropout(0.3)))
    for layer in (nn.Dropout(0.1), nn.Dropout2d(0.1), nn.AlphaDropout(0.1)):
        assert not can_stack(Behind(layer)), layer


def test_a_draw_from_the_global_generator_is_never_stacked_unseen() -> None:
    """What `can_stack` cannot see stops at the first step, and does not draw one mask for all networks."""
    networks = [Behind(lambda images: F.dropout(images, 0.3)) for _ in range(2)]
    assert can_stack(networks[0])
    with pytest.raises(RuntimeError, match="random"):
        stacked(networks, *images_for("toy"), RECIPE, None)


@pytest.mark.parametrize("bad", [0, 1])
def test_divergence_of_one_network_is_a_sentence(bad: int) -> None:
    networks = fresh("toy", 2)
    with torch.no_grad():
        next(networks[bad].parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match=r"training diverged: the loss of the last epoch is nan at rate 0\.05"):
        stacked(networks, *images_for("toy"), RECIPE, None)


# ---------------------------------------------------------------- views applied together


def drawn_views(dtype: torch.dtype) -> tuple[list[View], list[Tensor]]:
    """Every operation, with parameters for every image of batches of several sizes, shared ones, other strengths, crops."""
    views: list[View] = []
    batches: list[Tensor] = []
    for number, num in enumerate([5, 3, 1, 4, 1, 5]):
        for op in (*OPS, "none"):
            strengths = {"brightness": 0.3, "crop": 0.2, "cutout": 0.3, "scale": 1.5, "rotate": 40.0} if num == 4 else {}
            augment = SiameseAugment(op, **strengths)
            views.append(augment.draw(stream("view", number, op), None if number == 0 else num))
            batches.append(torch.randn(num, 3, 12, 16, generator=stream("batch", number, op), dtype=dtype))
        views.append(CropFlip().draw(stream("crop", number), num))
        batches.append(torch.randn(num, 3, 12, 16, generator=stream("batch", number), dtype=dtype))
    mixed = torch.randperm(len(views), generator=stream("mixed")).tolist()
    return [views[number] for number in mixed], [batches[number] for number in mixed]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_together_are_views_one_by_one_bit_for_bit(dtype: torch.dtype) -> None:
    views, batches = drawn_views(dtype)
    copies = [batch.clone() for batch in batches]
    together = apply_together(views, batches)
    assert len(together) == len(views) == 6 * 8
    for view, batch, copy, made in zip(views, batches, copies, together, strict=True):
        assert torch.equal(made, view(batch)), view
        assert torch.equal(batch, copy)
    changed = [not torch.equal(made, batch) for made, batch in zip(together, batches, strict=True)]
    assert sum(changed) > 30  # "none" changes nothing, nor does a flip that is not


def test_equal_operations_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    num, own = OPS["color"]
    sizes: list[int] = []

    def counted(images: Tensor, uniforms: Tensor, by: SiameseAugment) -> Tensor:
        sizes.append(len(images))
        return own(images, uniforms, by)

    monkeypatch.setitem(OPS, "color", (num, counted))
    augments = [SiameseAugment("color"), SiameseAugment("color", brightness=0.2)]
    views = [augments[number % 2].draw(stream("view", number), 3) for number in range(5)]
    apply_together(views, [torch.randn(3, 3, 8, 8, generator=stream("batch", number)) for number in range(5)])
    assert sorted(sizes) == [6, 9]  # strengths are not mixed


# ---------------------------------------------------------------- on a CUDA device

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_cuda(name: str, num: int, dtype: torch.dtype) -> tuple[list[nn.Module], Tensor, Tensor]:
    be_deterministic(1)
    images, targets = images_for(name, dtype=dtype)
    return [network.cuda() for network in fresh(name, num, dtype)], images.cuda(), targets.cuda()


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize(("name", "recipe"), [("convnet-bn", RECIPE), ("resnet18", RECIPE), ("vit", RECIPE), ("toy", ADAMW)])
def test_a_captured_stack_is_the_plain_loop_on_the_device(name: str, recipe: Recipe) -> None:
    """Rates that differ from epoch to epoch, batches of two sizes, dropout drawn on the device, buffers."""
    recipe, before = replace(recipe, epochs=5, warmup_epochs=2), fresh(name, 3)
    alone, images, targets = on_cuda(name, 3, torch.float64)
    together, *_ = on_cuda(name, 3, torch.float64)
    last, steps = plain(alone, images, targets, recipe, SiameseAugment(FULL))
    last_together, steps_together = stacked(together, images, targets, recipe, SiameseAugment(FULL))
    torch.testing.assert_close(steps_together, steps, rtol=1e-7, atol=1e-7)
    assert last_together == pytest.approx(last, rel=1e-7)
    assert_alike(together, alone, 1e-7)
    assert all(distance(one.cpu(), old) > 1e-3 for one, old in zip(alone, before, strict=True))


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize("name", ["convnet-bn", "vit"])
def test_two_captured_stacks_are_bit_equal(name: str) -> None:
    results = []
    for _ in range(2):
        networks, images, targets = on_cuda(name, 3, torch.float32)
        last, steps = stacked(networks, images, targets, RECIPE, SiameseAugment(FULL))
        results.append((networks, last, steps))
    assert results[0][1] == results[1][1]
    assert torch.equal(results[0][2], results[1][2])
    for one, other in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(weights(one), weights(other))


@pytest.mark.gpu
@ON_CUDA
def test_views_together_on_the_device() -> None:
    views, batches = drawn_views(torch.float32)
    together = apply_together(views, [batch.cuda() for batch in batches])
    for view, batch, made in zip(views, batches, together, strict=True):
        torch.testing.assert_close(made.cpu(), view(batch), rtol=1e-4, atol=1e-4)
