"""The evaluators against the widespread loop, as ratios within one run: `make perf-evaluators`. Nothing asserts seconds.

Every case trains the same number of networks for the same number of epochs. Building networks and starting processes stand
outside the timing, as they are paid once for a thousand epochs; capturing a graph stands inside, so give a GPU some seconds a
case (DDBENCH_PERF_SECONDS). The plain evaluator comes first: its peak memory tells which other ways would not fit.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from ddbench import protocols
from ddbench.api import Recipe, Spec
from ddbench.compute.clock import peak_memory_bytes, reset_peak_memory
from ddbench.compute.hardware import num_cores
from ddbench.compute.run import be_deterministic, build_network
from ddbench.compute.stacked import train_stacked
from ddbench.compute.streams import train_on_streams
from ddbench.compute.train import train
from ddbench.evaluate.cost import flops_of_step
from ddbench.ops.augment import SiameseAugment
from ddbench.refs import PluginRef
from perf.widespread import widespread

NETWORKS = ("convnet", "alexnet", "vgg11", "resnet18", "vit")
SIDES, IPCS = (32, 128), (1, 10)
SECONDS = float(os.environ.get("DDBENCH_PERF_SECONDS", "4"))  # about so long a measurement should take
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
REPEATS = 5 if CUDA else num_cores()
ON_CUDA = ("plain", "widespread", "captured", "streams", "stacked")
WAYS = ON_CUDA if CUDA else ("plain", "plain, all cores", "widespread", "side by side", "stacked")
STRATEGY = "color_crop_cutout_flip_scale_rotate"
MEMORY: dict[tuple[str, int, int], int] = {}  # of the plain evaluator
ASSUMED_FLOPS = 2e12 if CUDA else 5e10  # a second, for the length of a measurement only


def case(name: str, side: int, ipc: int, repeats: int = REPEATS) -> tuple[list[nn.Module], Tensor, Tensor]:
    """Networks and a set of 10 classes."""
    spec = Spec("perf", (3, side, side), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
    ref = PluginRef.resolve("architectures", name, {})
    networks = [build_network(ref, spec, DEVICE, "perf", repeat) for repeat in range(repeats)]
    rng = torch.Generator().manual_seed(0)
    return networks, torch.randn(10 * ipc, 3, side, side, generator=rng), torch.arange(10).repeat_interleave(ipc)


def recipe(epochs: int) -> Recipe:
    return protocols.load("glad-1").judging.shortened(epochs).recipe(0.001)


def names() -> list[tuple[str | int, ...]]:
    return [("perf", repeat) for repeat in range(REPEATS)]


def plain(networks: list[nn.Module], images: Tensor, labels: Tensor, epochs: int) -> None:
    for network, name in zip(networks, names(), strict=True):
        train(network, images, labels, recipe(epochs), name, SiameseAugment(STRATEGY))


def captured(networks: list[nn.Module], images: Tensor, labels: Tensor, epochs: int) -> None:
    for network, name in zip(networks, names(), strict=True):
        train(network, images, labels, recipe(epochs), name, SiameseAugment(STRATEGY), captured=True)


def as_scripts_do(networks: list[nn.Module], images: Tensor, labels: Tensor, epochs: int) -> None:
    for network in networks:
        widespread(network, images, labels, recipe(epochs), STRATEGY)


def stacked(networks: list[nn.Module], images: Tensor, labels: Tensor, epochs: int) -> None:
    train_stacked(networks, images, labels, recipe(epochs), names(), SiameseAugment(STRATEGY))


def streams(networks: list[nn.Module], images: Tensor, labels: Tensor, epochs: int) -> None:
    train_on_streams(networks, images, labels, recipe(epochs), names(), SiameseAugment(STRATEGY))


@lru_cache(maxsize=1)
def case_of_process(name: str, side: int, ipc: int) -> tuple[list[nn.Module], Tensor, Tensor]:
    """A process's own network, kept from its first call, which is not timed, to the next."""
    return case(name, side, ipc, 1)


def in_a_process(name: str, side: int, ipc: int, repeat: int, epochs: int) -> int:
    """One network of a case, in a process of its own: its peak memory."""
    be_deterministic(1)
    (network,), images, labels = case_of_process(name, side, ipc)
    reset_peak_memory(DEVICE)
    if epochs:
        train(network, images, labels, recipe(epochs), names()[repeat], SiameseAugment(STRATEGY))
    return peak_memory_bytes(DEVICE)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(REPEATS, multiprocessing.get_context("spawn")) as processes:
        yield processes


def how_many_epochs(name: str, side: int, ipc: int) -> int:
    """So many that training the networks one after the other takes about SECONDS, or one."""
    spec = Spec("perf", (3, side, side), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
    work = flops_of_step(PluginRef.resolve("architectures", name, {}), spec) * 10 * ipc * REPEATS
    return max(1, min(200, round(SECONDS * ASSUMED_FLOPS / work)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ipc", IPCS, ids=lambda ipc: f"ipc{ipc}x")
@pytest.mark.parametrize("side", SIDES, ids=lambda side: f"{side}px")
@pytest.mark.parametrize("name", NETWORKS)
def test_evaluator(benchmark: Any, request: pytest.FixtureRequest, name: str, side: int, ipc: int, way: str) -> None:
    key = (name, side, ipc)
    benchmark.group = f"{name}, {side} px, IPC {ipc}"
    available = torch.cuda.mem_get_info()[0] if CUDA else psutil.virtual_memory().available
    needed = MEMORY.get(key, 0) * REPEATS
    if way in ("side by side", "streams", "stacked") and needed > 0.9 * available:
        pytest.skip(f"{way} would take about {needed / 2**30:.0f} GiB of memory")
    be_deterministic(1 if way == "plain" else num_cores())  # scripts use torch's default: all cores within each operation
    networks, images, labels = case(name, side, ipc)
    local = () if way == "widespread" else (DEVICE,)  # scripts keep the set on the CPU
    images, labels = (tensor.to(*local) if local else tensor for tensor in (images, labels))
    runs = {"plain": plain, "plain, all cores": plain, "widespread": as_scripts_do, "captured": captured}
    runs |= {"streams": streams, "stacked": stacked}
    run = runs.get(way)
    epochs = how_many_epochs(*key)
    peaks: list[int] = []
    if run:
        target: Callable[[], Any] = partial(run, networks, images, labels, epochs)
        if epochs > 1:
            run(networks, images, labels, 1)  # warm up
    else:
        processes, each = request.getfixturevalue("pool"), [[value] * REPEATS for value in key]

        def in_processes(epochs: int) -> None:
            peaks.extend(processes.map(in_a_process, *each, range(REPEATS), [epochs] * REPEATS))

        target = partial(in_processes, epochs)
        in_processes(0 if epochs == 1 else 1)
    reset_peak_memory(DEVICE)
    benchmark.pedantic(target, rounds=1 if epochs < 3 else 3, iterations=1)
    peak = sum(peaks[-REPEATS:]) or peak_memory_bytes(DEVICE)
    MEMORY.setdefault(key, peak)
    about = {"network": name, "side": side, "ipc": ipc, "way": way, "epochs": epochs, "repeats": REPEATS, "peak_bytes": peak}
    benchmark.extra_info.update(about | {"device": torch.cuda.get_device_name() if CUDA else "cpu", "torch": torch.__version__})
