"""Matching behind the augmentation, which is another one at every step, as a function of tensors alone: what a graph can hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddbench.api import Batch, Run
from ddbench.ops.embedding import OfClass

Match = Callable[[nn.Module, OfClass, OfClass, Batch], Tensor]
"""(network, synthetic images of a class, real ones, the set) -> the value, detached; adds to `.grad` of the set's leaves. It
hangs on nothing else, draws no random numbers, and asks nothing of the host."""


def matched_by_class(name: str, match: Match, network: nn.Module, fake: OfClass, real: OfClass, syn: Batch, run: Run) -> Tensor:
    """`match(network, fake, real, syn)`. Where the run replays, all classes are seen first, and what follows is one graph, whose
    gradients are then pulled back through the views; all real images of the step are held at once."""
    if not run.replays:
        return match(network, fake, real, syn)
    num, wants, classes = run.spec.num_classes, syn.labels.requires_grad, syn.classes
    own, seen = [real(label) for label in range(num)], torch.cat([fake(label) for label in range(num)])
    sizes = [len(images) for images in own]

    def step(network: nn.Module, images: Tensor, labels: Tensor, reals: Tensor) -> tuple[Tensor, ...]:
        leaf, label_leaf = images.detach().requires_grad_(), labels.detach().requires_grad_(wants)
        fakes, parts = leaf.unflatten(0, (num, -1)), reals.split(sizes)
        value = match(network, lambda label: fakes[label], lambda label: parts[label], Batch(leaf, label_leaf, classes))
        return value, *(_grad_of(one) for one in ([leaf, label_leaf] if wants else [leaf]))

    value, grad, *more = run.replayed(name, step, network, seen.detach(), syn.labels.detach(), torch.cat(own))
    seen.backward(grad, inputs=[syn.images])
    for label_grad in more:
        syn.labels.grad = label_grad.clone() if syn.labels.grad is None else syn.labels.grad + label_grad
    return value.clone()


def _grad_of(leaf: Tensor) -> Tensor:
    """Zeros where the value does not hang on it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
