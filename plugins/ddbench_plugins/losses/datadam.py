"""DataDAM: attention matching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import Batch, Loss, Memory, Resource, Run
from ddbench.errors import ConfigError
from ddbench.ops.activations import maps_and_embedding, stages
from ddbench.ops.embedding import OfClass, class_batches, images_a_pass, match_means, match_means_by_class
from ddbench.ops.replays import matched_by_class


def attention(maps: Tensor, power: float) -> Tensor:
    """a / |a|_2, where a = sum over channels d of |F_d|^power, one number a place: [B,D,h,w] -> [B, h w]."""
    return F.normalize(maps.abs().pow(power).sum(1).flatten(1), dim=1)


@dataclass(frozen=True)
class AttentionMatching(Loss):
    """DataDAM: squared distances of class-mean attention maps in every layer, and of class-mean embeddings.

    value = sum_c ( sum_l || mean_i z_l(A_c(x_ci)) - mean_j z_l(A_c(s_cj)) ||^2
                    + weight || mean_i e(A_c(x_ci)) - mean_j e(A_c(s_cj)) ||^2 )
    z_l(x) = a_l / |a_l|_2, a_l = sum over channels of |F_l(x)|^power: [B,D,h,w] -> [B, h w];  F_l: the maps of a freshly
    drawn network after each of its activations or blocks (`ddbench.ops.activations.stages`);  e: [B,C,H,W] -> [B,D], its
    embedding;  A_c: one draw of augmentation that both sides of class c share.
    `batched`: several classes go through the network together, as many as the device takes well; false: class by class. The
    two are equal up to rounding, but for networks with batch statistics or dropout.
    Source: Sajedi et al., DataDAM: Efficient Dataset Distillation with Attention Matching, ICCV 2023: L_SAM + lambda L_MMD, and
    its public code: the norm and the mean of the maps, plain mean embeddings for the MMD, lambda = 0.01, and p = 4 by the default
    of its function, though its script passes 1. Departures: there attention is matched after every activation but the last one,
    and features in the last layer; here that of the last block counts too, and the embedding, its pooled maps, is the last
    layer; `batch_real` is ours, the code's is 64; the code takes 100 times this value, so that its image rate of 1 is 100 here,
    and its ConvNet has BatchNorm.
    Raises: ConfigError if batch_real < 1, power < 1 or weight < 0, and for a backbone without such maps.
    """

    batch_real: int = 128  # real images per class and step
    augment: Literal["dsa", "none"] = "dsa"
    power: float = 4.0
    weight: float = 0.01  # of the embeddings' term
    batched: bool = True
    # Ours, from short runs on small digits.
    rates: ClassVar[Mapping[str, float]] = {"pixels": 10.0, "f": 10.0, "w": 0.01}

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name, least in (("batch_real", 1), ("power", 1), ("weight", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"'{name}' must be at least {least}, got {getattr(self, name)}.")

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """Nothing but a backbone with maps, which is looked at here, before the first step."""
        stages(run.network("maps"))
        return ()

    def features(self, network: nn.Module, images: Tensor) -> Tensor:
        """All that is averaged and compared, in one vector: [B,C,H,W] -> [B, sum_l h_l w_l + D]."""
        maps, embedding = maps_and_embedding(network, images)
        return torch.cat([*(attention(layer, self.power) for layer in maps), sqrt(self.weight) * embedding], dim=1)

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """The squared distance of the means of concatenated vectors is the sum of the terms."""
        network = run.network("datadam", run.step).requires_grad_(False)
        fake, real = class_batches(syn, run, self.batch_real, self.augment == "dsa")
        return matched_by_class("datadam", partial(self._match, run.spec.num_classes), network, fake, real, syn, run)

    def _match(self, num: int, network: nn.Module, fake: OfClass, real: OfClass, syn: Batch) -> Tensor:
        """Of so many classes."""
        features = partial(self.features, network)
        if not self.batched:
            return match_means_by_class(features, fake, real, syn, num)
        return match_means(features, fake, real, syn, num, images_a_pass(network, syn.images))
