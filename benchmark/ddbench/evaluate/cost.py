"""What judging costs: seconds by phase, images a second, memory, and the share of the device's peak that was reached."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddbench.api import Spec
from ddbench.compute import hardware
from ddbench.compute.run import build_network
from ddbench.evaluate.evaluator import Evaluator, Finished
from ddbench.refs import PluginRef
from ddbench.schema import JudgementMeasured

PEAK_SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product measures a device's peak
PEAK_TRIES = 5
SMALLEST_SIDE = 512


def flops_of_step(ref: PluginRef, spec: Spec) -> int:
    """Floating-point operations of a training step on one image, forward and backward, as torch's own counter counts them:
    those of convolutions and matrix products."""
    try:
        with torch.device("meta"):  # counted, not computed
            return _counted(ref.make().build(spec), spec)
    except Exception:  # it cannot be built there
        return _counted(build_network(ref, spec, torch.device("cpu"), "flops").to("meta"), spec)


def _counted(network: nn.Module, spec: Spec) -> int:
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, *spec.shape, device="meta")).sum().backward()
    return counter.get_total_flops()


def peak_flops(device: torch.device) -> float:
    """The floating-point operations a second of the best of some float32 matrix products, under the current number of
    threads and TF32: what this device reaches, measured and not looked up. Of smaller matrices where memory is short, and 0
    where it is out."""
    side = PEAK_SIDE[device.type]
    while side >= SMALLEST_SIDE:
        try:
            return _flops_of_product(side, device)
        except torch.OutOfMemoryError:
            side //= 2
    return 0.0


def _flops_of_product(side: int, device: torch.device) -> float:
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


def measured(evaluator: Evaluator, finished: Sequence[Finished], peak: float, processes: int = 1) -> JudgementMeasured:
    """The costs of a block of repeats, on a device with that `peak` of operations a second.

    Seconds are sums over the repeats; images_per_second counts the images of the training steps; peak_share is the operations
    of these steps over seconds_train and the peak. With several `processes` side by side, rates and shares are those of one.
    """
    train = sum(one.seconds_train for one in finished)
    images = len(evaluator.subject.images) * evaluator.recipe.epochs * len(finished)
    rate, flops = images / train if train else 0.0, flops_of_step(evaluator.judging.network, evaluator.spec)
    return JudgementMeasured(
        seconds_train=train,
        seconds_test=sum(one.seconds_test for one in finished),
        images_per_second=rate,
        flops_per_image=float(flops),
        peak_share=rate * flops / peak if peak else 0.0,
        peak_memory_bytes=max(one.peak_memory_bytes for one in finished),
        way="/".join(dict.fromkeys(one.way for one in finished)),
        processes=processes,
        commit=hardware.commit(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def together(parts: Sequence[tuple[JudgementMeasured, float]]) -> dict[str, Any]:
    """The costs of several blocks of one network, each with the share of its repeats that counts: sums of seconds, rates over
    them, the highest peak of memory."""
    train = sum(share * part.seconds_train for part, share in parts)
    images = sum(share * part.seconds_train * part.images_per_second for part, share in parts)
    reached = sum(share * part.seconds_train * part.peak_share for part, share in parts)
    return {
        "seconds_train": train,
        "seconds_test": sum(share * part.seconds_test for part, share in parts),
        "images_per_second": images / train if train else 0.0,
        "flops_per_image": parts[0][0].flops_per_image,
        "peak_share": reached / train if train else 0.0,
        "peak_memory_bytes": max(part.peak_memory_bytes for part, _ in parts),
        "way": "/".join(dict.fromkeys(part.way for part, _ in parts)),
        "processes": max(part.processes for part, _ in parts),
    }
