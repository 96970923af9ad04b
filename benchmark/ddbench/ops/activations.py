"""The maps inside a network, for losses and rankers that compare more than its embedding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ddbench.errors import ConfigError

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Softplus, nn.Tanh, nn.Sigmoid)


def stages(network: nn.Module) -> list[nn.Module]:
    """The layers whose outputs [B,D,h,w] count as a network's maps, in order.

    Of the members of `network.features`, a sequence: every activation, and every block that has layers of its own. In a
    chain of conv, norm, activation and pool these are the activations, before each pooling; in a residual network that of
    the stem and the output of each residual block.
    Raises: ConfigError where there is none, as in a transformer.
    """
    features = getattr(network, "features", None)
    members = list(features.children()) if isinstance(features, nn.Sequential) else []
    found = [layer for layer in members if isinstance(layer, ACTIVATIONS) or list(layer.children())]
    if not found:
        raise ConfigError(
            "maps inside the backbone are compared, and this one shows none. Name a convolutional backbone, whose "
            "`features` are an nn.Sequential with activation layers among them."
        )
    return found


@contextmanager
def recorded(layers: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside it, every output of these layers is appended to the list."""
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda layer, given, output: outputs.append(output)) for layer in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def maps_and_embedding(network: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """[B,C,H,W] -> the maps of every stage, [B,D_l,h_l,w_l] each, and the embedding [B,D], in one pass."""
    with recorded(stages(network)) as maps:
        features = network.forward_features(images)  # type: ignore[operator]
    return maps, network.forward_head(features, pre_logits=True)  # type: ignore[operator]
