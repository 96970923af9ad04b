"""The class-relevant features of images, and their distance between a set and the real images: what H-PD ranks steps by.

Shapes: B images, N images of a set, K classes, D channels, h and w the sides of maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ddbench.api import Gradients
from ddbench.errors import ConfigError, did_you_mean


def gated_features(
    network: nn.Module, images: Tensor, classes: Tensor, gradient: Gradients = "grad-cam", layer: nn.Module | None = None
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


def means_of_batches(
    batches: Iterable[tuple[Tensor, Tensor]], counts: Sequence[int], features: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The mean of `features(images, classes)` over each class, [K,...], of batches in the order of their classes, of which there
    are so many images each: memory holds one class and one batch."""
    ends = tuple(accumulate(counts))
    means, held, seen = list[Tensor](), list[Tensor](), 0
    for images, classes in batches:
        held.append(features(images, classes))
        seen += len(images)
        while len(means) < len(counts) and ends[len(means)] <= seen:
            values, num = torch.cat(held), counts[len(means)]
            means.append(class_means(values[:num], torch.zeros(num, dtype=torch.int64, device=values.device), 1))
            held = [values[num:]]
    return torch.cat(means)
