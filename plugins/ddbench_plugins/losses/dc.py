"""DC and DSA: gradient matching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import Batch, Loss, Memory, Run
from ddbench.errors import ConfigError, did_you_mean
from ddbench.ops.distance import DISTANCES, class_distances, gradients
from ddbench.ops.embedding import OfClass, class_batches, class_groups, images_a_pass, sees_images_alone
from ddbench.ops.moves import send
from ddbench.ops.replays import matched_by_class

Loops = Literal["given", "by-ipc"]

LOOPS_BY_IPC = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Outer and inner loop of DC and DSA by the number of images per class."""


@dataclass(frozen=True)
class GradientMatching(Loss):
    """DC: distance of the gradients that real and synthetic images of a class give to the same network.

    value = sum_c D(grad_theta CE(A_c(s_c)), grad_theta CE(A_c(x_c))), D the row-wise cosine distance; A_c: one draw of
    augmentation that both sides of class c share (DSA), or none (DC).
    A network is drawn every `outer_loop` steps; between two steps of the same network it is trained `inner_loop` epochs on
    the synthetic set by plain SGD, with the augmentation of DSA if that is on.
    `loops`: "given", as `outer_loop` and `inner_loop` say: GLaD and H-PD run 1/1 at every IPC, the default here; "by-ipc", as
    in DC and DSA: 1/1 at IPC 1, 10/50 at 10, 20/25 at 20, 30/20 at 30, 40/15 at 40, 50/10 at 50.
    `batched`: the synthetic images of several classes go through the network together, as many as the device takes well
    (`ddbench.ops.embedding.PIXELS_A_PASS`); false: class by class. The two are equal up to rounding. The real images go
    class by class in either case: 256 of them keep a device busy.
    Source: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021, algorithm 1 and eq. 8; Zhao and
    Bilen, Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021, eq. 4. Departures: a step is one match, so
    a plan with `outer_loop` 10 needs ten times the steps that the papers call iterations; the learning rate of the inner loop
    never changes (GLaD's evaluation overwrites it); networks with batch statistics are matched in training mode, class by
    class, as are those with dropout.
    Raises: ConfigError if a number is below 1 or the distance is unknown; with loops "by-ipc" for another IPC than those
    above, and if `outer_loop` or `inner_loop` are set beside it.
    """

    batch_real: int = 256  # real images per class and step
    augment: Literal["none", "dsa"] = "none"
    distance: str = "rowwise-cosine"
    outer_loop: int = 1
    inner_loop: int = 1
    inner_batch: int = 256
    inner_lr: float = 0.01
    loops: Loops = "given"
    batched: bool = True
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
        if self.loops == "by-ipc" and (self.outer_loop, self.inner_loop) != (1, 1):
            raise ConfigError("loops = 'by-ipc' sets outer_loop and inner_loop: remove those two, or say loops = 'given'.")

    def check(self, num_images: int, run: Run) -> None:
        """Whether there are loops for this IPC."""
        self._loops(run)

    def _loops(self, run: Run) -> tuple[int, int]:
        """The outer and the inner loop."""
        if self.loops == "given":
            return self.outer_loop, self.inner_loop
        if run.ipc not in LOOPS_BY_IPC:
            known = ", ".join(map(str, LOOPS_BY_IPC))
            raise ConfigError(
                f"loops = 'by-ipc' knows the IPCs {known}, not {run.ipc}: take one of these, or say loops = 'given' with "
                "outer_loop and inner_loop."
            )
        return LOOPS_BY_IPC[run.ipc]

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """Match a group of classes at a time, so that memory holds one group's graph."""
        network, num = self._network(syn, memory, run), run.spec.num_classes
        fake, real = class_batches(syn, run, self.batch_real, self.augment == "dsa")
        return matched_by_class("dc", partial(self._match, num), network, fake, real, syn, run)

    def _match(self, num: int, network: nn.Module, fake: OfClass, real: OfClass, syn: Batch) -> Tensor:
        """Of so many classes."""
        labels = syn.labels.unflatten(0, (num, -1))  # [K,n,K]
        together = self.batched and sees_images_alone(network)
        value = torch.zeros((), dtype=syn.images.dtype, device=syn.images.device)
        for group in class_groups(num, labels.shape[1], images_a_pass(network, syn.images) if together else 1):
            wanted = [self._real_gradients(network, real(label), label) for label in group]
            if len(group) > 1:
                images = torch.stack([fake(label) for label in group])
                own = labels[group.start : group.stop]
                term = class_distances(network, DISTANCES[self.distance], images, own, wanted).sum()
            else:
                got = gradients(network, fake(group.start), labels[group.start], with_graph=True)
                term = DISTANCES[self.distance](got, wanted[0])
            term.backward(inputs=syn.leaves)
            value += term.detach()
        return value

    @staticmethod
    def _real_gradients(network: nn.Module, images: Tensor, label: int) -> tuple[Tensor, ...]:
        return gradients(network, images, torch.full((len(images),), label, device=images.device))

    def _network(self, syn: Batch, memory: Memory, run: Run) -> nn.Module:
        """A fresh network, or last step's, trained on the set as it is now; its weights live in `memory`."""
        outer_loop, inner_loop = self._loops(run)
        iteration, turn = divmod(run.step, outer_loop)
        draw = run.skeleton if turn else run.network
        network = draw("dc", iteration).to(syn.images.dtype)
        if turn:
            network.load_state_dict({name.removeprefix("net."): tensor for name, tensor in memory.items()})
            self._inner_(network, syn, run, inner_loop)
        if outer_loop > 1:
            memory.update({f"net.{name}": tensor.detach().clone() for name, tensor in network.state_dict().items()})
        return network

    def _inner_(self, network: nn.Module, syn: Batch, run: Run, epochs: int) -> None:
        """Epochs of plain SGD on the synthetic set."""
        images, labels = syn.images.detach(), syn.labels.detach()
        optimizer = torch.optim.SGD(network.parameters(), self.inner_lr)
        for epoch in range(epochs):
            order = send(torch.randperm(len(images), generator=run.rng("inner-order", run.step, epoch)), images.device)
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
    loops: Loops = "given",
    batched: bool = True,
) -> GradientMatching:
    """DSA: DC with differentiable siamese augmentation."""
    return GradientMatching(batch_real, "dsa", distance, outer_loop, inner_loop, inner_batch, inner_lr, loops, batched)
