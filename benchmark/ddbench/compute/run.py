"""What a distillation run is given: seeds, device, real training images, fresh networks, resources. It holds no test data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ddbench.api import Arch, Augment, Budget, Generator, GeneratorConfig, Objective, Recipe, Resource, Run, Spec
from ddbench.compute.capture import Recorder
from ddbench.compute.precision import allow_tf32
from ddbench.compute.skeleton import Skeletons
from ddbench.compute.train import can_stack, cross_entropy, train
from ddbench.compute.ways import is_captured
from ddbench.data.host import HostImages
from ddbench.data.subsets import TrainingData
from ddbench.data.weights import find_prepared, read_document, read_weights
from ddbench.errors import ConfigError, PluginError
from ddbench.files import digest
from ddbench.ops.augment import SiameseAugment
from ddbench.ops.class_images import find_folder, refuse_own
from ddbench.ops.layers import Dropout, lend
from ddbench.ops.moves import Ahead, send, send_network, send_together
from ddbench.plan import SetPlan
from ddbench.protocols import synthetic_spec
from ddbench.refs import PluginRef, require
from ddbench.seeds import StreamName, global_stream, stream

GENERATORS_KEPT = 2  # by a process; a large one takes a gigabyte


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` to a device that is there; a CUDA device always has an index, the first where none is
    named. Does not start CUDA. Raises ConfigError where the device is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device '{name}'. Name cpu, cuda, cuda:0, ... or auto.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device '{name}' is not there: {count} CUDA devices are visible. Name another, or cpu.")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device '{name}' is not supported. Name cpu, cuda, cuda:0, ... or auto.")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def select_device(name: str) -> torch.device:
    """`pick_device`, for a process that computes: a CUDA device is started and made the current one, since much of torch.cuda
    refuses calls, or means device 0, before that."""
    device = pick_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def be_deterministic(threads: int, tf32: bool = False) -> None:
    """Fix what numbers depend on beside the seeds: the number of threads, the convolution algorithms and TF32."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    allow_tf32(tf32)


def build_network(ref: PluginRef, spec: Spec, device: torch.device, *name: str | int) -> nn.Module:
    """A network with fresh weights from the stream of that name; drawn on the CPU, so equal on every device."""
    arch: Arch = ref.make()
    with global_stream(*name):
        network = send_network(arch.build(spec), device).train()
    lend(network, stream(*name, "dropout", device=device))
    return network


def fed_spec(plan: SetPlan, spec: Spec) -> Spec:
    """What a plan's synthetic images are normalised by. Real images are normalised by the data set's own constants always, and
    so are images that no generator makes."""
    return synthetic_spec(spec, plan.synthetic_mean, plan.synthetic_std) if plan.generator else spec


@dataclass(frozen=True)
class DistillRun:
    """The `Run` of ddbench.api. Everything random comes from streams under `root`."""

    root: StreamName
    data: TrainingData
    backbone: PluginRef | None
    ipc: int
    device: torch.device
    resources: Mapping[Resource, dict[str, Tensor]]
    loaded: Generator | None = None
    step: int = 0
    budget: Budget = "images"
    folder: Path | None = None  # the user's data folder, where resources find weights
    silent: bool = False  # of the building of a resource that does not declare what it saw: it may read no weights
    own_files: Callable[[], Sequence[Path]] | None = None  # those of the data set, the test split's too
    fed: Spec | None = None  # what images of a generator are normalised by; None: the data set's own
    skeletons: Skeletons = field(default_factory=Skeletons, compare=False, repr=False)
    recorder: Recorder = field(default_factory=Recorder, compare=False, repr=False)
    ahead: Ahead = field(default_factory=Ahead, compare=False, repr=False)

    @property
    def spec(self) -> Spec:
        """The subset's shape, classes and the normalisation of synthetic images."""
        return self.fed or self.data.spec

    @property
    def class_counts(self) -> tuple[int, ...]:
        """The number of real training images of every class."""
        return self.data.counts

    @cached_property
    def augment(self) -> SiameseAugment:
        """The data set's siamese augmentation."""
        return SiameseAugment(self.spec.augmentation)

    @property
    def generator(self) -> Generator:
        """The plan's generator, loaded."""
        if self.loaded is None:
            raise ConfigError("the plan names no generator.")
        return self.loaded

    def at(self, step: int) -> DistillRun:
        """The same run at another step."""
        return replace(self, step=step)

    def under(self, *name: str | int) -> DistillRun:
        """The same run with its streams under another name."""
        return replace(self, root=(*self.root, *name))

    def rng(self, *name: str | int) -> torch.Generator:
        """The stream of that name."""
        return stream(*self.root, *name)

    def real(self, label: int, num: int, rng: torch.Generator) -> Tensor:
        """[num,C,H,W], without replacement; all of the class if fewer. A new tensor."""
        chosen = self.choose(label, num, rng)
        return self.read(label, None if chosen is None else send(chosen, self.device))

    def choose(self, label: int, num: int, rng: torch.Generator) -> Tensor | None:
        """Positions among all training images; the bytes of those that are on the host."""
        start, count, images = self.data.starts[label], self.class_counts[label], self.data.images
        chosen = None if num >= count else torch.randperm(count, generator=rng)[:num] + start
        if isinstance(images, HostImages):
            return images.gather(slice(start, start + count) if chosen is None else chosen)
        return chosen

    def read(self, label: int, chosen: Tensor | None) -> Tensor:
        """A new tensor."""
        if chosen is not None and chosen.dtype == torch.uint8:
            return self.data.seen(chosen)
        own = slice(self.data.starts[label], self.data.starts[label + 1])
        return self.data.seen(self.data.images[own if chosen is None else chosen])

    def seeded(self, *name: str | int) -> AbstractContextManager[None]:
        """Torch's global generators, seeded by that stream."""
        return global_stream(*self.root, *name)

    def network(self, *name: str | int) -> nn.Module:
        """The backbone with fresh weights."""
        return self.build(self._backbone(), *name)

    def skeleton(self, *name: str | int) -> nn.Module:
        """The backbone without weights."""
        return self.bare(self._backbone(), *name)

    def _backbone(self) -> PluginRef:
        if self.backbone is None:
            raise PluginError("a resource asked for the backbone without saying uses_backbone = True.")
        return self.backbone

    def build(self, ref: PluginRef, *name: str | int) -> nn.Module:
        """Another architecture with fresh weights; for the core's own proxies."""
        return build_network(ref, self.spec, self.device, *self.root, "network", *name)

    def bare(self, ref: PluginRef, *name: str | int) -> nn.Module:
        """Another architecture without weights; for the core's own proxies."""
        network = self.skeletons.make(ref, self.spec, self.device)
        if network is None:
            return self.build(ref, *name)
        lend(network, stream(*self.root, "network", *name, "dropout", device=self.device))
        return network

    @property
    def replays(self) -> bool:
        """Whether calls are recorded."""
        return self.recorder.is_on and self.device.type == "cuda"

    def replayed(
        self, name: str, step: Callable[..., tuple[Tensor, ...]], network: nn.Module, *inputs: Tensor
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """A call, or a replay of it. A network that draws in training is never recorded."""
        draws = not can_stack(network) or any(isinstance(layer, Dropout) and layer.rate for layer in network.modules())
        return step(network, *inputs) if draws else self.recorder.call(name, step, network, inputs, self.device)

    def resource(self, need: Resource) -> dict[str, Tensor]:
        """The tensors of a resource that was declared."""
        if need not in self.resources:
            raise PluginError(f"the resource '{need.describe()}' was asked for but not declared by needs().")
        return self.resources[need]

    def sent(self, name: str, choose: Callable[[Run], Sequence[Tensor]]) -> list[Tensor]:
        """On a CPU they are where they are needed."""
        if self.device.type != "cuda":
            return list(choose(self))
        key = (self.root, name)
        found = self.ahead.take(key, self.step)
        if found is None:
            found = send_together(choose(self), self.device)
            self.ahead.keep(key, self.step, found)
        return found

    def send_ahead(self, name: str, choose: Callable[[Run], Sequence[Tensor]]) -> None:
        """On a stream of its own."""
        if self.device.type == "cuda":
            later = self.at(self.step + 1)
            self.ahead.send((self.root, name), later.step, choose(later), self.device)

    def prepared(self, file: str) -> Path:
        """The path of `weights/FILE` in the data folder."""
        return find_prepared(self.folder, file)

    def weights(self, file: str, sha256: str) -> dict[str, Tensor]:
        """The tensors of `weights/FILE` in the data folder."""
        if self.silent:
            told = f"a resource reads the weights '{file}' and does not say what they have seen"
            raise PluginError(f"{told}: declare `saw` in its class, which otherwise means the training images alone.")
        return read_weights(self.folder, file, sha256)

    def user_folder(self, folder: str) -> Path:
        """The path of a folder in the data folder; none of the data set's own, whose test images are sealed."""
        where = find_folder(self.folder, folder)
        if self.own_files:
            refuse_own(where, self.own_files(), self.data.spec.name)
        return where

    def document(self, file: str, sha256: str) -> bytes:
        """The bytes of the JSON file `weights/FILE` in the data folder."""
        return read_document(self.folder, file, sha256)

    def train(
        self, network: nn.Module, recipe: Recipe, *name: str | int, objective: Objective | None = None,
        on_epoch: Callable[[int], None] | None = None, augment: Augment | None = None,
    ) -> None:  # fmt: skip
        """Train on the real training images."""
        name, augment, objective = (*self.root, "train", *name), augment or self.augment, objective or cross_entropy
        data = self.data
        captured = is_captured(self.backbone.name if self.backbone else None, self.device)
        train(network, data.images, data.labels, recipe, name, augment, objective, on_epoch, data.seen, captured)


def open_run(
    plan: SetPlan, data: TrainingData, device: torch.device, resources: Mapping[Resource, dict[str, Tensor]],
    folder: Path | None = None, generators: MutableMapping[str, Generator] | None = None,
) -> DistillRun:  # fmt: skip
    """The run of a plan. `folder` is the user's data folder, `generators` those that this process has loaded already."""
    recorder = Recorder(plan.loss is not None and is_captured(f"loss {plan.loss.name}", device))
    run = DistillRun(
        plan.root, data, plan.backbone, plan.ipc, device, resources, budget=plan.budget, folder=folder, recorder=recorder,
        own_files=partial(files_of, plan.dataset, folder),
    )  # fmt: skip
    if plan.generator is None:
        return run
    run, loaded = replace(run, fed=fed_spec(plan, data.spec)), {} if generators is None else generators
    key = _generator_key(plan)
    if key not in loaded:
        config: GeneratorConfig = require(plan.generator, "generator").make()
        while len(loaded) >= GENERATORS_KEPT:
            del loaded[next(iter(loaded))]
        # the same for every seed and whatever its images are normalised by, so that one serves them all
        loaded[key] = config.load(replace(run, root=("generator",), fed=None))
    return replace(run, loaded=loaded[key])


def files_of(dataset: PluginRef, folder: Path | None) -> tuple[Path, ...]:
    """Those that a data set reads of the user's data folder."""
    return dataset.ask(lambda plugin: tuple(plugin.files(folder)))


def _generator_key(plan: SetPlan) -> str:
    """Of all that a loaded generator may hang on."""
    backbone = plan.backbone.what if plan.backbone else None
    images = [plan.train_hash, plan.held_out, plan.tuning]
    return digest([require(plan.generator, "generator").what, backbone, images, plan.threads])
