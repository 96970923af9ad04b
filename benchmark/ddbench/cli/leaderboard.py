"""`ddbench leaderboard`: the page of a store."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddbench.results.store import Store


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    text = "write tables, image grids and commands of all judged sets as markdown"
    parser = sub.add_parser("leaderboard", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of results")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: STORE/leaderboard)")
    text = "the space that others are timed against (default: glad)"
    parser.add_argument("--reference", default="glad", metavar="SPACE", help=text)
    text = 'print JSON, {"ranked": [row, ...], "not_ranked": [row, ...]}; the page is written too'
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help=text)
    shown.add_argument("--csv", action="store_true", help="print CSV, a line a row, with the same names; the page is written too")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Write the page and print its path. 0, or 1 if a file of the store is damaged; the rest is written all the same.

    With --json, rows that measure a habit of published code stand under a key of their own, "not_ranked", so that nobody takes
    one for a result; they also say what the habit is worth.
    """
    from ddbench.leaderboard.export import to_csv
    from ddbench.leaderboard.page import write
    from ddbench.results.store import Store

    store = Store(args.store, create=False)
    _check_reference(args.reference, store)
    written = write(store, args.out or args.store / "leaderboard", args.reference)
    for sentence in (*written.unreadable, *written.notes):
        print(f"warning: {sentence}", file=sys.stderr)
    rows = {"ranked": written.ranked, "not_ranked": written.not_ranked}
    if args.csv:
        print(to_csv(**rows), end="")
    else:
        print(json.dumps(rows, indent=2, allow_nan=False) if args.json else written.path)
    return 1 if written.unreadable else 0


def _check_reference(name: str, store: Store) -> None:
    """Raise ConfigError for a space that is neither installed nor in the store."""
    from ddbench import registry
    from ddbench.errors import ConfigError, did_you_mean
    from ddbench.results.contents import read_contents

    known = set(registry.spaces.names())
    if name not in known:
        known |= {one.plan.space.name for one in read_contents(store, hash_bytes=False).sets.values() if one.plan.space}
    if name not in known:
        raise ConfigError(f"--reference: unknown space '{name}'.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}.")
