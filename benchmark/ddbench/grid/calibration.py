"""What training takes on this device, measured on a few random images: for estimates of what no record of a store knows.

No real image is read and nothing is written. Plugins of other distributions are not run, and all measurements of a command
together take some seconds at most.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, cast

import torch
from msgspec.structs import replace as replace_struct
from torch import Tensor, nn

from ddbench.api import Recipe, Spec
from ddbench.compute.resources import Need
from ddbench.compute.run import DistillRun, build_network
from ddbench.compute.train import train
from ddbench.data.subsets import TrainingData
from ddbench.evaluate.cost import flops_of_step, peak_flops
from ddbench.evaluate.evaluator import Evaluator, Subject
from ddbench.files import digest
from ddbench.plan import Judging, SetPlan
from ddbench.refs import PluginRef, foreign
from ddbench.seeds import stream

MOST_SECONDS = 12.0  # of all measurements together
MOST_EACH = 2.0  # of one, about
TOTALS = (16, 128)  # images of a measurement; the second where the first was quick
EPOCHS = 2  # the first of them also pays for what comes once, and is not counted
LEAST_SHARE = 0.1  # of the device's peak that steps reach at least, when it is asked whether a measurement is affordable


@dataclass(frozen=True)
class _TimedRun(DistillRun):
    """A run whose first training is measured, over a few epochs; others, of the same kind of network, are only counted."""

    took: list[float] = field(default_factory=list)  # seconds of all epochs of each recipe, at the speed of the first one's last
    an_epoch: list[float] = field(default_factory=list)  # the seconds of that, once it is known

    def train(self, network: nn.Module, recipe: Recipe, *name: str | int, **more: Any) -> None:
        """Measure it, or count it."""
        if not self.an_epoch:
            ends = list[float]()
            short = replace(recipe, epochs=EPOCHS, warmup_epochs=min(recipe.warmup_epochs, 1))
            more["on_epoch"] = lambda _: ends.append(_now(self.device))
            super().train(network, short, *name, **more)
            self.an_epoch.append(ends[-1] - ends[-2])
        self.took.append(self.an_epoch[0] * recipe.epochs)


def _now(device: torch.device) -> float:
    """The time when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Calibration:
    """Of one device; each measurement is made once."""

    def __init__(self, device: torch.device, most_seconds: float | None = None) -> None:
        self.device, self.left = device, MOST_SECONDS if most_seconds is None else most_seconds
        self.known: dict[str, float | None] = {}
        self.peaks: dict[int, float] = {}
        self.flops = dict[str, int]()  # of a step, by network and images

    def seconds_to_build(self, need: Need, plan: SetPlan, counts: Sequence[int]) -> float | None:
        """Of a resource that is trained on so many images by class; None where it trains nothing, or nobody has time to see."""
        spec = plan.dataset.make().spec()
        if need.owner and foreign(need.owner):
            return None
        if need.backbone and self._affordable(need.backbone, spec, plan.threads) < TOTALS[0]:
            return None

        def measure() -> float | None:
            found = None
            for total in TOTALS:
                began, data = time.perf_counter(), _some_images(spec, total, self.device)
                run = _TimedRun(("calibration",), data, need.backbone, 0, self.device, {})
                with suppress(Exception):  # of a resource that wants a file, or trained networks
                    need.resource.build(run)
                if not run.took:
                    return found
                found = sum(run.took) / len(data.images)
                if (time.perf_counter() - began) * TOTALS[1] / TOTALS[0] > MOST_EACH:
                    break
            return found

        trained, group = need.backbone.what if need.backbone else None, need.resource.group()
        alike = [group] if group != need.resource.describe() else [need.identity["type"], need.identity["fields"]]
        key = digest(["build", alike, trained, spec.shape, spec.num_classes])
        a_image = self._once(key, measure, plan.threads)
        return None if a_image is None else a_image * sum(counts)

    def seconds_to_judge(self, judging: Judging, images: int) -> float | None:
        """Of training one network on a set of so many images; testing it comes on top. None where nobody has time to see."""
        spec = judging.dataset.make().spec()
        if foreign(*judging.refs):
            return None
        num = min(images, TOTALS[1], self._affordable(judging.network, spec, judging.threads))
        if num < min(images, spec.num_classes, TOTALS[0]):
            return None

        def measure() -> float | None:
            evaluator = _evaluator(judging, spec, num, self.device)
            ends, network = list[float](), evaluator.network(0)
            how = (evaluator.recipe, evaluator.name(0), evaluator.augment, evaluator.objective)
            shown, labels = evaluator.training_images(), evaluator.subject.labels
            train(network, shown, labels, *how, lambda _: ends.append(_now(self.device)))
            return (ends[-1] - ends[-2]) / num

        what = [judging.stem, judging.network.what, spec.shape, spec.num_classes, num]
        a_image = self._once(digest(["judge", *what]), measure, judging.threads)
        return None if a_image is None else a_image * images * judging.numbers.epochs

    def peak(self, threads: int) -> float:
        """The operations a second of the best matrix product, with so many threads."""
        if threads not in self.peaks:
            with _threads(threads):
                self.peaks[threads] = peak_flops(self.device)
        return self.peaks[threads]

    def _affordable(self, network: PluginRef, spec: Spec, threads: int) -> int:
        """How many images can be measured in the time that one measurement has."""
        key = digest([network.what, spec.shape, spec.num_classes])
        if key not in self.flops:
            self.flops[key] = flops_of_step(network, spec)
        return int(MOST_EACH * self.peak(threads) * LEAST_SHARE / max(self.flops[key] * EPOCHS, 1))

    def _once(self, key: str, measure: Any, threads: int) -> float | None:
        if key not in self.known:
            if self.left <= 0:
                return None
            began = time.perf_counter()
            with _threads(threads):
                try:
                    self.known[key] = measure()
                except Exception:  # what cannot be tried is not known
                    self.known[key] = None
            self.left -= time.perf_counter() - began
        return self.known[key]


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """So many as the jobs will have, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bytes_of(spec: Spec, num: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images and their labels, sorted by class."""
    images = torch.randint(0, 256, (num, *spec.shape), dtype=torch.uint8, generator=stream("calibration", "images"))
    labels = (torch.arange(num) % spec.num_classes).sort().values
    return images.to(device), labels.to(device)


def _some_images(spec: Spec, total: int, device: torch.device) -> TrainingData:
    """About so many random training images, one of each class at least."""
    images, labels = _bytes_of(spec, max(total, spec.num_classes), device)
    counts = torch.bincount(labels.cpu(), minlength=spec.num_classes).tolist()
    return TrainingData(spec, images, labels, tuple(accumulate(counts, initial=0)), images[:0], labels[:0])


def _evaluator(judging: Judging, spec: Spec, num: int, device: torch.device) -> Evaluator:
    """Of a short training on random images."""
    images, labels = _bytes_of(spec, num, device)
    subject = Subject(spec.normalise(images), labels, "")
    teacher = None
    if judging.numbers.teacher and judging.teacher:
        teacher = build_network(judging.teacher, spec, device, "teacher").eval().requires_grad_(False)
    short = replace_struct(judging, numbers=judging.numbers.shortened(EPOCHS))
    return Evaluator(short, spec, subject, cast(Any, None), teacher)  # nothing is tested: no test image is near
