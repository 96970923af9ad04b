"""What a class-conditional latent diffusion model makes for a set, guided by the real images; an optional extra.

Both baselines read a folder of a pipeline as diffusers saves it, a DiT, in `weights` under the data folder; nothing is downloaded
and nothing pickled is opened. Shapes: N real images of a class, D values of a latent, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ddbench.api import TRAIN, Baseline, Batch, Resource, Run, Saw, UserFile
from ddbench.errors import ConfigError
from ddbench.ops.moves import send
from ddbench.ops.selecting import check_enough, labelled
from ddbench_plugins.diffusion.pipeline import Pipeline, files_of, hash_files, read_settings
from ddbench_plugins.diffusion.vae import of_diffusers

SAW: Saw = frozenset({"train", "external-images", "external-labels"})  # DiT on ImageNet, an autoencoder on photographs
DRAWN = 1 << 24  # values of groups that are looked at together
PART = 10  # of a mini-batch of clusters: so many images for each cluster


@dataclass(frozen=True)
class Diffused(Baseline):
    """What both share. Abstract: build."""

    folder: str
    hashes: tuple[str, ...] = ()  # of the five files that are read, found when a suite is read
    saw: Saw = SAW
    steps: int = 50  # of the whole walk from noise to an image
    guidance: float = 1.0
    who: ClassVar[str] = "a baseline"  # for messages

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.guidance < 1:
            raise ConfigError(f"'guidance' must be at least 1, got {self.guidance}.")

    def brings(self) -> tuple[UserFile, ...]:
        """The pipeline."""
        return files_of(self.folder, self.hashes)

    def pins(self, root: Path | None) -> Mapping[str, Any]:
        """The hashes; and what the images saw, which has a place of its own on boards."""
        return {"hashes": hash_files(self.folder, self.hashes, root), "saw": sorted(self.saw)}

    def check(self, run: Run) -> None:
        """Whether diffusers is there, and the model serves the data set."""
        check_enough(run)
        read_settings(run, self.folder, self.hashes).schedule.times(self.steps)
        of_diffusers("DiTTransformer2DModel", self.who)  # last: importing it takes seconds

    def load(self, run: Run) -> Pipeline:
        """The pipeline on the run's device."""
        return Pipeline(run, self.folder, self.hashes, self.who)


@dataclass(frozen=True)
class LatentClusters(Diffused):
    """latent-clusters: centres of clusters of a class's latents, noised a part of the way and denoised for the class (D4M).

    z = centres of mini-batch k-means (k = IPC, state 0) on the latents of all real training images of a class;
    x_t = sqrt(a_t) z + sqrt(1 - a_t) e, with t a part `strength` of the walk; then DDIM under guidance, decoded, and resized.
    Source: Su et al., D4M: Dataset Distillation via Disentangled Diffusion Model, CVPR 2024, and its public code: strength 0.7,
    guidance 8. Departures: a class-conditional DiT and its class label, where the paper has Stable Diffusion 1.5 and a prompt;
    DDIM; latents are the encoder's means and not samples; what is left over of the last mini-batch counts if it is enough for all
    clusters; labels are hard: take a protocol with a teacher for the paper's. In float32.
    Raises: ConfigError without diffusers, for other images than square ones in colour, and for classes that the model does not
    know; DataError for files that are missing, others, or no such model's.
    """

    who: ClassVar[str] = "baseline 'latent-clusters'"
    guidance: float = 8.0
    strength: float = 0.7

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        super().__post_init__()
        if not 0 < self.strength <= 1:
            raise ConfigError(f"'strength' must lie in (0, 1], got {self.strength}.")

    def build(self, run: Run) -> Batch:
        """Class by class; the noise of class c from the stream ("latent-clusters", c)."""
        pipeline = self.load(run)
        images = torch.cat([self._of_class(label, pipeline, run) for label in range(run.spec.num_classes)])
        return labelled(run.spec.normalise(images), run)

    def _of_class(self, label: int, pipeline: Pipeline, run: Run) -> Tensor:
        """Pixels [IPC,3,H,W]."""
        schedule, left = pipeline.settings.schedule, max(1, int(self.steps * self.strength))
        centres = clusters(pipeline.latents(label), run.ipc)
        noise = send(torch.randn(centres.shape, generator=run.rng("latent-clusters", label)), run.device)
        x = schedule.noised(centres, noise, schedule.times(self.steps)[-left])
        model = partial(pipeline.noise, label=label, guidance=self.guidance)
        return pipeline.images(schedule.denoised(x, model, self.steps, left))


def clusters(latents: Tensor, num: int) -> Tensor:
    """The centres of so many clusters [num,C,h,w] of latents [N,C,h,w], in one pass over parts of ten for each cluster, on one
    thread: on several, sums come in another order each time."""
    from sklearn.cluster import MiniBatchKMeans  # heavy, and asked for here alone
    from threadpoolctl import threadpool_limits

    rows = latents.flatten(1).double().cpu().numpy()
    model = MiniBatchKMeans(num, random_state=0, batch_size=PART * num, n_init="auto")
    with threadpool_limits(1):
        for part in _parts(rows, num):
            model.partial_fit(part)
    return torch.from_numpy(model.cluster_centers_).to(latents).view(num, *latents.shape[1:])


def _parts(rows: np.ndarray, num: int) -> list[np.ndarray]:
    """Of PART times `num` rows each; what is left over makes one more if it is enough for all clusters."""
    parts = [rows[start : start + PART * num] for start in range(0, len(rows), PART * num)]
    return parts if len(parts) == 1 or len(parts[-1]) >= num else parts[:-1]


@dataclass(frozen=True)
class ClassGaussians(Resource):
    """Of each class, mean and deviation of its latents after they were walked back towards noise; the same for every seed."""

    folder: str
    hashes: tuple[str, ...]
    steps: int
    levels: int
    guidance: float
    saw: ClassVar[Saw] = TRAIN  # and what the model did, as the baseline says
    costly: ClassVar[bool] = True

    def describe(self) -> str:
        """One line."""
        return f"inverted latents of {self.folder}, {self.levels} of {self.steps} steps"

    def build(self, run: Run) -> dict[str, Tensor]:
        """mean and std: [K,C,h,w]."""
        pipeline = Pipeline(run, self.folder, self.hashes, DdimGroups.who)
        schedule, means, stds = pipeline.settings.schedule, list[Tensor](), list[Tensor]()
        for label in range(run.spec.num_classes):
            model = partial(pipeline.noise, label=label, guidance=self.guidance)
            x = schedule.inverted(pipeline.latents(label), model, self.steps, self.levels)
            means.append(x.mean(0))
            stds.append(x.std(0))
        return {"mean": torch.stack(means), "std": torch.stack(stds)}


@dataclass(frozen=True)
class DdimGroups(Diffused):
    """ddim-groups: of many groups of IPC draws from a class's Gaussian of inverted latents, the one most like it (D3HR).

    The latents of all real training images of a class are walked back `levels` of `steps` DDIM steps under guidance, with the
    noise that the model sees at the end of each step; N(mu, sigma) is fitted to them value by value. Of `groups` groups of IPC
    draws the one with the smallest |mean - mu| + |std - sigma| + 0.1 |skewness| is walked to images. Norms are over the D values;
    skewness is that of each image's values, brought to the group's mean and deviation, and its norm is over the images. With
    IPC 1 means alone count.
    Source: Zhao et al., Taming Diffusion for Dataset Distillation with High Representativeness (D3HR), ICML 2025, and its public
    code: DiT-XL/2 at 256 px, 50 steps of which 30 are inverted, guidance 4. Departures: latents are the encoder's means and not
    samples; fewer groups (that code draws up to 100,000,000); the walk to images begins where the inversion ended, in that code
    one step nearer to noise; labels are hard: take a protocol with a teacher for the paper's. In float32.
    Raises: as latent-clusters; ConfigError for levels outside of the walk.
    """

    who: ClassVar[str] = "baseline 'ddim-groups'"
    guidance: float = 4.0
    levels: int = 30
    groups: int = 10_000

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        super().__post_init__()
        if not 1 <= self.levels < self.steps:
            raise ConfigError(f"'levels' must lie in 1..{self.steps - 1}, below 'steps', got {self.levels}.")
        if self.groups < 1:
            raise ConfigError(f"'groups' must be at least 1, got {self.groups}.")

    def check(self, run: Run) -> None:
        """Whether a deviation can be fitted, too."""
        super().check(run)
        if min(run.class_counts) < 2:
            raise ConfigError("a class with one training image has no deviation: take another data set.")

    @property
    def _gaussians(self) -> ClassGaussians:
        return ClassGaussians(self.folder, self.hashes, self.steps, self.levels, self.guidance)

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """The Gaussians."""
        return (self._gaussians,)

    def build(self, run: Run) -> Batch:
        """Class by class; the draws of class c from the stream ("ddim-groups", c)."""
        pipeline, fitted = self.load(run), run.resource(self._gaussians)
        schedule, pixels = pipeline.settings.schedule, list[Tensor]()
        for label, (mean, std) in enumerate(zip(fitted["mean"], fitted["std"], strict=True)):
            x = best_group(mean, std, run.ipc, self.groups, run.rng("ddim-groups", label))
            model = partial(pipeline.noise, label=label, guidance=self.guidance)
            pixels.append(pipeline.images(schedule.denoised(x, model, self.steps, self.levels + 1)))
        return labelled(run.spec.normalise(torch.cat(pixels)), run)


def best_group(mean: Tensor, std: Tensor, size: int, groups: int, rng: torch.Generator) -> Tensor:
    """Of so many groups of draws from N(mean, std), each [C,h,w], the one with the smallest `misfit`: [size,C,h,w]."""
    at_once = max(1, DRAWN // (size * mean.numel()))
    best, least = mean.new_empty(0), torch.inf
    for start in range(0, groups, at_once):
        num = min(at_once, groups - start)
        drawn = mean + std * send(torch.randn(num, size, *mean.shape, generator=rng), mean.device)
        scores = misfit(drawn.flatten(2), mean.flatten(), std.flatten())
        place = int(scores.argmin())
        if float(scores[place]) < least:
            best, least = drawn[place].clone(), float(scores[place])  # and not all that was drawn
    return best


def misfit(groups: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """How unlike N(mean, std) [D] each group [G,size,D] is: [G]. See DdimGroups."""
    own = groups.mean(1)
    score = (own - mean).norm(dim=1)
    if groups.shape[1] == 1:
        return score
    spread, num = groups.std(1), groups.shape[2]
    cubes = ((groups - own[:, None]) / spread[:, None]).pow(3).sum(2)
    skewness = cubes * (num / ((num - 1) * (num - 2)))
    return score + (spread - std).norm(dim=1) + 0.1 * skewness.norm(dim=1)
