"""A set that lies in a file, judged by a protocol: what `ddbench evaluate` does between its arguments and its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.api import Spec
from ddbench.compute import hardware
from ddbench.compute.resources import ResourceStore, need_of
from ddbench.compute.run import be_deterministic
from ddbench.data.sealed import open_test
from ddbench.data.subsets import identify, load_training
from ddbench.evaluate import cost
from ddbench.evaluate.evaluator import Entry, Exam, Way, evaluate
from ddbench.evaluate.parallel import evaluate_side_by_side
from ddbench.evaluate.sets import ImportedSet
from ddbench.evaluate.teacher import load_teacher, teacher_needs
from ddbench.plan import Plan
from ddbench.protocols import synthetic_spec


@dataclass(frozen=True)
class Judged:
    """Evaluations, and what they cost."""

    entries: list[Entry]  # in the plan's order, without costs
    costs: dict[str, dict[str, Any]]  # by network
    data_label: str
    hardware: dict[str, Any]


def judge(
    plan: Plan, given: ImportedSet, root: Path | None, device: torch.device, store: Path, workers: int | None, way: Way,
    tick: Callable[[float], None],
) -> Judged:  # fmt: skip
    """Judge a set. `store` is where a protocol's teacher is kept. On a CPU several processes compute side by side, one for each
    `threads` cores unless `workers` says otherwise; their numbers are those of one process."""
    be_deterministic(plan.threads, plan.protocol.tf32)
    images, rate = given.images, given.learned_rate
    identity = identify(plan.dataset, root)
    plan = replace(plan, data_hash=identity.hash)
    spec: Spec = plan.dataset.make().spec()
    state = _teacher(plan, root, device, store)
    teacher = None if state is None else load_teacher(plan, state, spec, device)
    synthetic = synthetic_spec(plan.protocol, spec)
    if synthetic != spec:
        images = synthetic.normalise(spec.denormalise(images))
    test = open_test(plan.dataset, root, device)
    whitening = given.whitening.to(device) if given.whitening else None
    exam = Exam(plan, spec, images.to(device), given.labels.to(device), test, teacher, rate, whitening)
    num = len(plan.networks) * plan.protocol.repeats
    side_by_side = 1
    if device.type == "cpu" and way != "stacked":
        side_by_side = min(workers or max(1, hardware.num_cores() // plan.threads), num)
    if side_by_side > 1:
        entries = evaluate_side_by_side(exam, root, state, side_by_side, tick)
    else:
        entries = evaluate(exam, [], lambda entries: None, tick, way)
    flops = {ref.label: cost.flops_of_step(ref, spec) for ref in plan.networks}
    trained = {ref.label: len(images) * exam.recipe(ref).epochs for ref in plan.networks}
    costs = cost.by_network(entries, trained, flops, cost.peak_flops(device), side_by_side)
    place = hardware.hardware(device, plan.threads)
    return Judged(cost.untimed(entries), costs, identity.label(plan.dataset.label), place)


def _teacher(plan: Plan, root: Path | None, device: torch.device, store: Path) -> dict[str, Tensor] | None:
    """The state of the protocol's teacher, trained if it is not yet in the store."""
    for need in teacher_needs(plan):
        wanted = need_of(need, None, plan, device)
        resources = ResourceStore(store / "resources")
        if not resources.is_built(wanted.key):
            data = load_training(plan.dataset, root, plan.protocol.validation_fraction, device)
            resources.build(wanted, data, device)
        return resources.load(wanted.key, device)[0]
    return None
