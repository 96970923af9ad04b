"""Sets of real images that a selection names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import Batch, Run
from ddbench.errors import ConfigError


def check_enough(run: Run) -> None:
    """Raise ConfigError where a class has fewer images than IPC."""
    least = min(run.class_counts)
    if run.ipc > least:
        raise ConfigError(f"ipc {run.ipc} is more than the {least} images that a class trains on: lower it.")


def selected(run: Run, choose: Callable[[int], Tensor | Sequence[int]]) -> Batch:
    """The real images of every class at the places that `choose(class)` names, [IPC] each, under hard labels."""
    num_classes = run.spec.num_classes
    places = [torch.as_tensor(choose(label)) for label in range(num_classes)]
    images = torch.cat([run.read(label, None)[place.to(run.device)] for label, place in enumerate(places)])
    classes = torch.arange(num_classes, device=run.device).repeat_interleave(run.ipc)
    return Batch(images, F.one_hot(classes, num_classes).float(), classes)
