"""ddbench resources: what is built and shared in a store; verify it, or prune what is of no use."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddbench.results.store import Store


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    help = "list, verify and prune what the sets and judgements of a store share"
    parser = sub.add_parser("resources", help=help, description=__doc__)
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of results")
    parser.add_argument("--verify", action="store_true", help="read every file and compare it with what was built")
    parser.add_argument(
        "--prune", action="store_true",
        help="remove damaged ones, what killed builds left behind, and those that no set or judgement has used",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """0, or 1 where one is damaged and not pruned."""
    from tabulate import tabulate

    from ddbench.results.store import Store

    store = Store(args.store, create=False)
    rows = [_row(store, key, args.verify or args.prune) for key in store.resources.keys()]  # noqa: SIM118
    _mark_used(store, rows)
    removed = _prune(store, rows) if args.prune else []
    for row in rows:
        if row["state"] != "ok" and row["key"] not in removed:
            print(f"ddbench: {row['state']}", file=sys.stderr)
    if args.json:
        print(json.dumps({"store": str(args.store), "resources": rows, "removed": removed}, indent=1))
    else:
        words = [{"MiB": f"{row['bytes'] / 2**20:,.1f}", "state": "ok" if row["state"] == "ok" else "damaged"} for row in rows]
        shown = [row | more for row, more in zip(rows, words, strict=True)]
        columns = ("key", "resource", "MiB", "seconds", "uses", "state")
        print(tabulate([{name: row[name] for name in columns} for row in shown], headers="keys", tablefmt="github"))
        total = sum(row["bytes"] for row in rows) / 2**20
        print(f"{len(rows)} resources, {total:,.1f} MiB" + (f"; {len(removed)} removed." if args.prune else "."))
    return 1 if any(row["state"] != "ok" and row["key"] not in removed for row in rows) else 0


def _row(store: Store, key: str, verify: bool) -> dict[str, Any]:
    """A line, and what is wrong with it: a sentence, or ok."""
    from ddbench.errors import BenchError

    folder = store.resources.folder(key)
    row: dict[str, Any] = {"key": key, "resource": "?", "bytes": 0, "seconds": None, "uses": 0, "state": "ok"}
    row["bytes"] = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        record = store.resources.record(key)
        row |= {"resource": record.describe, "seconds": round(record.measured.seconds, 1)}
        if verify:
            store.resources.read(key)
    except BenchError as error:
        row["state"] = str(error)
    return row


def _mark_used(store: Store, rows: list[dict[str, Any]]) -> None:
    """How many sets and judgements name each."""
    from collections import Counter

    from ddbench.plan import short
    from ddbench.results.contents import read_contents

    contents = read_contents(store, hash_bytes=False)
    lists = [*(one.record.resources for one in contents.sets.values()), *(record.resources for record in contents.judgements)]
    used = Counter(short(entry.key) for resources in lists for entry in resources)
    for row in rows:
        row["uses"] = used[row["key"]]


def _prune(store: Store, rows: list[dict[str, Any]]) -> list[str]:
    """Remove what is damaged or unused, and leftovers; but keep what a job that is under way may be waiting for."""
    import shutil

    running = bool(store.begun())
    removed = []
    for row in rows:
        if row["state"] != "ok" or (row["uses"] == 0 and not running):
            store.resources.remove(row["key"])
            removed.append(row["key"])
    for path in store.resources.leftovers():
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path.name)
    return removed
