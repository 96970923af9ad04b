"""The unrolled student against the same formulas on one flat vector, its memory, and its mini-batches."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.ops.unroll import (
    Unroll,
    exact_backward,
    mini_batches,
    squared_distance,
    student_mode,
    two_pass_backward,
    within,
)
from ddbench.testing import toy_network, toy_spec

SPEC = toy_spec(num_classes=3, channels=1, side=8)
Backward = Callable[[Unroll, list[Tensor]], Tensor]


def network_of(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return toy_network(SPEC).double()


def example(num_steps: int, seed: int = 0, rate: float = 0.3) -> tuple[Unroll, Tensor, Tensor]:
    """An unroll over two alternating batches of four of the six images, and the set: images and labels."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(6, *SPEC.shape, generator=rng, dtype=torch.float64).requires_grad_()
    labels = torch.randn(6, 3, generator=rng, dtype=torch.float64).softmax(1).requires_grad_()
    start = {name: tensor.detach() for name, tensor in network_of(1).named_parameters()}
    moves = {name: 0.05 * torch.randn(tensor.shape, generator=rng, dtype=torch.float64) for name, tensor in start.items()}
    target = {name: start[name] + moves[name] for name in start}
    parts = [torch.tensor([0, 1, 2, 3]), torch.tensor([5, 4, 1, 2])]

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return (1 + 0.1 * step) * images[parts[step % 2]], labels[parts[step % 2]]  # a transform that differs by step

    beta = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
    return Unroll(network_of(2), start, target, beta, num_steps, batch), images, labels


def gradients(backward: Backward, num_steps: int, **changes: Any) -> tuple[Tensor, list[Tensor]]:
    unroll, images, labels = example(num_steps, **changes)
    value = backward(unroll, [images, labels])
    return value, [tensor.grad for tensor in (images, labels, unroll.rate) if tensor.grad is not None]


def flat(parameters: Any) -> Tensor:
    return torch.cat([parameters[name].reshape(-1) for name in parameters])


def logits(vector: Tensor, images: Tensor) -> Tensor:
    """The toy network as a function of one vector, layer by layer."""
    shapes = [(6, 1, 3, 3), (6,), (8, 6, 3, 3), (8,), (3, 32), (3,)]
    a, b, c, d, e, f = (
        part.view(shape)
        for part, shape in zip(vector.split([torch.Size(shape).numel() for shape in shapes]), shapes, strict=True)
    )
    hidden = F.avg_pool2d(F.softplus(F.conv2d(images, a, b, padding=1)), 2)
    hidden = F.avg_pool2d(torch.tanh(F.conv2d(hidden, c, d, padding=1)), 2)
    return hidden.flatten(1) @ e.T + f


def flat_gradient(vector: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    loss = -(labels * logits(vector, images).log_softmax(1)).sum(1).mean()
    return torch.autograd.grad(loss, vector, create_graph=True)[0]


def relative(got: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_exact_is_the_unroll_on_a_flat_vector(num_steps: int) -> None:
    unroll, images, labels = example(num_steps)
    theta, target = flat(unroll.start).requires_grad_(), flat(unroll.target)
    start = theta.detach()
    for step in range(num_steps):
        theta = theta - unroll.rate * flat_gradient(theta, *unroll.batch(step))
    plain = (theta - target).square().sum() / (start - target).square().sum()
    wanted = torch.autograd.grad(plain, [images, labels, unroll.rate])
    value, got = gradients(exact_backward, num_steps)
    assert value.item() == pytest.approx(plain.item(), rel=1e-13)
    assert relative(got, list(wanted)) < 1e-10


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_two_passes_are_the_unroll_with_its_path_held_fixed(num_steps: int) -> None:
    """One graph of L(start - beta sum_i g_i(X_i, theta_i)), every theta_i detached."""
    unroll, images, labels = example(num_steps)
    theta, start, target = flat(unroll.start), flat(unroll.start), flat(unroll.target)
    total, fixed = torch.zeros_like(theta), torch.zeros_like(theta)
    for step in range(num_steps):
        gradient = flat_gradient(theta.detach().requires_grad_(), *unroll.batch(step))
        total, fixed = total + gradient, fixed + gradient.detach()
        theta = theta - unroll.rate.detach() * gradient.detach()
    scale = (start - target).square().sum()
    plain = (start - unroll.rate.detach() * total - target).square().sum() / scale
    wanted = list(torch.autograd.grad(plain, [images, labels]))
    wanted += torch.autograd.grad((start - unroll.rate * fixed - target).square().sum() / scale, [unroll.rate])
    value, got = gradients(two_pass_backward, num_steps)
    assert value.item() == pytest.approx(plain.item(), rel=1e-13)
    assert relative(got, wanted) < 1e-10


def test_two_passes_are_exact_for_one_step_and_only_for_one() -> None:
    errors = {}
    for num_steps in (1, 2, 5, 20):
        (value, exact), (other, approximate) = (
            gradients(backward, num_steps) for backward in (exact_backward, two_pass_backward)
        )
        assert other.item() == pytest.approx(value.item(), rel=1e-12), "the value is the same for any number of steps"
        errors[num_steps] = [relative([a], [b]) for a, b in zip(approximate, exact, strict=True)]
    assert max(errors[1]) < 1e-12
    for num_steps in (2, 5, 20):
        assert min(errors[num_steps]) > 0.01


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("which", ["images", "labels", "rate"])
def test_exact_is_the_finite_difference(which: str, num_steps: int) -> None:
    _, got = gradients(exact_backward, num_steps)
    number = ["images", "labels", "rate"].index(which)
    direction = torch.randn(got[number].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(shift: float) -> float:
        unroll, images, labels = example(num_steps)
        with torch.no_grad():
            (images, labels, unroll.rate)[number].add_(shift * direction)
        return exact_backward(unroll, [images, labels]).item()

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert slope == pytest.approx(float((got[number] * direction).sum()), rel=1e-6)


@pytest.mark.parametrize("backward", [exact_backward, two_pass_backward])
def test_gradients_are_added_to_the_leaves_and_to_nothing_else(backward: Backward) -> None:
    unroll, images, labels = example(3)
    backward(unroll, [images, labels])
    once = [images.grad.clone(), labels.grad.clone(), unroll.rate.grad.clone()]
    value = backward(unroll, [images, labels])
    assert not value.requires_grad
    assert value.dim() == 0
    for first, tensor in zip(once, (images, labels, unroll.rate), strict=True):
        torch.testing.assert_close(tensor.grad, 2 * first)
    for tensor in (*unroll.start.values(), *unroll.target.values(), *unroll.network.parameters()):
        assert tensor.grad is None
    assert not any(tensor.requires_grad for tensor in (*unroll.start.values(), *unroll.target.values()))
    unroll, images, labels = example(3)
    backward(unroll, [images])
    assert labels.grad is None
    torch.testing.assert_close(images.grad, once[0])


@pytest.mark.parametrize("backward", [exact_backward, two_pass_backward])
def test_the_networks_own_parameters_do_not_count(backward: Backward) -> None:
    unroll, images, labels = example(2)
    before = [tensor.detach().clone() for tensor in unroll.network.parameters()]
    value = backward(unroll, [images, labels])
    assert all(map(torch.equal, before, unroll.network.parameters()))
    assert torch.equal(value, backward(replace(unroll, network=network_of(77)), [images, labels]))


# ---------------------------------------------------------------- memory


class Held:
    """A tensor that autograd keeps for the backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def peak_saved(backward: Backward, num_steps: int) -> tuple[int, int]:
    """The most tensors, and the most bytes, that autograd holds at once."""
    unroll, images, labels = example(num_steps, rate=0.01)
    live, peak = [0, 0], [0, 0]

    def count(num: int, size: int) -> None:
        live[0], live[1] = live[0] + num, live[1] + size
        peak[0], peak[1] = max(peak[0], live[0]), max(peak[1], live[1])

    def pack(tensor: Tensor) -> Held:
        held, size = Held(tensor), tensor.numel() * tensor.element_size()
        count(1, size)
        weakref.finalize(held, count, -1, -size)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        backward(unroll, [images, labels])
    assert live == [0, 0], "something is still held"
    return peak[0], peak[1]


def test_two_passes_hold_one_steps_graph_and_exact_holds_all() -> None:
    steps = (5, 20, 50)
    two_pass = [peak_saved(two_pass_backward, num) for num in steps]
    exact = [peak_saved(exact_backward, num) for num in steps]
    assert two_pass[0] == two_pass[1] == two_pass[2]
    for kind in (0, 1):  # tensors, bytes
        small, middle, large = (found[kind] for found in exact)
        assert (large - middle) / 30 == (middle - small) / 15, "a fixed amount for every step"
        assert small > 3 * two_pass[0][kind]
        assert large > 30 * two_pass[0][kind]


# ---------------------------------------------------------------- mini-batches, networks


@pytest.mark.parametrize(("num", "size", "num_steps"), [(10, 3, 9), (6, 6, 4), (7, 2, 1), (5, 1, 12), (12, 5, 6)])
def test_mini_batches_use_up_a_permutation_before_another_is_drawn(num: int, size: int, num_steps: int) -> None:
    rng = torch.Generator().manual_seed(4)
    found = mini_batches(num, size, num_steps, rng)
    assert len(found) == num_steps
    rng, each = torch.Generator().manual_seed(4), -(-num // size)
    for first in range(0, num_steps, each):
        order, own = torch.randperm(num, generator=rng).tolist(), found[first : first + each]
        starts = list(range(0, num, size))[::-1][: len(own)]  # from the last chunk to the first
        assert [part.tolist() for part in own] == [order[start : start + size] for start in starts]
        if len(own) == each:
            assert sorted(torch.cat(own).tolist()) == list(range(num))


def test_distance_is_over_all_parameters_together() -> None:
    a = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([[3.0]])}
    b = {"y": torch.tensor([[1.0]]), "x": torch.tensor([0.0, 0.0])}
    assert squared_distance(a, b) == 1 + 4 + 4


def test_student_mode_keeps_batch_statistics_and_drops_dropout() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    assert student_mode(network) is network
    assert [module.training for module in network] == [False, True, False]
    images = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    first = network(images)
    assert torch.equal(first, network(images)), "neither dropout nor running statistics"
    torch.testing.assert_close(first.mean(0), torch.zeros(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backward", [exact_backward, two_pass_backward])
def test_batch_norm_students(backward: Backward) -> None:
    unroll, images, labels = example(3)
    network = network_of(1)
    network.features.insert(1, nn.BatchNorm2d(6, dtype=torch.float64))
    start = {name: tensor.detach() for name, tensor in network.named_parameters()}
    target = {name: 0.9 * tensor for name, tensor in start.items()}
    unroll = replace(unroll, network=student_mode(network), start=start, target=target)
    values = [backward(unroll, [images, labels]) for _ in range(2)]
    assert torch.equal(*values), "running statistics move and do not count"
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.any()


def test_batches_within_the_images_that_they_hold() -> None:
    batches = [torch.tensor([7, 2]), torch.tensor([4, 9]), torch.tensor([2, 7, 0])]
    held, places = within(batches)
    assert held.tolist() == [0, 2, 4, 7, 9]
    assert [place.tolist() for place in places] == [[3, 1], [2, 4], [1, 3, 0]]
    assert all(torch.equal(held[place], batch) for place, batch in zip(places, batches, strict=True))
