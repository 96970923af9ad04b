"""`ddbench protocols`: the evaluation protocols, and what differs between two."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from typing import Any

WIDTH = 130  # columns of a page of text
NONE = "none"


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    text = "list the evaluation protocols, or say what differs between two"
    parser = sub.add_parser("protocols", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("what", nargs="*", metavar="diff A B", help="without: list them all; diff A B: compare two")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the list, or the settings that differ."""
    from ddbench import protocols
    from ddbench.errors import ConfigError

    if not args.what:
        found = [protocols.load(id).to_json() for id in protocols.names()]
        print(json.dumps(found, indent=1) if args.json else _list(found))
        return 0
    if len(args.what) != 3 or args.what[0] != "diff":
        raise ConfigError(f"'ddbench protocols' takes nothing, or diff A B; got '{' '.join(args.what)}'.")
    first, second = (protocols.load(id).to_json() for id in args.what[1:])
    if args.json:
        print(json.dumps({name: [value, second[name]] for name, value in first.items() if value != second[name]}, indent=1))
    else:
        print(_difference(first, second))
    return 0


def _list(found: list[dict[str, Any]]) -> str:
    """A table of what decides most, then what each protocol is."""
    from tabulate import tabulate

    rows = [
        {
            "id": values["id"],
            "epochs": values["epochs"],
            "schedule": values["schedule"],
            "repeats": values["repeats"],
            "networks": _text(values["networks"]),
            "labels": "teacher" if values["teacher"] else "set",
            "ranked": _text(values["ranked"]),
        }
        for values in found
    ]
    notes = "labels: what the networks learn, the set's own or a teacher's. ranked: no for a habit of published code."
    return "\n".join([tabulate(rows, headers="keys", tablefmt="github"), "", notes, "", *map(_described, found)])


def _described(values: dict[str, Any]) -> str:
    return textwrap.fill(f"{values['id']}: {values['description']}", WIDTH, subsequent_indent="  ")


def _difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """What both are, and a line for each setting that is not the same in both; of a teacher, each of its own."""
    from tabulate import tabulate

    if first == second:
        return f"{first['id']}: nothing differs."
    both = [dict(_flat(values)) for values in (first, second)]
    names = [name for name in dict.fromkeys([*both[0], *both[1]]) if name not in ("id", "description")]
    rows = [(name, *(values.get(name, NONE) for values in both)) for name in names if both[0].get(name) != both[1].get(name)]
    table = tabulate(rows, headers=("setting", first["id"], second["id"]), tablefmt="github", disable_numparse=True)
    return "\n".join([_described(first), _described(second), "", table])


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of every setting, those of a nested one after its name and a dot."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, _text(value)


def _text(value: Any) -> str:
    """`convnet, vit` for a list, yes or no for a truth."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or NONE
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
