"""What judging costs: seconds by phase, images a second, memory, and the share of the device's peak that was reached."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddbench.api import Spec
from ddbench.compute.run import build_network
from ddbench.plan import PluginRef

PEAK_SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product measures a device's peak
PEAK_TRIES = 5


def flops_of_step(ref: PluginRef, spec: Spec) -> int:
    """Floating-point operations of a training step on one image, forward and backward, as torch's own counter counts them:
    those of convolutions and matrix products."""
    network = build_network(ref, spec, torch.device("cpu"), "flops").to("meta").eval()  # counted, not computed
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *spec.shape, device="meta")).sum().backward()
    return counter.get_total_flops()


def peak_flops(device: torch.device) -> float:
    """The floating-point operations a second of the best of some float32 matrix products, under the current number of
    threads and TF32: what this device reaches, measured and not looked up."""
    side = PEAK_SIDE[device.type]
    left, right = (torch.ones(side, side, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(PEAK_TRIES):
        _wait(device)
        started = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def by_network(
    entries: Sequence[dict[str, Any]], images_trained: dict[str, int], flops: dict[str, int], peak: float, streams: int = 1
) -> dict[str, dict[str, Any]]:
    """The costs of evaluations, by network label.

    seconds_train and seconds_test are sums over the repeats; images_per_second counts the images of the training steps
    (`images_trained`, by label, a repeat); peak_share is the operations of these steps over seconds_train and `peak`.
    With several processes side by side (`streams`), seconds are those of each, and rates and shares those of one process.
    """
    found: dict[str, dict[str, Any]] = {}
    for label in dict.fromkeys(entry["network"] for entry in entries):
        own = [entry["cost"] for entry in entries if entry["network"] == label]
        train = sum(cost["seconds_train"] for cost in own)
        rate = images_trained[label] * len(own) / train if train else 0.0
        found[label] = {
            "seconds_train": train,
            "seconds_test": sum(cost["seconds_test"] for cost in own),
            "images_per_second": rate,
            "flops_per_image": flops[label],
            "peak_share": rate * flops[label] / peak,
            "peak_memory_bytes": max(cost["peak_memory_bytes"] for cost in own),
            "way": "/".join(dict.fromkeys(cost["way"] for cost in own)),
            "processes": streams,
        }
    return found


def seconds(entry: dict[str, Any]) -> float:
    """Of one evaluation, training and testing."""
    return entry["cost"]["seconds_train"] + entry["cost"]["seconds_test"]


def untimed(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations without what differs when they are made again."""
    return [{name: value for name, value in entry.items() if name != "cost"} for entry in entries]
