"""`ddbench presets`: the families of published settings, and what each of them has, knows not, and is taken from."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddbench.suite.presets import Family, Preset

WIDTH = 130  # columns of a page of text
COLUMNS = {"where": 22, "sets": 40, "unknown": 21, "judged by": 19, "see": 6}  # and how wide


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    text = "list the families of published settings, or what one of them sets, does not know, and is taken from"
    parser = sub.add_parser("presets", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("family", nargs="?", metavar="FAMILY", help="without: list them all")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the families, or the entries of one."""
    from ddbench.suite import presets

    if args.family is None:
        return _list(args.json)
    family = presets.load(args.family)
    if args.json:
        about = {"name": family.name, "description": family.description}
        print(json.dumps(about | {"presets": [entry.to_json() for entry in family.entries]}, indent=1))
    else:
        print(page(family))
    return 0


def _list(as_json: bool) -> int:
    """A line for each family; a broken one is a line among the others, and no failure of this verb."""
    from tabulate import tabulate

    from ddbench import registry
    from ddbench.errors import BenchError
    from ddbench.suite import presets

    rows, faults = [], []
    for row in registry.presets.rows():
        found = {"family": row.name, "from": f"{row.distribution} {row.version}", "entries": 0, "description": row.description}
        try:
            family = presets.load(row.name)
            found |= {"entries": len(family.entries), "description": family.description}
        except BenchError as error:
            found["description"] = "broken"
            faults.append(str(error))
        rows.append(found)
    if as_json:
        print(json.dumps({"families": rows, "faults": faults}, indent=1))
    else:
        print("\n".join([tabulate(rows, headers="keys"), *([""] if faults else []), *faults]))
    return 0


def page(family: Family) -> str:
    """The entries in a table; below, why values are unknown, and the sources and notes, each once."""
    from tabulate import tabulate

    notes: dict[str, int] = {}
    rows = [_row(entry, notes) for entry in family.entries]
    table = tabulate(rows, ("", *COLUMNS), tablefmt="grid", disable_numparse=True)
    explained = (
        "sets: below what a suite says itself. unknown: what a suite must give, for the reason below. judged by: the protocol of "
        "the published numbers."
    )
    title = f"{family.name}: {family.description}."
    return "\n".join([_wrapped(title), "", table, "", _wrapped(explained), "", *_unknown(family), *_notes(notes)])


def _row(entry: Preset, notes: dict[str, int]) -> tuple[str, ...]:
    """The cells, wrapped."""
    where = {key: ", ".join(values) for key, values in entry.where.items()}
    subset = where.get("subset", "every subset") + (f" at {where['side']} px" if "side" in where else "")
    place = f"{where.get('loss', 'every loss')} / {where.get('space', 'every space')}; {subset}; ipc {where.get('ipc', 'any')}"
    texts = (entry.source, entry.note, *(f"Marked: {path}: {what}" for path, what in entry.marks.items()))
    see = [notes.setdefault(text, len(notes) + 1) for text in texts if text]
    cells = (place, ", ".join(_flat(entry.set)), ", ".join(entry.unknown), entry.protocol, ", ".join(map(str, see)))
    pairs = zip(cells, COLUMNS.values(), strict=True)
    return (str(entry.number), *(_wrapped(cell, width) or "-" for cell, width in pairs))


def _wrapped(text: str, width: int = WIDTH, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`steps 1000` of every setting; those of a nested table after its name and a dot."""
    found = []
    for name, value in table.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name} {value if isinstance(value, str) else json.dumps(value)}")
    return found


def _unknown(family: Family) -> list[str]:
    """Each reason once, with the values, and the numbers of the entries, that it holds for."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for entry in family.entries:
        for path, why in entry.unknown.items():
            reasons.setdefault(why, {}).setdefault(path, []).append(str(entry.number))
    lines = []
    for why, paths in reasons.items():
        who = "; ".join(f"{path} of {', '.join(numbers)}" for path, numbers in paths.items())
        lines.append(_wrapped(f"Unknown, {who}: {why.rstrip('.')}.", indent="  "))
    return [*lines, ""] if lines else []


def _notes(notes: Mapping[str, int]) -> list[str]:
    return [_wrapped(f"[{number}] {text.rstrip('.')}.", indent="    ") for text, number in notes.items()]
