"""`ddbench protocols`: the evaluation protocols, and what differs between two."""

from __future__ import annotations

import argparse
import json


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    text = "list the evaluation protocols, or say what differs between two"
    parser = sub.add_parser("protocols", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("what", nargs="*", metavar="diff A B", help="without: list them all; diff A B: compare two")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the list, or the settings that differ."""
    from tabulate import tabulate

    from ddbench import protocols
    from ddbench.errors import ConfigError

    if not args.what:
        found = [protocols.load(id).to_json() for id in protocols.names()]
        columns = ("id", "epochs", "repeats", "full_data_epochs", "description")
        rows = [{name: values[name] for name in columns} for values in found]
        print(json.dumps(found, indent=1) if args.json else tabulate(rows, headers="keys", tablefmt="github"))
        return 0
    if len(args.what) != 3 or args.what[0] != "diff":
        raise ConfigError(f"'ddbench protocols' takes nothing, or diff A B; got '{' '.join(args.what)}'.")
    first, second = (protocols.load(id).to_json() for id in args.what[1:])
    differing = {name: [value, second[name]] for name, value in first.items() if value != second[name]}
    if args.json:
        print(json.dumps(differing, indent=1))
    else:
        rows = [{"setting": name, first["id"]: a, second["id"]: b} for name, (a, b) in differing.items()]
        print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True) or f"{first['id']}: nothing differs.")
    return 0
