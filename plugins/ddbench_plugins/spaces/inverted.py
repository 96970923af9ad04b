"""Codes of a generator that start from real images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddbench.api import Resource, Run, Space, State
from ddbench.errors import ConfigError
from ddbench.ops.codes import TOGETHER, full_precision, starting_codes
from ddbench.ops.embedding import embed
from ddbench.ops.reals import starting_images
from ddbench.ops.trained import TrainedBackbone


@dataclass(frozen=True)
class Inverted(Space):
    """The codes w of a generator, found so that their images are like IPC real images of each class before distillation begins.

    Inversion: from random codes, `fit_steps` of Adam at `fit_rate` on the mean squared error of pixels plus `features` times that
    of what the trained backbone gives to its last layer; each image by itself. Then any loss goes on from there, as in `w-plus`.
    Source: Zhao and Bilen, Synthesizing Informative Training Samples with GAN (IT-GAN), NeurIPS 2022 workshop. Departures: IT-GAN
    inverts every real image, optimises noise z rather than w, and is no method of few images: a row of this space is an
    adaptation, IPC real images a class; the network whose features count is the suite's backbone.
    Raises: ConfigError for numbers out of range.
    """

    fit_steps: int = 5000
    fit_rate: float = 0.1
    features: float = 1.0
    epochs: int = 20  # of the network whose features count
    needs_generator: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("w",)

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.fit_steps < 0 or self.fit_rate <= 0 or self.features < 0 or self.epochs < 1:
            told = "'fit_steps' and 'features' must be at least 0, 'epochs' at least 1, and 'fit_rate' above 0"
            raise ConfigError(f"{told}, got {self.fit_steps}, {self.features}, {self.epochs}, {self.fit_rate}.")

    @property
    def _network(self) -> TrainedBackbone:
        return TrainedBackbone(self.epochs)

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """The trained backbone, where its features count."""
        return (self._network,) if self.features else ()

    def init(self, run: Run) -> State:
        """w: [N, num_codes, D]."""
        wanted = starting_images(run, run.ipc)
        with torch.no_grad():
            w = starting_codes(run, "sample", 1)
        network = self._network.load(run) if self.features else None
        size = len(w) if max(run.spec.shape[1:]) <= TOGETHER else 1
        with torch.enable_grad():
            fitted = [self._fitted(*part, network, run) for part in zip(w.split(size), wanted.split(size), strict=True)]
        return State({"w": torch.cat(fitted)})

    def _fitted(self, w: Tensor, wanted: Tensor, network: nn.Module | None, run: Run) -> Tensor:
        """Codes whose images are like these [B,C,H,W]."""
        w = w.clone().requires_grad_()
        adam = torch.optim.Adam([w], lr=self.fit_rate)
        seen = embed(network, wanted).detach() if network else None
        for _ in range(self.fit_steps):
            adam.zero_grad()
            images = self._shown(w, run)
            errors = (images - wanted).square().flatten(1).mean(1)
            if network is not None and seen is not None:
                errors = errors + self.features * (embed(network, images) - seen).square().mean(1)
            errors.sum().backward()  # each image has its own error
            adam.step()
        return w.detach()

    def classes(self, state: State, run: Run) -> Tensor:
        """Sorted by class."""
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(run.ipc)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """Through the whole generator."""
        return self._shown(state.params["w"][index], run)

    @staticmethod
    def _shown(w: Tensor, run: Run) -> Tensor:
        """Normalised."""
        return run.spec.normalise(full_precision(run.generator.synthesize(w, None, 0, run.generator.depth)))
