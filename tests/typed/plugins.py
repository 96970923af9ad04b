"""Plugins as a stranger with a strict type checker writes them; `tests/unit/test_typed.py` has mypy read this."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import (
    TRAIN,
    Arch,
    Batch,
    Dataset,
    LabelledImages,
    Loss,
    Memory,
    Proxy,
    Resource,
    Run,
    Saw,
    Space,
    Spec,
    Split,
    State,
)
from ddbench.errors import ConfigError
from ddbench.ops.embedding import class_batches, embed
from ddbench.ops.layers import Network
from ddbench_plugins.losses.dm import DistributionMatching


@dataclass(frozen=True)
class Classifier(Resource):
    """A network trained on the real images."""

    uses_backbone: ClassVar[bool] = True
    saw: ClassVar[Saw] = TRAIN

    def build(self, run: Run) -> dict[str, Tensor]:
        return dict(run.network("classifier").state_dict())


@dataclass(frozen=True)
class Certainty(Loss):
    """How sure a trained network is of two images a step; with a temperature that is learned."""

    seldom: int = 2
    rates: ClassVar[Mapping[str, float]] = {"pixels": 1.0, "temperature": 0.1}
    learned: ClassVar[tuple[str, ...]] = ("temperature",)

    def __post_init__(self) -> None:
        if self.seldom < 1:
            raise ConfigError(f"'seldom' must be at least 1, got {self.seldom}.")

    def needs(self, run: Run) -> tuple[Resource, ...]:
        return (Classifier(),)

    def init(self, run: Run) -> Memory:
        return {"temperature": torch.ones((), device=run.device).requires_grad_()}

    def params(self, memory: Memory) -> dict[str, Tensor]:
        return {"temperature": memory["temperature"]}

    def picks(self, num_images: int, run: Run) -> Tensor | None:
        return torch.randperm(num_images, generator=run.rng("picks", run.step))[: self.seldom]

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        network = run.skeleton("classifier")
        network.load_state_dict(run.resource(Classifier()))
        value = F.cross_entropy(network.eval()(syn.images) / memory["temperature"], syn.labels)
        value.backward(inputs=[*syn.leaves, memory["temperature"]])
        return value.detach()


@dataclass(frozen=True)
class Centres(Loss):
    """The mean embedding of the first class."""

    batch_real: int = 64

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        network = run.network("centres", run.step)
        fake, real = class_batches(syn, run, self.batch_real, augment=False)
        means = [embed(network, of_class(0)).mean(0) for of_class in (fake, real)]
        value = (means[0] - means[1]).square().sum()
        value.backward(inputs=syn.leaves)
        return value.detach()


@dataclass(frozen=True)
class Dark(Space):
    """Pixels, all of them scaled down; a class variable says what it optimises."""

    tensors: ClassVar[tuple[str, ...]] = ("light",)

    def init(self, run: Run) -> State:
        return State({"light": torch.zeros(run.spec.num_classes * run.ipc, *run.spec.shape, device=run.device)})

    def classes(self, state: State, run: Run) -> Tensor:
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(run.ipc)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        return run.spec.normalise(state.params["light"][index].sigmoid() / 2)


@dataclass(frozen=True)
class Mirrored(Space):
    """Another space's images, mirrored; it answers with what that one says."""

    inner: Space

    @property
    def needs_generator(self) -> bool:
        return self.inner.needs_generator

    @property
    def tensors(self) -> tuple[str, ...]:
        return self.inner.tensors

    def needs(self, run: Run) -> tuple[Resource, ...]:
        return self.inner.needs(run)

    def init(self, run: Run) -> State:
        return self.inner.init(run)

    def classes(self, state: State, run: Run) -> Tensor:
        return self.inner.classes(state, run)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        return self.inner.decode(state, index, run).flip(3)


@dataclass(frozen=True)
class Borrowed(Resource):
    """Weights of somebody who was given images and labels, or images alone."""

    labelled: bool = True

    @property
    def saw(self) -> Saw:
        return frozenset({"external-images", "external-labels"}) if self.labelled else frozenset({"external-images"})

    def build(self, run: Run) -> dict[str, Tensor]:
        return run.weights("borrowed.pt", "0" * 64)


@dataclass(frozen=True)
class Seer(Proxy):
    """One linear layer of others."""

    saw: ClassVar[Saw] = frozenset()

    def needs(self, run: Run) -> tuple[Resource, ...]:
        return (Borrowed(),)

    def load(self, run: Run) -> nn.Module:
        network = Network(nn.Identity(), nn.Flatten(), nn.Linear(192, run.spec.num_classes))
        network.load_state_dict(run.resource(Borrowed()))
        return network.to(run.device)


@dataclass(frozen=True)
class Wool(Dataset):
    """A data set of one file, of two of ImageNet's classes, whose test images others may have trained on."""

    test_images_elsewhere: bool = True

    def spec(self) -> Spec:
        names, ids = ("ram", "llama"), ("n02412080", "n02437616")
        return Spec("wool", (3, 8, 8), names, (0.5,) * 3, (0.25,) * 3, class_ids=ids, class_indices=(348, 355))

    def files(self, root: Path | None) -> tuple[Path, ...]:
        return (root / "wool.bin",) if root else ()

    def load(self, split: Split, root: Path | None) -> LabelledImages:
        return LabelledImages(torch.zeros(2, *self.spec().shape, dtype=torch.uint8), torch.arange(2))


def linear(lr: float = 0.01) -> Arch:
    """One linear layer on the pixels."""

    def build(spec: Spec) -> nn.Module:
        return Network(nn.Identity(), nn.Flatten(), nn.Linear(spec.shape[0] * spec.shape[1] * spec.shape[2], spec.num_classes))

    return Arch(build, lr, min_size=1)


def compared() -> int:
    """What a stranger's own test may ask of a built-in plugin."""
    return DistributionMatching(batch_real=4).batch_real
