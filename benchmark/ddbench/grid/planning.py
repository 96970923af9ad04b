"""Looking at plans before anything is computed: what they need, whether it is there, and what cannot work.

Plugins are asked on the CPU, with a run that holds no image: planning never starts an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_cell
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from ddbench.compute.rank import needs as ranker_needs
from ddbench.compute.resources import Need, needs_of
from ddbench.compute.run import DistillRun, files_of
from ddbench.data.subsets import Identity, TrainingData, identify, known_identity
from ddbench.errors import BenchError, DataError, Faults, PluginError
from ddbench.evaluate.teacher import teacher_needs
from ddbench.files import canonical
from ddbench.plan import RANKS, Cell, Judging, SetPlan
from ddbench.refs import PluginRef
from ddbench.results.store import Store

CPU = torch.device("cpu")


class Identities:
    """Data sets' identities, each asked once in this process."""

    def __init__(self, looks_only: bool = False) -> None:
        """`looks_only`: nothing is decoded that would be written down; such data sets are as if they were missing."""
        self.looks_only = looks_only
        self.known: dict[tuple[str, Path | None], Identity] = {}
        self.undecoded: dict[PluginRef, str] = {}  # those that were passed over because of that, a sentence each

    def __call__(self, ref: PluginRef, root: Path | None) -> Identity:
        """As `suite.load` wants it. Raises DataError where the data are missing."""
        if (ref.label, root) not in self.known:
            if self.looks_only and not (known_identity(ref, root) or ref.ask(lambda dataset: dataset.is_prepared(root))):
                self.undecoded[ref] = _undecoded(ref, root)
                raise DataError(self.undecoded[ref])
            self.known[ref.label, root] = identify(ref, root)
        return self.known[ref.label, root]


def _undecoded(ref: PluginRef, root: Path | None) -> str:
    """That its images wait to be decoded."""
    num = len(ref.ask(lambda dataset: dataset.files(root)))
    told = f"the {num:,} files of '{ref.label}' are not decoded yet, so keys are unknown"
    return f"{told}: the first run decodes them, and so does `ddbench prepare`."


def planning_run(plan: SetPlan, folder: Path | None = None, counts: Sequence[int] = ()) -> DistillRun:
    """A run without images, to ask plugins before any data are loaded; `counts` are those of the classes that it pretends to
    have, `folder` is the user's data folder."""
    spec = plan.dataset.make().spec()
    none, nobody = torch.empty(0, *spec.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    starts = tuple(accumulate(counts or (0,) * spec.num_classes, initial=0))
    data = TrainingData(spec, none, nobody, starts, none, nobody)
    own_files = partial(files_of, plan.dataset, folder)
    return DistillRun(
        ("plan",), data, plan.backbone, plan.ipc, CPU, {}, budget=plan.budget, folder=folder, own_files=own_files
    )  # fmt: skip


def counting_run(plan: SetPlan, counts: Sequence[int], folder: Path | None = None) -> DistillRun:
    """A run that counts the training images of its classes, less those held out, and holds none."""
    for share in (plan.held_out, plan.tuning):
        held_out = max(round(min(counts) * share), int(share > 0))
        counts = [count - held_out for count in counts]
    return planning_run(plan, folder, [max(count, 0) for count in counts])


@dataclass(frozen=True)
class Planned:
    """Cells with the keys of their resources filled in, the resources by key, and the cells that cannot say what they need."""

    cells: tuple[Cell, ...]
    needs: Mapping[str, Need] = field(default_factory=dict)
    owners: Mapping[str, SetPlan] = field(default_factory=dict)  # a plan that a resource can be found again by
    judgings: Mapping[str, Judging] = field(default_factory=dict)  # likewise, of a teacher
    broken: Mapping[str, tuple[Cell, BaseException]] = field(default_factory=dict)  # by the key that the set would have
    subsets: Mapping[str, str] = field(default_factory=dict)  # what boards call data sets, a copy another name, by label

    def subset(self, ref: PluginRef) -> str:
        """What people read of a data set."""
        return self.subsets.get(ref.label, ref.label)


def set_needs(plan: SetPlan) -> list[Need]:
    """Every resource of a set: its rankers', generator's, space's and loss's, or its baseline's. Raises what a plugin raises."""
    return needs_of(plan, planning_run(plan), ranker_needs(plan))


def judging_needs(plan: SetPlan, judging: Judging) -> list[Need]:
    """The resources of a judgement: the protocol's teacher, trained on the training images of the set's data set less those that
    the judging leaves out."""
    wanted = teacher_needs(judging)
    if not wanted:
        return []
    base = SetPlan(
        dataset=plan.dataset, train_hash=plan.train_hash, ipc=0, seed=0, held_out=judging.held_out, threads=judging.threads
    )
    return needs_of(base, planning_run(base), wanted)


def plan_of_need(plan: SetPlan, need: Need) -> SetPlan:
    """The plan without the plugins that have no part in a resource of it, so that the code of none of them runs while it is
    built: others share what comes out."""
    asking = ("baseline", "generator") if plan.baseline else ("loss", "space", "generator")
    if plan.pretrained and plan.pretrained != need.owner:
        plan = replace(plan, proxy=None)
    ranks = need.owner is not None and need.owner.kind == "rankers"
    others = {role: "last" for role in RANKS if not (ranks and plan.ranker(role) == need.owner)}
    return replace(plan, resources=(), **others, **{name: None for name in asking if getattr(plan, name) != need.owner})


def with_needs(cells: Iterable[Cell], sets: bool = True) -> Planned:
    """Ask every plugin what must be trained first. A plugin that raises breaks its own cells. Without `sets`, which are there
    already, only what judges them is asked.
    """
    made: list[Cell] = []
    needs: dict[str, Need] = {}
    owners: dict[str, SetPlan] = {}
    teachers: dict[str, Judging] = {}
    broken: dict[str, tuple[Cell, BaseException]] = {}
    asked: dict[str, list[Need]] = {}
    of_judging: dict[tuple[str, str, str], Judging] = {}
    for cell in cells:
        try:
            name = canonical({key: value for key, value in cell.set.stem.items() if key != "seed"})
            found = asked.get(name) if sets else []
            if found is None:
                found = asked[name] = set_needs(cell.set)
            plan = replace(cell.set, resources=tuple(need.key for need in found)) if found else cell.set
            judgings = []
            for judging in cell.judgings:
                place = (judging.key, plan.train_hash, plan.dataset.label)
                if place not in of_judging:
                    own = judging_needs(plan, judging)
                    of_judging[place] = replace(judging, resources=tuple(need.key for need in own)) if own else judging
                    needs |= {need.key: need for need in own}
                    teachers |= {need.key: judging for need in own}
                    owners |= {need.key: plan for need in own if need.key not in owners}
                judgings.append(of_judging[place])
        except (Exception, SystemExit) as error:  # a stranger's code
            broken[cell.set.key] = (cell, error)
            continue
        new = [need for need in found if need.key not in needs]  # of several plugins that ask for it, the first is its owner
        needs |= {need.key: need for need in new}
        owners |= {need.key: cell.set for need in new}
        made.append(replace_cell(cell, set=plan, judgings=tuple(judgings)))
    return Planned(tuple(made), needs, owners, teachers, broken)


def with_subsets(planned: Planned, identities: Identities, root: Path | None, missing: Container[PluginRef] = ()) -> Planned:
    """The same, knowing what its data sets are called; those that are missing have their plain names."""
    refs = {cell.set.dataset for cell in planned.cells if cell.set.dataset not in missing}
    return replace_cell(planned, subsets={ref.label: identities(ref, root).label(ref.label) for ref in refs})


def check_plans(
    cells: Iterable[Cell], identities: Identities, root: Path | None, missing: dict[PluginRef, str] | None = None
) -> None:
    """Ask every loss and baseline whether it can make such a set, every ranker whether it can rank it, every generator and proxy
    whether it could be loaded, and whether the classes have enough images. Raises Faults with all that is refused; what a broken
    plugin raises instead breaks its own cells, later. With `missing`, nothing is asked of data that stand in it, and files of
    generators and proxies that are not there are added to it."""
    faults, asked = list[str](), set[str]()
    for cell in cells:
        plan, subset = cell.set, cell.set.dataset.label
        if plan.everything or plan.imported:
            continue
        key = canonical({name: value for name, value in plan.stem.items() if name != "rates"})
        if key not in asked and (missing or {}).keys().isdisjoint((plan.dataset, plan.baseline)):
            asked.add(key)
            faults += _refused(f"{plan.method} on '{subset}', ipc {plan.ipc}", partial(_check, plan, identities, root, missing))
        rankers = [("ranker", ref) for ref in plan.rankers]
        for noun, ref in (("generator", plan.generator), ("proxy", plan.pretrained), *rankers):
            if ref and (key := canonical([ref.what, subset])) not in asked:
                asked.add(key)
                faults += _refused(f"{noun} '{ref.label}' on '{subset}'", partial(_check_files, ref, plan, root, missing))
    if faults:
        raise Faults(list(dict.fromkeys(faults)))


def _refused(who: str, check: Callable[[], None]) -> Sequence[str]:
    """What a check refuses, a sentence each."""
    try:
        check()
    except PluginError:
        return ()
    except Faults as several:
        return several.faults
    except BenchError as error:
        return (f"{who}: {error}",)
    except (Exception, SystemExit):  # a stranger's code: its cell tells
        return ()
    return ()


def _check(plan: SetPlan, identities: Identities, root: Path | None, missing: dict[PluginRef, str] | None) -> None:
    run = counting_run(plan, identities(plan.dataset, root).train_counts, root)
    least, name = min(run.class_counts), plan.dataset.label
    if plan.is_trial and least < max(plan.ipc, 1):
        left = f"'tune.held_out' leaves trials {least} training images of the smallest class of '{name}'"
        raise Faults([f"{left}, and they distil {plan.ipc} of a class: lower it."])
    if plan.ipc > least:
        raise Faults([f"ipc {plan.ipc} is more than the {least} images that a class of '{name}' trains on: lower it."])
    if plan.baseline:
        _ask(plan.baseline, lambda baseline: baseline.check(run), missing)
    elif plan.loss and plan.space:
        num = plan.space.make().num_images(run)
        _ask(plan.loss, lambda loss: loss.check(num, run), missing)


def _check_files(ref: PluginRef, plan: SetPlan, root: Path | None, missing: dict[PluginRef, str] | None) -> None:
    """Ask a plugin of a plan, which may read files that users bring, whether it could be loaded."""
    _ask(ref, lambda plugin: plugin.check(planning_run(plan, root)), missing)


def _ask(ref: PluginRef, check: Callable[[Any], None], missing: dict[PluginRef, str] | None) -> None:
    """Raise what the check raises, but for files that are missing where these are collected."""
    try:
        check(ref.make())
    except DataError as error:
        if missing is None:
            raise
        missing.setdefault(ref, str(error))


def check_prepared(planned: Planned, wanted: Iterable[str], store: Store, remedy: str) -> None:
    """Raise Faults where resources that are costly to train are missing, or any is damaged: a sentence for each kind, with the
    remedy behind. `wanted` are the keys that what is missing needs."""
    groups: dict[tuple[str, str], list[bool]] = {}
    faults = []
    for key in dict.fromkeys(wanted):
        need = planned.needs[key]
        there = store.resources.is_built(key)
        flaw = store.resources.flaw(key) if there else None
        faults += [flaw] if flaw else []
        if need.resource.costly:
            owner = need.backbone.label if need.backbone else "the backbone"
            kind = need.resource.group().replace("the backbone", owner)
            groups.setdefault((kind, planned.owners[key].dataset.label), []).append(there)
    for (kind, subset), found in groups.items():
        if not all(found):
            what = f"not yet trained on '{subset}': {kind} ({sum(found)} of {len(found)} are there)"
            faults.append(f"{what}. {remedy}")
    if faults:
        raise Faults(faults)
