"""DM: distribution matching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from ddbench.api import Batch, Loss, Memory, Run
from ddbench.errors import ConfigError
from ddbench.ops.embedding import OfClass, class_batches, embed, images_a_pass, match_means, match_means_by_class
from ddbench.ops.replays import matched_by_class


@dataclass(frozen=True)
class DistributionMatching(Loss):
    """DM: squared distance of class-mean embeddings under a freshly drawn network.

    value = sum_c || mean_i e(A_c(x_ci)) - mean_j e(A_c(s_cj)) ||^2;  e: [B,C,H,W] -> [B,D];  A_c: one draw of augmentation
    that both sides of class c share.
    `batched`: several classes go through the network together, as many as the device takes well
    (`ddbench.ops.embedding.PIXELS_A_PASS`); false: class by class, as the formula reads. The two are equal up to rounding,
    but for networks with batch statistics or dropout: these see all real images in one batch and all synthetic ones in
    another if `batched`, as the public code has it for batch statistics, else those of a class.
    Source: Zhao and Bilen, Dataset Condensation with Distribution Matching, WACV 2023, eq. 5. Departures: none.
    Raises: ConfigError if batch_real < 1.
    """

    batch_real: int = 256  # real images per class and step
    augment: Literal["dsa", "none"] = "dsa"
    batched: bool = True
    rates: ClassVar[Mapping[str, float]] = {"pixels": 10.0, "f": 10.0, "w": 0.01}

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        if self.batch_real < 1:
            raise ConfigError(f"'batch_real' must be at least 1, got {self.batch_real}.")

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """The value is the sum over classes."""
        network = run.network("dm", run.step).requires_grad_(False)
        fake, real = class_batches(syn, run, self.batch_real, self.augment == "dsa")
        return matched_by_class("dm", partial(self._match, run.spec.num_classes), network, fake, real, syn, run)

    def _match(self, num: int, network: nn.Module, fake: OfClass, real: OfClass, syn: Batch) -> Tensor:
        """Of so many classes."""
        features = partial(embed, network)
        if not self.batched:
            return match_means_by_class(features, fake, real, syn, num)
        return match_means(features, fake, real, syn, num, images_a_pass(network, syn.images))
