"""From stored tensors to the images of a step, and back: the two ends of the engine's chain rule."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddbench.api import Loss, Space, State
from ddbench.compute.run import DistillRun
from ddbench.errors import PluginError
from ddbench.ops.moves import send


def decode_leaf(space: Space, state: State, index: Tensor, run: DistillRun, chunk: int) -> tuple[Tensor, Callable[[], None]]:
    """Decode [N] images; give them as a leaf, and a closure that pulls the leaf's gradient back to the stored tensors.

    With one chunk the graph of the decoding is kept. With several it is not: each chunk is decoded again with a graph when
    its gradient is known, which bounds memory by the chunk at the price of one more decoding.
    """
    parts = index.split(chunk)
    if len(parts) == 1:
        images = space.decode(state, index, run)
        leaf = images.detach().requires_grad_()
        return leaf, lambda: images.backward(leaf.grad)
    with torch.no_grad():
        leaf = torch.cat([space.decode(state, part, run) for part in parts]).requires_grad_()

    def pull_back() -> None:
        assert leaf.grad is not None
        for part, grad in zip(parts, leaf.grad.split(chunk), strict=True):
            space.decode(state, part, run).backward(grad)

    return leaf, pull_back


def picked_index(loss: Loss, num_images: int, run: DistillRun) -> Tensor | None:
    """What a loss picks of N images for the run's step, [B] on the device; None for all of them. It is looked at on the CPU,
    where that waits for nothing. Raises PluginError where it is no choice of images."""
    index = loss.picks(num_images, run)
    if index is None:
        return None
    fit = index.dtype == torch.int64 and index.dim() == 1 and index.device.type == "cpu" and 0 < len(index) <= num_images
    if not fit or not 0 <= int(index.min()) <= int(index.max()) < num_images or len(index.unique()) < len(index):
        raise PluginError(
            f"loss {type(loss).__name__}: `picks` must give int64 [B] on the CPU, each of 0..{num_images - 1} at most once, or "
            f"None; got {index.dtype} {list(index.shape)} on {index.device.type}."
        )
    return send(index, run.device)
