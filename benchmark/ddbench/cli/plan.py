"""ddbench plan SUITE: the cells of a grid, what is done, and what they share."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ddbench.cli.common import add_suite_arguments, load_suite, store_path

MANY = 5  # of a kind: more are one line of the table


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("plan", help="show a suite's cells, what is done and what is shared", description=__doc__)
    add_suite_arguments(parser)
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the cells; nothing is computed and nothing written."""
    from tabulate import tabulate

    from ddbench.compute.run import pick_device
    from ddbench.grid.planning import needs_of_plan
    from ddbench.grid.worker import sentence_of
    from ddbench.results.store import Store
    from ddbench.suite import load as grid

    suite, identities = load_suite(args.suite)
    plans = grid.select(suite.plans, args.only)
    root, device = store_path(args, suite), pick_device(args.device)
    store = Store(root, create=False) if root.exists() or args.store else None
    broken = list(suite.broken)
    rows, shared, groups = [], dict[str, dict[str, Any]](), dict[str, set[str]]()
    for plan in plans:
        state = "missing"
        if store:
            state = "done" if store.is_done(plan.key) else "failed" if store.failures(plan.key) else "missing"
        steps = 0 if plan.baseline else plan.steps
        subset = identities.of(plan).label(plan.dataset.label)
        row = {"method": plan.method, "subset": subset, "ipc": plan.ipc, "seed": plan.seed, "steps a stage": steps}
        rows.append(row | {"state": state, "key": plan.key[:16]})
        try:
            needs = needs_of_plan(plan, device)
        except Exception as error:  # a stranger's code
            broken.append(sentence_of(error, plan, root))
            continue
        for need in needs:
            new = {"shared": need.resource.describe(), "cells": 0, "state": "missing", "key": need.key[:16]}
            groups.setdefault(need.resource.group(), set()).add(need.key)
            entry = shared.setdefault(need.key, new)
            entry["cells"] += 1
            if store and store.resources.is_built(need.key):
                entry["state"] = "done"
    for sentence in dict.fromkeys(broken):
        print(f"ddbench: {sentence}", file=sys.stderr)
    if args.json:
        print(json.dumps({"suite": suite.name, "store": str(root), "cells": rows, "shared": list(shared.values())}, indent=1))
    else:
        print(f"{suite.name}: {suite.description}\n")
        print(tabulate(rows, headers="keys", tablefmt="github"))
        if shared:
            print("\n" + tabulate(_short(shared, groups), headers="keys", tablefmt="github"))
        done = sum(row["state"] == "done" for row in rows)
        more = [f"--only {args.only}"] * bool(args.only) + [f"--store {args.store}"] * bool(args.store)
        command = " ".join(["ddbench run", args.suite, *more])
        print(f"\n{len(rows)} cells, {done} done, {len(rows) - done} to run. Run them with: {command}")
    return 1 if broken else 0


def _short(shared: dict[str, dict[str, Any]], groups: dict[str, set[str]]) -> list[dict[str, Any]]:
    """A line for each thing that is shared, or one for all of a kind where there are many."""
    lines = []
    for name, keys in groups.items():
        own = [entry for key, entry in shared.items() if key in keys]
        if len(own) <= MANY:
            lines += own
            continue
        done = sum(entry["state"] == "done" for entry in own)
        cells = max(entry["cells"] for entry in own)
        lines.append({"shared": name, "cells": cells, "state": f"{done} of {len(own)} done", "key": f"{len(own)} keys"})
    return lines
