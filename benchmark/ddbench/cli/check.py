"""`ddbench check`: the regression gate."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddbench.leaderboard.gate import Comparison, Report
    from ddbench.leaderboard.join import Result
    from ddbench.results.store import Store

BLIND = "none"  # a row of which no drop can be told from noise
HEADERS = ("row", "network", "baseline", "now", "change", "smallest detectable drop", "noise from", "verdict")
ALIGN = ("left", "left", "right", "right", "right", "right", "left", "left")


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser(
        "check",
        help="compare a store with a baseline: has an accuracy fallen by more than noise explains?",
        description="Compare a store with a baseline. Exit code 0: no accuracy fell by more than noise explains; "
        "1: one did; 2: the two do not compare.",
    )
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of results")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--baseline", type=Path, metavar="FILE", help="what to compare with")
    what.add_argument("--write-baseline", type=Path, metavar="FILE", help="keep the store's accuracies there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Compare or write. Raises Faults (exit 2) for what does not compare, after everything else has been printed."""
    from ddbench.results.store import Store

    store = Store(args.store, create=False)
    return _write(store, args) if args.write_baseline else _compare(store, args)


def _read(store: Store) -> tuple[list[Result], list[str], list[str]]:
    """The store's results; a sentence for each damaged file, which is left out; and one for all that counts nowhere."""
    from ddbench.leaderboard.join import results_of
    from ddbench.results.contents import read_contents

    contents = read_contents(store)
    results, notes = results_of(contents)
    return results, [fault.sentence for fault in contents.faults], notes


def _warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)


def _write(store: Store, args: argparse.Namespace) -> int:
    from ddbench.errors import Faults
    from ddbench.leaderboard.baseline import write_baseline

    results, damaged, notes = _read(store)
    if damaged:
        raise Faults(damaged)
    _warn(notes)
    num = write_baseline(args.write_baseline, results)
    left_out = sum(not result.is_ranked for result in results)
    if left_out:
        print(_left_out(left_out), file=sys.stderr)
    print(json.dumps({"baseline": str(args.write_baseline), "rows": num}) if args.json else args.write_baseline)
    return 0


def _compare(store: Store, args: argparse.Namespace) -> int:
    from ddbench.errors import Faults
    from ddbench.leaderboard.baseline import read_baseline
    from ddbench.leaderboard.gate import ALPHA, compare

    baseline = read_baseline(args.baseline)
    results, damaged, notes = _read(store)
    _warn([*damaged, *notes])
    report = compare(baseline, results)
    if args.json:
        rows = [each.to_json() for each in report.comparisons]
        value = {"alpha": ALPHA, "rows": rows, "faults": list(report.faults), "num_new": report.num_new}
        value["num_unranked"] = report.num_unranked
        print(json.dumps(value, indent=2, allow_nan=False))
    else:
        print(_text(report, ALPHA))
    if report.faults:
        raise Faults(report.faults)
    return 1 if report.fallen else 0


def _text(report: Report, alpha: float) -> str:
    """The table, how it was judged, and the sets of what fell."""
    from tabulate import tabulate

    num = len(report.comparisons)
    parts = []
    if num:
        parts.append(tabulate(map(_line, report.comparisons), HEADERS, disable_numparse=True, colalign=ALIGN) + "\n")
    parts.append(
        f"{num} comparisons, accuracy in percent, mean over the baseline's seeds.\n"
        "smallest detectable drop = t(1 - alpha / 2m, df) * sqrt(2 v / seeds), one-sided "
        f"alpha = {100 * alpha:g} % for all m = {num} together;\n"
        "v = variance of a seed's mean, pooled over the rows of a network, at least the binomial one of the test set."
    )
    if any(each.detectable >= each.before.mean for each in report.comparisons):
        parts.append(f"{BLIND}: not even a fall to nothing would show, for the seeds are too few for how much they differ.")
    if report.num_new:
        parts.append(f"{report.num_new} rows of the store are not in the baseline and were not compared.")
    if report.num_unranked:
        parts.append(_left_out(report.num_unranked))
    for each in report.fallen:
        sets = ", ".join(f"{key} (seed {seed})" for key, seed in zip(each.now.keys, each.now.seeds, strict=True))
        parts.append(f"fell: {each.now.name} on {each.now.network} by {-100 * each.change:.1f} points; sets {sets}")
    return "\n".join(parts)


def _left_out(num: int) -> str:
    return f"{num} judged set{'s' if num > 1 else ''} that repeat{'' if num > 1 else 's'} a habit of published code left out."


def _line(each: Comparison) -> tuple[str, ...]:
    before, now, change, drop = (100 * x for x in (each.before.mean, each.now.mean, each.change, each.detectable))
    numbers = (f"{before:.1f}", f"{now:.1f}", f"{change:+.1f}", f"{drop:.1f}" if drop < before else BLIND)
    return each.now.name, each.now.network, *numbers, each.basis, "FELL" if each.fell else "ok"
