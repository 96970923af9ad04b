"""Sets of IPC images a class: of real images that a selection names, and others, under hard labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import TRAIN, Baseline, Batch, Resource, Run, Saw
from ddbench.errors import ConfigError


def check_enough(run: Run) -> None:
    """Raise ConfigError where a class has fewer images than IPC."""
    least = min(run.class_counts)
    if run.ipc > least:
        raise ConfigError(f"ipc {run.ipc} is more than the {least} images that a class trains on: lower it.")


@dataclass(frozen=True)
class Selection(Baseline):
    """IPC real images of every class, chosen by what is trained once and shared. Abstract: trained, build."""

    uses_backbone: ClassVar[bool] = True
    saw: ClassVar[Saw] = TRAIN

    @property
    @abstractmethod
    def trained(self) -> Resource:
        """What it chooses by."""

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """That."""
        return (self.trained,)

    def check(self, run: Run) -> None:
        """Whether every class has enough images."""
        check_enough(run)


def selected(run: Run, choose: Callable[[int], Tensor | Sequence[int]]) -> Batch:
    """The real images of every class at the places that `choose(class)` names, [IPC] each, under hard labels."""
    num_classes = run.spec.num_classes
    places = [torch.as_tensor(choose(label)) for label in range(num_classes)]
    return labelled(torch.cat([run.read(label, None)[place.to(run.device)] for label, place in enumerate(places)]), run)


def labelled(images: Tensor, run: Run) -> Batch:
    """IPC images of each class, one class after the other [K IPC,C,H,W], under hard labels."""
    num_classes = run.spec.num_classes
    classes = torch.arange(num_classes, device=run.device).repeat_interleave(run.ipc)
    return Batch(images, F.one_hot(classes, num_classes).float(), classes)
