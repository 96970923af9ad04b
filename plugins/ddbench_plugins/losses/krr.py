"""FRePo: kernel ridge regression on the features of networks that are trained on the synthetic set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import AtMost, Batch, Loss, Memory, Run
from ddbench.errors import ConfigError
from ddbench.ops.embedding import class_batches, embed


def regress(known: Tensor, labels: Tensor, asked: Tensor, ridge: float) -> Tensor:
    """Ridge regression with the linear kernel: embeddings [N,D] with labels [N,K], and [M,D] -> predictions [M,K].

    K_an (K_nn + ridge m I)^-1 Y, m the mean of K_nn's diagonal; in float64, as K_nn is nearly singular where images are alike.
    """
    known, asked = known.double(), asked.double()
    kernel = known @ known.T
    penalty = ridge * kernel.diagonal().mean() * torch.eye(len(known), dtype=kernel.dtype, device=kernel.device)
    factor = torch.linalg.cholesky_ex(kernel + penalty).L  # `cholesky` would wait for the device to say whether it worked
    return asked @ known.T @ torch.cholesky_solve(labels.double(), factor)


@dataclass(frozen=True)
class FeatureRegression(Loss):
    """KRR: how far off real labels a ridge regression is that was fitted to the synthetic set, in a network's features.

    value = 1/2 mean_i || y_i - K_xs (K_ss + ridge m I)^-1 Y_s ||^2;  K_xs = E_x E_s^T, K_ss = E_s E_s^T, E: [B,C,H,W] -> [B,D]
    embeddings of a network;  m: the mean of K_ss's diagonal;  Y_s [N,K] the set's labels, y_i [K] a real image's as one-hot,
    all less 1/K. The network is held fixed; images and labels of the set get the exact gradient. Every synthetic image is in
    the one kernel, so all of them go through in one pass.
    `pool`: that many networks take turns, one a step. After its turn a network is trained one step of plain SGD on the set,
    and after `max_steps` of these another is drawn in its place, each at another time. 0: every step draws a network, and
    none is trained. `memory` holds the networks, as net0.NAME, net1.NAME, ...
    Source: Zhou, Nezhadarya and Ba, Dataset Distillation using Neural Feature Regression, NeurIPS 2022 (FRePo), and its public
    code: the features, without a bias; `ridge` and what it is relative to; the half; labels less 1/K; 10 networks, about 100
    steps each, their ages staggered at the start. Departures: networks take turns and are not drawn from the pool, so that the
    step alone says which one is due and how old it is; they are trained on the whole set by SGD on the cross-entropy, not on
    at most 1,000 of its images by Adam on the squared error; as many real images of every class, not 1,024 of all; the set's
    labels are probabilities, not free numbers that start at (one-hot - 1/K) / sqrt(K/10), and no term keeps a label's two
    largest apart; no mirror images in the kernel, which the code adds for some data sets and sizes; the plan's optimizer, not
    LAMB; the regression in float64; the backbone is the plan's, not one whose width doubles from block to block.
    Raises: ConfigError if batch_real or max_steps is below 1 or pool below 0, or if ridge or inner_lr is not above 0.
    """

    batch_real: int = 100  # real images per class and step
    ridge: float = 1e-6  # over the mean of the kernel's diagonal
    pool: Annotated[int, AtMost(1_000)] = 10
    max_steps: int = 100
    inner_lr: float = 0.01
    # Ours, from short runs on small digits; the paper's belong to another optimiser.
    rates: ClassVar[Mapping[str, float]] = {"pixels": 100.0, "f": 100.0, "w": 0.1, "labels": 1.0}

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name, least in (("batch_real", 1), ("max_steps", 1), ("pool", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"'{name}' must be at least {least}, got {getattr(self, name)}.")
        for name in ("ridge", "inner_lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"'{name}' must be above 0, got {getattr(self, name)}.")

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """Fit the synthetic set and ask for the real labels; then train the network that was used."""
        network, num = self._network(memory, run).requires_grad_(False), run.spec.num_classes
        fake, real = class_batches(syn, run, self.batch_real, augment=False)
        asked, targets = [], []
        for label in range(num):
            images = real(label)
            with torch.no_grad():
                asked.append(embed(network, images))
            targets.append(torch.full((len(images),), label, device=images.device))
        known = embed(network, torch.cat([fake(label) for label in range(num)]))  # [N,D]
        wanted = F.one_hot(torch.cat(targets), num) - 1 / num  # [M,K]
        error = regress(known, syn.labels - 1 / num, torch.cat(asked), self.ridge) - wanted
        value = error.square().sum(1).mean() / 2
        value.backward(inputs=syn.leaves)
        if self.pool:
            self._train_(network, syn, memory, run)
        return value.detach().to(syn.images.dtype)

    def _network(self, memory: Memory, run: Run) -> nn.Module:
        """The network whose turn it is, its weights from `memory` unless it is a new one."""
        if not self.pool:
            return run.network("krr", run.step)
        turn, slot = divmod(run.step, self.pool)
        life, age = divmod(turn + slot * self.max_steps // self.pool, self.max_steps)  # the first lives end one by one
        if not (turn and age):
            return run.network("krr", slot, life)
        network, prefix = run.skeleton("krr", slot, life), f"net{slot}."
        held = {name.removeprefix(prefix): tensor for name, tensor in memory.items() if name.startswith(prefix)}
        network.load_state_dict(held)
        return network

    def _train_(self, network: nn.Module, syn: Batch, memory: Memory, run: Run) -> None:
        """One step on the set as it is, into `memory`."""
        parameters = list(network.requires_grad_(True).parameters())
        loss = F.cross_entropy(network(syn.images.detach()), syn.labels.detach())
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.sub_(gradient, alpha=self.inner_lr)
        slot = run.step % self.pool
        memory.update({f"net{slot}.{name}": tensor.detach().clone() for name, tensor in network.state_dict().items()})
