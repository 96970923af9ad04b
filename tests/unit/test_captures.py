"""Recorded steps, on a pretended device: they are the plain ones, on whatever device, or are not taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from stacked_runs import ADAMW, FULL, RECIPE, fresh, images_for, names_of
from torch import Tensor, nn

from ddbench.compute import capture
from ddbench.compute.capture import record
from ddbench.compute.stacked import Stack, train_stacked
from ddbench.ops.augment import SiameseAugment
from ddbench.testing.pretended import Pretended

AUGMENT = SiameseAugment(FULL)
CASES = {"convnet-bn": RECIPE, "resnet18": RECIPE, "vit": RECIPE, "toy": ADAMW, "convnet": replace(RECIPE, batch=7)}


def states(networks: list[nn.Module]) -> list[dict[str, Tensor]]:
    return [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in networks]


def assert_equal(ones: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> None:
    for one, other in zip(ones, others, strict=True):
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name


# ---------------------------------------------------------------- a step of its own


def test_a_recorded_step_is_the_step() -> None:
    with Pretended(index=1, num_devices=2) as fake:
        torch.cuda.set_device(0)  # which is not where the step computes
        weight = torch.zeros(3, device=fake.device)

        def step(add: Tensor) -> Tensor:
            weight.add_(add)
            return weight.sum()

        recorded = record(step, (torch.ones(3, device=fake.device),), lambda: {"weight": weight}, (), fake.device)
        assert recorded is not None
        assert weight.tolist() == [0.0] * 3  # as before
        assert float(recorded(torch.full((3,), 2.0, device=fake.device))) == 6.0
        assert float(recorded(torch.full((3,), 0.5, device=fake.device))) == 7.5
        assert weight.tolist() == [2.5] * 3
        ones = torch.ones(3, device=fake.device)
        with fake.counting() as counts:
            recorded(ones)
        assert (counts.launches, counts.waits, counts.copies) == (2, [], [])


def test_a_step_that_a_graph_cannot_see_is_not_recorded() -> None:
    """A number on the host is frozen into the graph."""
    with Pretended() as fake:
        weight, calls = torch.zeros(3, device=fake.device), [0]

        def step(add: Tensor) -> Tensor:
            calls[0] += 1
            weight.add_(add * calls[0])
            return weight.sum()

        assert record(step, (torch.ones(3, device=fake.device),), lambda: {"weight": weight}, (), fake.device) is None
        assert weight.tolist() == [0.0] * 3


def test_an_empty_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one is that was captured on another device than the one that computes."""
    with Pretended() as fake:
        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: None)
        weight = torch.zeros(3, device=fake.device)

        def step(add: Tensor) -> Tensor:
            weight.add_(add)
            return weight.sum()

        assert record(step, (torch.ones(3, device=fake.device),), lambda: {"weight": weight}, (), fake.device) is None


# ---------------------------------------------------------------- stacks


@pytest.mark.parametrize("name", CASES)
def test_a_captured_stack_is_the_plain_one_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that is not the current one; batches of two sizes, dropout, buffers, both optimisers."""
    found = []
    for captured in (True, False):
        with Pretended(index=1, num_devices=2) as fake:
            torch.cuda.set_device(0)
            networks = [network.to(fake.device) for network in fresh(name, 2)]
            images, targets = (tensor.to(fake.device) for tensor in images_for(name))
            if not captured:
                monkeypatch.setattr("ddbench.compute.stacked.record", lambda *given, **named: None)
            last = train_stacked(networks, images, targets, CASES[name], names_of(2), AUGMENT)
        found.append((last, states(networks)))
    assert found[0][0] == found[1][0]
    assert_equal(found[0][1], found[1][1])


def test_a_stack_whose_graph_is_refused_trains_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_alike", lambda one, other: torch.zeros((), dtype=torch.bool, device=one.device))
    made: list[Any] = []
    own = Stack.step

    def spy(stack: Stack, *batch: Tensor) -> Tensor:
        losses = own(stack, *batch)
        made.append(set(stack.graphs.values()))
        return losses

    monkeypatch.setattr(Stack, "step", spy)
    before = fresh("toy", 2)
    with Pretended() as fake:
        networks = [network.to(fake.device) for network in fresh("toy", 2)]
        images, targets = (tensor.to(fake.device) for tensor in images_for("toy"))
        train_stacked(networks, images, targets, RECIPE, names_of(2), AUGMENT)
    assert made[-1] == {None}
    assert not any(torch.equal(a.weight, b.weight) for a, b in zip(heads(networks), heads(before), strict=True))


def heads(networks: list[nn.Module]) -> list[nn.Linear]:
    return [network.classifier for network in networks]  # type: ignore[misc]
