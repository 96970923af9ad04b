"""What `ddbench plan` prints for people: a few lines of what is missing, what that takes and what to do; then tables."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddbench.cli.common import Loaded
from ddbench.durations import duration
from ddbench.errors import command

if TYPE_CHECKING:
    from ddbench.grid.outlook import Line

SHOWN = ("shared", "subset", "cells", "state", "key")  # of what is shared
UNKNOWN = "unknown"  # what hangs on data or weights that are not there, or on work that nobody has done yet
MANY = 5  # of a kind: more are one line of the table
LONG = 40  # rows: a longer table is shown only where it is asked for
NEEDED = "Not there yet, and needed before anything can run:"
NAMED = re.compile("'([^']*)'")
HOW_KNOWN = """\
measured: in this store, on whatever machine that was. tried: a few epochs on random images, here and now, without testing.
counted: floating-point operations at a part of this CPU's peak, which narrow networks do not reach. A distillation is known once
another seed of it has been made here: make one with --only."""


@dataclass(frozen=True)
class Shown:
    """All that is shown of a suite."""

    args: argparse.Namespace
    loaded: Loaded
    rows: list[dict[str, Any]]  # a cell each
    shared: list[dict[str, Any]]
    outlook: list[Line]
    tuning: dict[str, Any] | None
    broken: int  # parts of the suite
    missing: list[str]  # a sentence for everything that must be brought first
    undecoded: list[str]  # a sentence for every data set whose images wait to be decoded
    no_store: str  # the folder that was named, where nothing is yet


def show(shown: Shown) -> None:
    """Print it all."""
    suite = shown.loaded.suite
    print(": ".join(filter(None, (suite.name, suite.description))) + "\n")
    print("\n".join(_summary(shown)))
    if shown.tuning:
        print(_of_tuning(shown.args, shown.tuning))
    if shown.outlook:
        _print_table(shown, [_in_words(line) for line in shown.outlook], "What is missing takes, one job after the other:")
        print(f"\n{HOW_KNOWN}")
    _print_table(shown, list(_short(shown.shared)), "What sets and judgements share:")
    _print_table(shown, where_told(shown.rows, "budget", "bytes"), "Sets and their judgements:")


def _print_table(shown: Shown, rows: list[dict[str, Any]], title: str) -> None:
    from tabulate import tabulate

    if len(rows) > LONG and not shown.args.cells:
        print(f"\n{title} {len(rows)} rows, which --cells shows.")
    elif rows:
        print(f"\n{title}\n\n{tabulate(rows, headers='keys', tablefmt='github')}")


def where_told(rows: list[dict[str, Any]], column: str, value: str) -> list[dict[str, Any]]:
    """The rows without a column, unless one of them has that value."""
    if any(row[column] == value for row in rows):
        return rows
    return [{name: cell for name, cell in row.items() if name != column} for row in rows]


def _summary(shown: Shown) -> Iterator[str]:
    """What is there and what is not, about how long the rest takes, what stands in its way, and the command for it."""
    num = {state: sum(row["set"] == state for row in shown.rows) for state in ("done", "damaged", "failed")}
    there, wanted = (sum(int(row["judged"].split(" of ")[side]) for row in shown.rows) for side in (0, 1))
    sets = [f"{num['done']} there", f"{len(shown.rows) - num['done'] - num['damaged']} missing"]
    sets += [f"{num['damaged']} damaged"] * bool(num["damaged"])
    failed = f" {num['failed']} of the missing ones have failed before." if num["failed"] else ""
    built = sum(entry["state"] == "done" for entry in shown.shared)
    if shown.no_store:
        yield f"There is no store at {shown.no_store} yet: all of it is missing."
    yield f"Sets: {len(shown.rows)} in all, {', '.join(sets)}.{failed}"
    yield f"Judgements: {wanted} in all, {there} there, {wanted - there} missing. Shared: {len(shown.shared)}, {built} built."
    yield from _length(shown.outlook)
    for told, sentences in ((NEEDED, shown.missing), ("Not known yet:", shown.undecoded)):
        if sentences:
            yield f"\n{told}"
            yield from (f"- {sentence}" for sentence in (sentences if shown.args.cells else _alike(sentences)))
    if not shown.missing and (num["done"] < len(shown.rows) or there < wanted):
        yield from _how(shown, is_damaged=bool(num["damaged"]))
    elif not (shown.missing or shown.broken):
        yield "Nothing is missing."
    if shown.broken:
        yield f"{shown.broken} parts of the suite are broken (see above) and not counted."


def _how(shown: Shown, is_damaged: bool) -> Iterator[str]:
    """The command that makes what is missing."""
    from ddbench.trials import UNTUNED

    if any(cell.rates_from == UNTUNED for cell in shown.loaded.planned.cells):
        yield "Rates are not chosen yet: tune first (see below), or rows are not ranked."
    more = [*_chosen(shown.args), *(["--redo"] * is_damaged), *(["--prepare"] * any(entry["costly"] for entry in shown.shared))]
    yield f"Run what is missing with: {command('run', shown.args.suite, *more)}"


def _chosen(args: argparse.Namespace) -> list[str]:
    """The words that other commands take over from this one."""
    return ["--only", args.only] * bool(args.only) + ["--store", str(args.store)] * bool(args.store)


def _length(outlook: list[Line]) -> Iterator[str]:
    """How long the missing jobs take together, as far as that is known."""
    unknown, missing = sum(line.unknown for line in outlook), sum(line.missing for line in outlook)
    if unknown < missing:
        more = f", and {unknown} jobs of unknown length" if unknown else ""
        yield f"What is missing takes about {duration(sum(line.seconds for line in outlook))} on one worker{more} (see below)."
    elif missing:
        yield f"How long the {missing} missing jobs take is unknown (see below)."


def _alike(sentences: list[str]) -> Iterator[str]:
    """Sentences that differ in the first name alone, once; the other names behind it."""
    groups: dict[str, list[str]] = {}
    for sentence in sentences:
        groups.setdefault(NAMED.sub("", sentence, count=1), []).append(sentence)
    for first, *others in groups.values():
        names = [match[1] for match in map(NAMED.search, others) if match]
        yield first + (f" (The same of: {', '.join(names)}.)" if names else "")


def _in_words(line: Line) -> dict[str, str]:
    """A line of the table."""
    known = [duration(line.seconds)] * (line.unknown < line.missing)
    unknown = [UNKNOWN if line.unknown == line.missing else f"{line.unknown} unknown"] * bool(line.unknown)
    time = " + ".join([*known, *unknown])
    memory = UNKNOWN if line.memory_bytes is None else f"{line.memory_bytes / 2**30:.1f}"
    return {"jobs": line.jobs, "missing": str(line.missing), "about": time, "GiB": memory, "known by": line.told}


def _short(shared: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A line for each thing that is shared, or one for all of a kind where there are many."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in shared:
        groups.setdefault((entry["group"], entry["subset"]), []).append({name: entry[name] for name in SHOWN})
    for (name, subset), own in groups.items():
        if len(own) <= MANY:
            yield from own
            continue
        done = sum(entry["state"] == "done" for entry in own)
        cells = max(entry["cells"] for entry in own)
        about = {"shared": name, "subset": subset, "cells": cells, "state": f"{done} of {len(own)} done"}
        yield about | {"key": UNKNOWN if own[0]["key"] == UNKNOWN else f"{len(own)} keys"}


def _of_tuning(args: argparse.Namespace, tuning: dict[str, Any]) -> str:
    """A sentence of trials."""
    counts = "{methods} methods, {chosen} with chosen rates. Trials: {trials} in all, {there} there, {missing} missing"
    seconds = tuning["seconds"]
    about = f", about {duration(seconds)} on one worker" if tuning["missing"] and seconds is not None else ""
    how = command("tune", args.suite, *_chosen(args))
    return f"Tuning: {counts.format(**tuning)}{about}." + (f" Make them with: {how}" if tuning["missing"] else "")
