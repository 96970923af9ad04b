"""`ddbench protocols`: the evaluation protocols, and what differs between two."""

from __future__ import annotations

import argparse
import json
import sys
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
    from ddbench.errors import BenchError, ConfigError

    if not args.what:
        found = []
        for id in protocols.names():
            try:
                found.append(protocols.load(id).to_json())
            except BenchError as error:  # somebody's; the others are on offer all the same
                print(f"ddbench: {error}", file=sys.stderr)
        print(json.dumps(found, indent=1) if args.json else _list(found))
        return 0
    if len(args.what) != 3 or args.what[0] != "diff":
        raise ConfigError(f"'ddbench protocols' takes nothing, or diff A B; got '{' '.join(args.what)}'.")
    first, second = (protocols.load(id).to_json() for id in args.what[1:])
    print(json.dumps(_odd(first, second), indent=1) if args.json else _difference(first, second))
    return 0


def _list(found: list[dict[str, Any]]) -> str:
    """A table of what decides most, then what each protocol is."""
    from tabulate import tabulate

    rows = [
        {
            "id": values["id"],
            "epochs": values["judging"]["epochs"],
            "schedule": values["judging"]["schedule"],
            "repeats": values["repeats"],
            "networks": _text(values["networks"]),
            "labels": "teacher" if values["judging"]["teacher"] else "set",
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
    odd = {name: values for name, values in _odd(first, second).items() if name not in ("id", "description")}
    rows = [(name, *(NONE if value is None else _text(value) for value in values)) for name, values in odd.items()]
    table = tabulate(rows, headers=("setting", first["id"], second["id"]), tablefmt="github", disable_numparse=True)
    return "\n".join([_described(first), _described(second), "", table])


def _odd(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Any]]:
    """The settings that differ, as `judging.epochs`; None for one that only the other has."""
    one, other = dict(_flat(first)), dict(_flat(second))
    return {name: [one.get(name), other.get(name)] for name in {**one, **other} if one.get(name) != other.get(name)}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting, those of a table after its name and a dot."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def _text(value: Any) -> str:
    """`convnet, vit` for a list, yes or no for a truth."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or NONE
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
