"""A toy run to check plugins on: made-up images, a smooth network, a generator in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from msgspec.structs import replace as replace_plan
from torch import Tensor, nn

from ddbench.api import (
    Arch,
    Generator,
    Loss,
    Resource,
    Space,
    Spec,
)
from ddbench.compute.run import DistillRun
from ddbench.data.subsets import TrainingData
from ddbench.errors import ConfigError
from ddbench.ops.layers import Network
from ddbench.plan import SetPlan
from ddbench.protocols import Numbers
from ddbench.refs import PluginRef
from ddbench.seeds import stream


class Given(PluginRef, frozen=True, eq=False, kw_only=True, dict=True):
    """A reference to a plugin that is at hand, where a plan names an installed one."""

    plugin: Any = None

    @classmethod
    def of(cls, kind: str, plugin: Any, label: str = "toy") -> Given:
        """Without looking at any entry point."""
        about: dict[str, Any] = {"name": label, "distribution": "toy", "version": "0", "label": label, "distributions": ("toy",)}
        return cls(kind=kind, settings={}, what={"plugin": label, "from": "toy"}, resolved={}, plugin=plugin, **about)

    def make(self) -> Any:
        """The plugin itself."""
        return self.plugin


TOY_RECIPE = Numbers(
    epochs=4, optimizer="sgd", schedule="cosine", warmup_epochs=2, lr=0.0, lr_factor=10.0, learned_rate=False, batch=256,
    momentum=0.9, weight_decay=5e-4, ema=0.995, augment="siamese", test_batch=128, channels_last=False, tf32=False,
)  # fmt: skip


def toy_spec(num_classes: int = 3, channels: int = 1, side: int = 8) -> Spec:
    """Square images of a few classes."""
    names = tuple(f"class {label}" for label in range(num_classes))
    return Spec("toy", (channels, side, side), names, (0.5,) * channels, (0.25,) * channels)


def toy_data(spec: Spec, per_class: int = 12, validation: int = 4) -> TrainingData:
    """A pattern for each class with noise on it, sorted by class."""
    rng = stream("toy data", *spec.shape)
    num, sides = spec.num_classes, spec.shape
    patterns = 0.2 + 0.6 * torch.rand(num, *sides, generator=rng)

    def draw(each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(num).repeat_interleave(each)
        noise = 0.2 * (torch.rand(len(labels), *sides, generator=rng) - 0.5)
        return ((patterns[labels] + noise).clamp(0, 1) * 255).round().to(torch.uint8), labels

    images, labels = draw(per_class)
    starts = tuple(range(0, per_class * num + 1, per_class))
    return TrainingData(spec, images, labels, starts, *draw(validation))


def toy_network(spec: Spec) -> nn.Module:
    """Two convolutions with smooth activations and average pooling, so that finite differences are exact."""
    channels, height, width = spec.shape
    features = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
    )  # fmt: skip
    return Network(features, nn.Identity(), nn.Linear(8 * (height // 4) * (width // 4), spec.num_classes))


def toy_normed_network(spec: Spec) -> nn.Module:
    """The same with BatchNorm after its convolutions, for plugins that ask for it."""
    network = toy_network(spec)
    first, *middle = list(network.features)  # type: ignore[arg-type]
    layers = [first, nn.BatchNorm2d(6), *middle[:2], middle[2], nn.BatchNorm2d(8), *middle[3:]]
    return Network(nn.Sequential(*layers), network.pool, network.classifier)  # type: ignore[arg-type]


TOY_ARCH = Arch(toy_network, lr=0.05, min_size=4)
TOY_NORMED_ARCH = Arch(toy_normed_network, lr=0.05, min_size=4)


class ToyGenerator(Generator):
    """A generator in memory: x -> x + 0.3 tanh((1 + a(w)) conv(x) + b(w)), the side doubled half-way, a sigmoid last.

    Features stay within [-5, 5]. F_0 is a function of the first layer's code.
    """

    def __init__(self, spec: Spec, depth: int = 13, features: int = 4, codes: int = 3) -> None:
        """Weights from one stream, equal for equal arguments."""
        if depth < 2 or spec.shape[1] % 2:
            raise ConfigError(f"the toy generator needs a depth of at least 2 and an even side, got {depth} and {spec.shape}.")
        rng = stream("toy generator", depth, features, codes, *spec.shape)
        self.depth, self.features, self.codes = depth, features, codes
        self.side = (spec.shape[1] // 2, spec.shape[2] // 2)
        self.embedding = torch.randn(spec.num_classes, codes, generator=rng)
        self.start = 0.5 * torch.randn(codes, features * self.side[0] * self.side[1], generator=rng)
        widths = [features] * (depth - 1) + [spec.shape[0]]
        self.kernels = [0.4 * torch.randn(width, features, 3, 3, generator=rng) for width in widths]
        self.styles = [0.5 * torch.randn(codes, 2 * width, generator=rng) for width in widths]

    def to(self, device: torch.device) -> ToyGenerator:
        """The same on a device."""
        made = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(made, name, value.to(device))
            elif isinstance(value, list):
                setattr(made, name, [tensor.to(device) for tensor in value])
        return made

    @property
    def bytes_stored(self) -> int:
        """Of all that is drawn but the classes' points, which codes hold."""
        return sum(tensor.nbytes for tensor in (self.start, *self.kernels, *self.styles))

    def latents(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        """[B] -> w [B,L,D]: the class's point and noise, equal in all layers."""
        noise = torch.randn(len(classes), self.codes, generator=rng).to(classes.device)
        w = self.embedding[classes] + 0.5 * noise
        return w[:, None].repeat(1, self.depth, 1)

    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        """F_start -> F_stop."""
        x = (w[:, 0] @ self.start).tanh().view(len(w), self.features, *self.side) if hidden is None else hidden
        for number in range(start, stop):
            if number == self.depth // 2:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            scale, shift = (w[:, number] @ self.styles[number])[:, :, None, None].chunk(2, 1)
            mixed = (1 + scale) * F.conv2d(x, self.kernels[number], padding=1) + shift
            x = mixed.sigmoid() if number == self.depth - 1 else x + 0.3 * mixed.tanh()
        return x


def toy_run(
    num_classes: int = 3, channels: int = 1, side: int = 8, ipc: int = 2, depth: int = 13, double: bool = False,
    arch: Arch = TOY_ARCH,
) -> DistillRun:  # fmt: skip
    """A real run on made-up images, with a smooth network and a generator in memory; `double`: see `in_double`."""
    spec = toy_spec(num_classes, channels, side)
    backbone, generator = Given.of("architectures", arch), ToyGenerator(spec, depth)
    run = DistillRun(("toy",), toy_data(spec), backbone, ipc, torch.device("cpu"), {}, generator)
    return in_double(run) if double else run


def in_double(run: DistillRun) -> DistillRun:
    """The same run with images and networks in float64; its generator stays as it is."""
    data = replace(run.data, dtype=torch.float64)
    if run.backbone is None:
        return replace(run, data=data)
    arch: Arch = run.backbone.make()
    doubled = replace(arch, build=partial(_build_double, arch.build))
    return replace(run, data=data, backbone=Given.of("architectures", doubled, run.backbone.label))


def _build_double(build: Callable[[Spec], nn.Module], spec: Spec) -> nn.Module:
    return build(spec).double()


def prepared(plugin: Any, run: DistillRun) -> DistillRun:
    """The run with what the plugin's `needs` declare, built; it refuses everything else."""
    needs: Sequence[Resource] = plugin.needs(run)
    built = {need: need.build(run.under("resource", number)) for number, need in enumerate(needs)}
    return replace(run, resources={**run.resources, **built})


def toy_plan(loss: Loss, space: Space, **changes: Any) -> SetPlan:
    """A small plan of plugins at hand: 2 steps a stage, a rate for every tensor."""
    backbone = Given.of("architectures", TOY_ARCH)
    rates = dict.fromkeys((*space.tensors, "labels"), 0.01) | {name: loss.rates.get(name, 0.01) for name in loss.learned}
    plan = SetPlan(
        dataset=Given.of("datasets", None), train_hash="0" * 64, ipc=2, seed=0, held_out=0.1, backbone=backbone,
        loss=Given.of("losses", loss, "toy loss"), space=Given.of("spaces", space, "toy space"), proxy=backbone,
        steps=2, rates=rates, rank_epochs=4, proxy_epochs=1, chunk=100,
        ranking=TOY_RECIPE,
    )  # fmt: skip
    return replace_plan(plan, **changes)
