"""ddbench data: the data sets, weights and other files that a user brings: what is there, what is missing, where it belongs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddbench.data.fetch import Progress
    from ddbench.data.user_files import Brought

PARTS = 1000  # of what a data set has to do before its first use


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("data", help="list, prepare and verify the data sets and weights that you bring", description=__doc__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="every data set and file that plugins read: there or missing, and where it belongs")
    listing.add_argument("--json", action="store_true", help="print JSON for machines")
    listing.set_defaults(main=main_list)
    preparing = verbs.add_parser("prepare", help="convert a file of weights once into what runs read")
    preparing.add_argument("name", metavar="NAME", help="as `ddbench data list` shows it")
    preparing.add_argument("--from", dest="given", type=Path, metavar="FILE", help="convert this file, wherever it lies")
    preparing.add_argument("--download", action="store_true", help="fetch it if it is missing; goes on where it was cut off")
    preparing.set_defaults(main=main_prepare)
    verifying = verbs.add_parser("verify", help="hash the files and compare: of everything that is there, or of some")
    verifying.add_argument("names", metavar="NAME", nargs="*", help="as `ddbench data list` shows it")
    verifying.set_defaults(main=main_verify)
    for each in (listing, verifying):
        each.add_argument("--suite", metavar="SUITE", help="the files that this suite's plugins read, too")
    for each in (listing, preparing, verifying):
        each.add_argument("--root", type=Path, metavar="FOLDER", help="the data folder (default: the one DDBENCH_DATA names)")


def _root(args: argparse.Namespace) -> Path | None:
    from ddbench.data.subsets import default_root

    return args.root or default_root()


def main_list(args: argparse.Namespace) -> int:
    """Print a line for each; nothing is read but names and sizes."""
    from tabulate import tabulate

    root = _root(args)
    rows = [*_dataset_rows(root), *_asset_rows(root), *_file_rows(args, root)]
    if args.json:
        print(json.dumps({"root": str(root) if root else None, "data": rows}, indent=1))
        return 0
    print(f"Data folder: {root}\n" if root else "DDBENCH_DATA is not set: only what is installed can be there.\n")
    sizes = ({"MiB": _mib(row["bytes"]), "where": row["where"]} for row in rows)
    shown = [{name: row[name] for name in ("kind", "name", "state")} | more for row, more in zip(rows, sizes, strict=True)]
    print(tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True))
    told = [row["about"] for row in rows if row["kind"] == "data set" and row["about"]]
    told += [f"{row['name']}: {row['about']}, for {row['read_by']}" for row in rows if row["kind"] == "file" and row["read_by"]]
    print("\n".join(["", *told] if told else []))
    return 0


def _mib(num: int | None) -> str:
    return "" if num is None else f"{num / 2**20:,.1f}"


def _dataset_rows(root: Path | None) -> Iterator[dict[str, Any]]:
    """A line a data set; `about` says what is missing, or that it needs settings."""
    from ddbench.errors import BenchError, DataError
    from ddbench.refs import PluginRef
    from ddbench.registry import datasets

    for name in datasets.names():
        row: dict[str, Any] = {"kind": "data set", "name": name, "state": "", "bytes": None, "where": "", "about": ""}
        try:
            files = PluginRef.resolve("datasets", name, {}).ask(lambda dataset: tuple(dataset.files(root)))
            row["state"] = "there" if files else "unknown"
            row["where"] = str(files[0].parent) if files else "it names no files"
            row["bytes"] = sum(path.stat().st_size for path in files if path.is_file()) if files else None
        except DataError as error:
            row |= {"state": "missing", "where": "see below", "about": str(error)}
        except (BenchError, OSError) as error:
            row |= {"state": "unknown", "where": "see below", "about": str(error)}
        yield row


def _asset_rows(root: Path | None) -> Iterator[dict[str, Any]]:
    """A line an asset."""
    from ddbench.data.assets import names, place
    from ddbench.errors import BenchError

    for name in names(root):
        try:
            placed = place(name, root or Path("DDBENCH_DATA"))
        except BenchError as error:
            yield {"kind": "weights", "name": name, "state": "broken", "bytes": None, "where": str(error), "about": ""}
            continue
        facts, state = placed.facts, placed.state if root else "missing"
        paths = placed.files if state == "prepared" else (placed.source,)
        sizes = [path.stat().st_size for path in paths if path.is_file()]
        yield {
            "kind": "weights", "name": name, "state": state, "bytes": sum(sizes) if sizes else None, "where": str(paths[0]),
            "about": facts.what, "licence": facts.licence, "address": facts.address,
        }  # fmt: skip


def _files(args: argparse.Namespace, root: Path | None) -> list[Brought]:
    """What installed plugins, and those of a suite, read beside that."""
    from ddbench.data.user_files import installed_readers, user_files

    suites = _readers_of(args.suite, root) if getattr(args, "suite", None) else ()
    return user_files(root, [*suites, *installed_readers()])


def _readers_of(suite: str, root: Path | None) -> Iterator[tuple[str, Any]]:
    """A suite's plugins, with the settings that it gives them."""
    from ddbench.entry_points import NOUNS
    from ddbench.grid.planning import Identities
    from ddbench.suite import load

    cells = load.load(suite, Identities(looks_only=True), root, lenient=True).cells
    for ref in dict.fromkeys(ref for cell in cells for ref in cell.set.refs):
        if ref.kind in ("losses", "generators", "proxies", "baselines"):
            yield f"{NOUNS[ref.kind]} '{ref.name}'", ref.make()


def _file_rows(args: argparse.Namespace, root: Path | None) -> Iterator[dict[str, Any]]:
    """A line a file."""
    for one in _files(args, root):
        there = one.path.stat().st_size if one.path and one.state == "there" else None
        yield {
            "kind": "file", "name": one.file.file, "state": one.state, "bytes": there,
            "where": str(one.path) if one.path else f"pip install '{one.file.file}'",
            "about": one.file.what, "read_by": " and ".join(one.readers), "sha256": one.file.sha256,
        }  # fmt: skip


def _is_dataset(name: str) -> bool:
    """Whether it names a data set, or a member of a family of them, and no weights."""
    from ddbench.registry import assets, datasets

    return name.partition("/")[0] in datasets.names() and name.partition("/")[0] not in assets.names()


def main_prepare(args: argparse.Namespace) -> int:
    """Convert weights, or get a data set ready; print where they lie."""
    from ddbench.data.assets import place, prepare
    from ddbench.errors import ConfigError

    root = _root(args)
    if _is_dataset(args.name):
        return _prepare_dataset(args, root)
    if any(one.file.file == args.name for one in _files(args, root)):
        raise ConfigError(f"'{args.name}' is read as it is: `ddbench data list` says where it belongs.")
    placed = place(args.name, root)
    print(f"{placed.facts.what}. Licence: {placed.facts.licence}", file=sys.stderr)
    for sentence in prepare(placed, args.given, args.download, _progress()):
        print(sentence, file=sys.stderr)
    for path in placed.files or (placed.source,):
        print(path)
    return 0


def _prepare_dataset(args: argparse.Namespace, root: Path | None) -> int:
    """Fetch it if told to, and do what its first use would do."""
    from ddbench.errors import ConfigError
    from ddbench.refs import PluginRef

    ref = PluginRef.resolve("datasets", args.name, {})
    if args.given:
        raise ConfigError(f"data set '{args.name}' is read as it is: `ddbench data list` says where its files belong.")
    if root is None and args.download:
        raise ConfigError("where to? Name a folder with --root, or set DDBENCH_DATA.")
    if root is not None and args.download:
        ref.ask(lambda dataset: dataset.download(root))
    show = _progress()
    ref.ask(lambda dataset: dataset.files(root))  # says what is missing
    ref.ask(lambda dataset: dataset.prepare(root, lambda what, fraction: show(round(fraction * PARTS), PARTS)))
    print(root or "installed")
    return 0


def _progress() -> Progress:
    """A line for each tenth; where the whole is not known, for each 128 MiB."""
    last = -1

    def show(size: int, total: int | None) -> None:
        nonlocal last
        step = size * 10 // total if total else size >> 27
        if step != last:
            last = step
            parts = f"{step * 10} %" if total == PARTS else f"{_mib(size)}{f' of {_mib(total)}' if total else ''} MiB"
            print(parts, file=sys.stderr)

    return show


def main_verify(args: argparse.Namespace) -> int:
    """0: all is as it was; 1: a sentence on stderr for each file that is not."""
    from ddbench.data.assets import names
    from ddbench.errors import ConfigError

    root = _root(args)
    if root is None:
        raise ConfigError("set DDBENCH_DATA to the folder that holds your data, or name it with --root.")
    files: dict[str, list[Brought]] = {}
    for one in _files(args, root):
        files.setdefault(one.file.file, []).append(one)
    faults, num = list[str](), 0
    for name in args.names or [*names(root), *files]:
        for state, found in _verdicts(name, root, files):
            if args.names or state != "missing":
                faults, num = faults + found, num + 1
                print(f"{name}: {state}")
    if not num:
        print(f"No weights are in {root}; a data set is verified by its name.", file=sys.stderr)
    for sentence in faults:
        print(f"ddbench: {sentence}", file=sys.stderr)
    return 1 if faults else 0


def _verdicts(name: str, root: Path, files: Mapping[str, list[Brought]]) -> list[tuple[str, list[str]]]:
    """One, or one for each hash that plugins name."""
    if _is_dataset(name):
        return [_dataset_verdict(name, root)]
    return [one.verify() for one in files[name]] if name in files else [_verdict(name, root)]


def _verdict(name: str, root: Path) -> tuple[str, list[str]]:
    """In a word, and in a sentence for each fault."""
    from ddbench.data.assets import place, verify

    placed = place(name, root)
    found = verify(placed)
    return "missing" if not placed.is_there else "damaged" if found else placed.state, found


def _dataset_verdict(name: str, root: Path) -> tuple[str, list[str]]:
    """Whether all of it can be read, and is as published where it was published; a copy is no fault."""
    from ddbench.errors import DataError
    from ddbench.refs import PluginRef

    ref = PluginRef.resolve("datasets", name, {})
    try:
        ref.ask(lambda dataset: dataset.files(root))
    except DataError as error:
        return "missing", [str(error)]
    try:
        return "whole" if ref.ask(lambda dataset: dataset.is_original(root)) else "a copy", []
    except DataError as error:
        return "not whole", [str(error)]
