"""Soft labels: a teacher, trained once on the real training images, labels every augmented batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import Effort, Objective, Recipe, Resource, Spec
from ddbench.compute.rank import size_of
from ddbench.compute.run import build_network
from ddbench.ops.crops import CropFlip
from ddbench.plan import Judging
from ddbench.refs import PluginRef, require


@dataclass(frozen=True)
class SoftTeacher(Resource):
    """A protocol's teacher: the squeezed network of SRe2L (Yin, Xing and Shen, NeurIPS 2023), with random crops and mirrors."""

    network: PluginRef
    recipe: Recipe
    costly: ClassVar[bool] = True
    numerics: ClassVar[int] = 2  # crops see nothing beside their box

    def describe(self) -> str:
        """One line."""
        return f"teacher {self.network.label}, {self.recipe.epochs} epochs"

    def effort(self, run: Any) -> Effort:
        """All training images in every epoch."""
        return Effort(self.recipe.epochs * sum(run.class_counts), size_of(run.bare(self.network, "teacher")))

    def build(self, run: Any) -> dict[str, Tensor]:
        """Its state."""
        network = run.build(self.network, "teacher")
        run.train(network, self.recipe, "teacher", augment=CropFlip())
        return network.state_dict()


def teacher_needs(judging: Judging) -> tuple[SoftTeacher, ...]:
    """The teacher of a judgement, where its protocol has one. Raises ConfigError where the plan does not name its network."""
    told = judging.numbers.teacher
    return (SoftTeacher(require(judging.teacher, "teacher"), told.recipe()),) if told else ()


def load_teacher(judging: Judging, tensors: dict[str, Tensor], spec: Spec, device: torch.device) -> nn.Module:
    """The trained teacher, frozen, in evaluation mode."""
    network = build_network(require(judging.teacher, "teacher"), spec, device, "teacher")
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def follow(teacher: nn.Module, temperature: float) -> Objective:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch; the targets of the set do not count.

    Source: SRe2L's code for Tiny-ImageNet, whose teacher sees the same augmented images as the student.
    """

    def objective(network: nn.Module, images: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            wanted = (teacher(images) / temperature).log_softmax(1)
        got = (network(images) / temperature).log_softmax(1)
        return F.kl_div(got, wanted, reduction="batchmean", log_target=True) * temperature**2

    objective.draws_nothing = True  # type: ignore[attr-defined]
    return objective


REFINED = 0.1  # how much of the smoothed class goes to a label
SMOOTHED = 0.1  # the probability that the smoothed class gives to the others


def refine(soft: Tensor, own: Tensor) -> Tensor:
    """u(soft) + 0.1 u(s), [B,K], where u scales a vector to length 1 and s is the smoothed class: 0.9, and 0.1 shared out among
    the others. `own` is 1 for the class and 0 for the others."""
    smooth = own * (1 - SMOOTHED) + (1 - own) * (SMOOTHED / (own.shape[1] - 1))
    return F.normalize(soft, dim=1) + REFINED * F.normalize(smooth, dim=1)


def gift(teacher: nn.Module | None) -> Objective:
    """1 - cos(student's outputs, refined label), mean over the batch; the label is the teacher's outputs or, without one, the
    set's own.

    Source: Shang, Sun and Lin, GIFT, and its public code. Departures: none in the loss; the class of a soft label of the set is
    its largest, where that code is given classes beside it.
    """

    def objective(network: nn.Module, images: Tensor, targets: Tensor, rng: torch.Generator) -> Tensor:
        got = network(images)
        with torch.no_grad():
            classes = targets if targets.dim() == 1 else targets.argmax(1)
            own = (classes[:, None] == torch.arange(got.shape[1], device=got.device)).to(got.dtype)
            soft = own if targets.dim() == 1 else targets
            wanted = refine(soft if teacher is None else teacher(images), own)
        return 1 - F.cosine_similarity(got, wanted, dim=1).mean()

    objective.draws_nothing = True  # type: ignore[attr-defined]
    return objective
