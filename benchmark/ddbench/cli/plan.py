"""ddbench plan SUITE: the sets and judgements of a grid, what is there, what is missing, and what they share."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ddbench.cli.common import Loaded, add_suite_arguments, faults_of, load_suite, refuse_other_settings, store_path, warn

if TYPE_CHECKING:
    from ddbench.plan import Cell
    from ddbench.results.contents import Contents
    from ddbench.results.store import Store

SHOWN = ("shared", "cells", "state", "key")  # of what is shared
MANY = 5  # of a kind: more are one line of the table


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("plan", help="show what a suite makes, what is done and what is shared", description=__doc__)
    add_suite_arguments(parser)
    parser.add_argument("--jobs", action="store_true", help="list the jobs that are missing, by name, for `ddbench run --job`")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the cells; nothing is computed and nothing written."""
    from ddbench.grid import stale
    from ddbench.grid.worker import sentence_of
    from ddbench.results.contents import NOTHING, read_contents
    from ddbench.results.store import Store

    loaded = load_suite(args.suite, args.only, incomplete=True)
    suite, planned = loaded.suite, loaded.planned
    root = store_path(args, suite)
    store = Store(root, create=False) if root.exists() or args.store else None
    contents = read_contents(store) if store else NOTHING
    broken = [*suite.broken, *suite.missing, *(sentence_of(error, cell.name, root) for cell, error in planned.broken.values())]
    warn(broken)
    if store:
        warn([*stale.told(stale.find_stale(planned, contents, store)), *faults_of(contents, store)])
    refuse_other_settings(planned, contents)
    rows = [_row(cell, loaded, store, contents) for cell in planned.cells]
    shared = _shared(loaded, store)
    if args.json:
        about = {"suite": suite.name, "store": str(root), "cells": rows, "shared": shared, "bring": list(suite.missing)}
        print(json.dumps(about | ({"jobs": _jobs(loaded, store, contents)} if args.jobs else {}), indent=1))
    elif args.jobs:
        for job in _jobs(loaded, store, contents):
            print(f"{job['name']}  {job['title']}")
    else:
        _print(args, loaded, rows, shared)
    return 1 if broken or contents.faults else 0


def _row(cell: Cell, loaded: Loaded, store: Store | None, contents: Contents) -> dict[str, Any]:
    """A cell: its set, and how many of its judgements are there."""
    plan = cell.set
    there = sum(set(range(cell.repeats)) <= contents.repeats(plan.key, judging.key) for judging in cell.all_judgings())
    return {
        "method": plan.method,
        "subset": loaded.identities(plan.dataset, loaded.suite.data_root).label(plan.dataset.label),
        "ipc": "all" if plan.everything else plan.ipc,
        "seed": plan.seed,
        "steps a stage": 0 if plan.baseline else plan.steps,
        "set": _state(cell, store, contents),
        "judged": f"{there} of {sum(1 for _ in cell.all_judgings())}",
        "key": plan.key[:16],
    }


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


def _print(args: argparse.Namespace, loaded: Loaded, rows: list[dict[str, Any]], shared: list[dict[str, Any]]) -> None:
    from tabulate import tabulate

    print(": ".join(filter(None, (loaded.suite.name, loaded.suite.description))) + "\n")
    print(tabulate(rows, headers="keys", tablefmt="github"))
    if shared:
        print("\n" + tabulate(list(_short(shared)), headers="keys", tablefmt="github"))
    sets = sum(row["set"] == "done" for row in rows)
    there, wanted = (sum(int(row["judged"].split(" of ")[side]) for row in rows) for side in (0, 1))
    built = sum(entry["state"] == "done" for entry in shared)
    more = ["--only", args.only] * bool(args.only) + ["--store", str(args.store)] * bool(args.store)
    damaged = sum(row["set"] == "damaged" for row in rows)
    hurt = f", {damaged} damaged" if damaged else ""
    print(f"\nSets: {len(rows)} in all, {sets} there, {len(rows) - sets - damaged} missing{hurt}.")
    print(f"Judgements: {wanted} in all, {there} there, {wanted - there} missing. Shared: {len(shared)}, {built} built.")
    if sets < len(rows) or there < wanted:
        more += ["--redo"] * bool(damaged) + ["--prepare"] * any(entry["costly"] for entry in shared)
        print(f"Run what is missing with: {shlex.join(['ddbench', 'run', args.suite, *more])}")
    else:
        print("Nothing is missing.")


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
