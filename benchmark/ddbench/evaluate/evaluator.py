"""Train networks from scratch on a set, and read their accuracy on the sealed test split once, after the last epoch."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench.api import Arch, Spec
from ddbench.config import Plan, PluginRef
from ddbench.data.sealed import TestData, open_test
from ddbench.ops.augment import SiameseAugment
from ddbench.run import build_network
from ddbench.train import predict, train

Entry = dict[str, Any]
"""One network and repeat: network, repeat, accuracy, num_test, correct, train_loss, and seconds apart from these."""


def pack(correct: Tensor) -> str:
    """[N] bool to the base64 of a bitmap, most significant bit first."""
    return base64.b64encode(np.packbits(correct.cpu().numpy()).tobytes()).decode()


def unpack(bitmap: str, num: int) -> Tensor:
    """The inverse of `pack`: [num] bool."""
    return torch.from_numpy(np.unpackbits(np.frombuffer(base64.b64decode(bitmap), np.uint8), count=num).astype(bool))


def evaluate_once(
    plan: Plan, ref: PluginRef, repeat: int, images: Tensor, labels: Tensor, spec: Spec, test: TestData,
    tick: Callable[[int], None] | None = None,
) -> Entry:  # fmt: skip
    """One network: images [N,C,H,W] normalised, labels [N] or [N,K], both on the device of the test data.

    The streams are named by distillation seed, network and repeat, and not by the method, so that the differences between
    methods are paired. Source: section 4 of GLaD (CVPR 2023) and its public code. Departure: that reports the best of many
    accuracies on the test split; here there is one.
    """
    name = ("evaluate", plan.seed, ref.label, repeat)
    arch: Arch = ref.make()
    network = build_network(ref, spec, images.device, *name, "network")
    recipe = plan.protocol.recipe(arch.lr, full_data=plan.baseline == "full-data")
    train_loss = train(network, images, labels, recipe, name, SiameseAugment(spec.augmentation), on_epoch=tick)
    correct = predict(network, test.images, plan.protocol.test_batch) == test.labels
    return {
        "network": ref.label,
        "repeat": repeat,
        "accuracy": int(correct.sum()) / len(correct),
        "num_test": len(correct),
        "correct": pack(correct),
        "train_loss": train_loss,
    }


def evaluate(
    plan: Plan, images: Tensor, labels: Tensor, spec: Spec, test: TestData, entries: list[Entry],
    keep: Callable[[list[Entry]], None], tick: Callable[[float], None],
) -> list[Entry]:  # fmt: skip
    """Every network and repeat of the plan that `entries` lack, in the plan's order; `keep(entries)` after each."""
    wanted = [(ref, repeat) for ref in plan.networks for repeat in range(plan.protocol.repeats)]
    epochs = plan.protocol.full_data_epochs if plan.baseline == "full-data" else plan.protocol.epochs
    for number, (ref, repeat) in enumerate(wanted[len(entries) :], start=len(entries)):
        started = time.perf_counter()

        def on_epoch(epoch: int, number: int = number) -> None:
            tick((number + (epoch + 1) / epochs) / len(wanted))

        entry = evaluate_once(plan, ref, repeat, images, labels, spec, test, on_epoch)
        entries = [*entries, entry | {"seconds": time.perf_counter() - started}]
        keep(entries)
    return entries


def judge(
    plan: Plan, images: Tensor, labels: Tensor, root: Path | None, device: torch.device, tick: Callable[[float], None]
) -> list[Entry]:
    """Evaluate a set that lies in a file: images [N,C,H,W] normalised, labels [N,K]."""
    spec: Spec = plan.dataset.make().spec()
    test = open_test(plan.dataset, root, device)
    return evaluate(plan, images.to(device), labels.to(device), spec, test, [], lambda entries: None, tick)
