"""Several networks of one architecture trained at once: their weights stacked, their steps mapped, their numbers their own.

The plain loop is `ddbench.compute.train.train`; this one draws the same orders, augmentations and dropout masks for each network
from the same streams, so the two differ by the rounding of sums that are taken in another order. On a CUDA device one
step of all networks is captured as a graph and replayed, which frees the host of launching its hundreds of kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from ddbench.api import Augment, Objective, Recipe
from ddbench.compute.batches import ahead, epochs_ahead
from ddbench.compute.capture import Recorded, allow_capture, optimizer_tensors, rates_on, record, set_rate
from ddbench.compute.train import cross_entropy, ema_decay, finite, make_optimizer, rate_at
from ddbench.ops.layers import Dropout
from ddbench.seeds import StreamName, stream


class Stack:
    """The stacked weights of R networks, their optimiser and their average."""

    def __init__(self, networks: Sequence[nn.Module], recipe: Recipe, names: Sequence[StreamName], objective: Objective) -> None:
        self.networks, self.recipe, self.objective = networks, recipe, objective
        self.shell = networks[0]  # lends its code; its own weights are not used
        wants = {name for name, tensor in self.shell.named_parameters() if tensor.requires_grad}
        states = [dict(network.named_parameters()) | dict(network.named_buffers()) for network in networks]
        stacked = {name: torch.stack([state[name].detach() for state in states]).contiguous() for name in states[0]}
        self.params = {name: nn.Parameter(tensor) for name, tensor in stacked.items() if name in wants}
        self.fixed = {name: tensor for name, tensor in stacked.items() if name not in wants}  # buffers, frozen weights
        self.device = next(iter(stacked.values())).device
        self.dropouts = [layer for layer in self.shell.modules() if isinstance(layer, Dropout) and layer.rate]
        self.rngs = [stream(*name, "dropout", device=self.device) for name in names] if self.dropouts else []
        self.optimizer = make_optimizer(list(self.params.values()), recipe)
        self.captured = self.device.type == "cuda"
        rates_on(self.device, self.optimizer)
        self.live = [*self.params.values(), *(tensor for tensor in self.fixed.values() if tensor.is_floating_point())]
        self.mean = [tensor.detach().clone() for tensor in self.live] if recipe.ema else []
        self.shapes: dict[int, list[Tensor]] = {}  # batch size -> what each dropout layer takes, empty tensors of its shape
        self.graphs: dict[int, Recorded | None] = {}

    def _own_loss(self, params: dict[str, Tensor], fixed: dict[str, Tensor], images: Tensor, targets: Tensor, masks: Any) -> Any:
        """One network's loss, and its buffers after the forward pass."""
        for layer, mask in zip(self.dropouts, masks, strict=True):
            layer.mask = mask
        state = params | fixed  # a buffer that the network replaces, and does not change in place, is replaced here

        def network(images: Tensor) -> Tensor:
            return functional_call(self.shell, state, (images,))

        loss = self.objective(network, images, targets, torch.Generator())  # type: ignore[arg-type]
        return loss, {name: state[name] for name in fixed}

    def _masks(self, images: Tensor) -> list[Tensor]:
        """Dropout masks [R, ...] in the order of the layers' calls, each network's from its own stream."""
        if not self.dropouts:
            return []
        size = images.shape[1]
        if size not in self.shapes:
            self.shapes[size] = self._shapes(images[0])
        drawn = [
            [layer.draw(like, rng) for layer, like in zip(self.dropouts, self.shapes[size], strict=True)] for rng in self.rngs
        ]
        return [torch.stack(masks) for masks in zip(*drawn, strict=True)]

    def _shapes(self, images: Tensor) -> list[Tensor]:
        """What each dropout layer takes. Reorders `dropouts` by call."""
        order: list[tuple[Dropout, Tensor]] = []

        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, Dropout)
            order.append((layer, torch.empty_like(inputs[0])))

        hooks = [layer.register_forward_pre_hook(note) for layer in self.dropouts]
        with torch.no_grad():
            self.shell.eval()(images)
        self.shell.train()
        for hook in hooks:
            hook.remove()
        self.dropouts = [layer for layer, _ in order]
        return [like for _, like in order]

    def _step(self, images: Tensor, targets: Tensor) -> Tensor:
        """One step of every network: images [R,B,C,H,W], targets [R,B] or [R,B,K] -> losses [R]."""
        masks = self._masks(images)
        mapped = vmap(grad_and_value(self._own_loss, has_aux=True))
        grads, (losses, fixed) = mapped(dict(self.params), self.fixed, images, targets, masks)
        for name, tensor in self.fixed.items():
            if fixed[name] is not tensor:
                tensor.copy_(fixed[name])
        for name, parameter in self.params.items():
            parameter.grad = grads[name].contiguous()  # fused optimisers read a gradient in the order of its memory
        self.optimizer.step()
        return losses.detach()

    def step(self, images: Tensor, targets: Tensor) -> Tensor:
        """A step, replayed from a graph on a CUDA device. The losses are valid until the next step."""
        if not self.captured:
            return self._step(images, targets)
        size = images.shape[1]
        if size not in self.graphs:
            allow = partial(allow_capture, self.optimizer)
            self.graphs[size] = record(self._recorded, (images, targets), self._changed, self.rngs, self.device, allow)
        graph = self.graphs[size]
        return self._step(images, targets) if graph is None else graph(images, targets)[0]

    def _recorded(self, images: Tensor, targets: Tensor) -> tuple[Tensor]:
        return (self._step(images, targets),)

    def _changed(self) -> dict[str, Tensor]:
        return {**self.params, **self.fixed} | optimizer_tensors(self.optimizer)

    def begin(self, epoch: int) -> None:
        """Set the epoch's rate."""
        set_rate(self.optimizer, rate_at(epoch, self.recipe))

    def average(self, epoch: int) -> None:
        """Count this epoch's weights in."""
        if self.mean:
            live = [tensor.detach() for tensor in self.live]
            torch._foreach_lerp_(self.mean, live, 1 - ema_decay(epoch, self.recipe.ema))

    def unstack(self) -> None:
        """Give every network its weights, averaged if the recipe has an average, and leave it in evaluation mode."""
        for layer in self.dropouts:
            layer.mask = None
        final = dict(zip([*self.params, *(n for n, t in self.fixed.items() if t.is_floating_point())], self.live, strict=True))
        if self.mean:
            final = dict(zip(final, self.mean, strict=True))
        final = dict(self.fixed) | final
        with torch.no_grad():
            for number, network in enumerate(self.networks):
                for name, tensor in (dict(network.named_parameters()) | dict(network.named_buffers())).items():
                    tensor.copy_(final[name][number])
                network.eval()


def train_stacked(
    networks: Sequence[nn.Module],
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    names: Sequence[StreamName],
    augment: Augment | None,
    objective: Objective = cross_entropy,
    on_epoch: Callable[[int], None] | None = None,
) -> list[float]:
    """Train networks of one architecture in place, each as `train` trains it under its name, all at once.

    `objective` must not draw random numbers. Returns the mean losses of the last epoch. Raises UntrainableError where one is not
    finite; the networks must be such as `can_stack` likes, on one device.
    """
    stack = Stack(networks, recipe, names, objective)
    for network in networks:
        network.train()
    steps, at_once = -(-len(images) // recipe.batch), max(1, epochs_ahead(images, recipe, len(networks)))
    losses: list[Tensor] = []
    for first in range(0, recipe.epochs, at_once):
        epochs = range(first, min(first + at_once, recipe.epochs))
        prepared = ahead(images, targets, recipe, names, augment, epochs)
        for epoch in epochs:
            stack.begin(epoch)
            losses = [stack.step(*next(prepared)).clone() for _ in range(steps)]
            stack.average(epoch)
            if on_epoch:
                on_epoch(epoch)
    stack.unstack()
    return [finite(last, recipe) for last in torch.stack(losses).mean(0).tolist()]
