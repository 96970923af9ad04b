"""ddbench cancel STORE: stop jobs that `ddbench run --detach` has submitted, or that a killed run has left."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("cancel", help="stop the jobs of a store that go on by themselves on a cluster", description=__doc__)
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of results")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """What is finished is kept."""
    from ddbench.grid.detach import cancel
    from ddbench.results.store import Store

    store = Store(args.store, create=False)
    stopped = cancel(store)
    if args.json:
        print(json.dumps({"cancelled": stopped}, indent=1))
    elif stopped:
        print(f"Cancelled: {len(stopped)} jobs. What is finished is kept in {store.root}.")
    else:
        print(f"Nothing to cancel: no job that was submitted for {store.root} still waits or runs by itself.")
    return 0
