"""Scoring the set of a trial: networks trained on it, and the share of held-out training images that they get wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddbench.api import Spec
from ddbench.compute.run import build_network
from ddbench.compute.train import predict, train
from ddbench.compute.ways import is_captured
from ddbench.errors import UntrainableError
from ddbench.files import digest
from ddbench.ops.augment import SiameseAugment
from ddbench.ops.crops import CropFlip
from ddbench.plan import SetPlan, short
from ddbench.refs import require
from ddbench.trials import Scoring


@dataclass(frozen=True)
class ScoredSet:
    """The set of a trial, on the device that scores it."""

    images: Tensor  # [N,C,H,W], normalised
    labels: Tensor  # [N,K] probabilities
    learned_rate: float | None


def score(
    plan: SetPlan, scoring: Scoring, made: ScoredSet, held_out: tuple[Tensor, Tensor], spec: Spec,
    tick: Callable[[float], None] | None = None,
) -> tuple[list[float], str]:  # fmt: skip
    """Of each network, the share of the held-out images, uint8 [M,C,H,W] with labels [M], that it gets wrong; and a sentence
    where one could not be trained, which counts as all of them.

    The networks' streams are named by tuning seed, network and repeat, and not by the method or its rates, so that trials are
    paired.
    """
    backbone, numbers, device = require(plan.backbone, "backbone"), scoring.numbers, made.images.device
    errors, sentence = list[float](), ""
    augment = CropFlip() if numbers.augment == "crop-flip" else SiameseAugment(spec.augmentation)
    what = {name: value for name, value in backbone.what.items() if name not in ("numerics", "lr", "software")}
    for repeat in range(scoring.repeats):
        name = ("tune", "score", plan.seed, short(digest(what)), repeat)
        network = build_network(backbone, spec, device, *name, "network")
        try:
            recipe = numbers.recipe(backbone.make().lr, made.learned_rate)
            train(network, made.images, made.labels, recipe, name, augment, captured=is_captured(backbone.name, device))
        except UntrainableError as error:
            errors.append(1.0)
            sentence = sentence or f"A network that scores it could not be trained: {error}"
            continue
        predicted = predict(network, held_out[0], numbers.test_batch, spec.normalise)
        errors.append(int(torch.count_nonzero(predicted != held_out[1])) / len(predicted))
        if tick:
            tick((repeat + 1) / scoring.repeats)
    return errors, sentence
