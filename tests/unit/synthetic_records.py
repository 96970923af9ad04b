"""Synthetic records, as the runner writes them: two losses in three spaces, both baselines, two seeds, two networks."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ddbench import protocols
from ddbench.leaderboard.cells import Cell, read_cells
from ddbench.plan import Plan, PluginRef
from ddbench.results.store import RECORD_SCHEMA, Store

NUM_TEST = 1000
SPACES = ("glad", "hpd", "pixel")
LOSSES = ("dc", "dm")
HARDWARE = {"device": "Some CPU", "kind": "cpu", "cores": 2, "threads": 1, "memory_bytes": 8 << 30}
VERSIONS = {"python": "3.11.9", "torch": "2.6.0", "numpy": "2.1.0", "ddbench": "0.1.0"}


def ref(kind: str, name: str, label: str | None = None, **settings: Any) -> PluginRef:
    return PluginRef(kind, name, settings, "ddbench", "0.1.0", label or name)


CONVNET, VIT = ref("architectures", "convnet"), ref("architectures", "vit")
PROTOCOL = replace(protocols.load("glad-1"), id="toy-1", epochs=300, repeats=2, full_data_epochs=20)
CHOICE = replace(PROTOCOL, id="toy-1-best-of-test", description="not ranked: toy-1 on iterates too", ranked=False, snapshots=2)
SHIFTED = replace(
    PROTOCOL, id="toy-1-svhn-mean", description="not ranked: another mean", ranked=False, synthetic_mean=(0.4, 0.4, 0.5)
)
SOFT = replace(PROTOCOL, id="soft-1", teacher=protocols.load("sre2l-1").teacher)
TEACHER = ref("architectures", "resnet18-bn")
BASE = Plan(
    dataset=ref("datasets", "toy"),
    data_hash="d" * 64,
    protocol=PROTOCOL,
    networks=(CONVNET, VIT),
    backbone=CONVNET,
    ipc=1,
    seed=0,
)


def method(loss: str, space: str, **changes: Any) -> Plan:
    """The plan of a method in the toy grid."""
    generator = None if space == "pixel" else ref("generators", "cvae")
    steps = changes.pop("steps", 100)
    return replace(
        BASE,
        loss=ref("losses", loss),
        space=ref("spaces", space),
        generator=generator,
        steps=steps,
        proxy=CONVNET,
        **changes,
    )


def right(count: int, num: int = NUM_TEST) -> str:
    """The bitmap of a network that is right on the first `count` images."""
    return base64.b64encode(np.packbits(np.arange(num) < count)).decode()


def cost(seconds: float = 8.0, way: str = "serial", processes: int = 1, **changes: float) -> dict[str, Any]:
    """What judging by a network cost, as records tell it."""
    made = {"seconds_train": seconds, "seconds_test": 0.5, "images_per_second": 750.0, "flops_per_image": 38_700_000}
    made |= {"peak_share": 0.42, "peak_memory_bytes": 250 << 20}
    return made | {"way": way, "processes": processes} | changes


def evaluations_of(accuracies: Mapping[str, Iterable[float]]) -> list[dict[str, Any]]:
    """One entry a network and repeat, rounded to whole images."""
    return [
        {
            "network": network,
            "repeat": repeat,
            "accuracy": round(value * NUM_TEST) / NUM_TEST,
            "num_test": NUM_TEST,
            "correct": right(round(value * NUM_TEST)),
            "train_loss": 0.1,
        }
        for network, values in accuracies.items()
        for repeat, value in enumerate(values)
    ]


def record(
    plan: Plan,
    accuracies: Mapping[str, Iterable[float]],
    *,
    iterates: Mapping[int, Mapping[str, Iterable[float]]] | None = None,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
    label: str = "toy",
    original: bool = True,
    seconds: float = 10.0,
    hardware: Mapping[str, Any] = HARDWARE,
    versions: Mapping[str, str] = VERSIONS,
    suite: str = "toy-grid",
) -> dict[str, Any]:
    """A finished cell's record; accuracies by network and repeat; of iterates, by step, under protocols that ask for them."""
    distilled = {
        "num_images": 10 * plan.ipc,
        "bytes_stored": 4096 * plan.ipc,
        "bytes_images": 31360 * plan.ipc,
        "steps": 0 if plan.baseline else plan.steps,
        "stages": [],
        "chosen_stage": 0,
        "learned": {},
        "sha256": None if plan.baseline == "full-data" else "e" * 64,
    }
    distil = 0.0 if plan.baseline else seconds
    asked = {"snapshots": [{"step": step, "evaluations": evaluations_of(values)} for step, values in (iterates or {}).items()]}
    return (asked if plan.protocol.snapshots else {}) | {
        "schema": RECORD_SCHEMA,
        "key": plan.key,
        "suite": suite,
        "data": {
            "label": label,
            "hash": plan.data_hash,
            "original": original,
            "train_counts": [400] * 10,
            "test_counts": [100] * 10,
        },
        "plan": plan.to_json(),
        "distilled": distilled,
        "evaluations": evaluations_of(accuracies),
        "resources": [],
        "versions": dict(versions),
        "measured": {
            "seconds": {"resources": 3.0, "distill": distil, "rank": distil / 10, "evaluate": 20.0},
            "networks": dict(costs or {}),
            "peak_memory_bytes": 300 << 20,
            "hardware": dict(hardware),
            "commit": None,
            "finished": "2025-01-01T00:00:00+00:00",
        },
    }


def draw(plan: Plan, rng: np.random.Generator, level: float, spread: float = 0.01) -> dict[str, list[float]]:
    """Accuracies of a cell: an effect of the seed, which its networks share, and one of each network."""
    seed = rng.normal(0, spread)
    levels = {"convnet": level, "vit": level - 0.15}
    return {
        network.label: [levels[network.label] + seed + rng.normal(0, spread) for _ in range(plan.protocol.repeats)]
        for network in plan.networks
    }


def toy_plans(seeds: Iterable[int] = (0, 1), ipc: int = 1) -> list[tuple[Plan, float, float]]:
    """(plan, true accuracy on the backbone, seconds) of the whole toy grid."""
    seeds = tuple(seeds)
    plans = [(replace(BASE, baseline="random", seed=seed, ipc=ipc), 0.45, 0.0) for seed in seeds]
    plans.append((replace(BASE, baseline="full-data"), 0.95, 0.0))
    for i, loss in enumerate(LOSSES):
        for j, space in enumerate(SPACES):
            level, seconds = 0.55 + 0.05 * i + 0.03 * j, 20.0 - 6 * j + i
            plans += [(method(loss, space, seed=seed, ipc=ipc), level, seconds) for seed in seeds]
    return plans


def toy_records(
    number: int = 0, seeds: Iterable[int] = (0, 1), shift: float = 0.0, **fields: Any
) -> list[dict[str, Any]]:
    """The records of the toy grid; `number` names the draw of their noise, `shift` moves every distilled row."""
    rng = np.random.default_rng(number)
    made = []
    for plan, level, seconds in toy_plans(seeds):
        accuracies = draw(plan, rng, level + (0.0 if plan.baseline else shift))
        made.append(record(plan, accuracies, seconds=seconds))
    return made


def cells_of(records: Iterable[Mapping[str, Any]]) -> list[Cell]:
    cells, bad = read_cells(records)
    assert bad == []
    return cells


def write_store(root: Path, records: Iterable[Mapping[str, Any]], images: bytes | None = None) -> Store:
    """A store with these cells, published as the runner does."""
    from ddbench.files import write_bytes, write_json

    store = Store(root)
    for entry in records:
        folder = store.cell(entry["key"])
        write_json(folder / "record.json", entry)
        write_json(folder / "plan.json", entry["plan"])
        if images and entry["plan"]["baseline"] != "full-data":
            write_bytes(folder / "images.png", images)
    return store
