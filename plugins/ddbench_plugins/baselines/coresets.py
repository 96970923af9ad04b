"""Real images that represent their class, chosen in the features of a trained network.

They are chosen among the training images of a class by their embedding (what the trained backbone gives to its last layer), of
length 1. The network and its training are the same for all of them, and for all seeds: what differs is the rule. Shapes: B
images of a class, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddbench.api import Batch, Run
from ddbench.ops.selecting import Selection, selected
from ddbench.ops.trained import TrainedBackbone, features_of_classes


@dataclass(frozen=True)
class Coreset(Selection):
    """A rule that chooses IPC images of a class by their features. Abstract: choose."""

    epochs: int = 20  # of the network
    lr: float = 0.01

    @property
    def trained(self) -> TrainedBackbone:
        """The network."""
        return TrainedBackbone(self.epochs, self.lr)

    def build(self, run: Run) -> Batch:
        """The images that the rule chooses."""
        features = features_of_classes(run, self.trained)
        return selected(run, lambda label: self.choose(features[label], label, run))

    @abstractmethod
    def choose(self, features: Tensor, label: int, run: Run) -> Tensor | Sequence[int]:
        """Features [B,D] of all images of a class -> the places of IPC of them."""


@dataclass(frozen=True)
class Herding(Coreset):
    """herding: one image after the other, each so that the mean of those chosen comes as near to the class's mean as it can.

    Decides nothing by chance: equal for all seeds.
    Source: Welling, Herding Dynamical Weights to Learn, ICML 2009, as Rebuffi et al., iCaRL, CVPR 2017, use it for images.
    Departures: none.
    """

    def choose(self, features: Tensor, label: int, run: Run) -> list[int]:
        """Greedily."""
        mean, total, chosen = features.mean(0), torch.zeros_like(features[0]), list[int]()
        for number in range(run.ipc):
            distance = (mean - (total + features) / (number + 1)).square().sum(1)
            distance[chosen] = torch.inf
            chosen.append(int(distance.argmin()))
            total = total + features[chosen[-1]]
        return chosen


@dataclass(frozen=True)
class KCenter(Coreset):
    """k-center: the image nearest to the class's mean, then always the one that is farthest from all that were chosen.

    Decides nothing by chance: equal for all seeds.
    Source: Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018, the greedy
    form. Departures: it begins at the mean and not at random.
    """

    def choose(self, features: Tensor, label: int, run: Run) -> list[int]:
        """Greedily."""
        chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
        nearest = (features - features[chosen[0]]).square().sum(1)
        while len(chosen) < run.ipc:
            nearest[chosen] = -1
            chosen.append(int(nearest.argmax()))
            nearest = torch.minimum(nearest, (features - features[chosen[-1]]).square().sum(1))
        return chosen


@dataclass(frozen=True)
class KMeans(Coreset):
    """k-means: the real images that are nearest to the centres of IPC clusters of a class, each image once.

    Clusters by scikit-learn, the best of ten starts from the set's own random stream, on one thread: on several, sums come in
    another order each time.
    Source: MacQueen, Some Methods for Classification and Analysis of Multivariate Observations, 1967. Departures: a centre is
    replaced by a real image.
    """

    def choose(self, features: Tensor, label: int, run: Run) -> list[int]:
        """Clusters, then the nearest images that are not chosen yet."""
        from sklearn.cluster import KMeans as Clusters  # heavy, and asked for here alone
        from threadpoolctl import threadpool_limits

        seed = int(torch.randint(1 << 31, (), generator=run.rng("k-means", label)))
        with threadpool_limits(1):
            centres = Clusters(run.ipc, n_init=10, random_state=seed).fit(features.double().cpu().numpy()).cluster_centers_
        chosen = list[int]()
        for centre in torch.from_numpy(centres).to(features):
            distance = (features - centre).square().sum(1)
            distance[chosen] = torch.inf
            chosen.append(int(distance.argmin()))
        return chosen
