"""Rankers: the class-relevant feature distance by hand, validation by training, and the best of a stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace as replace_plan
from ranking import feature_distance, images_of, validation_error
from torch import Tensor, nn

from ddbench.api import Arch, Batch, Spec, State
from ddbench.compute.rank import Classifier, StageBest, needs, scores
from ddbench.compute.run import DistillRun
from ddbench.compute.train import predict, train
from ddbench.data.subsets import TrainingData
from ddbench.errors import PluginError
from ddbench.ops.gated import class_means, gated_features, means_of_batches
from ddbench.ops.layers import Network
from ddbench.testing import TOY_ARCH, Given, toy_data, toy_plan, toy_run, toy_spec
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.spaces.pixel import Pixel


@pytest.fixture
def run() -> DistillRun:
    return toy_run(channels=3)


@pytest.fixture
def plan() -> Any:
    return toy_plan(DistributionMatching(), Pixel())


def real_set(run: DistillRun) -> Batch:
    return Batch(run.data.seen(run.data.images), F.one_hot(run.data.labels, 3).float(), run.data.labels)


# ---------------------------------------------------------------- gated features


class Known(nn.Module):
    """Features are the images; the logit of class c is sum_k a_ck * (sum over the map of x_k)."""

    def __init__(self, weights: list[list[float]]) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward_features(self, images: Tensor) -> Tensor:
        return images

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features.sum((2, 3)) @ self.weights.T


def test_gated_features_by_hand() -> None:
    network = Known([[2.0, -1.0], [0.0, 3.0]])
    images = torch.tensor([[[[1.0, -2.0]], [[5.0, -7.0]]], [[[1.0, 4.0]], [[-1.0, 2.0]]]])  # [2,2,1,2]
    gated = gated_features(network, images, torch.tensor([0, 1]))
    # image 0, class 0: alpha (2, -1): 2 * (1, -2) -> (2, 0); -1 * (5, -7) -> (0, 7).  image 1, class 1: alpha (0, 3)
    assert gated.tolist() == [[[[2.0, 0.0]], [[0.0, 7.0]]], [[[0.0, 0.0]], [[0.0, 6.0]]]]


def test_gated_features_of_a_real_network_by_autograd(run: DistillRun) -> None:
    network = run.network("proxy").eval()
    images, classes = run.data.seen(run.data.images[10:14]), torch.tensor([0, 1, 2, 1])
    gated = gated_features(network, images, classes)
    for number, label in enumerate(classes.tolist()):
        maps = network.forward_features(images[number : number + 1]).detach().requires_grad_()
        (slope,) = torch.autograd.grad(network.forward_head(maps)[0, label], maps)
        for k in range(maps.shape[1]):
            wanted = (slope[0, k].mean() * maps[0, k]).clamp(min=0).detach()
            torch.testing.assert_close(gated[number, k], wanted)
    assert not gated.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_gated_features_work_without_a_graph_around(run: DistillRun) -> None:
    network, real = run.network("proxy").eval(), real_set(run)
    with torch.no_grad():
        inside = gated_features(network, real.images, real.classes)
    assert torch.equal(inside, gated_features(network, real.images, real.classes))


def test_class_means() -> None:
    values = torch.arange(12.0).view(6, 2)
    means = class_means(values, torch.tensor([0, 0, 0, 2, 2, 2]), 4)
    by_hand = [values[:3].mean(0), torch.zeros(2), values[3:].mean(0), torch.zeros(2)]
    torch.testing.assert_close(means, torch.stack(by_hand))
    maps, classes = torch.randn(50, 3, 4, 5, generator=torch.Generator().manual_seed(1)), torch.arange(50) // 7
    plain = torch.stack([maps[classes == label].sum(0) / (classes == label).sum() for label in range(8)])
    torch.testing.assert_close(class_means(maps, classes, 8), plain)
    assert class_means(torch.ones(3, 2, 4, 5), torch.tensor([0, 1, 1]), 2).shape == (2, 2, 4, 5)


def test_feature_distance_is_its_formula(run: DistillRun) -> None:
    network = run.network("proxy").eval().requires_grad_(False)
    images = torch.randn(6, 3, 8, 8, generator=run.rng("images"))
    classes = torch.arange(3).repeat_interleave(2)
    score = feature_distance(network, run)(images_of(images, classes), 0)
    plain = 0.0
    for c in range(3):
        real = run.data.seen(run.data.images[run.data.labels == c])
        real_mean = gated_features(network, real, torch.full((len(real),), c)).mean(0)
        syn_mean = gated_features(network, images[2 * c : 2 * c + 2], torch.tensor([c, c])).mean(0)
        plain += float(((real_mean - syn_mean) ** 2).sum())
    assert float(score) == pytest.approx(plain, rel=1e-5)
    assert score.dim() == 0


def test_feature_distance_is_zero_for_the_real_set_and_grows_with_noise(run: DistillRun) -> None:
    distance = feature_distance(run.network("proxy").eval(), run)
    real = real_set(run)
    assert float(distance(real, 0)) == pytest.approx(0, abs=1e-10)
    noise = torch.randn(real.images.shape, generator=run.rng("noise"))
    found = [float(distance(replace(real, images=real.images + size * noise), 0)) for size in (0, 0.3, 1, 3)]
    assert found == sorted(found)
    assert found[0] < found[1] / 100


def test_feature_distance_looks_at_all_real_images() -> None:
    """More than one batch of them."""
    spec = toy_spec(channels=3)
    run = replace(toy_run(channels=3), data=toy_data(spec, per_class=100))
    assert float(feature_distance(run.network("proxy").eval(), run)(real_set(run), 0)) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("per_class", [2, 100, 300])  # several classes a batch, and several batches a class
def test_the_real_means_are_those_of_all_features_at_once(per_class: int) -> None:
    run = replace(toy_run(channels=3), data=toy_data(toy_spec(channels=3), per_class=per_class))
    network, real = run.network("proxy").eval(), real_set(run)
    whole = class_means(gated_features(network, real.images, real.classes), real.classes, 3)
    batches = zip(real.images.split(256), real.classes.split(256), strict=True)
    torch.testing.assert_close(means_of_batches(batches, run.class_counts, partial(gated_features, network)), whole)


def test_the_proxy_is_trained_on_real_images_only_where_a_ranker_needs_it(run: DistillRun, plan: Any) -> None:
    assert needs(plan.without_idle_settings()) == ()
    assert needs(replace_plan(plan, rank_stages="validation").without_idle_settings()) == ()
    ranked = replace_plan(plan, rank_steps="feature-distance", proxy_epochs=250)
    (need,) = needs(ranked.without_idle_settings())
    assert need == Classifier(plan.proxy, 250)
    assert need in needs(replace_plan(ranked, rank_steps="last", rank_stages="feature-distance").without_idle_settings())
    assert needs(replace_plan(ranked, baseline=Given.of("baselines", None))) == ()
    tensors = need.build(run)
    network = run.build(ranked.proxy, "anything")
    network.load_state_dict(tensors)
    real = real_set(run)
    assert float((predict(network.eval(), real.images, 9) == run.data.labels).float().mean()) > 0.8
    loaded, of_stages = scores(ranked, replace(run, resources={need: tensors}))
    assert loaded
    assert of_stages is None
    wanted = feature_distance(network.requires_grad_(False), run)
    noisy = replace(real, images=real.images + torch.randn(real.images.shape, generator=run.rng("noise")))
    torch.testing.assert_close(loaded(noisy, 0), wanted(noisy, 0))
    with pytest.raises(PluginError, match="not declared"):
        scores(ranked, run)


def test_last_and_loss_have_no_score(run: DistillRun, plan: Any) -> None:
    assert scores(plan, run) == (None, None)
    assert scores(replace_plan(plan, rank_steps="loss"), run) == (None, None)


# ---------------------------------------------------------------- validation


def test_validation_error_is_the_error_of_networks_trained_on_the_set(run: DistillRun, plan: Any) -> None:
    plan = replace_plan(plan, rank_epochs=6, rank_repeats=2, ranking=replace_plan(plan.ranking, epochs=20, warmup_epochs=10))
    real = real_set(run)
    few = Batch(real.images[::3], real.labels[::3], real.classes[::3])
    score = validation_error(plan, run)(few, 0)
    recipe = replace_plan(plan.ranking, epochs=6, warmup_epochs=3).recipe(TOY_ARCH.lr)
    errors = []
    for repeat in range(2):
        network = run.network("rank", repeat)
        train(network, few.images, few.labels, recipe, ("toy", "rank", repeat), run.augment)
        errors.append((network(run.data.seen(run.data.validation_images)).argmax(1) != run.data.validation_labels).float().mean())
    assert float(score) == pytest.approx(float(sum(errors)) / 2)
    assert torch.equal(score, validation_error(plan, run)(few, 5))  # at every step alike


@dataclass(frozen=True)
class Forbidden(TrainingData):
    """Training images that must not be looked at."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("images", "labels"):
            raise AssertionError(f"read the training {name}")
        return super().__getattribute__(name)


def test_validation_error_reads_the_held_out_images_only(run: DistillRun, plan: Any) -> None:
    data = run.data
    guarded = Forbidden(data.spec, data.images, data.labels, data.starts, data.validation_images, data.validation_labels)
    real = real_set(run)
    plan = replace_plan(plan, rank_epochs=60, ranking=replace_plan(plan.ranking, lr_factor=2.0, augment="none"))
    good = float(validation_error(plan, replace(run, data=guarded))(real, 0))
    swapped = replace(data, validation_labels=(data.validation_labels + 1) % 3)
    bad = float(validation_error(plan, replace(run, data=swapped))(real, 0))
    assert good < 0.2
    assert bad > 0.8


def test_validation_trains_on_the_labels_of_the_set(run: DistillRun, plan: Any) -> None:
    """Learned labels are part of the set: wrong ones make a bad set of good images."""
    real = real_set(run)
    plan = replace_plan(plan, rank_epochs=60, ranking=replace_plan(plan.ranking, lr_factor=2.0, augment="none"))
    score = validation_error(plan, run)
    assert float(score(replace(real, labels=real.labels.roll(1, 1)), 0)) > 0.8 > float(score(real, 0))


def test_validation_without_held_out_images_is_a_sentence(run: DistillRun, plan: Any) -> None:
    data = replace(run.data, validation_images=run.data.images[:0], validation_labels=run.data.labels[:0])
    with pytest.raises(PluginError, match="needs a validation split"):
        validation_error(plan, replace(run, data=data))(real_set(run), 0)


# ---------------------------------------------------------------- the best of a stage


def state_of(value: float) -> State:
    return State({"pixels": torch.full((2,), float(value), requires_grad=True)}, {"mask": torch.ones(1)}, 3)


@pytest.mark.parametrize(
    ("scores", "winner"),
    [
        ([3.0, 1.0, 2.0], 1),
        ([1.0, 1.0, 1.0], 0),
        ([torch.nan, 5.0, 6.0], 1),
        ([4.0, torch.nan, 3.0], 2),
        ([torch.inf, 2.0], 1),
    ],
)
def test_best_is_the_first_smallest(scores: list[float], winner: int) -> None:
    best = StageBest()
    for number, score in enumerate(scores):
        best.offer(state_of(number), torch.tensor(score), 10 + number)
    kept = best.state(state_of(-1))
    assert kept.params["pixels"].tolist() == [winner] * 2
    assert (int(best.step), float(best.score), kept.stage) == (10 + winner, scores[winner], 3)
    assert kept.params["pixels"].requires_grad


def test_best_is_a_copy() -> None:
    best, state = StageBest(), state_of(1.0)
    best.offer(state, torch.tensor(1.0), 0)
    with torch.no_grad():
        state.params["pixels"].add_(1)
    assert best.params["pixels"].tolist() == [1, 1]
    best.offer(state, torch.tensor(0.5), 1)
    kept = best.state(state)
    with torch.no_grad():
        state.params["pixels"].add_(1)
        kept.params["pixels"].add_(7)
    assert best.params["pixels"].tolist() == [2, 2]


def test_best_survives_a_checkpoint() -> None:
    best = StageBest()
    best.offer(state_of(1.0), torch.tensor(1.0), 5)
    again = StageBest.of_tensors({name: tensor.clone() for name, tensor in best.tensors().items()})
    for each in (best, again):
        each.offer(state_of(2.0), torch.tensor(2.0), 6)
        each.offer(state_of(3.0), torch.tensor(0.0), 7)
    assert torch.equal(best.params["pixels"], again.params["pixels"])
    assert (int(again.step), float(again.score)) == (7, 0.0)


def test_proxy_may_be_any_architecture(run: DistillRun, plan: Any) -> None:
    def build(spec: Spec) -> nn.Module:
        return Network(nn.Conv2d(3, 2, 8), nn.Identity(), nn.Linear(2, 3))

    proxy = Given.of("architectures", Arch(build, 0.1, 8), "other")
    (need,) = needs(replace_plan(plan, rank_steps="feature-distance", proxy=proxy))
    assert need.build(run)["features.weight"].shape == (2, 3, 8, 8)
    assert need.describe() == "classifier other, 1 epochs"
