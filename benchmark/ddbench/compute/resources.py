"""What must be trained before a set or a judgement: what it is, under which key, and how it is built."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch

from ddbench.api import Effort, Resource
from ddbench.compute.knowledge import declares
from ddbench.compute.run import DistillRun
from ddbench.data.subsets import TrainingData
from ddbench.errors import BenchError, PluginError
from ddbench.files import digest
from ddbench.identity import NoIdentityError, fields_of
from ddbench.plan import NUMERICS, SetPlan
from ddbench.refs import OURS, PluginRef
from ddbench.results.resources import ResourceStore
from ddbench.schema import Place


@dataclass(frozen=True)
class Need:
    """A resource that a set or a judgement needs, and all that its content depends on."""

    resource: Resource
    identity: dict[str, Any]  # what its key is made of: JSON
    stream: str  # what its random streams are named by: what it is, and from which images
    backbone: PluginRef | None
    owner: PluginRef | None  # the plugin that asks for it; None for the core

    @property
    def key(self) -> str:
        """64 hex digits."""
        return digest(self.identity)

    def title(self, dataset: str) -> str:
        """For people: `classifier convnet(width=32) on cifar10, 10 epochs`."""
        told = self.resource.describe()
        told = told.replace("the backbone", self.backbone.label) if self.backbone else told
        end = re.search(r", (?![^(]*\))", told)  # outside of a label's brackets
        at = end.start() if end else len(told)
        return f"{told[:at]} on {dataset}{told[at:]}"

    def effort(self, run: DistillRun) -> Effort | None:
        """What building it takes, as far as that is known. Raises PluginError for whatever a stranger's code raises."""
        try:
            return self.resource.effort(run)
        except BenchError:
            raise
        except Exception as error:
            kind, what = type(self.resource), f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise PluginError(f"resource {kind.__module__}:{kind.__qualname__} cannot say what it takes: {what}.") from error


def need_of(resource: Resource, owner: PluginRef | None, plan: SetPlan) -> Need:
    """A resource of a plan; `owner` is the plugin that asks, None for the core.

    The key is made of its type, its distribution, its `numerics` and those of training, the fields that differ from their
    defaults, the real images and their split, the backbone where it uses one, and the threads. Its streams are named by
    less, so that another number of threads, raised `numerics`, or a trial of rates draw the same numbers: a random generator is
    the same in trials. Raises PluginError.
    """
    name = f"{type(resource).__module__}:{type(resource).__qualname__}"
    if not is_dataclass(resource):
        raise PluginError(f"resource {type(resource).__qualname__} must be a frozen dataclass deriving from Resource.")
    try:
        changed = fields_of(resource, all_of_them=False)
    except NoIdentityError as error:
        raise PluginError(f"resource {name} has a field that JSON cannot hold ({error}): keep plain values in it.") from error
    backbone = plan.backbone if resource.uses_backbone else None
    images = {"train_hash": plan.train_hash, "held_out": plan.held_out, "backbone": backbone.what if backbone else None}
    identity = {
        "kind": "resource",
        "from": owner.distribution if owner else OURS,
        "type": name,
        "numerics": resource.numerics,
        "training": NUMERICS["training"],
        "fields": changed,
        "threads": plan.threads,
    }
    split = {"tuning": plan.tuning} if plan.is_trial else {}  # a trial's have not seen the images that score it
    return Need(resource, identity | images | split, digest({"type": name, "fields": changed} | images), backbone, owner)


def needs_of(plan: SetPlan, run: DistillRun, core: Iterable[Resource]) -> list[Need]:
    """All that the making of a set needs, without repetition; `core` is what no plugin asks for. Imported sets need nothing."""
    if plan.imported:
        return []
    wanted: list[tuple[Resource, PluginRef | None]] = [(resource, None) for resource in core]
    makers = (plan.baseline,) if plan.baseline else (plan.space, plan.loss, plan.pretrained, *plan.rankers)
    for ref in (plan.generator, *makers):
        if ref:
            asked: tuple[Resource, ...] = ref.ask(lambda plugin: plugin.needs(run))
            wanted.extend((resource, ref) for resource in asked)
    return list({need.key: need for need in (need_of(resource, owner, plan) for resource, owner in wanted)}.values())


def build(
    store: ResourceStore, need: Need, data: TrainingData, device: torch.device, place: Place, folder: Path | None = None,
    marks: Callable[[], Sequence[str]] = tuple,
) -> None:  # fmt: skip
    """Build it if it is missing; whoever else builds it meanwhile is waited for, so the caller does not hold its lock.

    Streams are named by `Need.stream`; `folder` is the user's data folder; `marks` says, once it is built, what a reader must
    know of that.
    """
    with store.lock(need.key):
        if store.is_built(need.key):
            return
        started = time.perf_counter()
        silent = not declares(need.resource)
        run = DistillRun(("resource", need.stream), data, need.backbone, 0, device, {}, folder=folder, silent=silent)
        tensors = need.resource.build(run)
        seconds = time.perf_counter() - started
        store.publish(need.identity, tensors, need.resource.describe(), place, seconds, marks())
