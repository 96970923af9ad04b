"""HaBa's space: bases through shared networks, and the adversary that keeps what these make apart."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ddbench.api import Memory, State
from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import Distillation
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError
from ddbench.ops.embedding import embed
from ddbench.testing import toy_plan, toy_run
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.spaces.factorised import Factorised


@pytest.fixture
def run() -> DistillRun:
    return toy_run(channels=3)


def test_a_network_has_the_papers_weights() -> None:
    run = toy_run(channels=3, side=32)
    assert Factorised().num_weights(run) == 5568
    assert Factorised().num_images(run) == 3 * run.ipc * 5
    assert 9 < 5 * 5568 / (3 * 32 * 32) < 9.1, "five of them are about nine images"


def test_images_are_bases_through_torch_s_own_layers(run: DistillRun) -> None:
    space = Factorised(hallucinators=3)
    state = space.init(run)
    state.params["hallucinators"] = torch.randn(state.params["hallucinators"].shape, generator=torch.Generator().manual_seed(0))
    made = space.decode(state, torch.arange(18), run)
    for number in (0, 4, 17):
        basis, which = divmod(number, 3)
        parts = state.params["hallucinators"][which].split([81, 3, 108, 108, 81, 3])
        first, last = nn.Conv2d(3, 3, 3), nn.ConvTranspose2d(3, 3, 3)
        weights = (parts[0].view(3, 3, 3, 3), parts[1], parts[4].view(3, 3, 3, 3), parts[5])
        for tensor, value in zip((first.weight, first.bias, last.weight, last.bias), weights, strict=True):
            assert tensor is not None
            tensor.data = value
        inside = first(state.params["bases"][basis]) * parts[2].view(3, 6, 6) + parts[3].view(3, 6, 6)
        torch.testing.assert_close(made[number], last(inside).detach(), rtol=1e-4, atol=1e-4)


def test_networks_start_as_convolutions_do_with_scales_of_one(run: DistillRun) -> None:
    networks = Factorised().init(run).params["hallucinators"]
    first, bias, scale, shift, last, other = networks.split([81, 3, 108, 108, 81, 3], 1)
    bound = 1 / math.sqrt(27)
    for part in (first, bias, last, other):
        assert 0.5 * bound < float(part.abs().max()) <= bound
    assert bool((scale == 1).all())
    assert bool((shift == 0).all())


def test_the_penalty_is_the_cosine_between_what_two_networks_make(run: DistillRun) -> None:
    space = Factorised(hallucinators=2, cosine=0.3)
    state, memory = space.init(run), space.init_memory(run)
    one, other = (space.decode(state, torch.arange(which, 12, 2), run).flatten(1) for which in (0, 1))
    network = run.network("adversary")
    a, b = (embed(network, images.view(-1, 3, 8, 8)).detach() for images in (one, other))
    cosines = (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    penalty = space.penalty(state, memory, run)
    assert penalty is not None
    torch.testing.assert_close(penalty, 0.3 * ((cosines + 1) / 2).mean())


def test_the_contrastive_loss_is_its_formula() -> None:
    rng = torch.Generator().manual_seed(0)
    features, labels = torch.randn(6, 4, generator=rng, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 2, 2])
    z = features / features.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(6):
        below = sum(math.exp(float(z[i] @ z[a]) / 0.07) for a in range(6) if a != i)
        positives = [p for p in range(6) if p != i and labels[p] == labels[i]]
        total -= sum(math.log(math.exp(float(z[i] @ z[p]) / 0.07) / below) for p in positives) / len(positives) / 6
    assert float(Factorised().contrastive(features, labels)) == pytest.approx(total)


def after(space: Factorised, run: DistillRun, steps: int) -> tuple[State, Memory]:
    state, memory = space.init(run), space.init_memory(run)
    for step in range(steps):
        space.after_step(state, memory, run.at(step))
    return state, memory


def test_the_adversary_takes_steps_of_sgd_with_momentum(run: DistillRun) -> None:
    space = Factorised(hallucinators=2)
    state, memory = after(space, run, 3)
    network = run.network("adversary")
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    bases = torch.arange(3).repeat_interleave(run.ipc)
    for step in range(3):
        optimizer.zero_grad()
        images = torch.cat(space._two(state, run.at(step))).detach()
        space.adversary_loss(network, images, bases).backward()
        optimizer.step()
    for name, weights in network.named_parameters():
        torch.testing.assert_close(memory[f"adversary.{name}"], weights.detach(), rtol=1e-5, atol=1e-7)


def test_the_adversary_learns_while_the_set_is_distilled_and_survives_a_checkpoint(run: DistillRun) -> None:
    def begun() -> Distillation:
        loop = Distillation(toy_plan(DistributionMatching(), Factorised(hallucinators=2), steps=4), run, Stopwatch(run.device))
        loop.begin()
        return loop

    whole, first = begun(), begun()
    before = {name: tensor.clone() for name, tensor in whole.space_memory.items()}
    for _ in range(4):
        whole.one_step()
    for _ in range(2):
        first.one_step()
    again = begun()
    again.take_up(*first.put_away())
    for _ in range(2):
        again.one_step()
    assert any(not torch.equal(before[name], tensor) for name, tensor in whole.space_memory.items())
    for name, tensor in whole.space_memory.items():
        assert torch.equal(again.space_memory[name], tensor), name
    for name, tensor in whole.state.params.items():
        assert torch.equal(again.state.params[name], tensor), name


def test_without_a_cosine_term_there_is_no_adversary(run: DistillRun) -> None:
    space = Factorised(cosine=0)
    assert space.init_memory(run) == {}
    assert space.penalty(space.init(run), {}, run) is None


@pytest.mark.parametrize("space", [lambda: Factorised(hallucinators=1), lambda: Factorised(temperature=0)])
def test_what_has_no_meaning_is_refused(space: object) -> None:
    with pytest.raises(ConfigError, match="'hallucinators' must be at least 2"):
        space()


def test_images_smaller_than_the_filters_are_refused(run: DistillRun) -> None:
    spec = replace(run.spec, shape=(3, 2, 2))
    with pytest.raises(ConfigError, match="at least 3 px"):
        Factorised().num_images(replace(run, data=replace(run.data, spec=spec)))
