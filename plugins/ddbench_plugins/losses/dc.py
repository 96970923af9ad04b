"""DC and DSA: gradient matching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import Batch, Loss, Memory, Run
from ddbench.errors import ConfigError, did_you_mean
from ddbench.ops.distance import DISTANCES


@dataclass(frozen=True)
class GradientMatching(Loss):
    """DC: distance of the gradients that real and synthetic images of a class give to the same network.

    value = sum_c D(grad_theta CE(A_c(s_c)), grad_theta CE(A_c(x_c))), D the row-wise cosine distance; A_c: one draw of
    augmentation that both sides of class c share (DSA), or none (DC).
    A network is drawn every `outer_loop` steps; between two steps of the same network it is trained `inner_loop` epochs on
    the synthetic set by plain SGD, with the augmentation of DSA if that is on.
    Source: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021, algorithm 1 and eq. 8; Zhao and
    Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021, eq. 4. Their loops by IPC are 1/1 at 1,
    10/50 at 10, 50/10 at 50; GLaD and H-PD run 1/1 throughout, the default here. Departures: a step is one match, so a plan
    with `outer_loop` 10 needs ten times the steps that the papers call iterations; the learning rate of the inner loop never
    changes (GLaD's evaluation overwrites it); networks with batch statistics are matched in training mode.
    Raises: ConfigError if a number is below 1 or the distance is unknown.
    """

    batch_real: int = 256  # real images per class and step
    augment: Literal["none", "dsa"] = "none"
    distance: str = "rowwise-cosine"
    outer_loop: int = 1
    inner_loop: int = 1
    inner_batch: int = 256
    inner_lr: float = 0.01
    order: ClassVar[int] = 2
    rates: ClassVar[Mapping[str, float]] = {"pixels": 1.0, "f": 1.0, "w": 0.001, "labels": 1.0}

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("batch_real", "outer_loop", "inner_loop", "inner_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' must be at least 1, got {getattr(self, name)}.")
        if self.distance not in DISTANCES:
            near = did_you_mean(self.distance, DISTANCES)
            raise ConfigError(f"unknown distance '{self.distance}'.{near} Known: {', '.join(DISTANCES)}.")

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """Match class by class, so that memory holds one class's graph at a time."""
        network = self._network(syn, memory, run)
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        value = torch.zeros((), dtype=syn.images.dtype, device=syn.images.device)
        for label in range(run.spec.num_classes):
            own = syn.classes == label
            fake, real = syn.images[own], run.real(label, self.batch_real, run.rng("real", run.step, label))
            if self.augment == "dsa":
                view = run.augment.draw(run.rng("augment", run.step, label))
                fake, real = view(fake), view(real)
            targets = torch.full((len(real),), label, device=real.device)
            wanted = torch.autograd.grad(F.cross_entropy(network(real), targets), parameters)
            got = torch.autograd.grad(F.cross_entropy(network(fake), syn.labels[own]), parameters, create_graph=True)
            term = DISTANCES[self.distance](got, [gradient.detach() for gradient in wanted])
            term.backward(inputs=syn.leaves)
            value += term.detach()
        return value

    def _network(self, syn: Batch, memory: Memory, run: Run) -> nn.Module:
        """A fresh network, or last step's, trained on the set as it is now; its weights live in `memory`."""
        iteration, turn = divmod(run.step, self.outer_loop)
        network = run.network("dc", iteration).to(syn.images.dtype)
        if turn:
            network.load_state_dict({name.removeprefix("net."): tensor for name, tensor in memory.items()})
            self._inner_(network, syn, run)
        if self.outer_loop > 1:
            memory.update({f"net.{name}": tensor.detach().clone() for name, tensor in network.state_dict().items()})
        return network

    def _inner_(self, network: nn.Module, syn: Batch, run: Run) -> None:
        """`inner_loop` epochs of plain SGD on the synthetic set."""
        images, labels = syn.images.detach(), syn.labels.detach()
        optimizer = torch.optim.SGD(network.parameters(), self.inner_lr)
        for epoch in range(self.inner_loop):
            order = torch.randperm(len(images), generator=run.rng("inner-order", run.step, epoch)).to(images.device)
            for number, part in enumerate(order.split(self.inner_batch)):
                batch = images[part]
                if self.augment == "dsa":
                    batch = run.augment.draw(run.rng("inner-augment", run.step, epoch, number), len(part))(batch)
                optimizer.zero_grad()
                F.cross_entropy(network(batch), labels[part]).backward()
                optimizer.step()


def dsa(
    batch_real: int = 256,
    distance: str = "rowwise-cosine",
    outer_loop: int = 1,
    inner_loop: int = 1,
    inner_batch: int = 256,
    inner_lr: float = 0.01,
) -> GradientMatching:
    """DSA: DC with differentiable siamese augmentation."""
    return GradientMatching(batch_real, "dsa", distance, outer_loop, inner_loop, inner_batch, inner_lr)
