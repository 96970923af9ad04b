"""ddbench prepare SUITE: build everything that a suite's sets and judgements share, after saying what it will take."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ddbench.cli.common import (
    Loaded,
    add_quiet,
    add_suite_arguments,
    keyed,
    load_suite,
    progress_of,
    store_path,
    threads_of,
    warn,
)

if TYPE_CHECKING:
    import torch

    from ddbench.plan import SetPlan
    from ddbench.results.contents import Contents
    from ddbench.results.store import Store


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    help = "build what a suite's cells share: experts, teachers, generators"
    parser = sub.add_parser("prepare", help=help, description=__doc__)
    add_suite_arguments(parser)
    parser.add_argument("--workers", type=int, help="processes (default: one a CUDA device; on a CPU, cores / threads of a job)")
    parser.add_argument("--estimate", action="store_true", help="say what it will take, and build nothing")
    add_quiet(parser)
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """0: everything is there; 1: something failed, the rest is there."""
    from tabulate import tabulate

    from ddbench import registry
    from ddbench.compute.run import pick_device
    from ddbench.grid.progress import Outcome
    from ddbench.grid.runner import Options, run
    from ddbench.grid.sites import devices_of, site_of
    from ddbench.results.contents import NOTHING, read_contents
    from ddbench.results.store import Store

    loaded = load_suite(args.suite, args.only, args.store)
    suite, planned = loaded.suite, loaded.planned
    warn(suite.broken)
    threads = threads_of(planned)
    devices = devices_of(args.device, args.workers, threads)
    root = store_path(args, suite)
    store = Store(root, create=not args.estimate) if root.exists() or not args.estimate else None
    contents = read_contents(store) if store else NOTHING
    groups = _groups(loaded, store, contents, pick_device(devices[0]), len(devices))
    missing = sum(entry["missing"] for entry in groups)
    out = sys.stderr if args.json else sys.stdout
    shown = [{name: "unknown" if value is None else value for name, value in entry.items()} for entry in groups]
    print(tabulate(shown, headers="keys", tablefmt="github") or f"{suite.name} shares nothing.", file=out)
    outcome = Outcome()
    if store and missing and not args.estimate:
        site = site_of(store, devices, threads, suite.data_root)
        options = Options(suite.name, site, registry.executors.make("local"), resources_only=True, again=True)
        with progress_of(args, store, devices) as progress:
            outcome = run(planned, store, contents, options, progress)
        warn(list(outcome.failed.values()))
    if args.json:
        about = {"suite": suite.name, "store": str(root.absolute()), "groups": keyed(groups), "failed": outcome.failed}
        print(json.dumps(about, indent=1))
    elif store and not args.estimate:
        print(f"{len(outcome.built)} built, {sum(entry['there'] for entry in groups)} were there, in {store.resources.root}.")
    return 1 if outcome.failed else 0


def _groups(loaded: Loaded, store: Store | None, contents: Contents, device: torch.device, workers: int) -> list[dict[str, Any]]:
    """A line for each kind of resource: how many, how many are missing, about how many minutes and MiB these take, and how that
    is known, or why it is not."""
    from ddbench.grid.calibration import Calibration
    from ddbench.grid.outlook import Line, Outlook
    from ddbench.grid.planning import counting_run

    def counts(plan: SetPlan) -> tuple[int, ...]:
        return loaded.identities(plan.dataset, loaded.suite.data_root).train_counts

    planned, groups, lines = loaded.planned, dict[str, dict[str, Any]](), dict[str, Line]()
    outlook, wanted = Outlook(planned, store, contents, counts, Calibration(device)), _wanted(loaded, contents)
    for key, need in planned.needs.items():
        built = store is not None and store.resources.is_built(key)
        if key not in wanted and not built:
            continue
        owner = f" of {need.backbone.label}" if need.backbone else ""
        name = need.resource.group().replace(" of the backbone", owner)
        entry = groups.setdefault(name, {"shared": name, "there": 0, "missing": 0, "about min": 0.0, "about MiB": 0.0})
        line = lines.setdefault(name, Line(name))
        if built:
            entry["there"] += 1
            continue
        entry["missing"] += 1
        line.add(*outlook.of_resource(key))
        effort = need.effort(counting_run(planned.owners[key], counts(planned.owners[key])))
        known = effort is not None and entry["about MiB"] is not None
        entry["about MiB"] = entry["about MiB"] + effort.bytes / 2**20 if effort and known else None
    for name, entry in groups.items():
        line = lines[name]
        entry["about min"] = None if line.unknown else round(line.seconds / 60 / workers, 1)
        entry["about MiB"] = None if entry["about MiB"] is None else round(entry["about MiB"], 1)
        entry["known by"] = line.told
    return list(groups.values())


def _wanted(loaded: Loaded, contents: Contents) -> set[str]:
    """The keys of the resources that missing sets and judgements need."""
    found: set[str] = set()
    for cell in loaded.planned.cells:
        stored = contents.sets.get(cell.set.key)
        if stored is None or stored.lacking(cell):
            found |= set(cell.set.resources)
        for judging in cell.all_judgings():
            if not set(range(cell.repeats)) <= contents.repeats(cell.set.key, judging.key):
                found |= set(judging.resources)
    return found
