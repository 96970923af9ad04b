"""Pixels of a StyleGAN-XL and their gradients, the published form against the fast one, as ratios within one run.

`make perf-generator` on a CPU, `make gpu-report PART=generator` on a card. The shapes are those of the published 128-px ImageNet
model (DDBENCH_PERF_WIDTH and DDBENCH_PERF_SIDE: others), its weights are random, and so are codes: what they show does not change
how long a step takes. A step gives N images and the gradients of all codes and of F_0, `chunk` images at once; where that takes
several chunks, images are made without a graph first, as the engine does. All cores within each operation.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ddbench.compute.clock import peak_memory_bytes, reset_peak_memory
from ddbench.compute.hardware import hardware, num_cores
from ddbench.compute.run import be_deterministic
from ddbench.seeds import stream
from ddbench.testing import toy_run
from ddbench_plugins.generators.stylegan_random import random_weights
from ddbench_plugins.stylegan.network import StyleGAN, build
from ddbench_plugins.stylegan.schedule import describe, filters, stylegan_xl
from perf.saved import peak_saved_bytes

WIDTH = int(os.environ.get("DDBENCH_PERF_WIDTH", "1024"))
SIDE = int(os.environ.get("DDBENCH_PERF_SIDE", "128"))
SECONDS = float(os.environ.get("DDBENCH_PERF_SECONDS", "3"))  # about so long the timed steps of a case may take together
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = ("float16", "bfloat16")
PLAIN = [("plain", "float32", num, 1) for num in (1, 10)]
FAST = [("fast", precision, num, num) for precision in ("float32", *HALF) for num in (1, 10)]
CASES = [*PLAIN, *FAST, ("fast", "float32", 10, 1)]


class Step:
    """Images and gradients of one generator."""

    def __init__(self, made: StyleGAN, num: int, chunk: int) -> None:
        self.made, self.chunk = made, chunk
        rng = stream("perf", "generator", num)
        self.w = torch.randn(num, made.num_codes, made.description.w_dim, generator=rng).to(DEVICE)
        with torch.no_grad():
            self.f = made.synthesize(self.w, None, 0, 0)
        self.grad = torch.randn(num, made.description.img_channels, SIDE, SIDE, generator=rng).to(DEVICE)
        for leaf in (self.w, self.f):
            leaf.requires_grad_()

    def pixels(self, part: slice) -> Tensor:
        return self.made.synthesize(self.w[part], self.f[part], 0, self.made.depth)

    def __call__(self) -> Tensor:
        """The images; gradients are in the leaves."""
        self.w.grad = self.f.grad = None
        parts = [slice(first, first + self.chunk) for first in range(0, len(self.w), self.chunk)]
        if len(parts) > 1:
            with torch.no_grad():
                images = torch.cat([self.pixels(part) for part in parts])
        for part in parts:
            pixels = self.pixels(part)
            pixels.backward(self.grad[part])
            images = images if len(parts) > 1 else pixels.detach()
        if CUDA:
            torch.cuda.synchronize()
        return images


def generator(form: str, precision: str) -> StyleGAN:
    """With random weights."""
    schedule = stylegan_xl(SIDE, 0, width=WIDTH)
    of = describe(schedule)
    return build(of, random_weights(of, toy_run(), 0) | filters(schedule), DEVICE, precision, form)


def seen(step: Step) -> list[Tensor]:
    """An image and the gradients of its codes and its F_0."""
    images = step()
    assert step.w.grad is not None
    assert step.f.grad is not None
    return [images[:1], step.w.grad[:1], step.f.grad[:1]]


def errors(precision: str) -> dict[str, float]:
    """Of half precision against float32, in standard deviations of what is right: images at worst, gradients typically."""
    image, codes, features = seen(Step(generator("fast", "float32"), 1, 1))
    found = seen(Step(generator("fast", precision), 1, 1))
    worst = float((found[0] - image).abs().max() / image.std())
    typical = [
        float((got - right).square().mean().sqrt() / right.std()) for got, right in zip(found[1:], (codes, features), strict=True)
    ]
    return {"image_error": worst, "gradient_error": max(typical)}


def timed(call: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize(("form", "precision", "num", "chunk"), CASES)
def test_step(benchmark: Any, form: str, precision: str, num: int, chunk: int) -> None:
    be_deterministic(num_cores())
    about: dict[str, Any] = {"form": form, "precision": precision, "num": num, "chunk": chunk, "width": WIDTH, "side": SIDE}
    if precision in HALF and num == 1:
        about |= errors(precision)
        if CUDA:
            torch.cuda.empty_cache()
    step = Step(generator(form, precision), num, chunk)
    reset_peak_memory(DEVICE)
    seconds = SECONDS  # of ten images on a CPU, which take minutes: the first of them warms up
    if num == 1:
        seconds = timed(lambda: about.update(saved_bytes=peak_saved_bytes(step)))
    if (num == 1 and seconds < 5) or CUDA:
        seconds = timed(step)
    benchmark.pedantic(step, rounds=max(1, min(50, round(SECONDS / seconds))), iterations=1)
    about["peak_bytes"] = peak_memory_bytes(DEVICE)
    where = hardware(DEVICE, torch.get_num_threads())
    benchmark.extra_info.update(about | {"device": where.device, "threads": where.threads, "torch": torch.__version__})
