"""ddbench plan SUITE: the sets and judgements of a grid, what they share, what is there, and what the rest takes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ddbench.cli.common import Loaded, add_suite_arguments, faults_of, keyed, load_suite, refuse_other_settings, store_path, warn
from ddbench.errors import command

if TYPE_CHECKING:
    from ddbench.grid.outlook import Line
    from ddbench.plan import Cell, SetPlan
    from ddbench.results.contents import Contents
    from ddbench.results.store import Store

SHOWN = ("shared", "cells", "state", "key")  # of what is shared
UNKNOWN = "unknown"  # what hangs on data or weights that are not there, or on work that nobody has done yet
MANY = 5  # of a kind: more are one line of the table
HOW_KNOWN = """\
measured: in this store, on whatever machine that was. tried: a few epochs on random images, here and now, without testing.
counted: floating-point operations at a part of this CPU's peak, which narrow networks do not reach. A distillation is known once
another seed of it has been made here: make one with --only."""


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("plan", help="show what a suite makes, what is done and what is shared", description=__doc__)
    add_suite_arguments(parser)
    parser.add_argument("--jobs", action="store_true", help="list the jobs that are missing, by name, for `ddbench run --job`")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the cells; nothing is computed and nothing written. 1: files are missing, or something is broken."""
    from ddbench.compute.run import pick_device
    from ddbench.errors import Faults
    from ddbench.grid import stale
    from ddbench.grid.worker import sentence_of
    from ddbench.results.contents import NOTHING, read_contents
    from ddbench.results.store import Store

    if args.device != "auto":
        pick_device(args.device)  # refuses what `run` would refuse
    loaded = load_suite(args.suite, args.only, args.store, lenient=True)
    suite, planned = loaded.suite, loaded.planned
    missing = list(dict.fromkeys(suite.missing.values()))
    if missing and args.jobs:
        raise Faults(missing)  # the names of jobs hang on what is missing
    root = store_path(args, suite)
    store = Store(root, create=False) if root.exists() or args.store else None
    contents = read_contents(store) if store else NOTHING
    broken = [*suite.broken, *(sentence_of(error, cell.name, root) for cell, error in planned.broken.values())]
    warn(broken)
    if store:
        warn([*stale.told(stale.find_stale(planned, contents, store)), *faults_of(contents, store)])
    refuse_other_settings(planned, contents)
    rows = [_row(cell, loaded, store, contents) for cell in planned.cells]
    shared, tuning = _shared(loaded, store), _tuning(args, loaded, store, contents)
    outlook = [] if args.jobs else _outlook(args, loaded, store, contents)
    if args.json:
        about: dict[str, Any] = {"suite": suite.name, "store": str(root), "cells": keyed(rows), "shared": shared}
        about |= {"missing": missing, "broken": broken, "outlook": [line.to_json() for line in outlook]}
        about |= {"tuning": tuning} if tuning else {}
        print(json.dumps(about | ({"jobs": _jobs(loaded, store, contents)} if args.jobs else {}), indent=1))
    elif args.jobs:
        for job in _jobs(loaded, store, contents):
            print(f"{job['name']}  {job['title']}")
    else:
        _print(args, loaded, rows, shared, outlook, len(broken))
        if tuning:
            print(_told(args, tuning))
    return 1 if broken or contents.faults or missing else 0


def _row(cell: Cell, loaded: Loaded, store: Store | None, contents: Contents) -> dict[str, Any]:
    """A cell: its set, and how many of its judgements are there."""
    plan, suite = cell.set, loaded.suite
    unseen = plan.dataset in suite.missing
    there = sum(set(range(cell.repeats)) <= contents.repeats(plan.key, judging.key) for judging in cell.all_judgings())
    return {
        "method": plan.method,
        "subset": plan.dataset.label if unseen else loaded.identities(plan.dataset, suite.data_root).label(plan.dataset.label),
        "ipc": "all" if plan.everything else plan.ipc,
        "seed": plan.seed,
        "steps a stage": "0" if plan.baseline else f"{plan.steps}{f' ({plan.extra_steps} left over)' * bool(plan.extra_steps)}",
        "set": _state(cell, store, contents),
        "judged": f"{there} of {sum(1 for _ in cell.all_judgings())}",
        "key": UNKNOWN if suite.lacks(plan) else plan.key[:16],
    }


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
    made: dict[str, dict[str, Any]] = {}
    for cell in loaded.planned.cells:
        keys = {*cell.set.resources, *(key for judging in cell.judgings for key in judging.resources)}
        for key in sorted(keys):
            need = loaded.planned.needs[key]
            there = bool(store and store.resources.is_built(key))
            new = {"shared": need.resource.describe(), "cells": 0, "state": "done" if there else "missing", "key": key[:16]}
            costly = need.resource.costly and not there
            made.setdefault(key, new | {"group": need.resource.group(), "costly": costly})["cells"] += 1
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


def _told(args: argparse.Namespace, tuning: dict[str, Any]) -> str:
    """A sentence of it."""
    counts = "{methods} methods, {chosen} with chosen rates. Trials: {trials} in all, {there} there, {missing} missing"
    seconds = tuning["seconds"]
    about = f", about {seconds:,.0f} s on one worker" if tuning["missing"] and seconds is not None else ""
    more = ["--only", args.only] * bool(args.only) + ["--store", args.store] * bool(args.store)
    how = command("tune", args.suite, *more)
    return f"Tuning: {counts.format(**tuning)}{about}." + (f" Make them with: {how}" if tuning["missing"] else "")


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


def _print(
    args: argparse.Namespace, loaded: Loaded, rows: list[dict[str, Any]], shared: list[dict[str, Any]], outlook: list[Line],
    broken: int,
) -> None:  # fmt: skip
    from tabulate import tabulate

    from ddbench.trials import UNTUNED

    print(": ".join(filter(None, (loaded.suite.name, loaded.suite.description))) + "\n")
    print(tabulate(rows, headers="keys", tablefmt="github"))
    if shared:
        print("\n" + tabulate(list(_short(shared)), headers="keys", tablefmt="github"))
    sets = sum(row["set"] == "done" for row in rows)
    there, wanted = (sum(int(row["judged"].split(" of ")[side]) for row in rows) for side in (0, 1))
    built = sum(entry["state"] == "done" for entry in shared)
    more = ["--only", args.only] * bool(args.only) + ["--store", args.store] * bool(args.store)
    damaged = sum(row["set"] == "damaged" for row in rows)
    hurt = f", {damaged} damaged" if damaged else ""
    print(f"\nSets: {len(rows)} in all, {sets} there, {len(rows) - sets - damaged} missing{hurt}.")
    print(f"Judgements: {wanted} in all, {there} there, {wanted - there} missing. Shared: {len(shared)}, {built} built.")
    if outlook:
        table = tabulate([_in_words(line) for line in outlook], headers="keys", tablefmt="github")
        print(f"\nWhat is missing takes, one job after the other:\n\n{table}\n\n{HOW_KNOWN}")
    if sentences := list(dict.fromkeys(loaded.suite.missing.values())):
        print("\nNot there yet, and needed before anything can run:")
        print("\n".join(f"- {sentence}" for sentence in sentences))
    elif sets < len(rows) or there < wanted:
        more += ["--redo"] * bool(damaged) + ["--prepare"] * any(entry["costly"] for entry in shared)
        if any(cell.rates_from == UNTUNED for cell in loaded.planned.cells):
            print("Rates are not chosen yet: tune first (see below), or rows are not ranked.")
        print(f"Run what is missing with: {command('run', args.suite, *more)}")
    elif not broken:
        print("Nothing is missing.")
    if broken:
        print(f"{broken} parts of the suite are broken (see above) and not counted.")


def _in_words(line: Line) -> dict[str, str]:
    """A line of the table."""
    known = [f"{line.seconds / 3600:.2f}"] * (line.unknown < line.missing)
    unknown = [UNKNOWN if line.unknown == line.missing else f"{line.unknown} unknown"] * bool(line.unknown)
    hours = " + ".join([*known, *unknown])
    memory = UNKNOWN if line.memory_bytes is None else f"{line.memory_bytes / 2**30:.1f}"
    return {"jobs": line.jobs, "missing": str(line.missing), "about h": hours, "GiB": memory, "known by": line.told}


def _short(shared: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A line for each thing that is shared, or one for all of a kind where there are many."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in shared:
        groups.setdefault(entry["group"], []).append({name: entry[name] for name in SHOWN})
    for name, own in groups.items():
        if len(own) <= MANY:
            yield from own
            continue
        done = sum(entry["state"] == "done" for entry in own)
        cells = max(entry["cells"] for entry in own)
        yield {"shared": name, "cells": cells, "state": f"{done} of {len(own)} done", "key": f"{len(own)} keys"}
