"""Real images by how hard they were for networks that trained on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import AtMost, Batch, Recipe, Resource, Run
from ddbench.ops.selecting import Selection, selected
from ddbench.ops.trained import of_classes


@dataclass(frozen=True)
class ForgettingEvents(Resource):
    """How often each training image was forgotten, class after class: right after one epoch, and wrong after the next."""

    epochs: int
    lr: float
    uses_backbone: ClassVar[bool] = True

    def describe(self) -> str:
        """One line."""
        return f"forgetting events of the backbone, {self.epochs} epochs"

    def build(self, run: Run) -> dict[str, Tensor]:
        """events: [N] float, sorted by class; infinite for what was never right."""
        network, events, right, ever = run.network("forgetting"), list[Tensor](), list[Tensor](), list[Tensor]()

        def look(epoch: int) -> None:
            for label, now in enumerate(_right(network, run)):
                if epoch == 0:
                    events.append(torch.zeros_like(now, dtype=torch.float32))
                    right.append(now)
                    ever.append(now)
                    continue
                events[label] = events[label] + (right[label] & ~now)
                right[label], ever[label] = now, ever[label] | now

        run.train(network, Recipe(self.epochs, self.lr), "forgetting", on_epoch=look)
        return {"events": torch.where(torch.cat(ever), torch.cat(events), torch.inf)}


def _right(network: nn.Module, run: Run) -> Iterator[Tensor]:
    """Of each class, which images a network has right: [B] bool."""
    training = network.training
    network.eval()
    for label, logits in enumerate(of_classes(run, network)):
        yield logits.argmax(1) == label
    network.train(training)


@dataclass(frozen=True)
class ErrorNorms(Resource):
    """EL2N of each training image, class after class: the length of probabilities minus label, the mean over networks."""

    networks: int
    epochs: int
    lr: float
    uses_backbone: ClassVar[bool] = True

    def describe(self) -> str:
        """One line."""
        return f"error norms of {self.networks} backbones, {self.epochs} epochs"

    def build(self, run: Run) -> dict[str, Tensor]:
        """norms: [N], sorted by class."""
        total: Tensor | None = None
        for number in range(self.networks):
            network = run.network("error-norm", number)
            run.train(network, Recipe(self.epochs, self.lr), "error-norm", number)
            norms = torch.cat(list(_norms(network.eval(), run)))
            total = norms if total is None else total + norms
        assert total is not None
        return {"norms": total / self.networks}


def _norms(network: nn.Module, run: Run) -> Iterator[Tensor]:
    for label, logits in enumerate(of_classes(run, network)):
        hard = F.one_hot(torch.full((len(logits),), label, device=logits.device), run.spec.num_classes)
        yield (logits.softmax(1) - hard).norm(dim=1)


def hardest(scores: Tensor, run: Run) -> Batch:
    """The IPC images of every class whose scores [N], sorted by class, are highest; of equal ones, by the set's random stream."""
    parts = scores.split(list(run.class_counts))

    def choose(label: int) -> Tensor:
        mixed = torch.randperm(len(parts[label]), generator=run.rng("ties", label)).to(scores.device)
        return mixed[parts[label][mixed].argsort(descending=True, stable=True)[: run.ipc]]

    return selected(run, choose)


@dataclass(frozen=True)
class Forgetting(Selection):
    """forgetting: the images of a class that a network forgot most often while it trained; those never learned come first.

    Source: Toneva et al., An Empirical Study of Example Forgetting during Deep Neural Network Learning, ICLR 2019. Departures:
    whether an image is right is looked at after each epoch, not in its own batch.
    Raises: ConfigError where a class has fewer images than IPC.
    """

    epochs: int = 20
    lr: float = 0.01

    @property
    def trained(self) -> ForgettingEvents:
        """The counts."""
        return ForgettingEvents(self.epochs, self.lr)

    def build(self, run: Run) -> Batch:
        """The most forgotten."""
        return hardest(run.resource(self.trained)["events"], run)


@dataclass(frozen=True)
class El2n(Selection):
    """el2n: the images of a class on which networks err most, early in training.

    Source: Paul, Ganguli and Dziugaite, Deep Learning on a Data Diet, NeurIPS 2021. Departures: none but the numbers of networks
    and epochs, which they vary.
    Raises: ConfigError where a class has fewer images than IPC.
    """

    networks: Annotated[int, AtMost(1_000)] = 5
    epochs: int = 10
    lr: float = 0.01

    @property
    def trained(self) -> ErrorNorms:
        """The norms."""
        return ErrorNorms(self.networks, self.epochs, self.lr)

    def build(self, run: Run) -> Batch:
        """The hardest."""
        return hardest(run.resource(self.trained)["norms"], run)
