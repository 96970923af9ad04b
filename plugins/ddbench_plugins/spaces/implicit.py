"""A small network for every image, which says the colour at each place."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ddbench.api import AtMost, Run, Space, State
from ddbench.errors import ConfigError
from ddbench.ops.reals import starting_images


@dataclass(frozen=True)
class Implicit(Space):
    """DDiF: every image is a SIREN, a network with sines from coordinates in [-1, 1] to normalised pixels.

    In the floats of IPC images there is room for floor(IPC * C * H * W / P) networks of P weights a class. They are first fitted
    to as many real images (`fit_steps` of Adam at `fit_rate`, mean squared error). The paper's sizes: at 32 px `units` 6,
    `hidden` 2, `first_omega` 30, `omega` 10 (P = 81); at 128 px 20, 3, 30 and 40 (P = 963). Weights want Adam and rates of their
    own: a suite must give `rates = { siren = 5e-5 }` and `optimizer = "adam"`, as published for DC and DM (1e-4 for
    trajectories).
    Source: Shin et al., Distilling Dataset into Neural Field (DDiF), ICLR 2025; Sitzmann et al., Implicit Neural
    Representations with Periodic Activation Functions, NeurIPS 2020. Departures: none known.
    Raises: ConfigError where not one network fits.
    """

    units: Annotated[int, AtMost(1024)] = 6  # of a hidden layer
    hidden: Annotated[int, AtMost(64)] = 2  # layers with sines
    first_omega: float = 30.0
    omega: float = 10.0  # of all sines but the first
    fit_steps: int = 5000
    fit_rate: float = 5e-4
    tensors: ClassVar[tuple[str, ...]] = ("siren",)

    def __post_init__(self) -> None:
        """Refuse what has no meaning for any image."""
        if min(self.units, self.hidden) < 1 or self.fit_steps < 0 or min(self.first_omega, self.omega, self.fit_rate) <= 0:
            got = f"{self.units}, {self.hidden}, {self.fit_steps}, {self.first_omega}, {self.omega}, {self.fit_rate}"
            told = "'units' and 'hidden' must be at least 1, 'fit_steps' at least 0, and the omegas and 'fit_rate' above 0"
            raise ConfigError(f"{told}, got {got}.")

    def _layers(self, run: Run) -> list[tuple[int, int]]:
        """(inputs, outputs) of each."""
        sizes = [2, *[self.units] * self.hidden, run.spec.shape[0]]
        return list(pairwise(sizes))

    def num_weights(self, run: Run) -> int:
        """P."""
        return sum((before + 1) * after for before, after in self._layers(run))

    def num_images(self, run: Run) -> int:
        """As many as fit. Raises ConfigError."""
        return run.spec.num_classes * self._per_class(run)

    def _per_class(self, run: Run) -> int:
        floats = run.ipc * math.prod(run.spec.shape)
        if self.num_weights(run) > floats:
            told = f"a network has {self.num_weights(run)} weights, and the {run.ipc} images of a class have {floats} values"
            raise ConfigError(f"space 'implicit': {told}: give it fewer 'units', {self._most_units(floats, run)} at most.")
        return floats // self.num_weights(run)

    def _most_units(self, floats: int, run: Run) -> int:
        """Of a network of at most so many weights."""
        most = 0
        while replace(self, units=most + 1).num_weights(run) <= floats:
            most += 1
        return most

    def init(self, run: Run) -> State:
        """siren: [N, P], layer after layer, each its weights [outputs, inputs] and biases."""
        wanted = starting_images(run, self._per_class(run))
        siren = self._drawn(len(wanted), run).requires_grad_()
        adam = torch.optim.Adam([siren], lr=self.fit_rate)
        with torch.enable_grad():
            for _ in range(self.fit_steps):
                adam.zero_grad()
                (self._shown(siren, run) - wanted).square().mean((1, 2, 3)).sum().backward()  # each network has its own error
                adam.step()
        return State({"siren": siren.detach()})

    def _drawn(self, num: int, run: Run) -> Tensor:
        """Fresh weights [N, P], as SIREN's authors draw them."""
        parts, rng = [], run.rng("siren")
        for number, (before, after) in enumerate(self._layers(run)):
            bound = 1 / before if number == 0 else math.sqrt(6 / before) / self.omega
            for shape, limit in (((num, after * before), bound), ((num, after), 1 / math.sqrt(before))):
                parts.append((2 * torch.rand(shape, generator=rng) - 1) * limit)
        return torch.cat(parts, 1).to(run.device)

    def classes(self, state: State, run: Run) -> Tensor:
        """Sorted by class."""
        num = len(state.params["siren"]) // run.spec.num_classes
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(num)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """The colours at the centres of all pixels."""
        return self._shown(state.params["siren"][index], run)

    def _shown(self, siren: Tensor, run: Run) -> Tensor:
        """[B,P] -> [B,C,H,W]."""
        height, width = run.spec.shape[1:]
        down, across = (torch.linspace(-1, 1, side, dtype=siren.dtype, device=siren.device) for side in (height, width))
        values = torch.cartesian_prod(down, across).expand(len(siren), -1, -1)  # [B, H * W, 2]
        place, layers = 0, self._layers(run)
        for number, (before, after) in enumerate(layers):
            weight = siren[:, place : place + before * after].unflatten(1, (after, before))
            bias = siren[:, place + before * after : place + (before + 1) * after]
            values = torch.baddbmm(bias[:, None], values, weight.transpose(1, 2))
            place += (before + 1) * after
            if number < len(layers) - 1:
                values = torch.sin((self.first_omega if number == 0 else self.omega) * values)
        return values.transpose(1, 2).unflatten(2, (height, width))
