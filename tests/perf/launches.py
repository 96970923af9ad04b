"""What a step asks of a CUDA device, counted on a pretended one: launches, copies from the host, and waits. No card is needed.

    python tests/perf/launches.py

Ten classes, IPC 1, ConvNet-3 (with BatchNorm for bn-statistics), MTT and TESLA with 5 student steps; judging at 32 px: an epoch
of glad-1, once what is made once is there. Small images, narrow networks, few real images: their number launches nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ddbench import protocols
from ddbench.api import Spec
from ddbench.compute.capture import Recorder
from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import Distillation
from ddbench.compute.run import DistillRun
from ddbench.compute.train import train
from ddbench.ops.augment import SiameseAugment
from ddbench.ops.moves import send_network
from ddbench.refs import PluginRef
from ddbench.seeds import global_stream
from ddbench.testing import prepared, toy_data, toy_plan
from ddbench.testing.pretended import Counts, Pretended
from ddbench_plugins.spaces.pixel import Pixel

SPEC = Spec("counted", (3, 16, 16), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
JUDGED = replace(SPEC, shape=(3, 32, 32))
STEPS = 3  # of which the last is counted
REAL: dict[str, Any] = {"batch_real": 4}
EXPERTS: dict[str, Any] = {"num_experts": 2, "syn_steps": 5, "max_start_epoch": 1, "expert_epochs": 1}
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, REAL) for name in ("dm", "dc", "dsa", "datadam", "cafe", "krr", "dd")},
    **{f"{name}, class by class": (name, REAL | {"batched": False}) for name in ("dm", "dc", "dsa", "datadam")},
    "mtt": ("mtt", EXPERTS),
    "tesla": ("tesla", EXPERTS),
    "bn-statistics": ("bn-statistics", {"teacher_epochs": 1}),
}
REPLAYED = ("dm", "dc", "dsa", "datadam", "mtt", "tesla")
NETWORKS: dict[str, dict[str, Any]] = {
    "convnet": {"width": 8}, "alexnet": {"width": 8}, "vgg11": {"width": 8}, "resnet18": {"width": 8}, "vit": {"width": 16},
}  # fmt: skip


def of_loss(name: str, replays: bool = False) -> Counts:
    """A step of the engine in pixels; `replays`: what is behind the augmentation as one graph."""
    plugin, settings = LOSSES[name]
    loss = PluginRef.resolve("losses", plugin, settings).make()
    norm = "batch" if plugin == "bn-statistics" else "instance"
    backbone = PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 3, "norm": norm})
    run = DistillRun(("counted",), toy_data(SPEC, 6, 2), backbone, 1, torch.device("cpu"), {})
    run = prepared(loss, run)
    with Pretended() as fake:
        there = replace(fake.run(run), recorder=Recorder(replays))
        loop = Distillation(plan_of(loss, backbone), there, Stopwatch(fake.device))
        loop.begin()
        for _ in range(STEPS - 1):
            loop.one_step()
        with fake.counting() as counts:
            loop.one_step()
    return counts


def plan_of(loss: Any, backbone: PluginRef) -> Any:
    return toy_plan(loss, Pixel(), steps=STEPS + 1, ipc=1, backbone=backbone)


def of_judging(name: str, captured: bool) -> Counts:
    """The last of some epochs."""
    recipe = protocols.load("glad-1").judging.shortened(4).recipe(0.001)
    arch = PluginRef.resolve("architectures", name, NETWORKS[name]).make()
    found = list[Counts]()
    with Pretended() as fake:
        with global_stream("counted"):
            network = send_network(arch.build(JUDGED), fake.device)
        images = torch.randn(10, *JUDGED.shape, device=fake.device)
        labels = torch.arange(10, device=fake.device)
        fake.counts = Counts()

        def on_epoch(epoch: int) -> None:
            found.append(fake.counts)
            fake.counts = Counts()

        train(network, images, labels, recipe, ("c",), SiameseAugment(JUDGED.augmentation), on_epoch=on_epoch, captured=captured)
    return found[-1]


def counted() -> dict[str, Callable[[], Counts]]:
    """Everything that can be counted, by name."""
    made: dict[str, Callable[[], Counts]] = {}
    for name in LOSSES:
        made[f"step of {name}"] = partial(of_loss, name)
        if name in REPLAYED:
            made[f"step of {name}, replayed"] = partial(of_loss, name, replays=True)
    for name in NETWORKS:
        made |= {f"epoch of {name}, {word}": partial(of_judging, name, word == "captured") for word in ("plain", "captured")}
    return made


def plain(counts: Counts) -> dict[str, int]:
    return {
        "launches": counts.launches, "copies": len(counts.copies), "blocking": len(counts.blocking), "waits": len(counts.waits),
    }  # fmt: skip


if __name__ == "__main__":
    print("| | launches | copies | blocking | waits |\n|:--|--:|--:|--:|--:|")
    for name, count in counted().items():
        print(f"| {name} | " + " | ".join(f"{value:,}" for value in plain(count()).values()) + " |", flush=True)
