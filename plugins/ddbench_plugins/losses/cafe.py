"""CAFE: alignment of features in every layer, and discrimination by the synthetic classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import Batch, Loss, Memory, Resource, Run
from ddbench.errors import ConfigError
from ddbench.ops.activations import maps_and_embedding, stages
from ddbench.ops.embedding import class_batches


@dataclass(frozen=True)
class FeatureAlignment(Loss):
    """CAFE: squared distances of class-mean maps in every layer, and how well synthetic class centres classify real images.

    value = sum_c sum_l || mean_j F_l(A_c(s_cj)) - mean_i F_l(A_c(x_ci)) ||^2 + weight CE(E_x C^T, y)
    F_l: the maps of a freshly drawn network after each of its activations or blocks (`ddbench.ops.activations.stages`),
    flattened;  E_x: the real images' embeddings [M,D] with labels y;  C: the means of the synthetic ones' embeddings a class
    [K,D];  CE: the mean cross-entropy of the softmax of these inner products;  A_c: one draw of augmentation that both sides
    of class c share, or none. The centres belong to one softmax, so all synthetic images go through in one pass.
    Source: Wang et al., CAFE: Learning to Condense Dataset by Aligning Features, CVPR 2022, its layer-wise feature alignment
    and discrimination loss, summed over places and channels and on inner products as its public code has it. Departures: the
    network is drawn anew every step, where the paper also trains it on the set, for as long as its dynamic bi-level schedule
    says; every activation counts the same and the pooled last map not at all, where the code gives 0.1, 0.1 and 1 to the three
    activations of its ConvNet and 2 to that map; `weight` is ours, where the code has 0.01 times the sum of cross-entropies:
    0.01 M on their mean, 25.6 for ten classes.
    Raises: ConfigError if batch_real < 1 or weight < 0, and for a backbone without such maps.
    """

    batch_real: int = 256  # real images per class and step
    augment: Literal["none", "dsa"] = "none"
    weight: float = 1.0  # of the discrimination
    # Ours, from short runs on small digits: the sums above are large.
    rates: ClassVar[Mapping[str, float]] = {"pixels": 0.01, "f": 0.01, "w": 1e-5}

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        for name, least in (("batch_real", 1), ("weight", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"'{name}' must be at least {least}, got {getattr(self, name)}.")

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """Nothing but a backbone with maps, which is looked at here, before the first step."""
        stages(run.network("maps"))
        return ()

    def backward(self, syn: Batch, memory: Memory, run: Run) -> Tensor:
        """Real images class by class, without a graph; then all synthetic ones."""
        network, num = run.network("cafe", run.step).requires_grad_(False), run.spec.num_classes
        fake, real = class_batches(syn, run, self.batch_real, self.augment == "dsa")
        wanted, embeddings, targets = [], [], []
        for label in range(num):
            with torch.no_grad():
                maps, embedding = maps_and_embedding(network, real(label))
            wanted.append(torch.cat([layer.mean(0).flatten() for layer in maps]))
            embeddings.append(embedding)
            targets.append(torch.full((len(embedding),), label, device=embedding.device))
        maps, embedding = maps_and_embedding(network, torch.cat([fake(label) for label in range(num)]))
        means = torch.cat([layer.unflatten(0, (num, -1)).mean(1).flatten(1) for layer in maps], dim=1)  # [K, sum_l D_l h_l w_l]
        centres = embedding.unflatten(0, (num, -1)).mean(1)  # [K,D]
        value = (means - torch.stack(wanted)).square().sum()
        value = value + self.weight * F.cross_entropy(torch.cat(embeddings) @ centres.T, torch.cat(targets))
        value.backward(inputs=syn.leaves)
        return value.detach()
