"""SRe2L's recovery: a trained network's own statistics, and its idea of the classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import Batch, Effort, Loss, Memory, Recipe, Resource, Run
from ddbench.errors import ConfigError
from ddbench.ops.crops import CropFlip
from ddbench.ops.moments import batch_norms, moment_distances


@dataclass(frozen=True)
class Squeezed(Resource):
    """A network trained on the real training images with random crops and mirrors, a linear warm-up and a cosine."""

    epochs: int
    lr: float
    batch: int
    momentum: float
    weight_decay: float
    warmup_epochs: int
    uses_backbone: ClassVar[bool] = True

    def describe(self) -> str:
        """One line."""
        return f"teacher of the backbone's kind, {self.epochs} epochs"

    def effort(self, run: Run) -> Effort:
        """All training images in every epoch."""
        values = sum(tensor.numel() for tensor in run.network("teacher").state_dict().values())
        return Effort(self.epochs * sum(run.class_counts), values * 4)

    def build(self, run: Run) -> dict[str, Tensor]:
        """Its weights and stored statistics."""
        network = run.network("teacher")
        warmup = min(self.warmup_epochs, self.epochs)
        recipe = Recipe(self.epochs, self.lr, self.batch, self.momentum, self.weight_decay, warmup, schedule="cosine")
        run.train(network, recipe, "teacher", augment=CropFlip())
        return network.state_dict()


@dataclass(frozen=True)
class BatchNormStatistics(Loss):
    """SRe2L: images of which a trained network is sure, and whose statistics are those it saw in training.

    value = sum over groups g of CE(t(A(s_g)), y_g) + bn_weight sum_l m_l (|mean_l - mean*_l|_2 + |var_l - var*_l|_2);  t: the
    teacher, a network of the backbone's kind, in evaluation mode;  mean_l, var_l: of the input of its l-th BatchNorm2d over the
    group, variance biased;  mean*, var*: what that layer has stored;  m_1 = `first_multiplier`, others 1;  A: one random
    resized crop and mirror, then a circular shift by up to `roll` pixels on both axes, drawn once for each group and step.
    A group is one image of each of up to `classes_a_group` classes, or, with `by_class`, all images of a class.
    Source: Yin, Xing and Shen, Squeeze, Recover and Relabel, NeurIPS 2023, eq. 4 to 7, and its public code: numbers for
    ImageNet-1K, squeezing as for Tiny-ImageNet (bn_weight 1, roll 4 and both ways there; `roll_both_ways`). A plan for it
    has optimizer "adam", schedule "cosine", space pixel with clamp, from noise. Departures: all groups are optimised side by
    side, where the code finishes one before the next: the same numbers, as no group sees another.
    Raises: ConfigError for a number out of range, for a backbone without BatchNorm.
    """

    bn_weight: float = 0.01
    first_multiplier: float = 10.0
    crop: bool = True
    roll: int = 32  # pixels
    roll_both_ways: bool = False  # from -roll to roll; otherwise from 0
    classes_a_group: int = 100
    by_class: bool = False
    teacher_epochs: int = 50
    teacher_lr: float = 0.2
    teacher_batch: int = 256
    teacher_momentum: float = 0.9
    teacher_weight_decay: float = 1e-4
    teacher_warmup_epochs: int = 5
    rates: ClassVar[Mapping[str, float]] = {"pixels": 0.25, "f": 0.25, "w": 0.001, "labels": 0.1}

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name, least in (("classes_a_group", 1), ("teacher_epochs", 1), ("teacher_batch", 1), ("roll", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"'{name}' must be at least {least}, got {getattr(self, name)}.")
        if self.bn_weight < 0 or not self.teacher_lr > 0:
            got = f"{self.bn_weight} and {self.teacher_lr}"
            raise ConfigError(f"'bn_weight' must be at least 0 and 'teacher_lr' above 0, got {got}.")

    def _teacher(self) -> Squeezed:
        recipe = (self.teacher_lr, self.teacher_batch, self.teacher_momentum, self.teacher_weight_decay)
        return Squeezed(self.teacher_epochs, *recipe, self.teacher_warmup_epochs)

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """The teacher; refused here, before it is trained, where it would have no statistics."""
        if not batch_norms(run.network("teacher")):
            told = "compares with the statistics that BatchNorm layers store, and the backbone has none"
            raise ConfigError(f"loss 'bn-statistics' {told}: name another, such as resnet18-bn or convnet with norm batch.")
        return (self._teacher(),)

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """Group by group, so that memory holds one group's graph at a time."""
        teacher = self._loaded(run, syn.images.dtype)
        value = torch.zeros((), dtype=syn.images.dtype, device=syn.images.device)
        for number, group in enumerate(self._groups(syn.classes, run)):
            images = self._view(syn.images[group], run, number)
            with moment_distances(teacher) as distances:
                logits = teacher(images)
            weighted = [distance * (self.first_multiplier if place == 0 else 1.0) for place, distance in enumerate(distances)]
            term = F.cross_entropy(logits, syn.labels[group]) + self.bn_weight * torch.stack(weighted).sum()
            term.backward(inputs=syn.leaves)
            value += term.detach()
        return value

    def _loaded(self, run: Run, dtype: torch.dtype) -> nn.Module:
        teacher = run.network("teacher")
        teacher.load_state_dict(run.resource(self._teacher()))
        return teacher.to(dtype).eval().requires_grad_(False)

    def _groups(self, classes: Tensor, run: Run) -> Iterator[Tensor]:
        """Positions of images, [n] int64 each; no group is empty. All classes have equally many images, side by side."""
        num = run.spec.num_classes
        by_class = torch.arange(len(classes), device=classes.device).view(num, -1)
        if self.by_class:
            yield from by_class
        else:
            for column in by_class.T:
                yield from column.split(self.classes_a_group)

    def _view(self, images: Tensor, run: Run, group: int) -> Tensor:
        """The augmentation of this group and step."""
        if self.crop:
            images = CropFlip().draw(run.rng("crop", run.step, group))(images)
        if self.roll:
            low = -self.roll if self.roll_both_ways else 0
            down, right = torch.randint(low, self.roll + 1, (2,), generator=run.rng("roll", run.step, group)).tolist()
            images = images.roll((down, right), (2, 3))
        return images
