"""`ddbench plugins`: what is installed, where it comes from, and whether it works."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from ddbench.registry import REGISTRIES, PluginRow


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    text = "list the installed losses, spaces, generators, architectures, data sets and presets, and what is wrong with them"
    parser = sub.add_parser("plugins", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--kind", choices=list(REGISTRIES), help="one kind only")
    parser.add_argument("--json", action="store_true", help="a JSON list of objects instead of a table")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the plugins; a broken one is a line among the others, and no failure of this verb."""
    kinds = [args.kind] if args.kind else list(REGISTRIES)
    rows = [row for kind in kinds for row in REGISTRIES[kind].rows()]
    print(json.dumps([asdict(row) for row in rows], indent=2) if args.json else _table(rows))
    return 0


def _table(rows: list[PluginRow]) -> str:
    """A line a plugin; below, a sentence for each that does not work."""
    from tabulate import tabulate

    headers = ("kind", "name", "from", "status", "description")
    cells = []
    for row in rows:
        status = "ok" if row.status == "ok" else "broken"
        cells.append((row.kind, row.name, f"{row.distribution} {row.version}", status, row.description))
    faults = dict.fromkeys(row.status for row in rows if row.status != "ok")  # one offered twice has two rows
    return "\n".join([tabulate(cells, headers, disable_numparse=True), *([""] if faults else []), *faults])
