"""DM: distribution matching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ddbench.api import Batch, Loss, Memory, Run
from ddbench.errors import ConfigError
from ddbench.ops.embedding import embed


@dataclass(frozen=True)
class DistributionMatching(Loss):
    """DM: squared distance of class-mean embeddings under a freshly drawn network.

    value = sum_c || mean_i e(A_c(x_ci)) - mean_j e(A_c(s_cj)) ||^2;  e: [B,C,H,W] -> [B,D];  A_c: one draw of augmentation
    that both sides of class c share.
    Source: Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023, eq. 5. Departures: none; the real
    images of all classes are embedded in one batch, which changes nothing for networks without batch statistics.
    Raises: ConfigError if batch_real < 1.
    """

    batch_real: int = 256  # real images per class and step
    augment: Literal["dsa", "none"] = "dsa"
    rates: ClassVar[Mapping[str, float]] = {"pixels": 10.0, "f": 10.0, "w": 0.01}

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        if self.batch_real < 1:
            raise ConfigError(f"'batch_real' must be at least 1, got {self.batch_real}.")

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """One pass over both sides; the value is the sum over classes."""
        network = run.network("dm", run.step).requires_grad_(False)
        real, fake, sizes = [], [], []
        for label in range(run.spec.num_classes):
            own = syn.images[syn.classes == label]
            batch = run.real(label, self.batch_real, run.rng("real", run.step, label))
            if self.augment == "dsa":
                view = run.augment.draw(run.rng("augment", run.step, label))
                own, batch = view(own), view(batch)
            real.append(batch)
            fake.append(own)
            sizes.append((len(batch), len(own)))
        with torch.no_grad():
            targets = embed(network, torch.cat(real)).split([size for size, _ in sizes])
        features = embed(network, torch.cat(fake)).split([size for _, size in sizes])
        terms = [(f.mean(0) - t.mean(0)).square().sum() for f, t in zip(features, targets, strict=True)]
        value = torch.stack(terms).sum()
        value.backward(inputs=syn.leaves)
        return value.detach()
