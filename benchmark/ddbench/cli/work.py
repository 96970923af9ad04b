"""ddbench work STORE WAVE NUMBER NONCE: do a batch of jobs on this machine. Executors for clusters give this command."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("work", help="what executors run on other machines: do a batch of jobs", description=__doc__)
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of results")
    parser.add_argument("wave", metavar="WAVE", help="the folder of the batch under work/batches/")
    parser.add_argument("number", type=int, metavar="NUMBER", help="of the batch")
    parser.add_argument("nonce", metavar="NONCE", help="a word that stands in the orders too, if this is the store that is meant")
    parser.add_argument("--with-parent", action="store_true", help="end when the standard input does")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """0: all have ended, well or not; 2: nothing was begun, for this machine does not see the store."""
    from ddbench.grid.batch import end_with, work_off

    if args.with_parent:
        end_with()
    work_off(args.store, args.wave, args.number, args.nonce)
    return 0
