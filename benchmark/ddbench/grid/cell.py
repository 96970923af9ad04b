"""One cell from plan to record: resources, distillation, evaluation, all of it resumable."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import Resource
from ddbench.compute import hardware
from ddbench.compute.clock import Stopwatch, peak_memory_bytes, reset_peak_memory
from ddbench.compute.engine import DistilledSet, distill
from ddbench.compute.picture import grid_png
from ddbench.compute.run import DistillRun, be_deterministic, fed_spec, open_run
from ddbench.data.sealed import TestData, open_test
from ddbench.data.subsets import Identity, TrainingData, load_training
from ddbench.evaluate import cost
from ddbench.evaluate.evaluator import Entry, Exam, evaluate
from ddbench.evaluate.teacher import load_teacher, teacher_needs
from ddbench.files import read_json, read_tensors, tensors_to_bytes, write_bytes, write_json
from ddbench.grid.planning import needs_of_plan
from ddbench.plan import Plan
from ddbench.results.store import RECORD_SCHEMA, Store

CHECKPOINT_SECONDS = 20.0
SET_SCHEMA = 1

Report = Callable[[str, float], None]
"""(phase, fraction of the cell done)."""


@dataclass
class Desk:
    """What a worker keeps between cells: data that several cells share, loaded once."""

    store: Store
    device: torch.device
    data_root: Path | None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    training: dict[tuple[str, float], TrainingData] = field(default_factory=dict)
    tests: dict[str, TestData] = field(default_factory=dict)

    def training_data(self, plan: Plan) -> TrainingData:
        """The training side of the plan's subset."""
        key = (plan.data_hash, plan.protocol.validation_fraction)
        if key not in self.training:
            self.training[key] = load_training(plan.dataset, self.data_root, plan.protocol.validation_fraction, self.device)
        return self.training[key]

    def test_data(self, plan: Plan) -> TestData:
        """The sealed split, opened when a finished set is judged."""
        if plan.data_hash not in self.tests:
            self.tests[plan.data_hash] = open_test(plan.dataset, self.data_root, self.device)
        return self.tests[plan.data_hash]


class Checkpoint:
    """A cell's newest checkpoint: one file, replaced whole."""

    def __init__(self, folder: Path, every: float = CHECKPOINT_SECONDS) -> None:
        self.path, self.every, self.last = folder / "checkpoint.safetensors", every, time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and numbers, or None at the start."""
        if not self.path.is_file():
            return None
        return read_tensors(self.path, "checkpoint")

    def due(self) -> bool:
        """Whether the last one is old enough."""
        return time.monotonic() - self.last >= self.every

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Replace it."""
        write_bytes(self.path, tensors_to_bytes(tensors, meta))
        self.last = time.monotonic()


def run_cell(plan: Plan, suite: str, identity: Identity, desk: Desk, report: Report) -> None:
    """Compute a cell and publish it. The caller holds its lock. Raises whatever a plugin raises."""
    be_deterministic(plan.threads, plan.protocol.tf32)
    reset_peak_memory(desk.device)
    store, work = desk.store, desk.store.work(plan.key)
    place = {"versions": hardware.versions(), "hardware": hardware.hardware(desk.device, plan.threads)}
    go_on_only_where_it_began(work, place)
    data = desk.training_data(plan)
    metas, resources = [], dict[Resource, dict[str, Tensor]]()
    for need in needs_of_plan(plan, desk.device):
        report("resources", 0.0)
        store.resources.build(need, data, desk.device, desk.data_root)
        resources[need.resource], meta = store.resources.load(need.key, desk.device)
        metas.append(meta)
    made, seconds = _training_set(plan, data, resources, work, desk, report)
    peak = peak_memory_bytes(desk.device)
    exam, judged = _judge(plan, made, data, resources, work, desk, report)
    entries = judged.pop("final")
    files = _files(plan, made, data) if made else {}
    costs = _costs(exam, entries)
    every = [entry for part in (entries, *judged.values()) for entry in part]
    peak = max([peak, *(entry["cost"]["peak_memory_bytes"] for entry in every)])
    seconds |= {"resources": sum(meta["seconds"] for meta in metas), "evaluate": sum(map(cost.seconds, every))}
    record = {
        "schema": RECORD_SCHEMA,
        "key": plan.key,
        "suite": suite,
        "data": {
            "label": identity.label(plan.dataset.label),
            "hash": identity.hash,
            "original": identity.original,
            "train_counts": identity.train_counts,
            "test_counts": identity.test_counts,
        },
        "plan": plan.to_json(),
        "distilled": _distilled(made, data, files),
        "evaluations": cost.untimed(entries),
        "resources": [{name: meta[name] for name in ("key", "describe", "sha256")} for meta in metas],
        "versions": place["versions"],
        "measured": {
            "seconds": seconds,
            "networks": costs,
            "peak_memory_bytes": peak,
            "hardware": place["hardware"],
            "commit": hardware.commit(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
    if plan.protocol.snapshots:
        record["snapshots"] = [{"step": int(name), "evaluations": cost.untimed(part)} for name, part in judged.items()]
    store.publish(plan, record, files)


def _judge(
    plan: Plan, made: DistilledSet | None, data: TrainingData, resources: Mapping[Resource, dict[str, Tensor]], work: Path,
    desk: Desk, report: Report,
) -> tuple[Exam, dict[str, list[Entry]]]:  # fmt: skip
    """The evaluations of the finished set, under "final", and of each iterate that the protocol asks for, under its step."""
    sets = {"final": (made.images, made.labels) if made else data.everything()} | _snapshots(work)
    teacher = None
    for need in teacher_needs(plan):
        teacher = load_teacher(plan, resources[need], data.spec, desk.device)
    learned = made.learned.get("student_rate") if made else None
    path = work / "evaluations.json"
    kept: dict[str, list[Entry]] = read_json(path, "evaluations of a running cell") if path.is_file() else {}
    for number, (name, (images, labels)) in enumerate(sets.items()):
        images, labels = images.to(desk.device), labels.to(desk.device)
        exam = Exam(plan, data.spec, images, labels, desk.test_data(plan), teacher, learned)

        def keep(entries: list[Entry], name: str = name) -> None:
            write_json(path, kept | {name: entries})

        def tick(fraction: float, number: int = number) -> None:
            report("evaluate", 0.5 + (number + fraction) / len(sets) / 2)

        kept[name] = evaluate(exam, kept.get(name, []), keep, tick)
    return exam, {name: kept[name] for name in sets}


def _costs(exam: Exam, entries: list[Entry]) -> dict[str, dict[str, Any]]:
    """What judging the finished set cost, by network."""
    flops = {ref.label: cost.flops_of_step(ref, exam.spec) for ref in exam.plan.networks}
    trained = {ref.label: len(exam.images) * exam.recipe(ref).epochs for ref in exam.plan.networks}
    return cost.by_network(entries, trained, flops, cost.peak_flops(exam.images.device))


def _snapshots(work: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Images and labels of the iterates that were put aside, by step."""
    found = {}
    for path in sorted((work / "snapshots").glob("*.safetensors"), key=lambda path: int(path.stem)):
        tensors, _ = read_tensors(path, "iterate of a running cell")
        found[path.stem] = (tensors["images"], tensors["labels"])
    return found


def go_on_only_where_it_began(work: Path, place: dict[str, Any]) -> None:
    """Drop what a cell has so far if it was begun on other hardware or under other libraries: no record mixes two."""
    path = work / "place.json"
    if path.is_file() and read_json(path, "place of a running cell") != place:
        shutil.rmtree(work)
    if not path.is_file():
        write_json(path, place)


def _training_set(
    plan: Plan, data: TrainingData, resources: dict[Resource, dict[str, Tensor]], work: Path, desk: Desk, report: Report
) -> tuple[DistilledSet | None, dict[str, float]]:
    """What the networks are trained on, None for all real images; and the seconds it took. Kept, so that it is made once."""
    watch = Stopwatch(desk.device)
    watch.add({"distill": 0.0, "rank": 0.0})
    if plan.baseline == "full-data":
        return None, watch.seconds()
    path = work / "distilled.safetensors"
    if path.is_file():
        tensors, kept = read_tensors(path, "distilled set of a running cell")
        values: dict[str, Any] = {**tensors, **kept["fields"]}
        return DistilledSet(**values), kept["seconds"]
    run = open_run(plan, data, desk.device, resources, desk.data_root)
    if plan.baseline == "random":
        made = random_real(run)
    else:
        keeper = Checkpoint(work, desk.checkpoint_seconds)

        def put_aside(step: int, images: Tensor, labels: Tensor) -> None:
            content = tensors_to_bytes({"images": images.float().cpu(), "labels": labels.cpu()})
            write_bytes(work / "snapshots" / f"{step}.safetensors", content)

        def tick(done: int, total: int) -> None:
            report("distill", 0.5 * done / max(total, 1))

        made = distill(plan, run, watch, keeper, tick, put_aside if plan.protocol.snapshots else None)
    tensors = {"images": made.images, "labels": made.labels, "classes": made.classes}
    fields = {name: getattr(made, name) for name in ("steps", "bytes_stored", "stages", "chosen_stage", "learned")}
    seconds = watch.seconds()
    write_bytes(path, tensors_to_bytes(tensors, {"fields": fields, "seconds": seconds}))
    return made, seconds


def random_real(run: DistillRun) -> DistilledSet:
    """The baseline `random`: IPC real training images of every class, drawn without replacement."""
    own = [run.real(label, run.ipc, run.rng("random", label)) for label in range(run.spec.num_classes)]
    images = torch.cat(own).cpu()
    classes = torch.cat([torch.full((len(part),), label) for label, part in enumerate(own)])
    return DistilledSet(images, F.one_hot(classes, run.spec.num_classes).float(), classes, 0, images.nbytes)


def _files(plan: Plan, made: DistilledSet, data: TrainingData) -> dict[str, bytes]:
    """The distilled set with all that is needed to use it, and its picture."""
    spec = data.spec
    synthetic = fed_spec(plan, spec)
    meta = {
        "schema": SET_SCHEMA,
        "key": plan.key,
        "dataset": spec.name,
        "class_names": spec.class_names,
        "mean": synthetic.mean,
        "std": synthetic.std,
        "labels": plan.labels,
        "learned": made.learned,
        "images": "normalised: (pixel / 255 - mean) / std",
    }
    tensors = {"images": made.images, "labels": made.labels, "classes": made.classes}
    return {
        "distilled.safetensors": tensors_to_bytes(tensors, meta),
        "images.png": grid_png(made.images, made.classes, synthetic),
    }


def _distilled(made: DistilledSet | None, data: TrainingData, files: dict[str, bytes]) -> dict[str, Any]:
    """The record's part on the set itself; real images count four bytes a value, like synthetic ones."""
    if made is None:
        images, _ = data.everything()
        size = images.numel() * images.element_size()
        return {
            "num_images": len(images), "bytes_stored": size, "bytes_images": size, "steps": 0, "stages": [],
            "chosen_stage": 0, "learned": {}, "sha256": None,
        }  # fmt: skip
    return {
        "num_images": len(made.images),
        "bytes_stored": made.bytes_stored,
        "bytes_images": made.bytes_images,
        "steps": made.steps,
        "stages": made.stages,
        "chosen_stage": made.chosen_stage,
        "learned": made.learned,
        "sha256": hashlib.sha256(files["distilled.safetensors"]).hexdigest(),
    }
