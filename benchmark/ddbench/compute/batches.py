"""The batches of a training run, in the order of its steps: drawn one by one, or those of several epochs ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from ddbench.api import Augment, Recipe, View
from ddbench.data.host import HostImages, Images, pick
from ddbench.ops.augment import apply_together
from ddbench.ops.moves import send, send_together
from ddbench.seeds import StreamName, stream

PREPARED_BYTES = 256 << 20  # of augmented images that are made ahead of their epochs

Seen = Callable[[Tensor], Tensor] | None
"""What a network sees of a batch before augmentation: of bytes, above all."""


def order_of(num: int, name: StreamName, epoch: int) -> Tensor:
    """Of the images, on the host."""
    return torch.randperm(num, generator=stream(*name, "order", epoch))


def view_of(augment: Augment, name: StreamName, epoch: int, number: int, num: int) -> View:
    """Of a batch of so many images."""
    return augment.draw(stream(*name, "augment", epoch, number), num)


def one_by_one(
    images: Images, targets: Tensor, recipe: Recipe, name: StreamName, augment: Augment | None, view: Seen, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch's batches: images [B,C,H,W], targets [B] or [B,K]."""
    order = order_of(len(images), name, epoch)
    parts = zip(order.split(recipe.batch), send(order, images.device).split(recipe.batch), strict=True)
    for number, (here, part) in enumerate(parts):
        batch = pick(images, here, part)
        batch = view(batch) if view else batch
        if recipe.augment and augment is not None:
            batch = view_of(augment, name, epoch, number, len(part))(batch)
        yield batch, targets[part]


def epochs_ahead(images: Images, recipe: Recipe, num_networks: int = 1) -> int:
    """How many epochs of float32 batches may be made ahead; 0 where even one is too large, or the images are on the host."""
    if isinstance(images, HostImages):
        return 0
    each = num_networks * len(images) * images[0].numel() * max(images.element_size(), 4)
    return min(PREPARED_BYTES // max(each, 1), recipe.epochs)


def ahead(
    images: Tensor, targets: Tensor, recipe: Recipe, names: Sequence[StreamName], augment: Augment | None, epochs: range,
    view: Seen = None,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """The batches of some epochs of R networks, each network's own: images [R,B,C,H,W], targets [R,B,...]. The values are those
    of `one_by_one`; batches that meet the same operation go through it together."""
    orders = [[order_of(len(images), name, epoch) for name in names] for epoch in epochs]
    parts = [[own.split(recipe.batch) for own in of_epoch] for of_epoch in orders]
    indices = [torch.stack(step) for of_epoch in parts for step in zip(*of_epoch, strict=True)]  # [R,B] for each step
    steps = len(parts[0][0])
    moved = send_together(indices, images.device)
    batches = [images[index] for index in moved]
    if view:
        batches = [view(batch.flatten(0, 1)).unflatten(0, batch.shape[:2]) for batch in batches]
    if recipe.augment and augment is not None:
        views = [
            view_of(augment, name, epochs[number // steps], number % steps, index.shape[1])
            for number, index in enumerate(indices)
            for name in names
        ]
        flat = apply_together(views, [own for batch in batches for own in batch])
        batches = [torch.stack(flat[start : start + len(names)]) for start in range(0, len(flat), len(names))]
    return iter(list(zip(batches, [targets[index] for index in moved], strict=True)))


def by_epoch(
    images: Images, targets: Tensor, recipe: Recipe, name: StreamName, augment: Augment | None, view: Seen, at_once: int
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """One network's batches, an iterator for each epoch; those of `at_once` epochs are made ahead, of none where it is 0."""
    steps, prepared = -(-len(images) // recipe.batch), iter(list[tuple[Tensor, Tensor]]())
    for epoch in range(recipe.epochs):
        if not at_once or isinstance(images, HostImages):
            yield one_by_one(images, targets, recipe, name, augment, view, epoch)
            continue
        if epoch % at_once == 0:
            prepared = ahead(images, targets, recipe, [name], augment, range(epoch, min(epoch + at_once, recipe.epochs)), view)
        yield ((batch[0], wanted[0]) for batch, wanted in islice(prepared, steps))
