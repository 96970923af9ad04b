"""Bases that small networks, shared by all classes, turn into more images.

Shapes: N bases, M networks, B images asked for, C channels, P weights of a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import AtMost, Memory, Run, Space, State
from ddbench.errors import ConfigError
from ddbench.ops.embedding import embed
from ddbench.ops.reals import starting_images

KERNEL = 3
RATE, MOMENTUM = 1e-3, 0.9  # of the adversary


@dataclass(frozen=True)
class Factorised(Space):
    """HaBa: IPC bases a class, and `hallucinators`, small networks that all classes share; every basis through every network.

    A network: a convolution of 3 px, a scale and a shift at each place, a transposed convolution of 3 px; at 32 px and three
    colours 5,568 weights. Bases start from real images, networks at random. A term of `cosine` times (cos + 1) / 2 keeps what
    two networks make of a basis apart, in the features of an adversary: a backbone of the space's own that learns beside it,
    after every step, to know the classes (cross-entropy, and `contrast` times the supervised contrastive loss at `temperature`)
    and to see what two networks make of a basis as the same (`cosine` times (1 - cos) / 2).
    Source: Liu et al., Dataset Distillation via Factorization (HaBa), NeurIPS 2022. Departures: the loss sees the images of all
    networks in every step, and networks train on all of them, where HaBa draws one network for each image and inner step; the
    two networks of the cosine term are drawn for each step; scales start at 1 and shifts at 0, which is not known.
    The networks come on top of IPC bases, as in the paper; under the budget of bytes there are fewer bases, so that all fits.
    Raises: ConfigError for fewer than two networks, images below 3 px, or networks that leave no room for a basis a class.
    """

    hallucinators: Annotated[int, AtMost(1_000)] = 5
    cosine: float = 0.1
    contrast: float = 0.1
    temperature: float = 0.07
    tensors: ClassVar[tuple[str, ...]] = ("bases", "hallucinators")
    rates_of: ClassVar[Mapping[str, str]] = {"bases": "pixels", "hallucinators": "pixels"}

    def __post_init__(self) -> None:
        """Refuse what has no meaning for any image."""
        if self.hallucinators < 2 or min(self.cosine, self.contrast) < 0 or self.temperature <= 0:
            got = f"{self.hallucinators}, {self.cosine}, {self.contrast}, {self.temperature}"
            told = "'hallucinators' must be at least 2, 'cosine' and 'contrast' at least 0, and 'temperature' above 0"
            raise ConfigError(f"{told}, got {got}.")

    def num_images(self, run: Run) -> int:
        """Every basis through every network. Raises ConfigError."""
        if min(run.spec.shape[1:]) < KERNEL:
            raise ConfigError(f"space 'factorised' needs images of at least {KERNEL} px, got {list(run.spec.shape[1:])}.")
        return run.spec.num_classes * self._bases(run) * self.hallucinators

    def _bases(self, run: Run) -> int:
        """Of a class."""
        if run.budget == "images":
            return run.ipc
        weights, of_bases = self.hallucinators * self.num_weights(run), run.spec.num_classes * math.prod(run.spec.shape)
        num = (run.ipc * of_bases - weights) // of_bases
        if num < 1:
            told = f"its networks have {weights:,} weights, and one image of each class has {of_bases:,} values"
            least = 1 - (-weights // of_bases)
            raise ConfigError(f"space 'factorised': {told}: in bytes, it needs an ipc of at least {least}, got {run.ipc}.")
        return num

    def decoder(self, state: State) -> tuple[str, ...]:
        """The networks."""
        return ("hallucinators",)

    def num_weights(self, run: Run) -> int:
        """P, of a network."""
        return sum(math.prod(shape) for shape in self._shapes(run))

    def _shapes(self, run: Run) -> list[tuple[int, ...]]:
        """Of a network's parts: two convolutions with a scale and a shift between them, each weights and then biases."""
        channels, height, width = run.spec.shape
        inside = (channels, height - KERNEL + 1, width - KERNEL + 1)
        filters = (channels, channels, KERNEL, KERNEL)
        return [filters, (channels,), inside, inside, filters, (channels,)]

    def init(self, run: Run) -> State:
        """bases: [N,C,H,W]; hallucinators: [M,P]."""
        rng, shapes = run.rng("hallucinators"), self._shapes(run)
        bound = 1 / math.sqrt(run.spec.shape[0] * KERNEL**2)  # what torch's convolutions start from
        drawn = [(2 * torch.rand(self.hallucinators, math.prod(shape), generator=rng) - 1) * bound for shape in shapes]
        drawn[2], drawn[3] = torch.ones_like(drawn[2]), torch.zeros_like(drawn[3])
        bases = starting_images(run, self._bases(run))
        return State({"bases": bases, "hallucinators": torch.cat(drawn, 1).to(run.device)})

    def classes(self, state: State, run: Run) -> Tensor:
        """Sorted by class; the images of a basis follow each other."""
        each = len(state.params["bases"]) // run.spec.num_classes * self.hallucinators
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(each)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """Image i is basis i div M through network i mod M."""
        num = self.hallucinators
        return self._through(state.params["bases"][index // num], state.params["hallucinators"][index % num], run)

    def _through(self, bases: Tensor, networks: Tensor, run: Run) -> Tensor:
        """Each basis [B,C,H,W] through its own network [B,P]."""
        shapes = self._shapes(run)
        parts = networks.split([math.prod(shape) for shape in shapes], 1)
        first, first_bias, scale, shift, last, last_bias = (
            part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)
        )
        num = len(bases)
        inside = F.conv2d(bases.reshape(1, -1, *bases.shape[2:]), first.flatten(0, 1), first_bias.flatten(), groups=num)
        inside = inside.view(num, *shapes[2]) * scale + shift
        made = F.conv_transpose2d(
            inside.reshape(1, -1, *inside.shape[2:]), last.flatten(0, 1), last_bias.flatten(), groups=num
        )  # fmt: skip
        return made.view_as(bases)

    # ---------------------------------------------------------------- the adversary

    def init_memory(self, run: Run) -> Memory:
        """The adversary's state, and the velocities of its optimiser; nothing without a cosine term."""
        if not self.cosine:
            return {}
        network = run.network("adversary")
        still = {f"velocity.{name}": torch.zeros_like(weights) for name, weights in network.named_parameters()}
        return {f"adversary.{name}": tensor.detach() for name, tensor in network.state_dict().items()} | still

    def _adversary(self, memory: Memory, run: Run) -> nn.Module:
        network = run.skeleton("adversary")
        own = {name.removeprefix("adversary."): tensor for name, tensor in memory.items() if name.startswith("adversary.")}
        network.load_state_dict(own)
        return network

    def _two(self, state: State, run: Run) -> tuple[Tensor, Tensor]:
        """What two networks of this step make of every basis."""
        bases, networks = state.params["bases"], state.params["hallucinators"]
        one, other = torch.randperm(len(networks), generator=run.rng("two hallucinators", run.step))[:2].tolist()
        made = (self._through(bases, networks[number].expand(len(bases), -1), run) for number in (one, other))
        return next(made), next(made)

    def penalty(self, state: State, memory: Memory, run: Run) -> Tensor | None:
        """cosine times the mean of (cos + 1) / 2 over the bases."""
        if not self.cosine:
            return None
        network = self._adversary(memory, run).requires_grad_(False)
        one, other = (embed(network, images) for images in self._two(state, run))
        return self.cosine * (F.cosine_similarity(one, other) + 1).mean() / 2

    def after_step(self, state: State, memory: Memory, run: Run) -> None:
        """One step of SGD on the adversary."""
        if not self.cosine:
            return
        network = self._adversary(memory, run)
        with torch.no_grad():
            images = torch.cat(self._two(state, run))
        bases = self.classes(state, run)[:: self.hallucinators]
        value = self.adversary_loss(network, images, bases)
        weights = dict(network.named_parameters())
        with torch.no_grad():
            for name, slope in zip(weights, torch.autograd.grad(value, list(weights.values())), strict=True):
                velocity = memory[f"velocity.{name}"].mul_(MOMENTUM).add_(slope)
                memory[f"adversary.{name}"].sub_(RATE * velocity)
            for name, buffer in network.named_buffers():
                if f"adversary.{name}" in memory:
                    memory[f"adversary.{name}"].copy_(buffer)

    def adversary_loss(self, network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        """Of images [2N,C,H,W], what two networks make of N bases, the one's before the other's; classes [N] of the bases."""
        features, labels = embed(network, images), classes.repeat(2)
        logits = network(images)
        one, other = features.chunk(2)
        apart = (1 - F.cosine_similarity(one, other)).mean() / 2
        return F.cross_entropy(logits, labels) + self.cosine * apart + self.contrast * self.contrastive(features, labels)

    def contrastive(self, features: Tensor, labels: Tensor) -> Tensor:
        """The supervised contrastive loss of features [B,D] under labels [B].

        -1/|P(i)| sum over p in P(i) of log(exp(z_i z_p / T) / sum over a != i of exp(z_i z_a / T)), the mean over i; z of length
        1, P(i) the others of i's class. Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2.
        """
        unit = F.normalize(features, dim=1)
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        logits = (unit @ unit.t() / self.temperature).masked_fill(itself, -torch.inf)
        logarithms = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(itself, 0)
        same = (labels[:, None] == labels) & ~itself
        return -((logarithms * same).sum(1) / same.sum(1)).mean()
