"""The one training loop: experts, teachers, generators, proxies and evaluation networks all pass through `train()`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import Augment, Objective, Recipe
from ddbench.compute.batches import by_epoch, epochs_ahead
from ddbench.compute.capture import Recorded, allow_capture, optimizer_tensors, rates_on, record, set_rate
from ddbench.data.host import Images
from ddbench.errors import UntrainableError
from ddbench.ops.layers import Dropout, lend
from ddbench.seeds import StreamName, global_stream, stream


def cross_entropy(network: nn.Module, images: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
    """Mean cross-entropy of images [B,C,H,W] against class indices [B] or probabilities [B,K]."""
    return F.cross_entropy(network(images), targets)


cross_entropy.draws_nothing = True  # type: ignore[attr-defined]


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


def can_stack(network: nn.Module) -> bool:
    """Whether no torch dropout and no stochastic depth (timm's `drop_prob`) draws from torch's global generators in training,
    which neither a stack nor a recorded step can lend. What else may draw from them stops at the first step of a stack with an
    error of torch's, and a recorded step is compared with the plain one."""
    dropouts = (layer.p for layer in network.modules() if isinstance(layer, nn.modules.dropout._DropoutNd))
    return not any(dropouts) and not any(getattr(layer, "drop_prob", 0) for layer in network.modules())


class Steps:
    """The steps of one network's training: plain ones, or, on a CUDA device, ones that are recorded and replayed."""

    def __init__(
        self, network: nn.Module, recipe: Recipe, name: StreamName, objective: Objective, device: torch.device, captured: bool
    ) -> None:
        self.network, self.recipe, self.name, self.objective, self.device = network, recipe, name, objective, device
        self.optimizer = make_optimizer([parameter for parameter in network.parameters() if parameter.requires_grad], recipe)
        rates_on(device, self.optimizer)
        rng = stream(*name, "dropout", device=device)
        lend(network, rng)
        self.rngs = [rng] if any(isinstance(layer, Dropout) and layer.rate for layer in network.modules()) else []
        draws_nothing = getattr(objective, "draws_nothing", False)
        self.captured = captured and device.type == "cuda" and draws_nothing and can_stack(network)
        self.graphs: dict[int, Recorded | None] = {}  # by the size of a batch

    def begin(self, epoch: int) -> None:
        """Set the epoch's rate."""
        set_rate(self.optimizer, rate_at(epoch, self.recipe))

    def step(self, images: Tensor, targets: Tensor, epoch: int, number: int) -> Tensor:
        """The loss, detached."""
        if not self.captured:
            return self._step(images, targets, stream(*self.name, "objective", epoch, number))
        size = len(images)
        if size not in self.graphs:
            allow = partial(allow_capture, self.optimizer)
            self.graphs[size] = record(self._recorded, (images, targets), self._changed, self.rngs, self.device, allow)
        graph = self.graphs[size]
        return (self._recorded(images, targets) if graph is None else graph(images, targets))[0].clone()

    def _recorded(self, images: Tensor, targets: Tensor) -> tuple[Tensor]:
        return (self._step(images, targets, None),)  # the objective draws nothing

    def _step(self, images: Tensor, targets: Tensor, rng: torch.Generator | None) -> Tensor:
        loss = self.objective(self.network, images, targets, rng)  # type: ignore[arg-type]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _changed(self) -> dict[str, Tensor]:
        return dict(self.network.named_parameters()) | dict(self.network.named_buffers()) | optimizer_tensors(self.optimizer)


def train(
    network: nn.Module,
    images: Images,
    targets: Tensor,
    recipe: Recipe,
    name: StreamName,
    augment: Augment | None,
    objective: Objective = cross_entropy,
    on_epoch: Callable[[int], None] | None = None,
    view: Callable[[Tensor], Tensor] | None = None,
    captured: bool = False,
) -> float:
    """Train in place on images [N,C,H,W], on the network's device or on the host, and targets ([N] int64 or [N,K]).

    The images are normalised, or `view` makes what the network sees of a batch of them, before augmentation: of bytes, above all.
    The order of the images is drawn from the stream (*name, "order", epoch), augmentation from (*name, "augment", epoch, batch),
    the objective's own noise from (*name, "objective", epoch, batch), dropout from (*name, "dropout"): that of
    `ops.layers.Dropout` on the device, others' from torch's global generators, which are lent. Ends in evaluation
    mode, with the averaged weights if the recipe has an average. `on_epoch(epoch)` is called after each epoch; it must not
    wait for the device. `captured`: on a CUDA device steps are recorded and replayed, and batches made ahead, where the network
    and the objective (`draws_nothing`) allow that; the numbers are the same. Returns the mean loss of the last epoch. Raises
    UntrainableError where that is not finite.
    """
    average = Average(network, recipe.ema) if recipe.ema else None
    network.train()
    steps = Steps(network, recipe, name, objective, images.device, captured)
    at_once = epochs_ahead(images, recipe) if steps.captured else 0
    losses: list[Tensor] = []
    with global_stream(*name, "dropout"):
        for epoch, batches in enumerate(by_epoch(images, targets, recipe, name, augment, view, at_once)):
            steps.begin(epoch)
            losses = [steps.step(batch, wanted, epoch, number) for number, (batch, wanted) in enumerate(batches)]
            if average:
                average.update()
            if on_epoch:
                on_epoch(epoch)
    if average:
        average.copy_()
    network.eval()
    return finite(float(torch.stack(losses).mean()), recipe)


def finite(last: float, recipe: Recipe) -> float:
    """The last epoch's loss. Raises UntrainableError where it is not finite."""
    if not math.isfinite(last):
        raise UntrainableError(
            f"training diverged: the loss of the last epoch is {last} at rate {recipe.lr}. "
            "Look at the images it was trained on, or lower the rate."
        )
    return last


@torch.no_grad()
def predict(network: nn.Module, images: Images, batch: int, view: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The class a network in evaluation mode gives to each image: [N,C,H,W] -> [N] int64, without augmentation; `view`, if
    any, is what the network sees of a batch (normalised bytes)."""
    return torch.cat([network(view(part) if view else part).argmax(1) for part in images.split(batch)])
