"""A small synthetic store, written quickly: plans, records and files that fit one another, without anything computed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from ddbench import protocols, schema
from ddbench.files import tensors_to_bytes
from ddbench.plan import Judging, SetPlan
from ddbench.refs import PluginRef
from ddbench.results.store import Store
from ddbench.schema import (
    Data,
    Hardware,
    JudgementMeasured,
    JudgementRecord,
    Place,
    Repeat,
    SetMeasured,
    SetRecord,
    UsedResource,
)

NUM_TEST = 1000
TRAIN_HASH, TEST_HASH = "a" * 64, "b" * 64
NUMBERS = protocols.load("smoke-1").judging
HARDWARE = Hardware(device="Some CPU", kind="cpu", cores=2, threads=1, memory_bytes=8 << 30, instructions="AVX2")
VERSIONS = {"python": "3.11.9", "torch": "2.6.0", "numpy": "2.1.0", "ddbench": "0.2.0"}
PLACE = Place(hardware=HARDWARE, versions=VERSIONS, sources={})
FINISHED = "2026-01-01T00:00:00+00:00"


def ref(kind: str, name: str, **settings: Any) -> PluginRef:
    """A plugin that need not be installed; its settings count as other than their defaults."""
    told = ", ".join(f"{key}={value}" for key, value in settings.items())
    what = {"plugin": name, "from": "ddbench", "settings": settings, "numerics": 1}
    return PluginRef(
        kind, name, settings, "ddbench", "0.2.0", f"{name}({told})" if told else name, what, dict(settings), ("ddbench",)
    )


DATASET, CONVNET, VIT = ref("datasets", "toy"), ref("architectures", "convnet"), ref("architectures", "vit")


def plan_of(loss: str = "dm", space: str = "pixel", **changed: Any) -> SetPlan:
    """A distillation; with `baseline="random"` or `"full-data"` that, for which `ipc=0` gives all real training images."""
    values: dict[str, Any] = {"dataset": DATASET, "train_hash": TRAIN_HASH, "ipc": 1, "seed": 0, "held_out": 0.1}
    if "baseline" in changed:
        changed["baseline"] = ref("baselines", changed["baseline"])
    else:
        values |= {"backbone": CONVNET, "loss": ref("losses", loss), "space": ref("spaces", space), "steps": 10}
    return SetPlan(**(values | changed))


def judging_of(network: PluginRef = CONVNET, **changed: Any) -> Judging:
    """A network under smoke-1."""
    values: dict[str, Any] = {"network": network, "numbers": NUMBERS, "dataset": DATASET, "test_hash": TEST_HASH}
    return Judging(**(values | {"protocol": "smoke-1"} | changed))


def set_bytes(value: float = 0.0) -> bytes:
    """A set.safetensors of two tiny images, or an iterate's."""
    images, labels = torch.full((2, 1, 2, 2), value), torch.eye(2)
    return tensors_to_bytes({"images": images, "labels": labels, "classes": torch.arange(2)}, {"key": "toy"})


def set_contents(plan: SetPlan, value: float = 0.0) -> dict[str, bytes]:
    """What lies beside the record of a set."""
    return {} if plan.everything else {"set.safetensors": set_bytes(value), "images.png": b"png"}


def set_record(plan: SetPlan, value: float = 0.0, **changed: Any) -> SetRecord:
    """The record of that plan with the contents of `set_contents(plan, value)`."""
    files = {name: hashlib.sha256(content).hexdigest() for name, content in set_contents(plan, value).items()}
    values: dict[str, Any] = {
        "key": plan.key,
        "suite": "toy",
        "data": Data(label="toy", hash=plan.train_hash, original=True, counts=(500, 500)),
        "num_images": 2,
        "bytes_stored": 32,
        "bytes_images": 32,
        "steps": plan.steps,
        "stages": (),
        "chosen_stage": 0,
        "learned": {},
        "files": files,
        "set_sha256": files.get("set.safetensors", schema.sha256_of_everything(plan.train_hash)),
        "resources": (),
        "place": PLACE,
        "marks": (),
        "measured": SetMeasured(seconds={"distill": 1.5}, peak_memory_bytes=1, commit=None, finished=FINISHED),
    }
    return SetRecord(**(values | changed))


def used(key: str = "c" * 64) -> UsedResource:
    """A resource, as records name it."""
    return UsedResource(key=key, describe="Noise", sha256="d" * 64)


def bitmap(num_right: int, num_test: int = NUM_TEST) -> str:
    """That of a network that is right on the first so many images."""
    bits = ((1 << num_right) - 1) << (-(-num_test // 8) * 8 - num_right)
    return base64.b64encode(bits.to_bytes(-(-num_test // 8), "big")).decode()


def judgement(
    plan: SetPlan, judging: Judging, accuracies: Sequence[float], first: int = 0, value: float = 0.0, **changed: Any
) -> JudgementRecord:
    """One repeat for each accuracy, rounded to whole images, of the set `set_record(plan, value)`."""
    rights = [round(accuracy * NUM_TEST) for accuracy in accuracies]
    repeats = [
        Repeat(repeat=first + number, accuracy=num / NUM_TEST, num_test=NUM_TEST, correct=bitmap(num), train_loss=0.25)
        for number, num in enumerate(rights)
    ]
    measured = JudgementMeasured(
        seconds_train=8.0, seconds_test=0.5, images_per_second=750.0, flops_per_image=1e6, peak_share=0.4, peak_memory_bytes=1,
        way="serial", processes=1, commit=None, finished=FINISHED,
    )  # fmt: skip
    values: dict[str, Any] = {
        "set_key": plan.key,
        "set_sha256": set_record(plan, value).set_sha256,
        "key": judging.key,
        "first": first,
        "last": first + len(repeats) - 1,
        "suite": "toy",
        "judging": judging,
        "data": Data(label="toy", hash=judging.test_hash, original=True, counts=(NUM_TEST // 2,) * 2),
        "repeats": tuple(repeats),
        "resources": (),
        "place": PLACE,
        "marks": (),
        "measured": measured,
    }
    return JudgementRecord(**(values | changed))


def write_store(root: Path, entries: Iterable[tuple[SetPlan, Sequence[JudgementRecord]]], value: float = 0.0) -> Store:
    """A store of sets with their judgements; `value` is that of every set's pixels."""
    store = Store(root)
    for plan, judgements in entries:
        store.publish_set(plan, set_record(plan, value), set_contents(plan, value))
        for record in judgements:
            store.publish_judgement(record)
    return store


def seeds(plan: SetPlan, num: int) -> list[SetPlan]:
    """The same plan under the seeds 0 to num - 1."""
    return [replace(plan, seed=seed) for seed in range(num)]
