"""Baselines that select real images: their rules against plain forms, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddbench.api import Recipe
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError
from ddbench.ops.tiles import cut, joined
from ddbench.ops.trained import TrainedBackbone, features_of_classes
from ddbench.testing import prepared, toy_run
from ddbench_plugins.baselines import scores
from ddbench_plugins.baselines.coresets import Herding, KCenter, KMeans
from ddbench_plugins.baselines.generated import GeneratorMeans, GeneratorSamples
from ddbench_plugins.baselines.rded import Rded
from ddbench_plugins.baselines.real import RandomReal
from ddbench_plugins.baselines.scores import El2n, ErrorNorms, Forgetting, ForgettingEvents, hardest
from ddbench_plugins.spaces.layered import glad


@pytest.fixture
def run() -> DistillRun:
    return replace(toy_run(), ipc=3)


@pytest.fixture
def features() -> Tensor:
    return nn.functional.normalize(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), dim=1)


def test_herding_takes_the_image_that_brings_the_mean_nearest(run: DistillRun, features: Tensor) -> None:
    chosen = list(Herding().choose(features, 0, run))
    for number in range(3):

        def gap(place: int, before: list[int] = chosen[:number]) -> float:
            return float((features.mean(0) - features[[*before, place]].mean(0)).norm())

        others = set(range(12)) - set(chosen[:number])
        assert gap(chosen[number]) == pytest.approx(min(map(gap, others)))
    assert len(set(chosen)) == 3


def test_herding_begins_with_the_image_nearest_to_the_mean() -> None:
    chosen = Herding().choose(torch.tensor([[0.0, 1], [1, 0], [0.7, 0.7]]), 0, replace(toy_run(), ipc=1))
    assert list(chosen) == [2]


def test_k_center_takes_the_farthest_image_each_time(run: DistillRun, features: Tensor) -> None:
    chosen = list(KCenter().choose(features, 0, run))
    assert chosen[0] == int((features - features.mean(0)).norm(dim=1).argmin())
    for number in (1, 2):
        nearest = torch.cdist(features, features[chosen[:number]]).amin(1)
        assert float(nearest[chosen[number]]) == pytest.approx(float(nearest.max()))


def test_k_means_takes_an_image_of_every_cluster(run: DistillRun) -> None:
    rng = torch.Generator().manual_seed(0)
    centres = torch.tensor([[10.0, 0], [0, 10], [-10, -10]])
    blobs = centres.repeat_interleave(4, 0) + 0.1 * torch.randn(12, 2, generator=rng)
    assert sorted(place // 4 for place in KMeans().choose(blobs, 0, run)) == [0, 1, 2]


def test_k_means_never_takes_an_image_twice(run: DistillRun) -> None:
    alike = torch.zeros(12, 4) + 1e-9 * torch.arange(12)[:, None]
    assert len(set(KMeans().choose(alike, 0, run))) == 3


def test_features_are_those_of_the_trained_network_in_evaluation_mode(run: DistillRun) -> None:
    need = TrainedBackbone(2)
    run = prepared(Herding(epochs=2), run)
    network = run.network("other")
    network.load_state_dict(run.resource(need))
    images = run.read(1, None)
    expected = network.eval().forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features_of_classes(run, need)[1], nn.functional.normalize(expected.detach(), dim=1))


# ---------------------------------------------------------------- scores


def test_an_image_is_forgotten_when_it_is_right_and_then_wrong(run: DistillRun, monkeypatch: pytest.MonkeyPatch) -> None:
    history = ["1111", "1010", "0000", "0101", "1000", "0011"]  # of six images: right in each of four epochs
    wanted = [0.0, 2.0, torch.inf, 1.0, 1.0, 0.0]
    epoch = [0]

    def right(network: nn.Module, run: Any) -> list[Tensor]:
        now = torch.tensor([each[epoch[0]] == "1" for each in history])
        return [now[:4], now[4:]]  # two classes

    class Scripted:
        def network(self, *name: str) -> nn.Module:
            return nn.Identity()

        def train(self, network: nn.Module, recipe: Recipe, *name: str, on_epoch: Callable[[int], None]) -> None:
            for epoch[0] in range(4):
                on_epoch(epoch[0])

    monkeypatch.setattr(scores, "_right", right)
    made = ForgettingEvents(4, 0.1).build(Scripted())
    assert made["events"].tolist() == wanted


def test_what_is_right_is_what_the_network_says_in_evaluation_mode(run: DistillRun) -> None:
    network = run.network("some").train()
    for label, right in enumerate(scores._right(network, run)):
        logits = network.eval()(run.read(label, None))
        assert torch.equal(right, logits.argmax(1) == label)
        network.train()


def test_error_norms_are_the_mean_length_of_probabilities_minus_label(run: DistillRun) -> None:
    made = ErrorNorms(2, 1, 0.01).build(run)["norms"]
    expected = torch.zeros(36)
    for number in range(2):
        network = run.network("error-norm", number)
        run.train(network, Recipe(1, 0.01), "error-norm", number)
        parts = []
        for label in range(3):
            off = network.eval()(run.read(label, None)).softmax(1).detach()
            off[:, label] -= 1
            parts.append(off.square().sum(1).sqrt())
        expected += torch.cat(parts) / 2
    torch.testing.assert_close(made, expected)


def test_the_hardest_images_of_each_class_are_taken(run: DistillRun) -> None:
    values = torch.rand(36, generator=torch.Generator().manual_seed(0))
    values[14] = torch.inf
    made = hardest(values, run)
    for label, part in enumerate(values.split(12)):
        own = {run.read(label, None)[place].numpy().tobytes() for place in part.topk(3).indices.tolist()}
        assert {image.numpy().tobytes() for image in made.images[made.classes == label]} == own


def test_of_images_that_are_equally_hard_chance_takes_some(run: DistillRun) -> None:
    first, second = (hardest(torch.zeros(36), replace(run, root=("distill", seed))) for seed in (0, 1))
    assert not torch.equal(first.images, second.images)


# ---------------------------------------------------------------- crops of a teacher


def test_rded_takes_the_crop_that_its_teacher_is_surest_of(run: DistillRun) -> None:
    baseline = Rded(pool=6, crops=4, epochs=2)
    run = prepared(baseline, run)
    teacher = baseline._teacher.load(run)

    def loss(images: Tensor, label: int) -> Tensor:
        return -teacher(images).log_softmax(1)[:, label]

    made = baseline.build(run)
    more = Rded(pool=6, crops=1, epochs=2).build(run)
    for label in range(3):
        own, fewer = (loss(each.images[each.classes == label], label) for each in (made, more))
        assert bool((own.diff() >= 0).all()), "the best come first"
        assert bool((own <= fewer + 1e-6).all()), "of four crops the best is at least as good as the first"


def test_tiles_that_are_cut_and_joined_are_the_image() -> None:
    images = torch.randn(2, 3, 8, 7)
    tiles = cut(images, 3, torch.full((3, 1, 1), 9.0))
    assert tiles.shape == (2, 9, 3, 3, 3)
    assert bool((tiles[:, 8, :, 2] == 9).all()), "what lies outside"
    assert torch.equal(joined(tiles.flatten(0, 1), 3, (8, 7)), images)


def test_rded_tiles_the_best_crops(run: DistillRun) -> None:
    run = replace(run, ipc=1)
    one, four = Rded(pool=6, crops=2, epochs=2), Rded(pool=6, crops=2, epochs=2, factor=2)
    run = prepared(one, run)
    best, tiled = one.build(run), four.build(run)
    small = nn.functional.interpolate(best.images, (4, 4), mode="bilinear", antialias=True)
    torch.testing.assert_close(tiled.images[:, :, :4, :4], small)


@pytest.mark.parametrize(
    "baseline", [RandomReal(), Herding(), KCenter(), KMeans(), Forgetting(), El2n(), Rded()], ids=lambda each: type(each).__name__
)
def test_more_images_than_a_class_has_are_refused(run: DistillRun, baseline: Any) -> None:
    with pytest.raises(ConfigError, match="lower"):
        baseline.check(replace(run, ipc=13))


def test_rded_refuses_more_tiles_than_it_looks_at(run: DistillRun) -> None:
    with pytest.raises(ConfigError, match="needs 12 images of a class, 3 times 4, and has 10"):
        Rded(pool=10, factor=2).check(run)


# ---------------------------------------------------------------- a generator's own images


def test_a_generator_s_samples_are_what_glad_starts_from_and_its_means_what_hpd_does(run: DistillRun) -> None:
    for baseline, space in ((GeneratorSamples(), glad(1)), (GeneratorMeans(20), glad(1, "average", 20))):
        state = space.init(run)
        start = space.decode(state, torch.arange(9), run)
        torch.testing.assert_close(baseline.build(run).images, start)
    assert not torch.equal(GeneratorSamples().build(run).images, GeneratorMeans(20).build(run).images)
