"""`ddbench plugins`: what is installed, where it comes from, and whether it works; `ddbench plugins check NAME`: its contract."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from ddbench.entry_points import twice
from ddbench.registry import REGISTRIES, PluginRow


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    text = "list the installed plugins and what is wrong with them, or check one against its contract"
    kinds = f"Kinds: {', '.join(REGISTRIES)}."
    parser = sub.add_parser("plugins", help=text, description=f"{text[0].upper()}{text[1:]}. {kinds}")
    what = "check NAME: run the contract checks of a plugin, as in dm or convnet(width=16), or of all of a distribution"
    parser.add_argument("what", nargs="*", metavar="check NAME", help=what)
    parser.add_argument("--kind", choices=list(REGISTRIES), help="one kind only")
    parser.add_argument("--json", action="store_true", help="a JSON list of objects instead of a table")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the plugins; a broken one is a line among the others, and no failure of this verb. Or check some."""
    if args.what:
        from ddbench.cli.check_plugin import check
        from ddbench.errors import ConfigError

        if len(args.what) != 2 or args.what[0] != "check":
            raise ConfigError(f"'ddbench plugins' takes nothing, or check NAME; got '{' '.join(args.what)}'.")
        return check(args.what[1], args.kind, args.json)
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
    told = dict.fromkeys(row.status for row in rows if row.status != "ok")  # one offered twice has two rows
    told |= dict.fromkeys(twice())
    return "\n".join([tabulate(cells, headers, disable_numparse=True), *([""] if told else []), *told])
