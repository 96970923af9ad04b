"""Ranks sets as H-PD's released code does: by the maps of untrained networks, another one at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddbench.api import Batch, Ranker, RankRun, Run, Score
from ddbench.errors import ConfigError
from ddbench.ops.activations import recorded, stages
from ddbench.ops.gated import class_means


@dataclass(frozen=True)
class ReleasedDistance(Ranker):
    """sum_l sum_c || R_lc - mean_j F_l(A(s_cj)) ||^2, F_l the l-th of L maps of an untrained backbone, another one at every step.

    R_lc is the mean of F_l(A(x)) over `networks` other untrained backbones and `batches` of `batch_real` real images x of the
    class for each; R_Lc, of the last map, is that of the first batch of the first network alone. Maps are those behind the
    activations, one a block of a ConvNet. A: one draw of augmentation a batch, another one for the set. No proxy is read.
    Source: the code released with H-PD (CVPR 2025), the distance of its script for DC, as it is: maps of different random
    networks are not comparable, so the score is mostly noise; `feature-distance` is the one that the paper describes.
    Departures: random streams have names, where the code takes the clock; the backbone is the plan's, there a ConvNet; the winner
    is kept as it was, where the code keeps references to tensors that it goes on to change.
    Raises: ConfigError for numbers below 1, and for a backbone that shows no maps.
    """

    networks: int = 5
    batches: int = 50
    batch_real: int = 25  # real images of a class

    def __post_init__(self) -> None:
        """Refuse what averages nothing."""
        for name in ("networks", "batches", "batch_real"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def check(self, run: Run) -> None:
        """Whether the backbone shows maps."""
        stages(run.skeleton("released"))

    def open(self, run: RankRun) -> Score:
        """The distance to the means of the real images."""
        real = self.real_means(run)

        def score(syn: Batch, step: int) -> Tensor:
            view = run.augment.draw(run.rng("released", "augment", step))
            means = _means(run, ("released", step), view(syn.images), syn.classes)
            return torch.stack([(wanted - mean).square().sum() for wanted, mean in zip(real, means, strict=True)]).sum()

        return score

    def real_means(self, run: RankRun) -> list[Tensor]:
        """R_l: [K,D_l,h_l,w_l]."""
        total: list[Tensor] = []
        for number in range(self.networks):
            for batch in range(self.batches):
                images, classes = self._batch(run, number, batch)
                means = _means(run, ("released", "real", number), images, classes)
                sums = [one + other for one, other in zip(total, means, strict=True)] if total else means
                total = [*sums[:-1], total[-1] if total else means[-1]]
        return [*(one / (self.networks * self.batches) for one in total[:-1]), total[-1]]

    def _batch(self, run: RankRun, number: int, batch: int) -> tuple[Tensor, Tensor]:
        """Real images of all classes, augmented, and their classes."""
        place = ("released", "real", number, batch)
        each = [run.real(label, self.batch_real, run.rng(*place, label)) for label in range(run.spec.num_classes)]
        labels = torch.repeat_interleave(torch.arange(len(each)), torch.tensor([len(images) for images in each]))
        return run.augment.draw(run.rng(*place, "augment"))(torch.cat(each)), labels.to(run.device)


def _means(run: RankRun, network: tuple[str | int, ...], images: Tensor, classes: Tensor) -> list[Tensor]:
    """The class means of every map of the untrained backbone of that name."""
    backbone = run.network(*network)
    with torch.no_grad(), recorded(stages(backbone)) as maps:
        backbone.forward_features(images)  # type: ignore[operator]
    return [class_means(each, classes, run.spec.num_classes) for each in maps]
