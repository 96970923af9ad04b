"""Looking at plans before anything is computed: what they need, whether it is there, and what cannot work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch

from ddbench.compute.rank import needs
from ddbench.compute.resources import Need, needs_of
from ddbench.compute.run import DistillRun
from ddbench.data.subsets import Identity, TrainingData
from ddbench.errors import BenchError, Faults, PluginError
from ddbench.evaluate.teacher import teacher_needs
from ddbench.plan import Plan, canonical
from ddbench.results.store import Store


def planning_run(plan: Plan, device: torch.device, folder: Path | None = None) -> DistillRun:
    """A run without images, to ask plugins what they need before any data are loaded; `folder` is the user's data folder."""
    spec = plan.dataset.make().spec()
    none, nobody = torch.empty(0, *spec.shape), torch.empty(0, dtype=torch.int64)
    data = TrainingData(spec, none, nobody, (0,) * (spec.num_classes + 1), none, nobody)
    return DistillRun(("plan",), data, plan.backbone, plan.ipc, device, {}, folder=folder)


def check_plans(plans: Iterable[Plan], folder: Path | None) -> None:
    """Ask every loss whether it can match such a set by such a backbone. Raises Faults with all that is refused; what a broken
    plugin raises instead breaks its own cells, later."""
    faults, asked = [], set[str]()
    for plan in plans:
        if plan.baseline or plan.loss is None or plan.space is None:
            continue
        run = planning_run(plan, torch.device("cpu"), folder)
        num = plan.space.make().num_images(run)
        parts = [plan.loss.label, plan.backbone.label, plan.dataset.label, plan.ipc, num]
        if (key := canonical(parts)) in asked:
            continue
        asked.add(key)
        try:
            plan.loss.make().check(num, run)
        except PluginError:
            continue
        except BenchError as error:
            faults.append(f"loss '{plan.loss.label}' on '{plan.dataset.label}', ipc {plan.ipc}: {error}")
        except Exception:  # a stranger's code: its cell tells
            continue
    if faults:
        raise Faults(list(dict.fromkeys(faults)))


def counting_run(plan: Plan, identity: Identity, device: torch.device) -> DistillRun:
    """A run that counts the training images of its classes and holds none, to ask resources what they take."""
    run = planning_run(plan, device)
    least = min(identity.train_counts)
    fraction = plan.protocol.validation_fraction
    held_out = max(round(least * fraction), int(fraction > 0))
    starts = tuple(accumulate((count - held_out for count in identity.train_counts), initial=0))
    return replace(run, data=replace(run.data, starts=starts))


def needs_of_plan(plan: Plan, device: torch.device) -> list[Need]:
    """Every resource of a plan: its rankers', teacher's, generator's, space's and loss's."""
    return needs_of(plan, planning_run(plan, device), (*needs(plan), *teacher_needs(plan)), device)


def check_prepared(plans: Iterable[Plan], store: Store, device: torch.device, suite: str) -> None:
    """Raise Faults where cells that are not done lack what is costly to train, or have it damaged: a sentence for each kind, with
    the command that makes it."""
    groups: dict[tuple[str, str], list[bool]] = {}
    faults, seen = [], set[str]()
    for plan in plans:
        if store.is_done(plan.key):
            continue
        try:
            needed = needs_of_plan(plan, device)
        except Exception:  # its cell tells
            continue
        for need in needed:
            if need.key in seen:
                continue
            seen.add(need.key)
            there = store.resources.is_built(need.key)
            flaw = store.resources.flaw(need.key) if there else None
            faults += [flaw] if flaw else []
            if need.resource.costly:
                owner = need.backbone.label if need.backbone else "the backbone"
                kind = need.resource.group().replace("the backbone", owner)
                groups.setdefault((kind, plan.dataset.label), []).append(there)
    for (kind, subset), found in groups.items():
        if not all(found):
            told = f"not yet trained on '{subset}': {kind} ({sum(found)} of {len(found)} are there)"
            faults.append(f"{told}. Make them with: ddbench prepare {suite}, or add --prepare to this command.")
    if faults:
        raise Faults(faults)
