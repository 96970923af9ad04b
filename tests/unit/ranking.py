"""Rankers at hand, opened on toy plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from msgspec.structs import replace as replace_plan
from torch import Tensor, nn

from ddbench.api import Batch, Proxy, Ranker, Run, Score
from ddbench.compute.rank import open_ranker
from ddbench.compute.run import DistillRun
from ddbench.plan import SetPlan
from ddbench.testing import Given, toy_plan
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.rankers.feature_distance import FeatureDistance
from ddbench_plugins.rankers.validation import Validation
from ddbench_plugins.spaces.pixel import Pixel


@dataclass(frozen=True)
class AtHand(Proxy):
    """A network as the proxy."""

    network: nn.Module

    def load(self, run: Run) -> nn.Module:
        return self.network


def opened(ranker: Ranker, run: DistillRun, network: nn.Module | None = None, **changes: Any) -> Score:
    """The score of a ranker on a toy plan, whose proxy is this network."""
    proxy = None if network is None else Given.of("proxies", AtHand(network), "at hand")
    return open_ranker(ranker, toy_plan(DistributionMatching(), Pixel(), proxy=proxy, **changes), run)


def feature_distance(network: nn.Module, run: DistillRun, **settings: Any) -> Score:
    """By this network."""
    return opened(FeatureDistance(**settings), run, network)


def validation_error(plan: SetPlan, run: DistillRun) -> Score:
    """By the recipe and the numbers of a plan."""
    return open_ranker(Validation(), replace_plan(plan, proxy=None), run)


def images_of(images: Tensor, classes: Tensor) -> Batch:
    """A set of hard labels, of which a ranker may look at images and classes only."""
    return Batch(images, torch.empty(0), classes)
