"""Distances of gradients against their formulas, row by row, and the gradients of several classes at once."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.ops.distance import DISTANCES, class_distances, cosine, gradients, mse, rowwise_cosine
from ddbench.testing import toy_network, toy_spec


def rows_by_hand(a: Tensor, b: Tensor) -> float:
    total = 0.0
    for row, other in zip(a.reshape(len(a), -1).tolist(), b.reshape(len(b), -1).tolist(), strict=True):
        dot = sum(x * y for x, y in zip(row, other, strict=True))
        norms = math.sqrt(sum(x * x for x in row)) * math.sqrt(sum(y * y for y in other))
        total += 1 - dot / (norms + 1e-6)
    return total


@pytest.fixture
def gradients_of_two() -> tuple[list[Tensor], list[Tensor]]:
    """Of a convolution, its bias, a norm's gain over C, H, W, a linear layer and its bias."""
    rng = torch.Generator().manual_seed(1)
    shapes = [(4, 2, 3, 3), (4,), (4, 2, 2), (3, 8), (3,)]
    a, b = ([torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes] for _ in range(2))
    return a, b


def test_rowwise_cosine_row_by_row(gradients_of_two: tuple[list[Tensor], list[Tensor]]) -> None:
    a, b = gradients_of_two
    assert rowwise_cosine(a, b).item() == pytest.approx(rows_by_hand(a[0], b[0]) + rows_by_hand(a[3], b[3]), rel=1e-12)


def test_rowwise_cosine_ignores_scale_biases_and_norms(gradients_of_two: tuple[list[Tensor], list[Tensor]]) -> None:
    a, b = gradients_of_two
    value = rowwise_cosine(a, b).item()
    assert rowwise_cosine([7 * tensor for tensor in a], b).item() == pytest.approx(value, rel=1e-6)
    assert rowwise_cosine(a, [0.3 * tensor for tensor in b]).item() == pytest.approx(value, rel=1e-6)
    other = [a[0], a[1] + 5, a[2] - 3, a[3], -a[4]]
    assert rowwise_cosine(other, b).item() == value
    assert rowwise_cosine(a[1:3], b[1:3]).item() == 0


def test_rowwise_cosine_is_zero_for_equal_gradients_up_to_its_epsilon(
    gradients_of_two: tuple[list[Tensor], list[Tensor]],
) -> None:
    a, _ = gradients_of_two
    rows = torch.cat([a[0].flatten(1).norm(dim=1), a[3].norm(dim=1)])
    wanted = float((1e-6 / (rows**2 + 1e-6)).sum())
    assert rowwise_cosine(a, a).item() == pytest.approx(wanted, rel=1e-6)
    assert 0 < rowwise_cosine(a, a) < 1e-5
    tiny = [1e-3 * tensor / tensor.norm() for tensor in a]
    assert rowwise_cosine(tiny, tiny) > 1, "where gradients nearly vanish the epsilon decides"


def test_a_vanishing_row_counts_one(gradients_of_two: tuple[list[Tensor], list[Tensor]]) -> None:
    a, b = gradients_of_two
    zero = [torch.zeros_like(tensor) for tensor in a]
    assert rowwise_cosine(zero, b).item() == 4 + 3
    assert cosine(zero, b).item() == 1


def test_cosine_and_mse_of_everything_in_one_vector(gradients_of_two: tuple[list[Tensor], list[Tensor]]) -> None:
    a, b = gradients_of_two
    x, y = (torch.cat([tensor.reshape(-1) for tensor in side]) for side in (a, b))
    assert mse(a, b).item() == pytest.approx(((x - y) ** 2).sum().item(), rel=1e-12)
    assert cosine(a, b).item() == pytest.approx(1 - F.cosine_similarity(x, y, dim=0).item(), abs=1e-6)
    assert mse(a, a).item() == 0


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_slope(name: str, gradients_of_two: tuple[list[Tensor], list[Tensor]]) -> None:
    a, b = gradients_of_two
    leaves = [tensor.clone().requires_grad_() for tensor in a]
    given = torch.autograd.grad(DISTANCES[name](leaves, b), leaves, materialize_grads=True)
    rng = torch.Generator().manual_seed(2)
    direction = [torch.randn(tensor.shape, generator=rng, dtype=torch.float64) for tensor in a]
    up, down = (
        DISTANCES[name]([tensor + sign * 1e-6 * d for tensor, d in zip(a, direction, strict=True)], b) for sign in (1, -1)
    )
    slope = sum(float((g * d).sum()) for g, d in zip(given, direction, strict=True))
    assert float((up - down) / 2e-6) == pytest.approx(slope, rel=1e-7)


def test_rowwise_cosine_gives_vectors_no_gradient(gradients_of_two: tuple[list[Tensor], list[Tensor]]) -> None:
    a, b = gradients_of_two
    leaves = [tensor.clone().requires_grad_() for tensor in a]
    given = torch.autograd.grad(rowwise_cosine(leaves, b), leaves, allow_unused=True)
    assert [gradient is None for gradient in given] == [False, True, True, False, True]


# ---------------------------------------------------------------- several classes at once


@pytest.mark.parametrize("name", DISTANCES)
def test_the_distances_of_several_classes_are_those_of_each(name: str) -> None:
    torch.manual_seed(3)
    network = toy_network(toy_spec(4, 3)).double()
    images, targets = torch.randn(2, 4, 5, 3, 8, 8, dtype=torch.float64), torch.randn(4, 5, 4).double().softmax(2)
    syn, real = images.unbind()
    leaf, labels = syn.clone().requires_grad_(), targets.clone().requires_grad_()
    wanted = [gradients(network, own, torch.full((5,), label)) for label, own in enumerate(real)]
    together = class_distances(network, DISTANCES[name], leaf, labels, wanted)
    each = []
    for label in range(4):
        got = gradients(network, leaf[label], labels[label], with_graph=True)
        each.append(DISTANCES[name](got, wanted[label]))
    torch.testing.assert_close(together, torch.stack(each), rtol=1e-11, atol=1e-13)
    weights = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    first = torch.autograd.grad((weights * together).sum(), (leaf, labels))
    second = torch.autograd.grad((weights * torch.stack(each)).sum(), (leaf, labels))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-13)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_gradients_are_those_of_the_mean_cross_entropy() -> None:
    torch.manual_seed(4)
    network = toy_network(toy_spec(3, 1)).double()
    images = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    probabilities = torch.randn(6, 3).double().softmax(1)
    plain = -(probabilities * network(images).log_softmax(1)).sum(1).mean()
    network.classifier.bias.requires_grad_(False)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    torch.testing.assert_close(gradients(network, images, probabilities), torch.autograd.grad(plain, trained))
    hard = gradients(network, images, torch.tensor([0, 1, 2, 0, 1, 2]))
    one_hot = gradients(network, images, F.one_hot(torch.tensor([0, 1, 2, 0, 1, 2]), 3).double(), with_graph=True)
    torch.testing.assert_close(hard, one_hot)
    assert not hard[0].requires_grad
    assert one_hot[0].requires_grad
