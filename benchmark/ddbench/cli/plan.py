"""ddbench plan SUITE: the sets and judgements of a grid, what they share, what is there, and what the rest takes."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ddbench.cli.common import Loaded, add_suite_arguments, faults_of, keyed, load_suite, refuse_other_settings, store_path, warn
from ddbench.cli.plan_text import LONG, UNKNOWN, Shown, show

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ddbench.grid.outlook import Line
    from ddbench.plan import Cell, SetPlan
    from ddbench.results.contents import Contents
    from ddbench.results.store import Store


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("plan", help="show what a suite makes, what is done and what is shared", description=__doc__)
    add_suite_arguments(parser)
    parser.add_argument("--cells", action="store_true", help=f"show tables of more than {LONG} rows too")
    parser.add_argument("--jobs", action="store_true", help="list the jobs that are missing, by name, for `ddbench run --job`")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the cells; nothing is computed and nothing written. 1: files are missing, or something is broken."""
    from ddbench.compute.run import pick_device
    from ddbench.errors import Faults
    from ddbench.grid import stale
    from ddbench.grid.worker import sentence_of
    from ddbench.leaderboard.foreseen import foreseen
    from ddbench.results.contents import NOTHING, read_contents
    from ddbench.results.store import Store

    if args.device != "auto":
        pick_device(args.device)  # refuses what `run` would refuse
    loaded = load_suite(args.suite, args.only, args.store, lenient=True)
    suite, planned = loaded.suite, loaded.planned
    undecoded = list(loaded.identities.undecoded.values())
    missing = [sentence for sentence in dict.fromkeys(suite.missing.values()) if sentence not in undecoded]
    if args.jobs and suite.missing:
        raise Faults([*missing, *undecoded])  # the names of jobs hang on these
    root = store_path(args, suite)
    store = None if _is_nothing(root) else Store(root, create=False)
    contents = read_contents(store) if store else NOTHING
    broken = [*suite.broken, *(sentence_of(error, cell.name, root) for cell, error in planned.broken.values())]
    warn(broken)
    columns = foreseen(planned.cells)
    warn(columns)
    if store:
        warn([*stale.told(stale.find_stale(planned, contents, store)), *faults_of(contents, store)])
    refuse_other_settings(planned, contents)
    told = _variants(planned.cells)
    rows = [_row(cell, loaded, store, contents, told.get(cell.set.key, "")) for cell in planned.cells]
    shared, tuning = _shared(loaded, store), _tuning(args, loaded, store, contents)
    outlook = [] if args.jobs else _outlook(args, loaded, store, contents)
    if args.json:
        about: dict[str, Any] = {"suite": suite.name, "store": str(root), "cells": keyed(rows), "shared": shared}
        about |= {"missing": missing, "undecoded": undecoded, "broken": broken, "warnings": columns}
        about |= {"outlook": [line.to_json() for line in outlook]}
        about |= {"tuning": tuning} if tuning else {}
        print(json.dumps(about | ({"jobs": _jobs(loaded, store, contents)} if args.jobs else {}), indent=1))
    elif args.jobs:
        for job in _jobs(loaded, store, contents):
            print(f"{job['name']}  {job['title']}")
    else:
        no_store = str(root) if store is None and args.store else ""
        show(Shown(args, loaded, rows, shared, outlook, tuning, len(broken), missing, undecoded, no_store))
    return 1 if broken or contents.faults or missing else 0


def _is_nothing(root: Path) -> bool:
    """Whether nothing is there that could be a store, not even a folder of other things."""
    return not root.exists() or (root.is_dir() and not any(root.iterdir()))


def _variants(cells: Sequence[Cell]) -> dict[str, str]:
    """By key of a set, what tells it from others that its name does not."""
    from ddbench.leaderboard.naming import variants

    alike: dict[str, dict[str, SetPlan]] = {}
    for cell in cells:
        alike.setdefault(cell.set.name, {})[cell.set.key] = cell.set
    groups = [plans for plans in alike.values() if len(plans) > 1]
    return {key: text for plans in groups for key, text in zip(plans, variants([*plans.values()]), strict=True)}


def _row(cell: Cell, loaded: Loaded, store: Store | None, contents: Contents, variant: str) -> dict[str, Any]:
    """A cell: its set, and how many of its judgements are there."""
    plan, suite = cell.set, loaded.suite
    there = sum(set(range(cell.repeats)) <= contents.repeats(plan.key, judging.key) for judging in cell.all_judgings())
    return {
        "method": f"{plan.method}{variant}",
        "subset": loaded.planned.subset(plan.dataset),
        "ipc": "all" if plan.everything else plan.ipc,
        "budget": plan.budget if plan.is_distilled else "",
        "seed": plan.seed,
        "steps a stage": _steps(plan),
        "set": _state(cell, store, contents),
        "judged": f"{there} of {sum(1 for _ in cell.all_judgings())}",
        "key": UNKNOWN if suite.lacks(plan) else plan.key[:16],
    }


def _steps(plan: SetPlan) -> str:
    if plan.stage_steps:
        return ", ".join(map(str, plan.stage_steps))
    return "0" if plan.baseline else f"{plan.steps}{f' ({plan.extra_steps} left over)' * bool(plan.extra_steps)}"


def _outlook(args: argparse.Namespace, loaded: Loaded, store: Store | None, contents: Contents) -> list[Line]:
    """What the missing jobs take. No accelerator is started for it: where one would compute, only what was measured before is
    known."""
    import torch

    from ddbench.compute.run import pick_device
    from ddbench.grid.calibration import Calibration
    from ddbench.grid.outlook import Outlook

    def counts(plan: SetPlan) -> tuple[int, ...] | None:
        root, missing = loaded.suite.data_root, loaded.suite.missing
        return None if plan.dataset in missing else loaded.identities(plan.dataset, root).train_counts

    device = torch.device("cpu") if args.device == "auto" and not torch.cuda.is_available() else pick_device(args.device)
    calibration = Calibration(device) if device.type == "cpu" else None
    return Outlook(loaded.planned, store, contents, counts, calibration).lines()


def _state(cell: Cell, store: Store | None, contents: Contents) -> str:
    from ddbench.results.layout import set_job

    stored = contents.sets.get(cell.set.key)
    if stored:
        return "lacks iterates" if stored.lacking(cell) else "done"
    if store and store.has_set(cell.set.key):
        return "damaged"
    return "failed" if store and store.failures(set_job(cell.set.key)) else "missing"


def _shared(loaded: Loaded, store: Store | None) -> list[dict[str, Any]]:
    """What several cells need, and whether it is built."""
    from ddbench.grid.planning import plan_of_need

    made: dict[str, dict[str, Any]] = {}
    for cell in loaded.planned.cells:
        keys = {*cell.set.resources, *(key for judging in cell.judgings for key in judging.resources)}
        for key in sorted(keys):
            if key not in made:
                need, owner = loaded.planned.needs[key], loaded.planned.owners[key]
                there = bool(store and store.resources.is_built(key))
                shown = UNKNOWN if loaded.suite.lacks(plan_of_need(owner, need)) else key[:16]
                about = {"shared": need.resource.describe(), "subset": loaded.planned.subset(owner.dataset)}
                new = about | {"cells": 0, "state": "done" if there else "missing", "key": shown}
                made[key] = new | {"group": need.resource.group(), "costly": need.resource.costly and not there}
            made[key]["cells"] += 1
    return list(made.values())


def _tuning(args: argparse.Namespace, loaded: Loaded, store: Store | None, contents: Contents) -> dict[str, Any] | None:
    """What is there of the trials that the suite asks for, and what the rest will take; None where it tunes nothing."""
    from ddbench.grid.estimates import Estimates
    from ddbench.grid.tuning import methods_of, missing, plan_trials
    from ddbench.suite.selection import select

    methods = methods_of(select(loaded.suite.cells, args.only))
    if not methods:
        return None
    planned_methods, planned = plan_trials(methods)
    total = sum(len(method.tuning.grid) * method.tuning.seeds for method in methods)
    told: dict[str, Any] = {"methods": len(methods), "chosen": sum(method.key in contents.tunings for method in methods)}
    if store is None:
        return told | {"trials": total, "there": 0, "missing": total, "seconds": None}
    todo = missing(planned_methods, planned, store, contents.trials, loaded.suite.name)
    estimates = Estimates(planned, store, contents)
    seconds = [estimates.request(work.file).seconds for work in todo.work if work.job.kind == "trial"]
    known = [each for each in seconds if each is not None]
    about = sum(known) if len(known) == len(seconds) else None
    return told | {"trials": total, "there": todo.present, "missing": total - todo.present, "seconds": about}


def _jobs(loaded: Loaded, store: Store | None, contents: Contents) -> list[dict[str, Any]]:
    """What is missing, as jobs."""
    from ddbench.grid.estimates import Estimates
    from ddbench.grid.jobs import Lister

    if store is None:
        from ddbench.errors import ConfigError

        raise ConfigError("--jobs needs a store that is there: name it with --store, or begin one with `ddbench run`.")
    todo = Lister(loaded.planned, store, contents, loaded.suite.name).todo()
    estimates, found = Estimates(loaded.planned, store, contents), []
    for work in todo.work:
        job, request = work.job, estimates.request(work.file)
        told: dict[str, Any] = {"name": job.name, "kind": job.kind, "title": job.title, "needs": job.needs}
        found.append(told | {"memory_bytes": request.memory_bytes, "seconds": request.seconds})
    return found
