"""DD: the original dataset distillation, through the unrolled training of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ddbench.api import AtMost, Batch, Loss, Memory, Run
from ddbench.errors import ConfigError
from ddbench.ops.embedding import class_batches


@dataclass(frozen=True)
class DatasetDistillation(Loss):
    """DD: the loss on real images of a network after a few steps of gradient descent on the synthetic set.

    theta_0: a freshly drawn network;  theta_{t+1} = theta_t - eta_t grad_theta CE(theta_t; s, y), t = 0 .. inner_steps - 1;
    value = CE(theta_T; x), the mean over `batch_real` images of every class. The gradient goes through all steps: to images,
    labels, and the step sizes eta [inner_steps], which are learned; nothing keeps them above 0.
    Memory grows with inner_steps times the size of the set: every step's graph is kept.
    Source: Wang, Zhu, Torralba and Efros, Dataset Distillation, 2018, with random initialisation, and its public code, whose
    step sizes start from 0.02 too (0.001 for CIFAR-10). Departures: each step is taken on the whole set, where there each has
    its own images: by default 10 steps with one of every class each, gone through 3 times; with one such step, at one image
    a class, the two agree. The step sizes themselves are learned, not numbers whose softplus they are, above 0; plain SGD by
    the plan's rates in the outer loop, not Adam; as many real images of every class, not 1,024 of all, and never augmented,
    where the code crops and mirrors those of CIFAR-10; networks initialised as the backbone says, not by Xavier.
    Raises: ConfigError if batch_real or inner_steps is below 1, or if inner_lr is not above 0.
    """

    batch_real: int = 64  # real images per class and step
    inner_steps: Annotated[int, AtMost(10_000)] = 3
    inner_lr: float = 0.02  # that the step sizes start from
    order: ClassVar[int] = 2
    # Ours, from short runs on small digits; the paper's belong to another optimiser.
    rates: ClassVar[Mapping[str, float]] = {"pixels": 100.0, "f": 100.0, "w": 0.1, "labels": 1.0, "inner_lr": 1e-3}
    learned: ClassVar[tuple[str, ...]] = ("inner_lr",)

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name in ("batch_real", "inner_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' must be at least 1, got {getattr(self, name)}.")
        if self.inner_lr <= 0:
            raise ConfigError(f"'inner_lr' must be above 0, got {self.inner_lr}.")

    def init(self, run: Run) -> Memory:
        """The step sizes, in the type of the images and where they are."""
        like = run.real(0, 1, run.rng("like"))
        return {"inner_lr": like.new_full((self.inner_steps,), self.inner_lr).requires_grad_()}

    def params(self, memory: Memory) -> dict[str, Tensor]:
        """The step sizes."""
        return {"inner_lr": memory["inner_lr"]}

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """Unroll, and differentiate through all of it."""
        network = run.network("dd", run.step)
        weights: dict[str, Tensor] = {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}
        for step_size in memory["inner_lr"].unbind():
            inner = F.cross_entropy(functional_call(network, weights, (syn.images,)), syn.labels)
            gradients = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            moved = zip(weights.items(), gradients, strict=True)
            weights = {name: weight - step_size * gradient for (name, weight), gradient in moved}
        _, real_of = class_batches(syn, run, self.batch_real, augment=False)
        real = [real_of(label) for label in range(run.spec.num_classes)]
        targets = [torch.full((len(images),), label, device=images.device) for label, images in enumerate(real)]
        value = F.cross_entropy(functional_call(network, weights, (torch.cat(real),)), torch.cat(targets))
        value.backward(inputs=[*syn.leaves, memory["inner_lr"]])
        return value.detach()
