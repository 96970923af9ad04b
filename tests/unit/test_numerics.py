"""The first numbers of the engine and of training beside `plan.NUMERICS`: change one without the other and this fails.

What is compared are rounded sums, to three digits: another processor's rounding does not reach them in so few steps, another
order of random draws, another default or another formula does.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from ddbench import protocols
from ddbench.compute.clock import Stopwatch
from ddbench.compute.engine import distill
from ddbench.compute.run import be_deterministic, build_network, open_run
from ddbench.compute.train import train
from ddbench.data.subsets import identify, load_training
from ddbench.ops.augment import SiameseAugment
from ddbench.plan import NUMERICS, SetPlan
from ddbench.refs import PluginRef

GOLDEN = Path(__file__).parents[1] / "golden" / "numerics.json"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plan() -> SetPlan:
    dataset = PluginRef.resolve("datasets", "mnist-5k", {})
    return SetPlan(
        dataset=dataset,
        train_hash=identify(dataset, None).train_hash,
        ipc=1,
        seed=0,
        held_out=0.1,
        backbone=PluginRef.resolve("architectures", "convnet", {"width": 4, "depth": 1}),
        loss=PluginRef.resolve("losses", "dm", {"batch_real": 4}),
        space=PluginRef.resolve("spaces", "pixel", {}),
        steps=3,
        rates={"pixels": 1.0},
        rank_steps="loss",
    )


def figures(tensor: torch.Tensor) -> list[float]:
    """A few numbers that hang on every value."""
    values = tensor.detach().double()
    return [float(values.mean()), float(values.std()), float(values.flatten()[:: max(1, values.numel() // 97)].abs().sum())]


def engine(plan: SetPlan) -> dict[str, list[float]]:
    """Three steps, with a step ranker, and once with learned labels under adam."""
    be_deterministic(1)
    data = load_training(plan.dataset, None, plan.held_out, CPU)
    made = distill(plan, open_run(plan, data, CPU, {}), Stopwatch(CPU))
    learned = replace(plan, rank_steps="last", labels="learned", optimizer="adam", schedule="cosine", loss=PluginRef.resolve(
        "losses", "dsa", {"batch_real": 4}), rates={"pixels": 0.01, "labels": 0.01})  # fmt: skip
    other = distill(learned, open_run(learned, data, CPU, {}), Stopwatch(CPU))
    return {"dm": figures(made.images), "dsa": figures(other.images), "labels": figures(other.labels)}


def training(plan: SetPlan) -> dict[str, list[float]]:
    """Two epochs of the quickstart's recipe on a few real images."""
    be_deterministic(1)
    data = load_training(plan.dataset, None, plan.held_out, CPU)
    assert plan.backbone
    network = build_network(plan.backbone, data.spec, CPU, "golden")
    recipe = protocols.load("smoke-1").judging.recipe(0.01)
    chosen = torch.cat([torch.arange(start, start + 3) for start in data.starts[:-1]])
    images, labels = data.seen(data.images[chosen]), data.labels[chosen]
    loss = train(network, images, labels, recipe, ("golden",), SiameseAugment(data.spec.augmentation))
    weights = torch.cat([parameter.flatten() for parameter in network.parameters()])
    return {"loss": [loss], "weights": figures(weights)}


def now(plan: SetPlan) -> dict[str, Any]:
    return {"numerics": dict(NUMERICS), "engine": engine(plan), "training": training(plan)}


def flatten(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for name in sorted(value) for number in flatten(value[name])]
    return [number for entry in value for number in flatten(entry)] if isinstance(value, list) else [value]


def changed(golden: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The parts whose numbers are others, though `NUMERICS` says they are the same."""
    same = [part for part in ("engine", "training") if golden["numerics"][part] == found["numerics"][part]]
    return [part for part in same if flatten(golden[part]) != pytest.approx(flatten(found[part]), rel=2e-3, abs=2e-3)]


def test_equal_numerics_mean_equal_numbers(plan):
    found = now(plan)
    if os.environ.get("DDBENCH_GOLDEN") == "write":
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else found
        assert not changed(golden, found), "raise plan.NUMERICS first: these numbers have changed"
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert golden["numerics"] == found["numerics"], "write the golden file anew with DDBENCH_GOLDEN=write"
    assert changed(golden, found) == []


def test_other_numbers_are_noticed(plan):
    golden = json.loads(GOLDEN.read_text())
    other = {"numerics": dict(NUMERICS), "engine": engine(replace(plan, momentum=0.9)), "training": golden["training"]}
    assert changed(golden, other) == ["engine"]
    assert changed(golden, other | {"numerics": dict(NUMERICS) | {"engine": NUMERICS["engine"] + 1}}) == []
