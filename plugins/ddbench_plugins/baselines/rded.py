"""Crops of real images that a teacher is surest of, several in one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import TRAIN, AtMost, Baseline, Batch, Resource, Run, Saw
from ddbench.errors import ConfigError
from ddbench.ops.crops import CropFlip
from ddbench.ops.selecting import labelled
from ddbench.ops.tiles import joined, tile_sides
from ddbench.ops.trained import AT_ONCE, TrainedBackbone


@dataclass(frozen=True)
class Rded(Baseline):
    """rded: of `pool` real images of a class and `crops` random crops of each, the crop that a teacher is surest of; the best
    of these, factor x factor to an image.

    Source: Sun et al., On the Diversity and Realism of Distilled Dataset (RDED), CVPR 2024; 300 images and 5 crops, `factor` 1
    for CIFAR-10 and 2 at 128 px and above. Departures: the teacher is the backbone, trained on these very images; labels are
    hard, where the paper's networks learn from the teacher's: take a protocol with a teacher for that; crops have 8 to 100 % of
    an image's area, torchvision's default, and what the paper's code takes is not known here.
    Raises: ConfigError for a factor that leaves no tile, or where a class has fewer images than the tiles need.
    """

    pool: int = 300
    crops: Annotated[int, AtMost(100)] = 5
    factor: int = 1
    epochs: int = 20  # of the teacher
    lr: float = 0.01
    uses_backbone: ClassVar[bool] = True
    saw: ClassVar[Saw] = TRAIN

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if min(self.pool, self.crops, self.factor) < 1:
            raise ConfigError(f"'pool', 'crops' and 'factor' must be at least 1, got {self.pool}, {self.crops}, {self.factor}.")

    @property
    def _teacher(self) -> TrainedBackbone:
        return TrainedBackbone(self.epochs, self.lr)

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """The teacher."""
        return (self._teacher,)

    def check(self, run: Run) -> None:
        """Whether there are enough images for all tiles, and these have two pixels a side."""
        there, wanted = min(self.pool, *run.class_counts), run.ipc * self.factor**2
        if wanted > there:
            told = f"{wanted} images of a class, {run.ipc} times {self.factor**2}"
            raise ConfigError(f"baseline 'rded' needs {told}, and has {there} to choose from: lower ipc or 'factor'.")
        if self.factor > min(run.spec.shape[1:]) // 2:
            raise ConfigError(f"'factor' {self.factor} leaves tiles of less than 2 px: at most {min(run.spec.shape[1:]) // 2}.")

    def build(self, run: Run) -> Batch:
        """Class by class."""
        teacher = self._teacher.load(run)
        return labelled(torch.cat([self._of_class(label, teacher, run) for label in range(run.spec.num_classes)]), run)

    def _of_class(self, label: int, teacher: nn.Module, run: Run) -> Tensor:
        """[IPC,C,H,W]."""
        pool = run.real(label, self.pool, run.rng("rded", label))
        made = [CropFlip(flip=0.0).draw(run.rng("rded-crop", label, number), len(pool))(pool) for number in range(self.crops)]
        wrong = torch.stack([_wrong(teacher, crops, label) for crops in made])  # [crops, pool]
        best = wrong.argmin(0)
        crops = torch.stack(made)[best, torch.arange(len(pool), device=best.device)]
        order = wrong.amin(0).argsort(stable=True)[: run.ipc * self.factor**2]
        return _tiled(crops[order], self.factor)


def _wrong(teacher: nn.Module, images: Tensor, label: int) -> Tensor:
    """The teacher's cross-entropy for each, [B]."""
    with torch.no_grad():
        return torch.cat([-teacher(part).log_softmax(1)[:, label] for part in images.split(AT_ONCE)])


def _tiled(images: Tensor, factor: int) -> Tensor:
    """[n f f, C, H, W] -> [n, C, H, W], each of f x f shrunk ones; sides that do not divide leave their last tiles narrower."""
    if factor == 1:
        return images
    sides = images.shape[2:]
    return joined(F.interpolate(images, tile_sides(sides, factor), mode="bilinear", antialias=True), factor, sides)
