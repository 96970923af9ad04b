"""Matching behind the augmentation, which is another one at every step, as a function of tensors alone: what a graph can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ddbench.api import Batch, Run
from ddbench.ops.embedding import OfClass
from ddbench.ops.unroll import Unroll

Match = Callable[[nn.Module, OfClass, OfClass, Batch], Tensor]
"""(network, synthetic images of a class, real ones, the set) -> the value, detached; adds to `.grad` of the set's leaves. It
hangs on nothing else, draws no random numbers, and asks nothing of the host."""
Backward = Callable[[Unroll, Sequence[Tensor]], Tensor]
"""(unroll, leaves) -> the value, detached; adds to `.grad` of the leaves and of the unroll's rate."""


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

    told = f"{name}, labels {wants}"  # another graph where they want a gradient
    value, grad, *more = run.replayed(told, step, network, seen.detach(), syn.labels.detach(), torch.cat(own))
    seen.backward(grad, inputs=[syn.images])
    for label_grad in more:
        syn.labels.grad = label_grad.clone() if syn.labels.grad is None else syn.labels.grad + label_grad
    return value.clone()


def unrolled_backward(name: str, backward: Backward, unroll: Unroll, syn: Batch, run: Run) -> Tensor:
    """`backward(unroll, syn.leaves)`. Where the run replays, every step's batch is made first, and all of the unroll is one
    graph, whose gradients are then pulled back through the batches."""
    if not run.replays:
        return backward(unroll, syn.leaves)
    wants, names, num = syn.labels.requires_grad, list(unroll.start), unroll.num_steps
    batches = [unroll.batch(step) for step in range(num)]
    sides = [images for images, _ in batches], [labels for _, labels in batches]

    def step(network: nn.Module, rate: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        start, target = (dict(zip(names, tensors[at : at + len(names)], strict=True)) for at in (0, len(names)))
        given = tensors[2 * len(names) :]
        images = [tensor.detach().requires_grad_() for tensor in given[:num]]
        labels = [tensor.detach().requires_grad_(wants) for tensor in given[num:]]
        own, leaves = rate.detach().requires_grad_(rate_wants), [*images, *(labels if wants else [])]
        made = Unroll(network, start, target, own, num, lambda number: (images[number], labels[number]))
        value = backward(made, leaves)
        return value, *(_grad_of(leaf) for leaf in [*leaves, *([own] if rate_wants else [])])

    rate, rate_wants = unroll.rate, unroll.rate.requires_grad
    tensors = [*unroll.start.values(), *unroll.target.values(), *(tensor.detach() for side in sides for tensor in side)]
    value, *grads = run.replayed(f"{name}, labels {wants}, rate {rate_wants}", step, unroll.network, rate.detach(), *tensors)
    seen = [*sides[0], *(sides[1] if wants else [])]
    torch.autograd.backward(seen, [grad.clone() for grad in grads[: len(seen)]], inputs=syn.leaves)
    for grad in grads[len(seen) :]:
        rate.grad = grad.clone() if rate.grad is None else rate.grad + grad
    return value.clone()


def _grad_of(leaf: Tensor) -> Tensor:
    """Zeros where the value does not hang on it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
