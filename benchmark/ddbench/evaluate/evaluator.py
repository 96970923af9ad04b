"""Train networks from scratch on a set, and read their accuracy on the sealed test split once, after the last epoch.

`evaluate_once` is the plain evaluator: one network, one epoch after the other. `evaluate_stacked` trains all repeats of a
network at once, `ddbench.evaluate.parallel` trains them side by side in processes. All three draw the same numbers.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ddbench.api import Arch, Augment, Objective, Recipe, Spec
from ddbench.compute.clock import peak_memory_bytes, reset_peak_memory
from ddbench.compute.run import build_network
from ddbench.compute.stacked import can_stack, train_stacked
from ddbench.compute.train import cross_entropy, predict, train
from ddbench.data.sealed import TestData
from ddbench.evaluate.sets import Whitening
from ddbench.evaluate.teacher import follow
from ddbench.ops.augment import SiameseAugment
from ddbench.ops.crops import CropFlip
from ddbench.plan import Plan, PluginRef

Entry = dict[str, Any]
"""One network and repeat: network, repeat, accuracy, num_test, correct, train_loss, and what it cost."""
Way = Literal["auto", "serial", "stacked"]
"""One repeat after the other, or all at once; auto: at once where the architecture says that this was measured faster."""
Name = tuple[str | int, ...]


def pack(correct: Tensor) -> str:
    """[N] bool to the base64 of a bitmap, most significant bit first."""
    return base64.b64encode(np.packbits(correct.cpu().numpy()).tobytes()).decode()


def unpack(bitmap: str, num: int) -> Tensor:
    """The inverse of `pack`: [num] bool."""
    return torch.from_numpy(np.unpackbits(np.frombuffer(base64.b64decode(bitmap), np.uint8), count=num).astype(bool))


@dataclass(frozen=True)
class Exam:
    """A set, and all that its networks are judged by, on one device."""

    plan: Plan
    spec: Spec
    images: Tensor  # [N,C,H,W], normalised
    labels: Tensor  # [N] or [N,K]
    test: TestData
    teacher: nn.Module | None = None  # labels every batch, where the protocol has one
    learned_rate: float | None = None  # that the set has learned
    whitening: Whitening | None = None  # that its images went through, so that the test images go through it too

    @property
    def full_data(self) -> bool:
        """Whether the set is all of the real training images."""
        return self.plan.baseline == "full-data"

    @property
    def augment(self) -> Augment:
        """The protocol's augmentation; a recipe may leave it unused."""
        return CropFlip() if self.plan.protocol.augment == "crop-flip" else SiameseAugment(self.spec.augmentation)

    @property
    def objective(self) -> Objective:
        """Cross-entropy, or the divergence from the teacher."""
        told = self.plan.protocol.teacher
        return follow(self.teacher, told.temperature) if self.teacher is not None and told else cross_entropy

    def recipe(self, ref: PluginRef) -> Recipe:
        """How a network is trained."""
        arch: Arch = ref.make()
        return self.plan.protocol.recipe(arch.lr, self.full_data, self.learned_rate)

    def name(self, ref: PluginRef, repeat: int) -> Name:
        """Of the streams: distillation seed, network and repeat, and not the method, so that the differences between methods
        are paired."""
        return ("evaluate", self.plan.seed, ref.label, repeat)

    def network(self, ref: PluginRef, repeat: int) -> nn.Module:
        """With fresh weights, in the protocol's memory format."""
        network = build_network(ref, self.spec, self.images.device, *self.name(ref, repeat), "network")
        return network.to(memory_format=torch.channels_last) if self.plan.protocol.channels_last else network  # type: ignore[call-overload]

    def seen(self, pixels: Tensor) -> Tensor:
        """What a network sees of a batch of test images."""
        images = self.whitening(pixels) if self.whitening else self.spec.normalise(pixels)
        return images.contiguous(memory_format=torch.channels_last) if self.plan.protocol.channels_last else images

    def training_images(self) -> Tensor:
        """In the protocol's memory format."""
        last = self.plan.protocol.channels_last
        return self.images.contiguous(memory_format=torch.channels_last) if last else self.images

    def read(self, network: nn.Module, ref: PluginRef, repeat: int, train_loss: float) -> Entry:
        """The accuracy of a trained network: the one place where the test split meets a prediction."""
        correct = predict(network, self.test.images, self.plan.protocol.test_batch, self.seen) == self.test.labels
        return {
            "network": ref.label,
            "repeat": repeat,
            "accuracy": int(correct.sum()) / len(correct),
            "num_test": len(correct),
            "correct": pack(correct),
            "train_loss": train_loss,
        }


def evaluate_once(exam: Exam, ref: PluginRef, repeat: int, on_epoch: Callable[[int], None] | None = None) -> Entry:
    """One network. Source: section 4 of GLaD (CVPR 2023) and its public code. Departure: that reports the best of many
    accuracies on the test split; here there is one."""
    started = time.perf_counter()
    network, name = exam.network(ref, repeat), exam.name(ref, repeat)
    loss = train(network, exam.training_images(), exam.labels, exam.recipe(ref), name, exam.augment, exam.objective, on_epoch)
    trained = time.perf_counter()
    entry = exam.read(network, ref, repeat, loss)
    return entry | {"cost": _cost(exam, trained - started, time.perf_counter() - trained, "serial")}


def evaluate_stacked(
    exam: Exam, ref: PluginRef, repeats: Sequence[int], on_epoch: Callable[[int], None] | None = None
) -> list[Entry]:
    """All repeats of a network at once, with the random numbers that each has alone."""
    started = time.perf_counter()
    networks, names = [exam.network(ref, repeat) for repeat in repeats], [exam.name(ref, repeat) for repeat in repeats]
    images, recipe = exam.training_images(), exam.recipe(ref)
    losses = train_stacked(networks, images, exam.labels, recipe, names, exam.augment, exam.objective, on_epoch)
    train_share = (time.perf_counter() - started) / len(networks)
    entries = []
    for network, repeat, loss in zip(networks, repeats, losses, strict=True):
        began = time.perf_counter()
        entry = exam.read(network, ref, repeat, loss)
        entries.append(entry | {"cost": _cost(exam, train_share, time.perf_counter() - began, "stacked")})
    return entries


def _cost(exam: Exam, train_seconds: float, test_seconds: float, way: str) -> dict[str, Any]:
    peak = peak_memory_bytes(exam.images.device)
    return {"seconds_train": train_seconds, "seconds_test": test_seconds, "peak_memory_bytes": peak, "way": way}


def is_stacked(exam: Exam, ref: PluginRef, way: Way) -> bool:
    """Whether a network's repeats are trained at once."""
    arch: Arch = ref.make()
    if way == "serial" or (way == "auto" and exam.images.device.type not in arch.stacked) or exam.full_data:
        return False
    return can_stack(exam.network(ref, 0))


def evaluate(
    exam: Exam, entries: list[Entry], keep: Callable[[list[Entry]], None], tick: Callable[[float], None], way: Way = "auto"
) -> list[Entry]:
    """Every network and repeat of the plan that `entries` lack, in the plan's order; `keep(entries)` after each network and
    repeat, or after each stack: an interrupted stack begins anew, so that its sums are always those of the whole stack."""
    plan = exam.plan
    repeats, total = plan.protocol.repeats, len(plan.networks) * plan.protocol.repeats
    for ref in plan.networks:
        done = sum(entry["network"] == ref.label for entry in entries)
        epochs = exam.recipe(ref).epochs
        reset_peak_memory(exam.images.device)
        while done < repeats:
            stack = repeats - done if is_stacked(exam, ref, way) else 1

            def on_epoch(epoch: int, done: int = len(entries), stack: int = stack, epochs: int = epochs) -> None:
                tick((done + stack * (epoch + 1) / epochs) / total)

            if stack > 1:
                new = evaluate_stacked(exam, ref, range(done, repeats), on_epoch)
            else:
                new = [evaluate_once(exam, ref, done, on_epoch)]
            entries, done = [*entries, *new], done + len(new)
            keep(entries)
    return entries
