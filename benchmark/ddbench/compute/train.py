"""The one training loop: experts, teachers, generators, proxies and evaluation networks all pass through `train()`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import Augment, Objective, Recipe
from ddbench.errors import DataError
from ddbench.ops.layers import lend
from ddbench.ops.moves import send
from ddbench.seeds import StreamName, global_stream, stream


def cross_entropy(network: nn.Module, images: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
    """Mean cross-entropy of images [B,C,H,W] against class indices [B] or probabilities [B,K]."""
    return F.cross_entropy(network(images), targets)


def rate_at(epoch: int, recipe: Recipe) -> float:
    """The learning rate of an epoch.

    "glad": lr * (1e-7 + (1 - 1e-7) epoch / w) up to and including epoch w, the last of the warm-up, then
    lr * (1 + cos(pi t / (epochs - w))) / 2 with t = epoch - w - 1. Source: GLaD's public evaluation code, traced at glad-1's
    numbers (1e-7, 0.5, 1, 0.503 at epochs 0, 250, 500, 750); the warm-up is one epoch too long there, which cuts the
    cosine short by one epoch; kept, for it is the protocol.
    "step": lr, and lr / 10 from epoch floor(epochs / 2) + 1 on. Source: the evaluation of DC, DSA, DM and MTT.
    "cosine": lr * (0.01 + 0.99 epoch / w) before epoch w, then lr * (1 + cos(pi (epoch - w) / (epochs - w))) / 2. Source:
    SRe2L's recipe for Tiny-ImageNet.
    """
    warmup = recipe.warmup_epochs
    if recipe.schedule == "glad":
        if epoch <= warmup:
            return recipe.lr * (1e-7 + (1 - 1e-7) * epoch / warmup)
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * (epoch - warmup - 1) / (recipe.epochs - warmup)))
    if recipe.schedule == "step":
        return recipe.lr if epoch <= recipe.epochs // 2 else recipe.lr / 10
    if recipe.schedule == "cosine":
        if epoch < warmup:
            return recipe.lr * (0.01 + 0.99 * epoch / warmup)
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (recipe.epochs - warmup)))
    return recipe.lr


def ema_decay(update: int, largest: float) -> float:
    """min(largest, k / (k + 1)) at update k = 0, 1, ...: a plain mean of the weights at first, then an exponential one."""
    return min(largest, update / (update + 1))


class Average:
    """The running average of a network's floating-point parameters and buffers, updated after every epoch."""

    def __init__(self, network: nn.Module, largest: float) -> None:
        self.live = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        self.mean = [tensor.clone() for tensor in self.live]
        self.largest, self.updates = largest, 0

    def update(self) -> None:
        """Count this epoch's weights in."""
        decay = ema_decay(self.updates, self.largest)
        torch._foreach_lerp_(self.mean, self.live, 1 - decay)
        self.updates += 1

    def copy_(self) -> None:
        """Put the average into the network."""
        with torch.no_grad():
            torch._foreach_copy_(self.live, self.mean)


def make_optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser, in one pass over each tensor: less than half of the time of tensor-wise sums on a CPU."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, fused=True)


def train(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    name: StreamName,
    augment: Augment | None,
    objective: Objective = cross_entropy,
    on_epoch: Callable[[int], None] | None = None,
    view: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Train in place on images [N,C,H,W], on the network's device, and targets ([N] int64 or [N,K]).

    The images are normalised, or `view` makes what the network sees of a batch of them, before augmentation: of bytes, above all.
    The order of the images is drawn from the stream (*name, "order", epoch), augmentation from (*name, "augment", epoch, batch),
    the objective's own noise from (*name, "objective", epoch, batch), dropout from (*name, "dropout"): that of
    `ops.layers.Dropout` on the device, others' from torch's global generators, which are lent. Ends in evaluation
    mode, with the averaged weights if the recipe has an average. `on_epoch(epoch)` is called after each epoch; it must not
    wait for the device. Returns the mean loss of the last epoch. Raises DataError where that is not finite.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, recipe)
    average = Average(network, recipe.ema) if recipe.ema else None
    network.train()
    lend(network, stream(*name, "dropout", device=images.device))
    losses: list[Tensor] = []
    with global_stream(*name, "dropout"):
        for epoch in range(recipe.epochs):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(epoch, recipe)
            order = send(torch.randperm(len(images), generator=stream(*name, "order", epoch)), images.device)
            losses = []
            for number, part in enumerate(order.split(recipe.batch)):
                batch = view(images[part]) if view else images[part]
                if recipe.augment and augment is not None:
                    batch = augment.draw(stream(*name, "augment", epoch, number), len(part))(batch)
                loss = objective(network, batch, targets[part], stream(*name, "objective", epoch, number))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            if average:
                average.update()
            if on_epoch:
                on_epoch(epoch)
    if average:
        average.copy_()
    network.eval()
    return finite(float(torch.stack(losses).mean()), recipe)


def finite(last: float, recipe: Recipe) -> float:
    """The last epoch's loss. Raises DataError where it is not finite."""
    if not math.isfinite(last):
        raise DataError(
            f"training diverged: the loss of the last epoch is {last} at rate {recipe.lr}. "
            "Look at the images it was trained on, or lower the rate."
        )
    return last


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, batch: int, view: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The class a network in evaluation mode gives to each image: [N,C,H,W] -> [N] int64, without augmentation; `view`, if
    any, is what the network sees of a batch (normalised bytes)."""
    parts = images.split(batch)
    return torch.cat([network(view(part) if view else part).argmax(1) for part in parts])
