"""ddbench run SUITE: compute the cells that the store lacks, then render its leaderboard."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ddbench.cli.common import add_suite_arguments, load_suite, store_path

if TYPE_CHECKING:
    from ddbench.grid.runner import Outcome, Progress


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("run", help="compute what is missing of a suite, then render its leaderboard", description=__doc__)
    add_suite_arguments(parser)
    parser.add_argument("--workers", type=int, help="processes (default: one a CUDA device; on a CPU, cores / threads of a cell)")
    parser.add_argument(
        "--checkpoint-seconds", type=_seconds, default=20.0, metavar="S",
        help="seconds between two checkpoints of a cell, from which a stopped run goes on (default: 20; 0: after every step)",
    )  # fmt: skip
    parser.add_argument("--prepare", action="store_true", help="train missing experts and teachers too, which takes long")
    parser.set_defaults(main=main)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, at least 0, got '{text}'")
    return value


def main(args: argparse.Namespace) -> int:
    """0: every cell is there; 1: some failed, the rest is there."""
    from ddbench.compute.run import pick_device
    from ddbench.grid.planning import check_prepared
    from ddbench.grid.runner import devices_of, run_suite
    from ddbench.leaderboard.page import write
    from ddbench.results.store import Store
    from ddbench.suite import load as grid

    suite, identities = load_suite(args.suite)
    for sentence in suite.broken:
        print(f"ddbench: {sentence}", file=sys.stderr)
    plans = grid.select(suite.plans, args.only)
    devices = devices_of(args.device, args.workers, plans)
    store = Store(store_path(args, suite))
    if not args.prepare:
        where = f"{args.suite} --store {args.store}" if args.store else args.suite
        check_prepared(plans, store, pick_device(devices[0]), where)
    with _Bar() as progress:
        outcome = run_suite(suite, plans, store, identities, progress, devices, args.checkpoint_seconds)
    for sentence in dict.fromkeys(outcome.failed.values()):
        print(f"ddbench: {sentence}", file=sys.stderr)
    written = write(store, store.root / "leaderboard")
    for sentence in written.unreadable:
        print(f"warning: {sentence}", file=sys.stderr)
    if args.json:
        summary: dict[str, Any] = {"suite": suite.name, "store": str(store.root), "present": outcome.present}
        summary["computed"] = outcome.computed
        summary |= {"failed": outcome.failed, "broken": suite.broken, "leaderboard": str(written.path)}
        print(json.dumps(summary, indent=1))
    else:
        print(summary_line(outcome, len(plans), str(store.root)))
        print(written.path)
    return 1 if outcome.failed or suite.broken or written.unreadable else 0


def summary_line(outcome: Outcome, num_cells: int, root: str) -> str:
    """What was done, in a sentence."""
    if outcome.present == num_cells:
        return f"Nothing to compute: all {num_cells} cells are in {root}."
    parts = f"{len(outcome.computed)} of {num_cells} cells computed, {outcome.present} were there"
    return f"{parts}, {len(outcome.failed)} failed, in {root}."


class _Bar:
    """Makes the progress bar only when the run begins, so that --help stays light."""

    def __enter__(self) -> Progress:
        from ddbench.cli.bar import Bar

        self.bar = Bar()
        return self.bar

    def __exit__(self, *_: object) -> None:
        self.bar.close()
