"""ddbench status STORE: how far jobs are that were submitted; ddbench cancel STORE: stop those that go on by themselves."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddbench.results.store import Store


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the two verbs."""
    for name, what, main in (
        ("status", "say how far the jobs are that were submitted to a cluster", status),
        ("cancel", "stop jobs that `ddbench run --detach` has submitted, or a killed run has left", cancel),
    ):
        parser = sub.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        parser.add_argument("store", type=Path, metavar="STORE", help="the folder of results")
        parser.add_argument("--json", action="store_true", help="print JSON for machines")
        parser.set_defaults(main=main)


def _store(args: argparse.Namespace) -> Store:
    from ddbench.results.store import Store

    return Store(args.store, create=False)


def status(args: argparse.Namespace) -> int:
    """A line for each job that has not ended, and how many there are of each state."""
    from ddbench.grid.detach import known

    store = _store(args)
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


def cancel(args: argparse.Namespace) -> int:
    """What is finished is kept."""
    from ddbench.grid.detach import cancel as stop

    store = _store(args)
    stopped = stop(store)
    if args.json:
        print(json.dumps({"cancelled": stopped}, indent=1))
    elif stopped:
        print(f"Cancelled: {len(stopped)} jobs. What is finished is kept in {store.root}.")
    else:
        print(f"Nothing to cancel: no job that was submitted for {store.root} still waits or runs by itself.")
    return 0
