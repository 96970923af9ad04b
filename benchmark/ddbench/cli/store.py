"""ddbench store: verify a store, byte for byte, or merge the stores of several machines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ddbench.results.merge import MergeReport
    from ddbench.results.store import Store


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("store", help="verify a store, or merge the stores of several machines", description=__doc__)
    what = parser.add_subparsers(metavar="WHAT", required=True)
    checks = what.add_parser(
        "verify",
        help="read every file and compare it with what was written",
        description="Read every file of a store and compare it with what was written. Exit code 1 where something is wrong.",
    )
    checks.add_argument("store", type=Path, metavar="STORE", help="the folder of results")
    checks.set_defaults(main=_verify)
    joins = what.add_parser(
        "merge",
        help="copy into a store what others have and it has not",
        description="Copy into a store what others have and it has not. Equal keys with equal bits are kept once; with other "
        "bits both are named, and the first is kept. Exit code 1 where something was not kept, or is wrong in one of the stores.",
    )
    joins.add_argument("into", type=Path, metavar="INTO", help="the store that is added to; made where there is none")
    joins.add_argument("others", type=Path, nargs="+", metavar="FROM", help="a store to copy from; nothing of it is changed")
    joins.set_defaults(main=_merge)
    for each in (checks, joins):
        each.add_argument("--json", action="store_true", help="print JSON for machines")


def _verify(args: argparse.Namespace) -> int:
    """0, or 1 where something is wrong."""
    from ddbench.results.store import Store
    from ddbench.results.verify import verify

    store = Store(args.store, create=False)
    found = verify(store)
    counts = {
        "sets": len(found.contents.sets),
        "iterates": sum(len(one.iterates) for one in found.contents.sets.values()),
        "judgements": len(found.contents.judgements),
        "trials": len(found.contents.trials),
        "tunings": len(found.contents.tunings),
        "resources": len(found.resources),
        "suites": len(found.suites),
    }
    if args.json:
        faults = [{"path": str(fault.path), "sentence": fault.sentence} for fault in found.faults]
        print(json.dumps({"store": str(store.root), "sound": counts, "faults": faults}, indent=1))
    else:
        _print(fault.sentence for fault in found.faults)
        num = len(found.faults)
        print(f"sound: {_counted(counts)}; {num} fault{'s' if num != 1 else ''}.")
    return 1 if found.faults else 0


def _merge(args: argparse.Namespace) -> int:
    """0, or 1 where something was not kept or is wrong."""
    from ddbench.results.merge import merge
    from ddbench.results.store import Store

    others = [Store(path, create=False) for path in args.others]
    into = Store(args.into)
    reports = [(other, merge(into, other)) for other in others]
    if args.json:
        print(json.dumps({"into": str(into.root), "from": [_to_json(other, each) for other, each in reports]}, indent=1))
    else:
        for other, report in reports:
            _print((*report.differing, *report.dropped, *report.busy, *(fault.sentence for fault in report.faults)))
            there = sum(report.present.values())
            print(f"{other.root}: {_counted(report.added)} added, {there} were there.")
    return 0 if all(report.is_clean for _, report in reports) else 1


def _to_json(other: Store, report: MergeReport) -> dict[str, object]:
    faults = [{"path": str(fault.path), "sentence": fault.sentence} for fault in report.faults]
    lists = {name: getattr(report, name) for name in ("added", "present", "differing", "dropped", "busy")}
    return {"store": str(other.root)} | lists | {"faults": faults}


def _print(sentences: Iterable[str]) -> None:
    for sentence in dict.fromkeys(sentences):
        print(sentence)


def _counted(counts: dict[str, int]) -> str:
    """`3 sets, 12 judgements`, without the kinds of which there are none."""
    return ", ".join(f"{num} {kind[:-1] if num == 1 else kind}" for kind, num in counts.items() if num) or "nothing"
