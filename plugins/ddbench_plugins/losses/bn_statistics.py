"""SRe2L's recovery: a trained network's own statistics, and its idea of the classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import UNKNOWN, Batch, Effort, Loss, Memory, Recipe, Resource, Run, Saw, UserFile
from ddbench.errors import ConfigError
from ddbench.ops.checkpoints import fit_state
from ddbench.ops.crops import CropFlip, ShiftFlip, ahead
from ddbench.ops.moments import batch_norms, moment_distances
from ddbench.ops.priors import mean_norm, total_variation

Augmentation = Literal["crop", "shift"]
"""Of the squeezing: random resized crops and mirrors, or shifts by up to 4 pixels and mirrors."""


@dataclass(frozen=True)
class Squeezed(Resource):
    """A network trained on the real training images, augmented, with a linear warm-up and a cosine."""

    epochs: int
    lr: float
    batch: int
    momentum: float
    weight_decay: float
    warmup_epochs: int
    augment: Augmentation
    uses_backbone: ClassVar[bool] = True
    costly: ClassVar[bool] = True
    numerics: ClassVar[int] = 2  # crops see nothing beside their box

    def describe(self) -> str:
        """One line."""
        return f"teacher of the backbone's kind, {self.epochs} epochs"

    def effort(self, run: Run) -> Effort:
        """All training images in every epoch."""
        values = sum(tensor.numel() for tensor in run.skeleton("teacher").state_dict().values())
        return Effort(self.epochs * sum(run.class_counts), values * 4)

    def build(self, run: Run) -> dict[str, Tensor]:
        """Its weights and stored statistics."""
        network = run.network("teacher")
        warmup = min(self.warmup_epochs, self.epochs)
        recipe = Recipe(self.epochs, self.lr, self.batch, self.momentum, self.weight_decay, warmup, schedule="cosine")
        run.train(network, recipe, "teacher", augment=CropFlip() if self.augment == "crop" else ShiftFlip())
        return network.state_dict()


@dataclass(frozen=True)
class Pretrained(Resource):
    """A network of the backbone's kind that somebody else has trained, from a file of weights."""

    file: str
    sha256: str
    classes: tuple[int, ...]  # of its outputs, in the order of the data set's classes; none: it has just these
    uses_backbone: ClassVar[bool] = True

    @property
    def saw(self) -> Saw:
        """Images and labels of others, where it knows more classes than the data set has; else nobody has said."""
        return frozenset({"external-images", "external-labels"}) if self.classes else UNKNOWN

    def describe(self) -> str:
        """One line."""
        return f"teacher {self.file} ({self.sha256[:8]})"

    def build(self, run: Run) -> dict[str, Tensor]:
        """Its weights and stored statistics, by the backbone's names."""
        tensors = run.weights(self.file, self.sha256)
        return fit_state(run.skeleton("teacher"), tensors, self.classes, f"the weights '{self.file}'")


@dataclass(frozen=True)
class BatchNormStatistics(Loss):
    """SRe2L: images of which a trained network is sure, and whose statistics are those it saw in training.

    value = sum over groups g of CE(t(A(s_g)), y_g) + bn_weight sum_l m_l (|mean_l - mean*_l|_2 + |var_l - var*_l|_2)
            + variation_weight TV(A(s_g)) + norm_weight mean |A(s_g)|_2  (both 0, as in SRe2L's scripts);  t: the
    teacher, a network of the backbone's kind, in evaluation mode;  mean_l, var_l: of the input of its l-th BatchNorm2d over the
    group, variance biased;  mean*, var*: what that layer has stored;  m_1 = `first_multiplier`, others 1;  A: one random
    resized crop and mirror, then a circular shift by up to `roll` pixels on both axes, drawn once for each group and step.
    A group is one image of each of up to `classes_a_group` classes, or, with `by_class`, all images of a class.
    The teacher is trained on the real images (squeezed), or, with `teacher_weights`, read from a file in the folder `weights` of
    the data folder: a state dict of torchvision's or timm's network that the backbone names (.safetensors, .pt, .pth; nothing
    pickled is executed), pinned by `teacher_sha256`. It must have been trained on images normalised as the data set's are. Where
    it knows more classes than the data set has, `teacher_classes` says which of its outputs these are. A plan with
    labels = "teacher" stores the teacher's softmax of every finished image, without augmentation, as its label (relabel); SRe2L
    stores those of augmented views for every epoch, which is what the protocol sre2l-1 asks its own teacher for as it trains.
    Source: Yin, Xing and Shen, Squeeze, Recover and Relabel, NeurIPS 2023, its stage "recover", and its public code: numbers for
    ImageNet-1K, squeezing as for Tiny-ImageNet (bn_weight 1, roll 4 and both ways there; `roll_both_ways`). A plan for it
    has optimizer "adam", schedule "cosine", space pixel with clamp, from noise. Departures: all groups are optimised side by
    side, where the code finishes one before the next: the same numbers, as no group sees another.
    Raises: ConfigError for a number out of range, for a backbone without BatchNorm, for weights without a hash; DataError for
    weights that are missing, another file's, or no such network's.
    """

    bn_weight: float = 0.01
    first_multiplier: float = 10.0
    crop: bool = True
    roll: int = 32  # pixels
    roll_both_ways: bool = False  # from -roll to roll; otherwise from 0
    classes_a_group: int = 100
    by_class: bool = False
    variation_weight: float = 0.0
    norm_weight: float = 0.0
    teacher_epochs: int = 50
    teacher_lr: float = 0.2
    teacher_batch: int = 256
    teacher_momentum: float = 0.9
    teacher_weight_decay: float = 1e-4
    teacher_warmup_epochs: int = 5
    teacher_augment: Augmentation = "crop"
    teacher_weights: str = ""  # a file; the seven settings above then do not count
    teacher_sha256: str = ""
    teacher_classes: tuple[int, ...] = ()
    numerics: ClassVar[int] = 2  # crops see nothing beside their box
    relabels: ClassVar[Literal["never", "last", "always"]] = "last"
    rates: ClassVar[Mapping[str, float]] = {"pixels": 0.25, "f": 0.25, "w": 0.001, "labels": 0.1}

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name, least in (("classes_a_group", 1), ("teacher_epochs", 1), ("teacher_batch", 1), ("roll", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"'{name}' must be at least {least}, got {getattr(self, name)}.")
        for name in ("bn_weight", "variation_weight", "norm_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"'{name}' must be at least 0, got {getattr(self, name)}.")
        if not self.teacher_lr > 0:
            raise ConfigError(f"'teacher_lr' must be above 0, got {self.teacher_lr}.")
        if not self.teacher_weights and (self.teacher_sha256 or self.teacher_classes):
            raise ConfigError("'teacher_sha256' and 'teacher_classes' are of a file: name it as 'teacher_weights'.")

    def brings(self) -> tuple[UserFile, ...]:
        """The teacher, where it is a file."""
        if not self.teacher_weights:
            return ()
        return (UserFile(self.teacher_weights, "a trained network of the backbone's kind", self.teacher_sha256),)

    def _teacher(self) -> Squeezed | Pretrained:
        if self.teacher_weights:
            return Pretrained(self.teacher_weights, self.teacher_sha256, self.teacher_classes)
        recipe = (self.teacher_lr, self.teacher_batch, self.teacher_momentum, self.teacher_weight_decay)
        return Squeezed(self.teacher_epochs, *recipe, self.teacher_warmup_epochs, self.teacher_augment)

    def check(self, num_images: int, run: Run) -> None:
        """Whether the teacher would have statistics, and whether a file holds such a network."""
        if not batch_norms(run.skeleton("teacher")):
            told = "compares with the statistics that BatchNorm layers store, and the backbone has none"
            raise ConfigError(f"{told}: name another, such as resnet18-bn or convnet with norm batch.")
        teacher = self._teacher()
        if isinstance(teacher, Pretrained):
            teacher.build(run)

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """The teacher."""
        return (self._teacher(),)

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """Group by group, so that memory holds one group's graph at a time."""
        teacher = self._loaded(run, syn.images.dtype)
        value = torch.zeros((), dtype=syn.images.dtype, device=syn.images.device)
        groups = list(self._groups(syn.classes, run))
        views = self._views(run, len(groups))
        for group, view in zip(groups, views, strict=True):
            images = view(syn.images[group])
            with moment_distances(teacher) as distances:
                logits = teacher(images)
            weighted = [distance * (self.first_multiplier if place == 0 else 1.0) for place, distance in enumerate(distances)]
            term = F.cross_entropy(logits, syn.labels[group]) + self.bn_weight * torch.stack(weighted).sum()
            if self.variation_weight:
                term = term + self.variation_weight * total_variation(images)
            if self.norm_weight:
                term = term + self.norm_weight * mean_norm(images)
            term.backward(inputs=syn.leaves)
            value += term.detach()
        return value

    def relabel(self, images: Tensor, memory: Memory, run: Run) -> Tensor:
        """The teacher's probabilities."""
        return self._loaded(run, images.dtype)(images).softmax(1)

    def _loaded(self, run: Run, dtype: torch.dtype) -> nn.Module:
        teacher = run.skeleton("teacher")
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

    def _views(self, run: Run, num: int) -> list[Callable[[Tensor], Tensor]]:
        """The augmentation of this step's groups, of which there are so many."""
        drawn = [CropFlip().draw(run.rng("crop", run.step, group)) for group in range(num)] if self.crop else []
        crops = ahead(drawn, *run.spec.shape[1:], run.device)
        low, shifts = -self.roll if self.roll_both_ways else 0, list[list[int]]()
        if self.roll:
            streams = (run.rng("roll", run.step, group) for group in range(num))
            shifts = [torch.randint(low, self.roll + 1, (2,), generator=rng).tolist() for rng in streams]

        def seen(group: int, images: Tensor) -> Tensor:
            images = crops[group](images) if crops else images
            return images.roll(shifts[group], (2, 3)) if shifts else images

        return [partial(seen, group) for group in range(num)]
