"""One step of every loss at CIFAR-10's size, plain against batched, as ratios within one run: `make perf-losses`.

A step is the engine's: decode, `Loss.backward`, pull back, update. Space pixel, ConvNet-3 of width 128 (with BatchNorm for
bn-statistics, which asks for it), 10 classes of 3x32x32, every loss with its own defaults. Images are noise and experts take
random walks, since what they show does not change how long a step takes. All cores within each operation, torch's default.
Nothing asserts seconds. The first step is not timed; what autograd holds of an unrolled student is counted in it.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
from torch import nn

from ddbench.api import Loss, Recipe, Spec
from ddbench.compute.capture import Recorder
from ddbench.compute.clock import Stopwatch, peak_memory_bytes, reset_peak_memory
from ddbench.compute.engine import Distillation
from ddbench.compute.hardware import hardware, num_cores
from ddbench.compute.run import DistillRun, be_deterministic
from ddbench.data.subsets import TrainingData
from ddbench.refs import PluginRef
from ddbench.seeds import stream
from ddbench.testing import prepared, toy_plan
from ddbench_plugins.spaces.pixel import Pixel
from perf.saved import peak_saved_bytes

IPCS = (1, 10)
FORMS = dict.fromkeys(("dm", "dc", "dsa", "datadam"), ("plain", "batched")) | dict.fromkeys(
    ("cafe", "krr", "dd", "bn-statistics"), ("default",)
)
SYN_STEPS = {"mtt": (5, 20, 50), "tesla": (5, 20, 50), "datm": (5,)}  # DATM is MTT but for where its students start
MATCHING = [(name, ipc, form) for name, forms in FORMS.items() for ipc in IPCS for form in forms]
UNROLLED = [(name, ipc, num) for name, steps in SYN_STEPS.items() for ipc in IPCS for num in steps]
REPLAYED = [(name, ipc) for name in ("dm", "dc", "dsa", "datadam", "mtt", "tesla") for ipc in IPCS]
IMAGES_A_CLASS = 512  # of CIFAR-10's 5,000: more than any loss draws at once
SECONDS = float(os.environ.get("DDBENCH_PERF_SECONDS", "3"))  # about so long the timed steps of a case may take together
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


class Untrained(DistillRun):
    """A run whose training is a random walk, so that experts and teachers cost nothing."""

    def train(self, network: nn.Module, recipe: Recipe, *name: str | int, on_epoch: Any = None, **unread: Any) -> None:
        """Each epoch moves every parameter a little."""
        rng = self.rng("untrained", *name)
        for epoch in range(recipe.epochs):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.01 * torch.randn(parameter.shape, generator=rng).to(parameter.device))
            if on_epoch:
                on_epoch(epoch)


def noise() -> TrainingData:
    """Images of CIFAR-10's shape; there is no validation, as nothing is ranked."""
    spec = Spec("perf", (3, 32, 32), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
    labels = torch.arange(10).repeat_interleave(IMAGES_A_CLASS)
    images = torch.randint(256, (len(labels), *spec.shape), generator=stream("perf", "losses"), dtype=torch.uint8).to(DEVICE)
    starts = tuple(range(0, len(labels) + 1, IMAGES_A_CLASS))
    return TrainingData(spec, images, labels.to(DEVICE), starts, images[:0], labels[:0].to(DEVICE))


def distillation(name: str, ipc: int, settings: dict[str, Any], replays: bool = False) -> Distillation:
    """The engine at step 0 of a plan with this loss."""
    loss: Loss = PluginRef.resolve("losses", name, settings).make()
    norm = "batch" if name == "bn-statistics" else "instance"
    backbone = PluginRef.resolve("architectures", "convnet", {"norm": norm})
    run = prepared(loss, Untrained(("perf",), noise(), backbone, ipc, DEVICE, {}, recorder=Recorder(replays)))
    plan = toy_plan(loss, Pixel(), steps=10**6, ipc=ipc, backbone=backbone)
    loop = Distillation(plan, run, Stopwatch(DEVICE))
    loop.begin()
    return loop


def measure(benchmark: Any, loop: Distillation, **about: Any) -> None:
    """Time steps of the engine, and write down the peaks: of two steps at least, of three where they take under 5 s."""

    def step() -> None:
        loop.one_step()
        if CUDA:
            torch.cuda.synchronize()

    start = time.perf_counter()
    if "syn_steps" in about:
        about["saved_bytes"] = peak_saved_bytes(step)  # not of losses with torch.func, which refuses to be counted
    else:
        step()
    seconds = time.perf_counter() - start
    if seconds < 2:  # the first one may have spent them on other things
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
    reset_peak_memory(DEVICE)
    benchmark.pedantic(step, rounds=max(2 if seconds > 5 else 3, min(100, round(SECONDS / seconds))), iterations=1)
    about["peak_bytes"] = peak_memory_bytes(DEVICE)
    loop.look()  # steps on what is no number would say little
    where = hardware(DEVICE, torch.get_num_threads())
    benchmark.extra_info.update(about | {"device": where.device, "threads": where.threads, "torch": torch.__version__})


@pytest.mark.parametrize(("name", "ipc", "form"), MATCHING)
def test_matching(benchmark: Any, name: str, ipc: int, form: str) -> None:
    be_deterministic(num_cores())
    loop = distillation(name, ipc, {} if form == "default" else {"batched": form == "batched"})
    measure(benchmark, loop, loss=name, ipc=ipc, form=form, batch_real=getattr(loop.loss, "batch_real", 0))


@pytest.mark.parametrize(("name", "ipc", "syn_steps"), UNROLLED)
def test_unrolled(benchmark: Any, name: str, ipc: int, syn_steps: int) -> None:
    if not CUDA and ipc * syn_steps > 50:
        pytest.skip("takes minutes on a CPU and up to 15 GiB of memory: a step at IPC 10 costs ten times that at IPC 1")
    be_deterministic(num_cores())
    loop = distillation(name, ipc, {"syn_steps": syn_steps, "num_experts": 2})
    measure(benchmark, loop, loss=name, ipc=ipc, syn_steps=syn_steps)


@pytest.mark.skipif(not CUDA, reason="steps are recorded on a CUDA device alone")
@pytest.mark.parametrize(("name", "ipc"), REPLAYED)
def test_replayed(benchmark: Any, name: str, ipc: int) -> None:
    be_deterministic(num_cores())
    settings = {"syn_steps": 20, "num_experts": 2} if name in SYN_STEPS else {}
    measure(benchmark, distillation(name, ipc, settings, replays=True), loss=name, ipc=ipc, form="replayed")
