"""Matching the mean image of every class: the smallest loss there is."""

from dataclasses import dataclass

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
        value = syn.images.new_zeros(())
        for label in range(run.spec.num_classes):
            real = run.real(label, self.batch_real, run.rng("real", run.step, label)).mean(0)  # [C,H,W]
            value = value + (syn.images[syn.classes == label].mean(0) - real).square().sum()
        value.backward(inputs=syn.leaves)
        return value.detach()
