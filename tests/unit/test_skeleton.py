"""Networks without weights: what a skeleton keeps of a network, what it does not, and where it is no copy."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import Arch, Batch, Spec
from ddbench.compute.run import DistillRun
from ddbench.errors import PluginError
from ddbench.ops.layers import Dropout, Network
from ddbench.refs import PluginRef
from ddbench.testing import TOY_ARCH, TOY_NORMED_ARCH, Given, prepared, toy_network, toy_run
from ddbench_plugins.losses.bn_statistics import BatchNormStatistics
from ddbench_plugins.losses.dc import GradientMatching
from ddbench_plugins.losses.krr import FeatureRegression
from ddbench_plugins.losses.mtt import Tesla, TrajectoryMatching


@dataclass
class Counted:
    """An architecture that counts how often it is built."""

    inner: Any = toy_network
    built: list[Spec] = field(default_factory=list)

    def __call__(self, spec: Spec) -> nn.Module:
        self.built.append(spec)
        return self.inner(spec)

    def run(self, **more: Any) -> DistillRun:
        return toy_run(arch=Arch(self, lr=0.1, min_size=4), **more)


class Odd(nn.Module):
    """A network with all that a copy may lose: dropout, a buffer outside the state dict, a tied and a frozen weight."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.second.weight = self.first.weight
        self.norm, self.dropout = nn.BatchNorm2d(4), Dropout(0.5)
        self.register_buffer("places", torch.linspace(1, 2, 8), persistent=False)
        self.register_buffer("scale", torch.full((), 3.0))
        self.scales = [1.0, 2.0]
        self.classifier = nn.Linear(4 * 8 * 8, spec.num_classes)
        self.classifier.bias.requires_grad_(False)

    def forward_features(self, images: Tensor) -> Tensor:
        both = self.first(images) * self.scales[0] + self.second(images * self.scale) * self.scales[1]
        return self.dropout(self.norm(both * self.places))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features.flatten(1) if pre_logits else self.classifier(features.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def closed(spec: Spec) -> nn.Module:
    """A network whose last layer is kept by a closure, which a copy of the network shares with it."""
    network = toy_network(spec)
    last = network.classifier
    assert isinstance(network, Network)
    network.forward_head = lambda features, pre_logits=False: last(features.flatten(1))  # type: ignore[method-assign]
    return network


def locked(spec: Spec) -> nn.Module:
    """A network that cannot be copied at all."""
    network = toy_network(spec)
    network.lock = threading.Lock()  # type: ignore[assignment]
    return network


IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("build", [Odd, toy_network, closed, locked])
def test_a_filled_skeleton_is_the_network(build: Any) -> None:
    run = Counted(build).run()
    for step in (3, 3, 4):
        network, skeleton = run.at(step).network("net", 1), run.at(step).skeleton("net", 1)
        assert skeleton.training
        assert skeleton.load_state_dict(network.state_dict()) is not None
        for both in range(2):  # dropout goes on in the same stream
            assert torch.equal(skeleton(IMAGES), network(IMAGES)), both
        assert torch.equal(skeleton.eval()(IMAGES), network.eval()(IMAGES))


BUILT_IN = [("convnet", {"norm": "batch", "width": 8}), ("vit", {"width": 16}), ("resnet18-bn", {})]


@pytest.mark.parametrize(("name", "settings"), BUILT_IN)
def test_so_it_is_for_the_built_in_networks(name: str, settings: dict[str, Any]) -> None:
    ref = PluginRef.resolve("architectures", name, settings)
    run = replace(toy_run(side=16), backbone=ref)
    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    network, skeleton = run.network("net"), run.skeleton("net")
    assert all(parameter.isnan().all() for parameter in skeleton.parameters())
    skeleton.load_state_dict(network.state_dict())
    assert torch.equal(skeleton(images), network(images))


def test_a_skeleton_has_no_weights_but_the_buffers_and_the_form_of_a_network() -> None:
    run = Counted(Odd).run()
    first, network = run.skeleton("a"), run.network("a")
    assert all(parameter.isnan().all() for parameter in first.parameters())
    assert {name: tensor.tolist() for name, tensor in first.named_buffers()} == {
        name: tensor.tolist() for name, tensor in network.named_buffers()
    }
    assert first.first.weight is first.second.weight
    wanted = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in first.named_parameters()} == wanted


def test_skeletons_share_nothing() -> None:
    run = Counted(Odd).run()
    first, second = run.skeleton("a"), run.skeleton("a")
    for tensor in first.state_dict().values():
        tensor.fill_(7)
    first.places.fill_(7)
    first.scales.append(9.0)
    first.eval().requires_grad_(False)
    third = run.skeleton("a")
    for other in (second, third):
        assert other.training
        assert other.scales == [1.0, 2.0]
        assert other.first.weight.requires_grad
        assert not any((tensor == 7).any() for tensor in (*other.state_dict().values(), other.places))


@pytest.mark.parametrize("build", [closed, locked])
def test_a_network_that_cannot_be_copied_is_built_anew(build: Any) -> None:
    counted = Counted(build)
    run = counted.run()
    assert all(parameter.isfinite().all() for parameter in run.skeleton("a").parameters())
    run.skeleton("a")
    assert len(counted.built) == 3  # to see that it cannot, and each of the two


def test_torch_s_global_stream_stays_as_it_was() -> None:
    run, before = Counted(Odd).run(), torch.random.get_rng_state()
    run.skeleton("a")
    run.skeleton("a")
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_resource_without_a_backbone_gets_none() -> None:
    with pytest.raises(PluginError, match="uses_backbone"):
        replace(toy_run(), backbone=None).skeleton("a")


def test_another_backbone_has_another_skeleton() -> None:
    run = toy_run()
    run.skeleton("a")
    other = replace(run, backbone=Given.of("architectures", TOY_NORMED_ARCH))
    assert other.skeleton("a").state_dict().keys() == TOY_NORMED_ARCH.build(run.spec).state_dict().keys()
    assert run.skeleton("a").state_dict().keys() == TOY_ARCH.build(run.spec).state_dict().keys()


FEW = {"num_experts": 1, "syn_steps": 1, "epochs_trained": 7}
DRAWN = [
    (TrajectoryMatching(**FEW), toy_network, 0),
    (Tesla(**FEW), toy_network, 0),
    (BatchNormStatistics(teacher_epochs=1), TOY_NORMED_ARCH.build, 0),
    (GradientMatching(outer_loop=3), toy_network, 2),
    (FeatureRegression(pool=2), toy_network, 2),
    (FeatureRegression(pool=0), toy_network, 6),
]


@pytest.mark.parametrize(("loss", "build", "drawn"), DRAWN, ids=lambda value: type(value).__name__)
def test_losses_draw_a_network_only_where_its_weights_count(loss: Any, build: Any, drawn: int) -> None:
    counted = Counted(build)
    run = prepared(loss, counted.run())
    classes = torch.arange(3).repeat_interleave(2)
    memory = loss.init(run)
    run.skeleton("any")  # the template is there
    before = len(counted.built)
    for step in range(6):
        syn = Batch(IMAGES[[0, 1, 2, 3, 4, 0]].clone().requires_grad_(), F.one_hot(classes, 3).float(), classes)
        assert loss.backward(syn, memory, run.at(step)).isfinite()
    assert len(counted.built) - before == drawn
