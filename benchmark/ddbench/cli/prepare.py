"""ddbench prepare SUITE: build everything that a suite's cells share, after saying what it will take."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ddbench.cli.common import add_suite_arguments, load_suite, store_path

if TYPE_CHECKING:
    import torch

    from ddbench.grid.runner import Identities
    from ddbench.plan import Plan
    from ddbench.results.store import Store

ASSUMED_SHARE = 0.4  # of the device's peak that training steps reach: a guess for wide networks; narrow ones stay far below


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    help = "build what a suite's cells share: experts, teachers, generators"
    parser = sub.add_parser("prepare", help=help, description=__doc__)
    add_suite_arguments(parser)
    parser.add_argument("--workers", type=int, help="processes (default: one a CUDA device; on a CPU, cores / threads of a cell)")
    parser.add_argument("--estimate", action="store_true", help="say what it will take, and build nothing")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """0: everything is there; 1: something failed, the rest is there."""
    from tabulate import tabulate

    from ddbench.cli.bar import Bar
    from ddbench.compute.run import pick_device
    from ddbench.grid.runner import devices_of, run_suite
    from ddbench.results.store import Store
    from ddbench.suite import load as grid

    suite, identities = load_suite(args.suite)
    plans = grid.select(suite.plans, args.only)
    devices = devices_of(args.device, args.workers, plans)
    store = Store(store_path(args, suite))
    groups = _groups(plans, store, identities, pick_device(devices[0]), len(devices))
    missing = sum(entry["missing"] for entry in groups)
    out = sys.stderr if args.json else sys.stdout
    shown = [{name: "unknown" if value is None else value for name, value in entry.items()} for entry in groups]
    print(tabulate(shown, headers="keys", tablefmt="github") or f"{suite.name} shares nothing.", file=out)
    failed: dict[str, str] = {}
    if missing and not args.estimate:
        progress = Bar("resources")
        try:
            failed = run_suite(suite, plans, store, identities, progress, devices, cells=False).failed
        finally:
            progress.close()
        for sentence in dict.fromkeys(failed.values()):
            print(f"ddbench: {sentence}", file=sys.stderr)
    if args.json:
        print(json.dumps({"suite": suite.name, "store": str(store.root), "groups": groups, "failed": failed}, indent=1))
    elif not args.estimate:
        print(f"{missing - len(failed)} built, {sum(entry['there'] for entry in groups)} were there, in {store.resources.root}.")
    return 1 if failed else 0


def _groups(
    plans: Sequence[Plan], store: Store, identities: Identities, device: torch.device, workers: int
) -> list[dict[str, Any]]:
    """A line for each kind of resource: how many, how many are missing, and about how many minutes and MiB these take."""
    from ddbench.evaluate.cost import flops_of_step, peak_flops
    from ddbench.grid.planning import counting_run, needs_of_plan

    groups: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    peak = peak_flops(device)
    for plan in plans:
        for need in needs_of_plan(plan, device):
            if need.key in seen or (store.is_done(plan.key) and not store.resources.is_built(need.key)):
                continue
            seen.add(need.key)
            owner = f" of {need.backbone.label}" if need.backbone else ""
            name = need.resource.group().replace(" of the backbone", owner)
            new = {"shared": name, "there": 0, "missing": 0, "about min": 0.0, "about MiB": 0.0}
            entry = groups.setdefault(name, new)
            if store.resources.is_built(need.key):
                entry["there"] += 1
                continue
            entry["missing"] += 1
            effort = need.resource.effort(counting_run(plan, identities.of(plan), device))
            if effort is None or need.backbone is None or entry["about min"] is None:
                entry["about min"] = entry["about MiB"] = None
                continue
            flops = effort.images * flops_of_step(need.backbone, plan.dataset.make().spec())
            entry["about min"] += flops / (peak * ASSUMED_SHARE * workers) / 60
            entry["about MiB"] += effort.bytes / 2**20
    for entry in groups.values():
        for name in ("about min", "about MiB"):
            entry[name] = None if entry[name] is None else round(entry[name], 1)
    return list(groups.values())
