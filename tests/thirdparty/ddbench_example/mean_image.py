"""Matching the mean image of every class: the smallest loss there is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddbench.api import Batch, Loss, Memory, Run
from ddbench.errors import ConfigError


@dataclass(frozen=True)
class MeanImage(Loss):
    """Squared distance of the mean images of every class, without a network.

    value = sum_c || mean_i x_ci - mean_j s_cj ||^2;  x real, s synthetic, both normalised [B,C,H,W].
    Source: none, it is an example. Raises: ConfigError if batch_real < 1.
    """

    batch_real: int = 64  # real images per class and step

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        if self.batch_real < 1:
            raise ConfigError(f"batch_real must be at least 1, got {self.batch_real}.")

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """See `Loss.backward`."""
        num = run.spec.num_classes
        rngs = [run.rng("real", run.step, label) for label in range(num)]
        real = torch.stack([run.real(label, self.batch_real, rng).mean(0) for label, rng in enumerate(rngs)])  # [K,C,H,W]
        member = torch.nn.functional.one_hot(syn.classes, num).to(syn.images)  # [N,K]; a mask as an index would make a GPU wait
        means = torch.einsum("nk,nchw->kchw", member / member.sum(0), syn.images)
        value = (means - real).square().sum()
        value.backward(inputs=syn.leaves)
        return value.detach()
