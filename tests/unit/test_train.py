"""The training loop: its schedule, its average of weights, its determinism, and the numbers of plain SGD."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench import protocols
from ddbench.api import Recipe
from ddbench.compute.train import Average, ema_decay, predict, rate_at, train
from ddbench.errors import ConfigError, UntrainableError
from ddbench.ops.augment import SiameseAugment
from ddbench.seeds import global_stream, stream
from ddbench.testing import toy_data, toy_network, toy_spec

SPEC = toy_spec(channels=3)
DATA = toy_data(SPEC)
IMAGES = DATA.seen(DATA.images)
PLAIN = Recipe(epochs=3, lr=0.1, batch=8, augment=False)


def fresh(seed: int = 0) -> nn.Module:
    with global_stream("test", seed):
        return toy_network(SPEC)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).clone() for tensor in network.state_dict().values()])


def trained(recipe: Recipe, name: tuple[str | int, ...] = ("a",), augment: Any = None, **more: Any) -> nn.Module:
    network = more.pop("network", None) or fresh()
    train(network, IMAGES, DATA.labels, recipe, name, augment, **more)
    return network


# ---------------------------------------------------------------- the schedule


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [(0, 1e-7), (250, 0.5), (500, 1.0), (501, 1.0), (600, 0.906), (750, 0.503), (990, 0.0012), (999, 4e-5)],
)
def test_rates_of_glad_1(epoch: int, factor: float) -> None:
    recipe = protocols.load("glad-1").judging.recipe(lr=0.001)
    assert (recipe.epochs, recipe.warmup_epochs) == (1000, 500)
    digits = 0.5 * 10 ** -{0.906: 3, 0.503: 3, 0.0012: 4, 4e-5: 5}.get(factor, 6)  # as many as the protocol prints
    assert rate_at(epoch, recipe) / 0.001 == pytest.approx(factor, abs=digits if factor > 1e-6 else 1e-12)


def test_no_warm_up_is_a_constant_rate() -> None:
    assert {rate_at(epoch, Recipe(epochs=10, lr=0.3)) for epoch in range(10)} == {0.3}


def test_rates_are_the_optimisers() -> None:
    seen = []

    def spy(network: nn.Module, images: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
        seen.append([parameter.detach().clone() for parameter in network.parameters()])
        return sum(parameter.sum() for parameter in network.parameters())  # type: ignore[return-value]

    recipe = Recipe(epochs=6, lr=0.5, batch=100, momentum=0.0, weight_decay=0.0, warmup_epochs=3, augment=False, schedule="glad")
    network = trained(recipe, objective=spy)
    seen.append([parameter.detach() for parameter in network.parameters()])
    for epoch in range(6):
        step = float((seen[epoch][0] - seen[epoch + 1][0]).mean())  # the gradient is 1 everywhere
        assert step == pytest.approx(rate_at(epoch, recipe), abs=1e-6)


@pytest.mark.parametrize(
    "values", [{"epochs": 0}, {"batch": 0}, {"warmup_epochs": 11}, {"warmup_epochs": -1}, {"schedule": "glad"}]
)
def test_recipes_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Recipe(**({"epochs": 10, "lr": 0.1} | values))


# ---------------------------------------------------------------- the average of the weights


def test_decays_of_the_average() -> None:
    decays = [ema_decay(k, 0.995) for k in range(300)]
    assert decays[:4] == [0, 0.5, pytest.approx(2 / 3), 0.75]
    assert decays[198] == pytest.approx(198 / 199)
    assert decays[198] < 0.995
    assert decays[199:] == [0.995] * 101


def test_average_is_a_mean_at_first_and_exponential_then() -> None:
    network = nn.Linear(1, 1, bias=False).double()
    average, plain, values = Average(network, 0.75), 0.0, [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0]
    for k, value in enumerate(values):
        nn.init.constant_(network.weight, value)
        average.update()
        decay = min(0.75, k / (k + 1))
        plain = decay * plain + (1 - decay) * value
        if k < 4:
            assert plain == pytest.approx(sum(values[: k + 1]) / (k + 1))
    average.copy_()
    assert network.weight.item() == pytest.approx(plain, rel=1e-12)
    assert network.weight.requires_grad


def test_train_ends_with_the_average_of_the_epochs() -> None:
    recipe, seen = replace(PLAIN, ema=0.6, epochs=5), []
    network = fresh()
    trained(recipe, network=network, on_epoch=lambda epoch: seen.append((epoch, weights(network))))
    assert [epoch for epoch, _ in seen] == list(range(5))
    plain = torch.zeros_like(seen[0][1])
    for k, live in seen:
        decay = min(0.6, k / (k + 1))
        plain = decay * plain + (1 - decay) * live
    torch.testing.assert_close(weights(network), plain)
    assert not torch.equal(weights(network), seen[-1][1])


def test_average_counts_buffers_in_but_no_integers() -> None:
    network = nn.BatchNorm1d(2)
    average = Average(network, 0.9)
    for value in (1.0, 3.0):
        network.running_mean.fill_(value)
        network.num_batches_tracked.fill_(int(value))
        average.update()
    average.copy_()
    assert network.running_mean.tolist() == [2, 2]
    assert network.num_batches_tracked == 3


# ---------------------------------------------------------------- the steps


@pytest.mark.parametrize("targets", ["classes", "probabilities"])
def test_steps_are_sgd_with_momentum_and_weight_decay(targets: str) -> None:
    recipe = replace(PLAIN, momentum=0.8, weight_decay=0.01, warmup_epochs=1, schedule="glad")
    network, plain = fresh().double(), fresh().double()
    images, one_hot = IMAGES.double(), F.one_hot(DATA.labels, 3).double()
    last = train(network, images, one_hot if targets == "probabilities" else DATA.labels, recipe, ("a",), None)
    velocity = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    losses: list[float] = []
    for epoch in range(3):
        order, losses = torch.randperm(len(images), generator=stream("a", "order", epoch)), []
        for part in [order[start : start + 8] for start in range(0, len(order), 8)]:
            loss = -plain(images[part]).log_softmax(1)[range(len(part)), DATA.labels[part]].mean()
            grads = torch.autograd.grad(loss, list(plain.parameters()))
            losses.append(loss.item())
            with torch.no_grad():
                for parameter, speed, grad in zip(plain.parameters(), velocity, grads, strict=True):
                    speed.mul_(0.8).add_(grad + 0.01 * parameter)
                    parameter.sub_(rate_at(epoch, recipe) * speed)
    torch.testing.assert_close(weights(network), weights(plain), rtol=1e-10, atol=1e-12)
    assert last == pytest.approx(sum(losses) / len(losses))
    assert len(losses) == 5  # 36 images in eights


def test_an_epoch_sees_every_image_once_in_an_order_of_its_own() -> None:
    seen: list[list[float]] = []

    def spy(network: nn.Module, images: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
        seen.append(images[:, 0, 0, 0].tolist())
        return F.cross_entropy(network(images), targets)

    trained(PLAIN, objective=spy)
    epochs = [sum(seen[start : start + 5], []) for start in (0, 5, 10)]  # noqa: RUF017
    wanted = sorted(IMAGES[:, 0, 0, 0].tolist())
    assert all(sorted(epoch) == wanted for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("augment", [None, SiameseAugment(SPEC.augmentation)])
def test_bytes_through_a_view_are_trained_on_to_the_same_bits(augment: Any) -> None:
    recipe, seen = replace(PLAIN, augment=True), list[torch.dtype]()

    def view(images: Tensor) -> Tensor:
        seen.append(images.dtype)
        return SPEC.normalise(images)

    network = fresh()
    last = train(network, DATA.images, DATA.labels, recipe, ("a",), augment, view=view)
    other = fresh()
    assert last == train(other, IMAGES, DATA.labels, recipe, ("a",), augment)
    assert torch.equal(weights(network), weights(other))
    assert seen == [torch.uint8] * 15  # 3 epochs of 36 images, 8 at a time


def test_training_learns_and_ends_in_evaluation_mode() -> None:
    network = trained(replace(PLAIN, epochs=30))
    assert not network.training
    assert float((predict(network, IMAGES, 10) == DATA.labels).float().mean()) > 0.9
    assert torch.equal(predict(network, IMAGES, 7), network(IMAGES).argmax(1))


def test_frozen_parameters_stay() -> None:
    network = fresh()
    network.features.requires_grad_(False)
    before = weights(network.features)
    trained(PLAIN, network=network)
    assert torch.equal(weights(network.features), before)


def test_adamw_is_torchs() -> None:
    recipe = replace(PLAIN, optimizer="adamw", lr=0.01, batch=100, epochs=2)
    network, plain = fresh(), fresh()
    trained(recipe, network=network)
    optimizer = torch.optim.AdamW(plain.parameters(), 0.01, weight_decay=5e-4)
    for epoch in range(2):
        order = torch.randperm(36, generator=stream("a", "order", epoch))
        optimizer.zero_grad()
        F.cross_entropy(plain(IMAGES[order]), DATA.labels[order]).backward()
        optimizer.step()
    torch.testing.assert_close(weights(network), weights(plain))


def test_divergence_is_a_sentence() -> None:
    with pytest.raises(UntrainableError, match=r"training diverged: the loss of the last epoch is nan at rate 0\.1"):
        train(fresh(), IMAGES * torch.nan, DATA.labels, PLAIN, ("a",), None)


# ---------------------------------------------------------------- determinism


class Dropping(nn.Module):
    """The toy network behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = fresh()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(F.dropout(images, 0.3, self.training))


def test_two_runs_are_bit_equal_whatever_the_global_generator() -> None:
    augment, recipe, results = SiameseAugment(SPEC.augmentation), replace(PLAIN, augment=True, ema=0.9), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.rand(seed)
        before = torch.random.get_rng_state()
        results.append(weights(trained(recipe, augment=augment, network=Dropping())))
        assert torch.equal(before, torch.random.get_rng_state()), "training moved torch's global generator"
    assert torch.equal(*results)


def test_the_name_of_the_stream_decides() -> None:
    augment, recipe = SiameseAugment(SPEC.augmentation), replace(PLAIN, augment=True)
    assert not torch.equal(weights(trained(recipe, ("a",), augment)), weights(trained(recipe, ("b",), augment)))
    whole = replace(recipe, batch=100, augment=False)  # one batch: what is left to differ is the order within it
    torch.testing.assert_close(weights(trained(whole, ("a",))), weights(trained(whole, ("b",))), rtol=1e-4, atol=1e-6)


def test_augmentation_is_on_only_where_the_recipe_says_so() -> None:
    augment = SiameseAugment(SPEC.augmentation)
    off = weights(trained(PLAIN, augment=augment))
    assert torch.equal(off, weights(trained(PLAIN, augment=None)))
    assert not torch.equal(off, weights(trained(replace(PLAIN, augment=True), augment=augment)))


def test_augmentation_has_its_own_parameters_for_every_image() -> None:
    drawn = []

    class Spy(SiameseAugment):
        def draw(self, rng: torch.Generator, num: int | None = None) -> Any:
            drawn.append(num)
            return super().draw(rng, num)

    trained(replace(PLAIN, augment=True, epochs=1), augment=Spy(SPEC.augmentation))
    assert drawn == [8, 8, 8, 8, 4]
