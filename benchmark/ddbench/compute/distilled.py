"""What distillation gives, the files that the store keeps of it, and how its states are named in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor

from ddbench.api import GENERATOR, Budget, Run, Space, Spec, State
from ddbench.compute.picture import grid_png, walk_png
from ddbench.compute.trace import LossTrace
from ddbench.files import tensors_to_bytes
from ddbench.plan import SetPlan
from ddbench.protocols import synthetic_spec
from ddbench.results.layout import LOSSES, WALK
from ddbench.schema import Size

SET_SCHEMA = 1
NORMALISED = "normalised: (pixel / 255 - mean) / std"
WHITENED = "whitened: (pixel / 255 - zca_mean) zca_matrix, images flattened over C, H, W"


@dataclass(frozen=True)
class Stage:
    """What came out of a stage."""

    state: State
    chosen_step: int  # over all stages; the number of updates the chosen tensors had seen
    distance: float | None  # the step ranker's score of the chosen iterate, smaller is better
    score: float | None  # the stage ranker's
    name: str = ""  # as the space calls it

    def to_json(self) -> dict[str, Any]:
        """Without the tensors' values."""
        shapes = {name: list(tensor.shape) for name, tensor in self.state.params.items()}
        return {
            "tensors": shapes,
            "chosen_step": self.chosen_step,
            "step_score": self.distance,
            "stage_score": self.score,
            "name": self.name,
        }


@dataclass(frozen=True)
class Stored:
    """What the tensors of a state take, without labels."""

    num_bytes: int  # of all of them
    networks: int = 0  # bytes of these that are networks which all images share
    generator: int | None = 0  # bytes of the weights of the generator that decodes them; None: nobody knows
    floats: int | None = 0  # values that are optimised; None: nobody knows

    @classmethod
    def of(cls, space: Space, state: State, run: Run) -> Stored:
        """Of a state of a space."""
        shared = space.decoder(state)
        tensors = {name: tensor for name, tensor in (state.params | state.fixed).items() if name != "labels"}
        return cls(
            sum(tensor.nbytes for tensor in tensors.values()),
            sum(tensor.nbytes for name, tensor in tensors.items() if name in shared),
            run.generator.bytes_stored if GENERATOR in shared else 0,
            sum(tensor.numel() for name, tensor in state.params.items() if name != "labels"),
        )

    @property
    def with_decoder(self) -> int | None:
        """Bytes with the generator's weights; None: nobody knows those."""
        return None if self.generator is None else self.num_bytes + self.generator

    def delivered(self, num_images: int, spec: Spec) -> int:
        """Bytes, the smaller of this and that many rendered images; of these, where nobody knows the generator's."""
        rendered = bytes_of(num_images, spec)
        return rendered if self.with_decoder is None else min(self.with_decoder, rendered)

    def size(self, budget: Budget, num_images: int, num_classes: int) -> Size:
        """As records have it."""
        return Size(
            budget=budget, images_per_class=num_images / num_classes, floats=self.floats,
            bytes_without_decoder=self.num_bytes - self.networks, bytes_with_decoder=self.with_decoder,
        )  # fmt: skip


@dataclass(frozen=True)
class DistilledSet:
    """The result: decoded images, their labels, and what it took."""

    images: Tensor  # [N,C,H,W], normalised float32
    labels: Tensor  # [N,K], probabilities
    classes: Tensor  # [N] int64
    steps: int
    stored: Stored  # the tensors that decode to the images
    stages: tuple[dict[str, Any], ...] = ()
    chosen_stage: int = 0
    learned: dict[str, Any] = field(default_factory=dict)  # the loss's own learned tensors
    timeline: tuple[tuple[int, float], ...] = ()  # (step, seconds that had passed before it)
    losses: LossTrace | None = None  # None where nothing was distilled
    walk: Tensor | None = None  # [S,K',C,H,W], an image of each class from its stages, where there are several

    @property
    def bytes_images(self) -> int:
        """Of the decoded images."""
        return self.images.numel() * self.images.element_size()


def set_files(plan: SetPlan, made: DistilledSet, spec: Spec, whitening: Mapping[str, Tensor] | None = None) -> dict[str, bytes]:
    """set.safetensors, the set with all that is needed to use it, images.png, its picture, and, of a distillation,
    losses.safetensors, the loss of its steps, and stages.png, the picture of its walk.

    `spec` is the data set's own. `whitening` holds zca_mean [D] and zca_matrix [D,D], where they and no normalisation have made
    the images; the picture then shows the values between the smallest and the largest.
    """
    told = synthetic_spec(spec, plan.synthetic_mean, plan.synthetic_std) if plan.generator or plan.imported else spec
    meta = {
        "schema": SET_SCHEMA,
        "key": plan.key,
        "dataset": spec.name,
        "class_names": spec.class_names,
        "mean": told.mean,
        "std": told.std,
        "labels": plan.labels,
        "learned": made.learned,
        "images": WHITENED if whitening else NORMALISED,
    } | ({"trial": True} if plan.is_trial else {})
    tensors = {"images": made.images, "labels": made.labels, "classes": made.classes, **(whitening or {})}
    shown = made.images
    if whitening:
        low, high = shown.min(), shown.max()
        shown = told.normalise((shown - low) / (high - low).clamp(min=1e-12))
    files = {"set.safetensors": tensors_to_bytes(tensors, meta), "images.png": grid_png(shown, made.classes, told)}
    if made.losses and made.losses.kept:
        told_of = {"schema": SET_SCHEMA, "key": plan.key, "every": made.losses.every}
        files[LOSSES] = tensors_to_bytes({"losses": made.losses.even()}, told_of)
    return files | ({} if made.walk is None else {WALK: walk_png(made.walk, told)})


def marks_of(plan: SetPlan, made: DistilledSet, spec: Spec) -> tuple[str, ...]:
    """What a reader must know of the bytes of a set that is to fill its budget: a space in a generator makes IPC images."""
    whole, delivered = bytes_of(spec.num_classes * plan.ipc, spec), made.stored.delivered(len(made.images), spec)
    if plan.budget == "images" or not made.stored.generator or delivered >= whole:
        return ()
    told = f"Its generator is so small that it is delivered in {delivered:,} of the {whole:,} bytes of its budget"
    return (f"{told}: more images would have fitted.",)


def bytes_of(num_images: int, spec: Spec) -> int:
    """That rendered images take, four a value."""
    return 4 * num_images * prod(spec.shape)


def state_tensors(prefix: str, state: State) -> dict[str, Tensor]:
    """A state under names that begin with a prefix, for a checkpoint."""
    params = {f"{prefix}.params.{name}": tensor for name, tensor in state.params.items()}
    return params | {f"{prefix}.fixed.{name}": tensor for name, tensor in state.fixed.items()}


def state_from(prefix: str, stage: int, tensors: dict[str, Tensor]) -> State:
    """The inverse of `state_tensors`."""
    return State(under(f"{prefix}.params.", tensors), under(f"{prefix}.fixed.", tensors), stage)


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
