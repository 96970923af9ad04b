"""What a run hands out of the shared training data: images of the caller's own, to the bits of data normalised beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from msgspec.structs import replace as replace_plan

from ddbench.api import Recipe
from ddbench.compute import run as run_module
from ddbench.compute.run import DistillRun, open_run
from ddbench.testing import Given, ToyGenerator, toy_plan, toy_run
from ddbench_plugins.generators.cvae import random_weights
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.spaces.layered import glad
from ddbench_plugins.spaces.pixel import Pixel


@pytest.fixture
def run() -> DistillRun:
    return toy_run(channels=3)


@pytest.mark.parametrize("num", [5, 12, 10**9])
def test_real_images_are_those_of_data_normalised_beforehand(run: DistillRun, num: int) -> None:
    whole = run.spec.normalise(run.data.images)
    own = whole[12:24]
    drawn = run.real(1, num, run.rng("x"))
    order = torch.randperm(12, generator=run.rng("x"))[:num] if num < 12 else torch.arange(12)
    assert torch.equal(drawn, own[order])


@pytest.mark.parametrize("num", [1, 12, 10**9])
def test_changing_real_images_in_place_changes_nobody_else_s(run: DistillRun, num: int) -> None:
    before, first = run.data.images.clone(), run.real(1, num, run.rng("x")).clone()
    run.real(1, num, run.rng("x")).mul_(0.5)
    assert torch.equal(run.data.images, before)
    assert torch.equal(run.real(1, num, run.rng("x")), first)


def test_training_sees_normalised_batches(run: DistillRun, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    own = run_module.train

    def spy(network: Any, images: Any, labels: Any, recipe: Any, name: Any, *more: Any) -> float:
        given["dtype"] = images.dtype
        return own(network, images, labels, recipe, name, *more)

    monkeypatch.setattr(run_module, "train", spy)
    bytes_, floats = run.network("a"), run.network("a")
    recipe = Recipe(epochs=2, lr=0.1, batch=7)
    run.train(bytes_, recipe, "a")
    assert given["dtype"] == torch.uint8
    own(floats, run.spec.normalise(run.data.images), run.data.labels, recipe, ("toy", "train", "a"), run.augment)
    for a, b in zip(bytes_.parameters(), floats.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_constants_for_generated_images_are_not_those_of_real_ones(run: DistillRun) -> None:
    plan = toy_plan(DistributionMatching(), glad(2))
    plan = replace_plan(plan, synthetic_mean=(0.1,), synthetic_std=(0.9,))
    cvae = random_weights(width=8)
    need = cvae.needs(run)[0]
    held = {need: need.build(run)}
    made = open_run(replace_plan(plan, generator=Given.of("generators", cvae)), run.data, run.device, held)
    assert (made.spec.mean, made.spec.std) == ((0.1,) * 3, (0.9,) * 3)
    assert torch.equal(made.real(0, 12, made.rng("x")), run.real(0, 12, run.rng("x")))
    plain = open_run(replace_plan(plan, space=Given.of("spaces", Pixel())), run.data, run.device, {})
    assert plain.spec == run.data.spec
    assert isinstance(run.generator, ToyGenerator)


def test_a_generator_is_loaded_once_for_all_seeds_of_a_plan(run: DistillRun) -> None:
    """To the same tensors as if each seed had loaded it; another generator has a place of its own."""
    cvae = random_weights(width=8)
    (need,) = cvae.needs(run)
    held, loaded = {need: need.build(run)}, dict[str, Any]()
    plan = replace_plan(toy_plan(DistributionMatching(), glad(2)), generator=Given.of("generators", cvae))
    first, second = (open_run(replace_plan(plan, seed=seed), run.data, run.device, held, None, loaded) for seed in (0, 1))
    assert first.generator is second.generator
    alone = open_run(replace_plan(plan, seed=1), run.data, run.device, held).generator
    assert alone is not second.generator
    for ours, theirs in zip(alone.parameters(), second.generator.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(ours, theirs)
    other = replace_plan(plan, generator=Given.of("generators", cvae, "another"))
    assert open_run(other, run.data, run.device, held, None, loaded).generator is not first.generator
