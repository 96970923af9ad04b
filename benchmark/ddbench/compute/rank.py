"""Choosing among iterates and stages: what rankers are given, their scores, and the best of a stage.

Rankers see training images only: all that trains, the part of it that was held out before distillation began, and the proxy.
Scores are compared on the device, so that ranking every step does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddbench.api import Batch, Effort, Gradients, Proxy, RankDefaults, Ranker, Recipe, Resource, Score, State
from ddbench.compute.run import DistillRun
from ddbench.compute.train import predict, train
from ddbench.compute.ways import is_captured
from ddbench.errors import PluginError
from ddbench.plan import RANKS, SetPlan
from ddbench.refs import PluginRef, require


def size_of(network: nn.Module) -> int:
    """The bytes of its weights and buffers."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


@dataclass(frozen=True)
class Classifier(Resource):
    """A network trained on the real training images: the rankers' proxy where the plan names an architecture.

    Departure from H-PD, whose proxy is a ResNet-18 trained on ImageNet-1K: this one knows the subset's classes only.
    """

    network: PluginRef
    epochs: int
    lr: float = 0.01

    def describe(self) -> str:
        """One line."""
        return f"classifier {self.network.label}, {self.epochs} epochs"

    def effort(self, run: Any) -> Effort:
        """All training images in every epoch."""
        return Effort(self.epochs * sum(run.class_counts), size_of(run.bare(self.network, "classifier")))

    def build(self, run: Any) -> dict[str, Tensor]:
        """Its state."""
        network = run.build(self.network, "classifier")
        run.train(network, Recipe(self.epochs, self.lr), "classifier")
        return network.state_dict()


def needs(plan: SetPlan) -> tuple[Resource, ...]:
    """The resource of the core's own that the plan's rankers need: their proxy, where that is an architecture. One that others
    trained says itself what it needs, and so does a ranker. A plan in which none looks through a proxy names none."""
    if plan.proxy is None or plan.pretrained or plan.baseline or plan.imported:
        return ()
    return (Classifier(plan.proxy, plan.proxy_epochs),)


@dataclass(frozen=True, kw_only=True)
class RankingRun(DistillRun):
    """The `RankRun` of ddbench.api, for one ranker of a plan."""

    plan: SetPlan
    ranker: Ranker

    @classmethod
    def of(cls, run: DistillRun, plan: SetPlan, ranker: Ranker) -> RankingRun:
        """The run of a distillation with what this ranker may ask for."""
        return cls(**_as_dict(run), plan=plan, ranker=ranker)

    @property
    def defaults(self) -> RankDefaults:
        """What the suite says for all rankers."""
        gradient = cast(Gradients, self.plan.proxy_gradient)
        return RankDefaults(self.plan.proxy_layer, gradient, self.plan.rank_epochs, self.plan.rank_repeats)

    @cached_property
    def proxy(self) -> nn.Module:
        """The proxy, frozen, in evaluation mode. One that others trained sees pixels by the data set's own constants, which real
        images are normalised by, whatever a protocol does to generated ones."""
        self._may("uses_proxy", "looks through the proxy")
        ref = require(self.plan.proxy, "proxy")
        if self.plan.pretrained:
            pretrained: Proxy = ref.make()
            return pretrained.load(replace(DistillRun(**_as_dict(self)), fed=None)).eval().requires_grad_(False)
        (need,) = needs(self.plan)
        network = self.bare(ref, "proxy").eval().requires_grad_(False)
        network.load_state_dict(self.resource(need))
        return network

    def training_batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """All real training images."""
        for images, classes in zip(self.data.images.split(size), self.data.labels.split(size), strict=True):
            yield self.data.seen(images), classes

    def trained_on(self, syn: Batch, epochs: int, *name: str | int) -> nn.Module:
        """The backbone of that name, trained on a set."""
        self._may("uses_held_out", "trains networks on the set")
        backbone, network = require(self.backbone, "backbone"), self.network(*name)
        if self.plan.ranking is None:
            raise PluginError("ranking by networks that are trained on the set needs a recipe, and the plan has none.")
        recipe, captured = self.plan.ranking.shortened(epochs).recipe(backbone.make().lr), is_captured(backbone.name, self.device)
        train(network, syn.images, syn.labels, recipe, (*self.root, *name), self.augment, captured=captured)
        return network

    def held_out_error(self, network: nn.Module) -> Tensor:
        """The share of held-out images that it gets wrong."""
        self._may("uses_held_out", "reads held-out images")
        data = self.data
        if self.plan.ranking is None or not len(data.validation_labels):
            raise PluginError("ranking by validation needs a validation split, and the plan holds out none.")
        predicted = predict(network, data.validation_images, self.plan.ranking.test_batch, data.seen)
        return (predicted != data.validation_labels).float().mean()

    def _may(self, declared: str, what: str) -> None:
        if not getattr(self.ranker, declared):
            raise PluginError(f"ranker {type(self.ranker).__name__} {what} without saying {declared} = True.")


def _as_dict(run: DistillRun) -> dict[str, Any]:
    """The fields of a plain run."""
    return {field.name: getattr(run, field.name) for field in fields(DistillRun)}


def open_ranker(ranker: Ranker, plan: SetPlan, run: DistillRun) -> Score:
    """Its score, checked: 0-d, on the run's device, and without a graph."""
    score, who = ranker.open(RankingRun.of(run, plan, ranker)), type(ranker).__name__

    def checked(syn: Batch, step: int) -> Tensor:
        value = score(replace(syn, images=syn.images.detach(), labels=syn.labels.detach()), step)
        if not isinstance(value, Tensor) or value.dim() or value.device != run.device:
            got = f"{list(value.shape)} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
            raise PluginError(f"ranker {who}: a score must be a tensor [] on {run.device}, got {got}.")
        return value.detach()

    return checked


def scores(plan: SetPlan, run: DistillRun) -> tuple[Score | None, Score | None]:
    """What gives the scores of steps and of stages; None where the order of events decides, or the loss itself. A ranker of both
    is opened once."""
    opened = {ref: open_ranker(ref.make(), plan, run) for ref in plan.rankers}
    of_steps, of_stages = (opened.get(ref) if ref else None for ref in map(plan.ranker, RANKS))
    return of_steps, of_stages


class StageBest:
    """The best iterate of a stage so far: a copy, replaced on the device where a smaller score comes, without waiting."""

    def __init__(self) -> None:
        self.params: dict[str, Tensor] = {}
        self.score = torch.tensor(torch.inf)
        self.step = torch.tensor(-1)

    def offer(self, state: State, score: Tensor, step: int) -> None:
        """A candidate: the tensors as they are now. A score that is no number wins against nothing."""
        score = score.detach().nan_to_num(torch.inf, torch.inf, -torch.inf)
        if not self.params:
            self.params = {name: tensor.detach().clone() for name, tensor in state.params.items()}
            self.score, self.step = score.clone(), torch.full_like(score, step, dtype=torch.int64)
            return
        better = score < self.score
        for name, kept in self.params.items():
            kept.copy_(torch.where(better, state.params[name].detach(), kept))
        self.score = torch.where(better, score, self.score)
        self.step = torch.where(better, step, self.step)

    def state(self, state: State) -> State:
        """The winner in the place of the stage's tensors."""
        return State(self.params, state.fixed, state.stage).clone()

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        return {f"param.{name}": tensor for name, tensor in self.params.items()} | {
            "score": self.score,
            "step": self.step,
        }

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> StageBest:
        """Back from a checkpoint."""
        best = cls()
        best.params = {name.removeprefix("param."): tensor for name, tensor in tensors.items() if name.startswith("param.")}
        best.score, best.step = tensors["score"], tensors["step"]
        return best
