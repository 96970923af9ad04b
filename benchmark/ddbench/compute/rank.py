"""Choosing among iterates and stages: by the last, the loss, the class-relevant feature distance, or a validation split.

Rankers see training images only: the distance compares with the training split, `validation` reads the part of it that was
held out before distillation began. Scores are compared on the device, so that ranking every step does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ddbench.api import Effort, Proxy, Recipe, Resource, State
from ddbench.compute.run import DistillRun
from ddbench.compute.train import predict, train
from ddbench.compute.ways import is_captured
from ddbench.data.subsets import TrainingData
from ddbench.errors import ConfigError, PluginError, did_you_mean
from ddbench.plan import SetPlan
from ddbench.refs import PluginRef, require

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images [N,C,H,W], labels [N,K] probabilities, classes [N]) -> 0-d; smaller is better."""


def size_of(network: nn.Module) -> int:
    """The bytes of its weights and buffers."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


@dataclass(frozen=True)
class Classifier(Resource):
    """A network trained on the real training images: the proxy of the feature distance where the plan names an architecture.

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
    """The resources of the core's own that the plan's rankers need; a proxy that others trained says itself what it needs."""
    if not plan.ranks_by_distance or plan.pretrained:
        return ()
    return (Classifier(require(plan.proxy, "proxy"), plan.proxy_epochs),)


def gated_features(
    network: nn.Module, images: Tensor, classes: Tensor, gradient: str = "grad-cam", layer: nn.Module | None = None
) -> Tensor:
    """Class-relevant features ReLU(alpha_k F_k), alpha_k the spatial mean of d y_c / d F_k: [B,C,H,W], [B] -> [B,D,h,w].

    F are the maps before the head, or those that `layer` gives; y_c is the logit of the image's own class. With `gradient`
    "elementwise" it is ReLU(d y_c / d F * F), without the mean.
    Source: H-PD (CVPR 2025), whose equations are not legible in the published text; this is the reconstruction with Grad-CAM
    weights, kept per channel, on the last feature map, without augmentation.
    """
    with torch.enable_grad():
        features, logits = _cut_at_head(network, images) if layer is None else _cut_behind(layer, network, images)
        (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    weights = slope if gradient == "elementwise" else slope.mean((2, 3), keepdim=True)
    return (weights * features.detach()).relu_()


def _cut_at_head(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The maps before the head, as a leaf, and the logits with a graph from there on."""
    with torch.no_grad():
        features = network.forward_features(images)  # type: ignore[operator]
    return features, network.forward_head(features.requires_grad_())  # type: ignore[operator]


def _cut_behind(layer: nn.Module, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Likewise with what a layer gives."""
    leaves = list[Tensor]()

    def cut(module: nn.Module, given: Any, maps: Any) -> Tensor:
        if leaves or not isinstance(maps, Tensor) or maps.dim() != 4:
            raise ConfigError("'proxy_layer' must name a layer of the proxy that gives maps [B,D,h,w], once: name another.")
        leaves.append(maps.detach().requires_grad_())
        return leaves[0].clone()  # the next layer may write into it

    hook = layer.register_forward_hook(cut)
    try:
        logits = network.forward_head(network.forward_features(images))  # type: ignore[operator]
    finally:
        hook.remove()
    if not leaves:
        raise ConfigError("'proxy_layer' names a layer of the proxy that takes no part in its logits: name another.")
    return leaves[0], logits


def layer_of(network: nn.Module, name: str) -> nn.Module | None:
    """The layer of that name, or the one whose name ends so, as `layer3` of `model.layer3`; None for no name. Raises
    ConfigError."""
    layers = dict(network.named_modules())
    fitting = [name] if name in layers else [known for known in layers if known.endswith(f".{name}")]
    if not name:
        return None
    if len(fitting) != 1:
        told = f"is that of {', '.join(fitting[:3])}" if fitting else "is none of its layers"
        near = did_you_mean(name, [*layers, *(known.partition(".")[2] for known in layers)])
        raise ConfigError(f"'proxy_layer': '{name}' {told}, and must be one of the proxy's.{near}")
    return layers[fitting[0]]


def class_means(values: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Mean of [N,...] over the images of each class: [K,...]. The classes are sorted, so that a device neither has to count them
    for the host nor sums in an order that changes from run to run."""
    bounds = torch.searchsorted(classes, torch.arange(num_classes + 1, device=classes.device))
    sums = torch.segment_reduce(values.flatten(1), "sum", offsets=bounds, axis=0, unsafe=True)  # unsafe: does not look at them
    return sums.view(num_classes, *values.shape[1:]) / bounds.diff().clamp(min=1).view(-1, *[1] * (values.dim() - 1))


def feature_distance(network: nn.Module, run: DistillRun, gradient: str = "grad-cam", layer: str = "") -> Score:
    """sum_c || mean_real A - mean_syn A ||^2 with A the gated features; the real means are computed once, over every image."""
    num_classes, cut = run.spec.num_classes, layer_of(network, layer)
    real = _real_means(network, run.data, gradient, cut)

    def score(images: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        gated = gated_features(network, images.detach(), classes, gradient, cut)
        return (class_means(gated, classes, num_classes) - real).square().sum()

    return score


def _real_means(network: nn.Module, data: TrainingData, gradient: str, layer: nn.Module | None) -> Tensor:
    """The mean of each class, [K,...]. Its images are in the order of their classes: memory holds one class and one batch."""
    means, held, seen = list[Tensor](), list[Tensor](), 0
    for images, classes in zip(data.images.split(256), data.labels.split(256), strict=True):
        held.append(gated_features(network, data.seen(images), classes, gradient, layer))
        seen += len(images)
        while len(means) < len(data.counts) and data.starts[len(means) + 1] <= seen:
            features, num = torch.cat(held), data.counts[len(means)]
            means.append(class_means(features[:num], torch.zeros_like(data.labels[:num]), 1))
            held = [features[num:]]
    return torch.cat(means)


def validation_error(plan: SetPlan, run: DistillRun) -> Score:
    """The share of validation images that backbones trained on the set get wrong; mean over `rank_repeats` networks."""
    backbone = require(plan.backbone, "backbone")
    if plan.ranking is None:
        raise PluginError("ranking by validation needs a recipe, and the plan has none.")
    recipe, test_batch = plan.ranking.shortened(plan.rank_epochs).recipe(backbone.make().lr), plan.ranking.test_batch
    data = run.data
    if not len(data.validation_labels):
        raise PluginError("ranking by validation needs a validation split, and the plan holds out none.")

    def score(images: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        errors = []
        for repeat in range(plan.rank_repeats):
            network = run.network("rank", repeat)
            name, captured = (*run.root, "rank", repeat), is_captured(backbone.name, run.device)
            train(network, images.detach(), labels.detach(), recipe, name, run.augment, captured=captured)
            predicted = predict(network, data.validation_images, test_batch, data.seen)
            wrong = predicted != data.validation_labels
            errors.append(wrong.float().mean())
        return torch.stack(errors).mean()

    return score


def scorer(name: str, plan: SetPlan, run: DistillRun) -> Score | None:
    """The score of that name, or None where the order of events decides (`last`) or the loss itself (`loss`)."""
    if name == "feature-distance":
        return feature_distance(proxy_network(plan, run), run, plan.proxy_gradient, plan.proxy_layer)
    return validation_error(plan, run) if name == "validation" else None


def proxy_network(plan: SetPlan, run: DistillRun) -> nn.Module:
    """The proxy, frozen, in evaluation mode. One that others trained sees pixels by the data set's own constants, which real
    images are normalised by, whatever a protocol does to generated ones."""
    if plan.pretrained:
        pretrained: Proxy = plan.pretrained.make()
        return pretrained.load(replace(run, fed=None)).eval().requires_grad_(False)
    (need,) = needs(plan)
    network = run.bare(require(plan.proxy, "proxy"), "proxy").eval().requires_grad_(False)
    network.load_state_dict(run.resource(need))
    return network


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
