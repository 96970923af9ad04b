"""ddbench status STORE: how far the jobs are that were submitted to a cluster."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("status", help="say how far the jobs are that were submitted to a cluster", description=__doc__)
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of results")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """A line for each job that has not ended, and how many there are of each state."""
    from ddbench.grid.detach import known
    from ddbench.results.store import Store

    store = Store(args.store, create=False)
    found = known(store)
    if args.json:
        rows = [
            {"job": name, "state": state.state, "executor": each.executor, "driven": each.is_driven, "where": state.where}
            | {"phase": state.phase, "fraction": state.fraction, "detail": state.detail}
            for each in found
            for name, state in each.states.items()
        ]
        print(json.dumps(rows, indent=1))
        return 0
    if not found:
        print(f"No jobs are known that were submitted for {store.root}: those of the executor local end with their command.")
    for each in found:
        counts = Counter(state.state for state in each.states.values())
        who = "a command that still runs" if each.is_driven else "a command that has ended"
        told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        print(f"{len(each.states)} jobs of the executor {each.executor}, submitted by {who}: {told}")
        for name, state in each.states.items():
            if state.state in ("waiting", "running"):
                far = f", {state.phase}, {100 * state.fraction:.0f} %" if state.phase else ""
                print(f"  {name}: {state.state}{far}{f' ({state.where})' if state.where else ''}")
    if any(not each.is_driven for each in found):
        print("`ddbench run` with the same suite and store takes over what runs, does what is left, and writes the leaderboard.")
    return 0
