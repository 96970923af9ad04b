"""Synthetic sets and judgements, as a run writes them: two losses in three spaces, both baselines, two seeds, two networks."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_all
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from ddbench import protocols
from ddbench.api import Seen
from ddbench.entry_points import NOUNS
from ddbench.leaderboard.join import Result, results_of
from ddbench.plan import Judging, SetPlan
from ddbench.protocols import Protocol
from ddbench.refs import PluginRef
from ddbench.results.contents import Contents, StoredSet
from ddbench.results.store import Store
from ddbench.schema import (
    Data,
    Hardware,
    IterateRecord,
    JudgementMeasured,
    JudgementRecord,
    Place,
    Repeat,
    SetMeasured,
    SetRecord,
    Size,
    UsedResource,
    sealed,
    to_bytes,
)

NUM_TEST = 1000
SPACES = ("glad", "hpd", "pixel")
LOSSES = ("dc", "dm")
HARDWARE = Hardware(device="Some CPU", kind="cpu", cores=2, threads=1, memory_bytes=8 << 30, instructions="AVX2")
GPU = replace(HARDWARE, device="Some GPU", kind="cuda", instructions="")
VERSIONS = {"python": "3.11.9", "torch": "2.6.0", "numpy": "2.1.0", "ddbench": "0.1.0"}
IMAGES = b"a grid"
FINISHED = "2025-01-01T00:00:00+00:00"


def ref(kind: str, name: str, label: str | None = None, numerics: int = 1, **settings: Any) -> PluginRef:
    """A plugin of that name, of ddbench, that no registry knows."""
    what = {"plugin": name, "from": "ddbench", "numerics": numerics, "settings": settings}
    resolved = {"type": {"plugin": name, "from": "ddbench"}, **settings}
    return PluginRef(kind, name, settings, "ddbench", "0.1.0", label or name, what, resolved, ("ddbench",))


CONVNET, VIT, RESNET = (ref("architectures", name) for name in ("convnet", "vit", "resnet18"))
TEACHER = ref("architectures", "resnet18-bn")
RANDOM, FULL_DATA = ref("baselines", "random"), ref("baselines", "full-data")
GLAD = protocols.load("glad-1")


def numbered(id: str, **changes: Any) -> Protocol:
    """glad-1 with other numbers of judging."""
    judging = replace(GLAD.judging, **({"epochs": 300} | changes))
    return replace(GLAD, id=id, repeats=2, judging=judging, full_data=replace(GLAD.full_data, epochs=20, warmup_epochs=10))


PROTOCOL = numbered("toy-1")
CHOICE = replace(PROTOCOL, id="toy-1-best-of-test", ranked=False)
SHIFTED = replace(PROTOCOL, id="toy-1-svhn-mean", ranked=False)
SOFT = numbered("soft-1", teacher=protocols.load("sre2l-1").judging.teacher)
MEAN = (0.4, 0.4, 0.5)  # of SHIFTED, for generated images

BASE = SetPlan(dataset=ref("datasets", "toy"), train_hash="d" * 64, ipc=1, seed=0, held_out=0.1)


def baseline(which: PluginRef, **changes: Any) -> SetPlan:
    """The plan of a baseline."""
    return replace(BASE, baseline=which, **({"ipc": 0} if which is FULL_DATA else {}) | changes)


def method(loss: str, space: str, **changes: Any) -> SetPlan:
    """The plan of a method in the toy grid."""
    generator = None if space == "pixel" else ref("generators", "cvae")
    fields = {"backbone": CONVNET, "steps": 100, "loss": ref("losses", loss), "space": ref("spaces", space)}
    return replace(BASE, **(fields | {"generator": generator} | changes))


def right(num_right: int, num: int = NUM_TEST) -> str:
    """The bitmap of a network that is right on the first `num_right` images."""
    return base64.b64encode(np.packbits(np.arange(num) < num_right)).decode()


@dataclass(frozen=True)
class Judged:
    """A set with its judgements."""

    set: StoredSet
    judgements: tuple[JudgementRecord, ...]

    @property
    def plan(self) -> SetPlan:
        return self.set.plan


def cost(seconds: float = 8.0, way: str = "serial", **changes: Any) -> dict[str, Any]:
    """What judging by a network cost, as records tell it."""
    made: dict[str, Any] = {"seconds_train": seconds, "seconds_test": 0.5, "images_per_second": 750.0, "processes": 1}
    made |= {"flops_per_image": 38_700_000.0, "peak_share": 0.42, "peak_memory_bytes": 250 << 20, "way": way}
    return made | changes


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def place(hardware: Hardware, versions: Mapping[str, str], *refs: PluginRef | None, source: str = "a") -> Place:
    """`source` is what the hashes of all plugins begin with."""
    known = {f"{NOUNS[each.kind]} '{each.name}'": source.ljust(64, "0") for each in refs if each}
    return Place(hardware=hardware, versions=dict(versions), sources=known)


def size_of(plan: SetPlan) -> Size | None:
    """As `set_of` has it; of a walk, as a record of before, which did not say."""
    if plan.space and plan.space.name == "hpd":
        return None
    stored = 4096 * max(plan.ipc, 1)
    return Size(
        budget=plan.budget, images_per_class=plan.ipc, floats=1024 * plan.ipc if plan.is_distilled else 0,
        bytes_without_decoder=stored, bytes_with_decoder=stored + (1 << 20 if plan.generator else 0),
    )  # fmt: skip


def set_of(
    plan: SetPlan, steps: Iterable[int] = (), *, label: str = "toy", original: bool = True, seconds: float = 10.0,
    hardware: Hardware = HARDWARE, versions: Mapping[str, str] = VERSIONS, source: str = "a", suite: str = "toy-grid",
    marks: tuple[str, ...] = (), timeline: tuple[tuple[int, float], ...] = (), saw: tuple[Seen, ...] = ("unknown",),
) -> StoredSet:  # fmt: skip
    """A finished set, with iterates at these steps."""
    distilled = plan.loss is not None
    content = f"set {plan.key}".encode()
    files = {"set.safetensors": sha256(content), "images.png": sha256(IMAGES)}
    phases = {"distill": seconds, "rank": seconds / 10}
    record = SetRecord(
        key=plan.key, suite=suite, num_images=10 * plan.ipc, bytes_stored=4096 * max(plan.ipc, 1),
        data=Data(label=label, hash=plan.train_hash, original=original, counts=(400,) * 10),
        size=size_of(plan), bytes_images=31360 * max(plan.ipc, 1),
        steps=plan.steps if distilled else 0, stages=(), chosen_stage=0, learned={},
        files={} if plan.everything else files,
        set_sha256=sha256(plan.train_hash.encode()) if plan.everything else files["set.safetensors"],
        resources=(UsedResource(key="1" * 64, describe="a cvae", sha256="2" * 64),) if distilled else (),
        place=place(hardware, versions, *plan.refs, source=source), marks=marks, saw=saw,
        measured=SetMeasured(
            seconds=phases if distilled else {}, resources={"1" * 64: 3.0} if distilled else {},
            peak_memory_bytes=300 << 20, commit=None, finished=FINISHED, timeline=timeline,
        ),
    )  # fmt: skip
    iterates = {
        step: IterateRecord(key=plan.key, set_sha256=record.set_sha256, step=step, sha256=sha256(content + str(step).encode()))
        for step in steps
    }
    return StoredSet(plan, sealed(record), iterates)


def judgement(
    stored: StoredSet, network: PluginRef, values: Iterable[float], *, protocol: Protocol = PROTOCOL, first: int = 0,
    iterate: int | None = None, iterate_seconds: float | None = None, teacher: PluginRef | None = None, draw: int | None = None,
    test_hash: str = "e" * 64,
    label: str = "toy", original: bool = True, hardware: Hardware = HARDWARE, versions: Mapping[str, str] = VERSIONS,
    source: str = "a", suite: str = "toy-grid", marks: tuple[str, ...] = (), measured: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> JudgementRecord:  # fmt: skip
    """A block of repeats of one network on a set; accuracies are rounded to whole images."""
    judging = Judging(
        network=network, numbers=protocol.numbers(stored.plan.everything), dataset=stored.plan.dataset, test_hash=test_hash,
        draw=stored.plan.seed if draw is None else draw, iterate=iterate, teacher=teacher, protocol=protocol.id, threads=threads,
        iterate_seconds=iterate_seconds,
    )  # fmt: skip
    counts = [round(value * NUM_TEST) for value in values]
    repeats = [
        Repeat(repeat=first + i, accuracy=num / NUM_TEST, num_test=NUM_TEST, correct=right(num), train_loss=0.1)
        for i, num in enumerate(counts)
    ]
    record = JudgementRecord(
        set_key=stored.plan.key, key=judging.key, first=first, last=first + len(repeats) - 1, suite=suite, judging=judging,
        set_sha256=stored.sha256(stored.step_of(judging)) or "",
        data=Data(label=label, hash=test_hash, original=original, counts=(NUM_TEST // 10,) * 10), repeats=tuple(repeats),
        resources=(), place=place(hardware, versions, network, stored.plan.dataset, source=source), marks=marks,
        measured=JudgementMeasured(**(cost() | dict(measured or {})), commit=None, finished=FINISHED),
    )  # fmt: skip
    return sealed(record)


def judged(
    plan: SetPlan,
    accuracies: Mapping[str, Iterable[float]],
    *,
    networks: Iterable[PluginRef] = (CONVNET, VIT, RESNET),
    iterates: Mapping[int, Mapping[str, Iterable[float]]] | None = None,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
    making: Mapping[str, Any] | None = None,
    **both: Any,
) -> Judged:
    """A set and its judgements; accuracies by network label and repeat; of iterates, by step. `making` is of the set alone; of
    `both`, what a set knows too is of the set and its judgements."""
    ours = {name: both[name] for name in ("label", "original", "hardware", "versions", "source", "suite") if name in both}
    if "seconds" in both:
        ours["seconds"] = both.pop("seconds")
    stored = set_of(plan, iterates or (), **(ours | dict(making or {})))
    known = {network.label: network for network in networks}
    judgements = []
    for step, found in [(None, accuracies), *(iterates or {}).items()]:
        for label, values in found.items():
            fields = both | {"iterate": step, "measured": (costs or {}).get(label)}
            judgements.append(judgement(stored, known[label], values, **fields))
    return Judged(stored, tuple(judgements))


def seen(one: Judged, *saw: Seen) -> Judged:
    """The same, with what the set saw."""
    return replace_all(one, set=replace_all(one.set, record=sealed(replace(one.set.record, saw=saw))))


def draw(plan: SetPlan, rng: np.random.Generator, level: float, spread: float = 0.01) -> dict[str, list[float]]:
    """Accuracies of a set: an effect of the seed, which its networks share, and one of each network."""
    seed = rng.normal(0, spread)
    levels = {"convnet": level, "vit": level - 0.15}
    return {name: [mean + seed + rng.normal(0, spread) for _ in range(2)] for name, mean in levels.items()}


def toy_plans(seeds: Iterable[int] = (0, 1), ipc: int = 1) -> list[tuple[SetPlan, float, float]]:
    """(plan, true accuracy on the backbone, seconds) of the whole toy grid."""
    seeds = tuple(seeds)
    plans = [(baseline(RANDOM, seed=seed, ipc=ipc), 0.45, 0.0) for seed in seeds]
    plans.append((baseline(FULL_DATA), 0.95, 0.0))
    for i, loss in enumerate(LOSSES):
        for j, space in enumerate(SPACES):
            level, seconds = 0.55 + 0.05 * i + 0.03 * j, 20.0 - 6 * j + i
            plans += [(method(loss, space, seed=seed, ipc=ipc), level, seconds) for seed in seeds]
    return plans


def toy_records(number: int = 0, seeds: Iterable[int] = (0, 1), shift: float = 0.0) -> list[Judged]:
    """The toy grid, judged; `number` names the draw of the noise, `shift` moves every distilled row."""
    rng = np.random.default_rng(number)
    made = []
    for plan, level, seconds in toy_plans(seeds):
        accuracies = draw(plan, rng, level + (0.0 if plan.baseline else shift))
        made.append(judged(plan, accuracies, seconds=seconds))
    return made


def contents_of(records: Iterable[Judged]) -> Contents:
    """As a store that holds these would be read."""
    sets: dict[str, StoredSet] = {}
    judgements: dict[tuple[str, str, int], JudgementRecord] = {}
    for each in records:
        known = sets.get(each.plan.key, each.set)
        sets[each.plan.key] = replace_all(known, iterates={**known.iterates, **each.set.iterates})
        judgements |= {(record.set_key, record.key, record.first): record for record in each.judgements}
    return Contents(dict(sorted(sets.items())), tuple(record for _, record in sorted(judgements.items())), ())


def results(records: Iterable[Judged]) -> list[Result]:
    """Joined; every judgement counts."""
    made, notes = results_of(contents_of(records))
    assert notes == []
    return made


def write_store(root: Path, records: Iterable[Judged]) -> Store:
    """A store that holds these, published as a run does."""
    store = Store(root)
    contents = contents_of(records)
    for key, each in contents.sets.items():
        if not store.has_set(key):
            content = f"set {key}".encode()
            files = {} if each.plan.everything else {"set.safetensors": content, "images.png": IMAGES}
            for step, iterate in each.iterates.items():
                files[f"iterates/{step}.safetensors"] = content + str(step).encode()
                files[f"iterates/{step}.json"] = to_bytes(iterate)
            store.publish_set(each.plan, each.record, files)
    for record in contents.judgements:
        store.publish_judgement(record)
    return store
