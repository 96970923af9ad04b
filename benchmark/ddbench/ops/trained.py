"""The backbone, trained on the real training images: what selections look through, and what judges how hard an image is.

Shapes: B images of a class, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddbench.api import Recipe, Resource, Run
from ddbench.ops.embedding import embed

AT_ONCE = 256  # images


@dataclass(frozen=True)
class TrainedBackbone(Resource):
    """The backbone after `epochs` on the real training images, with augmentation."""

    epochs: int
    lr: float = 0.01
    uses_backbone: ClassVar[bool] = True

    def describe(self) -> str:
        """One line."""
        return f"backbone trained on the real images, {self.epochs} epochs"

    def build(self, run: Run) -> dict[str, Tensor]:
        """Its state."""
        network = run.network("trained")
        run.train(network, Recipe(self.epochs, self.lr), "trained")
        return network.state_dict()

    def load(self, run: Run) -> nn.Module:
        """The network in evaluation mode, frozen."""
        network = run.skeleton("trained")
        network.load_state_dict(run.resource(self))
        return network.eval().requires_grad_(False)


def of_classes(run: Run, function: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """What a function gives for all real images of each class, in their order, so many at a time and without a graph."""
    for label in range(run.spec.num_classes):
        with torch.no_grad():
            yield torch.cat([function(part) for part in run.read(label, None).split(AT_ONCE)])


def features_of_classes(run: Run, need: TrainedBackbone) -> list[Tensor]:
    """The embeddings of all real images of each class, [B,D], scaled to length 1."""
    network = need.load(run)
    return list(of_classes(run, lambda images: torch.nn.functional.normalize(embed(network, images), dim=1)))
