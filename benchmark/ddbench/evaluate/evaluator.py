"""Train networks from scratch on a set, and read their accuracy on the sealed test split once, after the last epoch.

`evaluate_once` is the plain way: one network, one epoch after the other. `evaluate_stacked` trains several repeats of a network
at once. Both draw the same numbers. A judgement is split among processes by repeats; that changes no bit of the plain way.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from ddbench.api import Arch, Augment, Objective, Recipe, Spec
from ddbench.compute.clock import peak_memory_bytes, reset_peak_memory
from ddbench.compute.run import build_network
from ddbench.compute.stacked import train_stacked
from ddbench.compute.streams import train_on_streams
from ddbench.compute.train import can_stack, cross_entropy, predict, train
from ddbench.compute.ways import Way, fastest
from ddbench.data.host import HostImages, Images
from ddbench.data.sealed import TestData
from ddbench.evaluate.sets import Whitening
from ddbench.evaluate.teacher import follow, gift
from ddbench.ops.augment import SiameseAugment
from ddbench.ops.crops import CropFlip
from ddbench.plan import Judging
from ddbench.schema import Repeat
from ddbench.seeds import StreamName

Asked = Literal["auto", "serial", "captured", "streams", "stacked"]
"""A way of training the repeats; auto: the one that was measured fastest, and serial where nobody has measured."""


def pack(correct: Tensor) -> str:
    """[N] bool to the base64 of a bitmap, most significant bit first."""
    return base64.b64encode(np.packbits(correct.cpu().numpy()).tobytes()).decode()


def unpack(bitmap: str, num: int) -> Tensor:
    """The inverse of `pack`: [num] bool."""
    return torch.from_numpy(np.unpackbits(np.frombuffer(base64.b64decode(bitmap), np.uint8), count=num).astype(bool))


@dataclass(frozen=True)
class Subject:
    """A set to judge, on the device that judges it."""

    images: Images  # [N,C,H,W] as networks see them: normalised or whitened floats; or the bytes of real images
    labels: Tensor  # [N] int64, or [N,K] probabilities
    sha256: str  # of the set, or of the iterate
    everything: bool = False  # whether it is all real training images
    learned_rate: float | None = None  # that the set has learned
    whitening: Whitening | None = None  # that its images went through, so that the test images go through it too


class Finished(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One network, trained and read, and what that cost."""

    repeat: Repeat
    seconds_train: float
    seconds_test: float
    peak_memory_bytes: int
    way: str  # serial, captured, streams or stacked


@dataclass(frozen=True)
class Evaluator:
    """A set, and all that one network is judged by on it, on one device."""

    judging: Judging
    spec: Spec
    subject: Subject
    test: TestData
    teacher: nn.Module | None = None  # labels every batch, where the protocol has one
    resident: int = 0  # bytes on a CUDA device that are not of this judging

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.subject.images.device

    @property
    def augment(self) -> Augment:
        """The protocol's augmentation; a recipe may leave it unused."""
        return CropFlip() if self.judging.numbers.augment == "crop-flip" else SiameseAugment(self.spec.augmentation)

    @property
    def objective(self) -> Objective:
        """Cross-entropy, the divergence from the teacher, or GIFT's cosine."""
        if self.judging.numbers.criterion == "gift":
            return gift(self.teacher)
        told = self.judging.numbers.teacher
        return follow(self.teacher, told.temperature) if self.teacher is not None and told else cross_entropy

    @property
    def recipe(self) -> Recipe:
        """How the network is trained. Raises UntrainableError for a learned rate at which nothing can be trained."""
        arch: Arch = self.judging.network.make()
        return self.judging.numbers.recipe(arch.lr, self.subject.learned_rate)

    def name(self, repeat: int) -> StreamName:
        """Of a repeat's streams: by draw, network and repeat, and not by the method, so that differences between methods are
        paired."""
        return (*self.judging.stream, repeat)

    def network(self, repeat: int) -> nn.Module:
        """With fresh weights, in the protocol's memory format."""
        network = build_network(self.judging.network, self.spec, self.device, *self.name(repeat), "network")
        return network.to(memory_format=torch.channels_last) if self.judging.numbers.channels_last else network  # type: ignore[call-overload]

    def seen(self, pixels: Tensor) -> Tensor:
        """What a network sees of a batch of test images."""
        whitening = self.subject.whitening
        return self._laid_out(whitening(pixels) if whitening else self.spec.normalise(pixels))

    def training_images(self) -> Images:
        """In the protocol's memory format; those on the host get it batch by batch."""
        images = self.subject.images
        return images if isinstance(images, HostImages) else self._laid_out(images)

    @property
    def view(self) -> Callable[[Tensor], Tensor] | None:
        """What a network sees of a batch of training images, where they are bytes."""
        if self.subject.images.dtype != torch.uint8:
            return None
        return lambda pixels: self.spec.normalise(self._laid_out(pixels))

    def peak_memory_bytes(self) -> int:
        """Since it was last reset, without what is not of this judging."""
        return peak_memory_bytes(self.device) - self.resident

    def _laid_out(self, images: Tensor) -> Tensor:
        last = self.judging.numbers.channels_last
        return images.contiguous(memory_format=torch.channels_last) if last else images

    def read(self, network: nn.Module, repeat: int, train_loss: float) -> Repeat:
        """The accuracy of a trained network: the one place where the test split meets a prediction."""
        correct = predict(network, self.test.images, self.judging.numbers.test_batch, self.seen) == self.test.labels
        num = len(correct)
        return Repeat(
            repeat=repeat, accuracy=int(correct.sum()) / num, num_test=num, correct=pack(correct), train_loss=train_loss
        )


def evaluate_once(
    evaluator: Evaluator, repeat: int, on_epoch: Callable[[int], None] | None = None, captured: bool = False
) -> Finished:
    """One network; `captured`: by recorded steps, where they can be. Source: section 4 of GLaD (CVPR 2023) and its public code.
    Departure: that reports the best of many accuracies on the test split; here there is one.

    Raises UntrainableError where the training diverges, or for a learned rate at which nothing can be trained.
    """
    started = time.perf_counter()
    network, images, labels = evaluator.network(repeat), evaluator.training_images(), evaluator.subject.labels
    how = (evaluator.recipe, evaluator.name(repeat), evaluator.augment, evaluator.objective)
    loss = train(network, images, labels, *how, on_epoch, evaluator.view, captured)
    trained = time.perf_counter()
    read = evaluator.read(network, repeat, loss)
    seconds = trained - started, time.perf_counter() - trained
    return Finished(read, *seconds, evaluator.peak_memory_bytes(), "captured" if captured else "serial")


def evaluate_stacked(
    evaluator: Evaluator, repeats: Sequence[int], on_epoch: Callable[[int], None] | None = None, way: Way = "stacked"
) -> list[Finished]:
    """Several repeats of the network at once, with the random numbers that each has alone: stacked, or side by side on streams.
    Raises as `evaluate_once` does."""
    started = time.perf_counter()
    networks, names = [evaluator.network(repeat) for repeat in repeats], [evaluator.name(repeat) for repeat in repeats]
    images, labels, recipe = evaluator.training_images()[:], evaluator.subject.labels, evaluator.recipe
    how = (networks, images, labels, recipe, names, evaluator.augment, evaluator.objective, on_epoch)
    losses = train_stacked(*how) if way == "stacked" else train_on_streams(*how, evaluator.view)
    train_share = (time.perf_counter() - started) / len(networks)
    finished = []
    for network, repeat, loss in zip(networks, repeats, losses, strict=True):
        began = time.perf_counter()
        read = evaluator.read(network, repeat, loss)
        seconds = train_share, time.perf_counter() - began
        finished.append(Finished(read, *seconds, evaluator.peak_memory_bytes(), way))
    return finished


def way_of(evaluator: Evaluator, asked: Asked, num: int) -> Way:
    """How so many repeats of the network are trained: as was asked for, or one after the other where that cannot be. All real
    images are never stacked, nor is one repeat; recorded steps need a CUDA device."""
    ref, device = evaluator.judging.network, evaluator.device
    arch: Arch = ref.make()
    way = asked if asked != "auto" else fastest(ref.name, device) or ("stacked" if device.type in arch.stacked else "serial")
    if way in ("captured", "streams") and device.type != "cuda":
        return "serial"
    if way in ("streams", "stacked") and (num < 2 or evaluator.subject.everything or not can_stack(evaluator.network(0))):
        return "captured" if way == "streams" else "serial"
    return "serial" if way == "stacked" and evaluator.view else way


def evaluate_block(
    evaluator: Evaluator, first: int, last: int, kept: Sequence[Finished], keep: Callable[[list[Finished]], None],
    tick: Callable[[float], None], way: Asked = "auto",
) -> list[Finished]:  # fmt: skip
    """Repeats `first` to `last`, in order, less those that are `kept` from before: the block's first ones.

    `keep(finished)` is called after each repeat, or after each stack: an interrupted stack begins anew, so that its sums are
    always those of the whole stack. `tick(fraction of the block)` is called after every epoch. Raises as `evaluate_once` does.
    """
    finished, total, epochs = list(kept), last - first + 1, evaluator.recipe.epochs
    reset_peak_memory(evaluator.device)
    taken = way_of(evaluator, way, total - len(finished)) if len(finished) < total else "serial"
    while len(finished) < total:
        together = taken in ("streams", "stacked")
        num, done = total - len(finished) if together else 1, len(finished)

        def on_epoch(epoch: int, num: int = num, done: int = done) -> None:
            tick((done + num * (epoch + 1) / epochs) / total)

        if together:
            finished += evaluate_stacked(evaluator, range(first + done, last + 1), on_epoch, taken)
        else:
            finished.append(evaluate_once(evaluator, first + done, on_epoch, taken == "captured"))
        keep(list(finished))
    return finished
