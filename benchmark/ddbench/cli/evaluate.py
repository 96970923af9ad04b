"""`ddbench evaluate`: judge a distilled set from a file, ours or anybody's."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.cli.named import networks_of

REMEDY_FOLDER = "Make it anew, or name another file."

if TYPE_CHECKING:
    import torch

    from ddbench.api import Seen
    from ddbench.data.subsets import Identity
    from ddbench.evaluate.sets import ImportedSet
    from ddbench.grid.planning import Planned
    from ddbench.grid.runner import Outcome, Progress
    from ddbench.plan import SetPlan
    from ddbench.protocols import Protocol
    from ddbench.refs import PluginRef
    from ddbench.results.store import Store


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    text = "train networks on a distilled set from a file and read their accuracy"
    parser = sub.add_parser("evaluate", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("set", type=Path, metavar="SET", help="a .safetensors or .pt file of images and labels")
    parser.add_argument("--data", metavar="NAME", help="the data set it stands for (default: the one the file names)")
    parser.add_argument("--protocol", default="glad-1", metavar="ID", help="see `ddbench protocols` (default: glad-1)")
    parser.add_argument("--archs", metavar="NAME,...", help="networks, as in convnet(width=32) (default: the protocol's)")
    parser.add_argument("--repeats", type=int, metavar="N", help="networks of each architecture (default: the protocol's)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="names the networks' random streams (default: 0)")
    parser.add_argument("--images", choices=("normalised", "pixels", "whitened"), help="what a file that is not ours holds")
    parser.add_argument("--mean", type=_numbers, metavar="M,...", help="that normalised images were normalised by, per channel")
    parser.add_argument("--std", type=_numbers, metavar="S,...", help="likewise")
    parser.add_argument(
        "--labels", choices=("indices", "probabilities", "logits"), help="what its labels are (default: as they look)"
    )
    parser.add_argument("--saw", metavar="WORD,...", help="what it learned from, as in train,external-images (default: unknown)")
    parser.add_argument("--rate", type=float, metavar="R", help="that the set has learned, for protocols that train at it")
    parser.add_argument(
        "--store", type=Path, default=Path("runs/evaluate"),
        help="where the set, its judgements and a protocol's teacher are kept (default: runs/evaluate); a set of that store is "
        "judged where it lies",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:0, ... (default: cuda where there is one)")
    parser.add_argument(
        "--threads", type=int, metavar="N",
        help="on a CPU, of a process; they decide the last bits, and records are mostly made with 1 (default: one a core)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, metavar="N", help="on a CPU, processes side by side (default: cores / threads)")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(main=main)


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
        if not all(map(isfinite, numbers)):
            raise ValueError
        return numbers
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' must be numbers separated by commas, one a channel") from None


@dataclass(frozen=True)
class _Asked:
    """What is to be done, with every mistake in the arguments and the file found."""

    protocol: Protocol
    networks: tuple[PluginRef, ...]
    repeats: int
    dataset: PluginRef
    teacher: PluginRef | None
    given: ImportedSet
    key: str | None  # of the set's plan, where ddbench wrote the file
    saw: tuple[Seen, ...]


def main(args: argparse.Namespace) -> int:
    """Print a line for each network: mean, spread over initialisations, and what it cost. 1: some could not be judged."""
    from ddbench.compute import hardware
    from ddbench.compute.run import pick_device
    from ddbench.data.subsets import default_root, identify
    from ddbench.evaluate.imports import check_saw
    from ddbench.evaluate.judged import Judged
    from ddbench.results.contents import read_contents
    from ddbench.results.store import Store

    device, root = pick_device(args.device), default_root()
    if args.threads is None:
        args.threads = hardware.num_cores() if device.type == "cpu" else 1
    asked = _prepare(args)
    for sentence in asked.given.warnings:
        print(f"warning: {args.set}: {sentence}", file=sys.stderr)
    store, identity = Store(args.store), identify(asked.dataset, root)
    plan = _set_in(store, args, asked) or _imported(store, args, asked, identity, device)
    _refuse_damaged(store, plan)
    check_saw(store.read_record(plan.key), args.saw)
    planned = _planned(args, asked, plan, identity)
    outcome = _run(planned, store, args, root)
    (cell,) = planned.cells
    for sentence in dict.fromkeys(outcome.failed.values()):
        print(f"ddbench: {sentence}", file=sys.stderr)
    records = [record for record in read_contents(store, hash_bytes=False).judgements if record.set_key == cell.set.key]
    judged = {judging.network.label: Judged(judging, records, asked.repeats) for judging in cell.judgings}
    whole = {label: found for label, found in judged.items() if found.is_whole}
    about: dict[str, Any] = {"set": str(args.set), "data": identity.label(asked.dataset.label), "protocol": asked.protocol.id}
    about |= {"whitened": True} if asked.given.whitening else {}
    about |= {"labels": "teacher" if asked.teacher else asked.given.kind, "seed": args.seed, "repeats": asked.repeats}
    rows = [{"network": label, **found.row()} for label, found in whole.items()]
    if args.json:
        entries = [{"network": label, **entry} for label, found in whole.items() for entry in found.entries()]
        about |= {"store": str(store.root), "key": cell.set.key, "test_hash": identity.test_hash, "failed": outcome.failed}
        print(json.dumps(about | {"networks": rows, "evaluations": entries}, indent=1))
    elif rows:
        _print(about, rows)
    return 0 if len(whole) == len(judged) else 1


def _prepare(args: argparse.Namespace) -> _Asked:
    """Check the arguments and read the file, before a step."""
    from dataclasses import replace

    from ddbench import protocols
    from ddbench.errors import ConfigError
    from ddbench.evaluate.imports import saw_of_words
    from ddbench.evaluate.sets import metadata, read_set
    from ddbench.refs import PluginRef
    from ddbench.suite.building import try_building

    protocol = protocols.load(args.protocol)
    numbers, making = protocol.judging, protocol.set
    repeats = protocol.repeats if args.repeats is None else args.repeats
    _check_numbers(args, repeats)
    if args.rate is not None and not (numbers.learned_rate and 0 < args.rate < float("inf")):
        known = ", ".join(id for id in protocols.names() if protocols.load(id).judging.learned_rate)
        raise ConfigError(f"--rate must be above 0 and is for the protocols that use it ({known}); this is '{protocol.id}'.")
    networks = tuple(networks_of(args.archs or ",".join(protocol.networks)))
    meta = metadata(args.set)
    if meta.get("trial"):
        raise ConfigError(f"{args.set} is of a trial by which rates were chosen: no test image judges it. Name another set.")
    name = args.data or meta.get("dataset")
    if name is None:
        raise ConfigError(f"{args.set} does not name its data set: add --data NAME, one of `ddbench plugins --kind datasets`.")
    dataset = PluginRef.resolve("datasets", name, {})
    teacher = PluginRef.resolve("architectures", numbers.teacher.network, {}) if numbers.teacher else None
    spec = dataset.make().spec()
    protocol.check_constants(spec)  # a file's images count as generated
    for network in (*networks, *([teacher] if teacher else [])):
        network.ask(partial(try_building, spec=spec, label=network.label))  # refuses what does not fit
    given = read_set(args.set, spec, args.images, args.mean, args.std, args.labels)
    if given.whitening and (teacher or making.synthetic_mean or making.synthetic_std):
        raise ConfigError(f"whitened images cannot be judged by '{protocol.id}', which works on normalised ones.")
    if args.rate is not None:
        given = replace(given, learned_rate=args.rate)
    return _Asked(protocol, networks, repeats, dataset, teacher, given, meta.get("key"), saw_of_words(args.saw))


def _check_numbers(args: argparse.Namespace, repeats: int) -> None:
    """Raise ConfigError for a number that nobody can mean."""
    from ddbench.errors import ConfigError
    from ddbench.files import MAX_INTEGER
    from ddbench.grid.runner import MAX_WORKERS
    from ddbench.suite.reader import MAX_REPEATS, MAX_THREADS

    workers = 1 if args.workers is None else args.workers
    for name, value, least, most in (
        ("repeats", repeats, 1, MAX_REPEATS), ("threads", args.threads, 1, MAX_THREADS), ("workers", workers, 1, MAX_WORKERS),
        ("seed", args.seed, 0, MAX_INTEGER - 1),
    ):  # fmt: skip
        if not least <= value <= most:
            raise ConfigError(f"--{name} must lie in {least}..{most}, got {value}.")


def _set_in(store: Store, args: argparse.Namespace, asked: _Asked) -> SetPlan | None:
    """The plan of a set that lies in the very store, and is asked for as it lies there: for its own data set, at the rate it
    has learned, and with its own constants for generated images."""
    if not isinstance(asked.key, str) or args.set.name != "set.safetensors" or not store.has_set(asked.key):
        return None
    if args.set.resolve().parent != store.folder(asked.key).resolve() or args.rate is not None:
        return None
    plan, making = store.read_plan(asked.key), asked.protocol.set
    as_made = (plan.synthetic_mean, plan.synthetic_std) == (making.synthetic_mean, making.synthetic_std)
    return plan if as_made and plan.dataset.what == asked.dataset.what else None


def _imported(store: Store, args: argparse.Namespace, asked: _Asked, identity: Identity, device: torch.device) -> SetPlan:
    """The plan of the file's set, which is put into the store if it is not there."""
    from ddbench.compute import hardware
    from ddbench.evaluate.imports import import_set
    from ddbench.plan import short

    place = hardware.place(device, args.threads, (asked.dataset,))
    new = import_set(args.set, asked.given, asked.dataset, identity, asked.protocol.set, place, asked.saw)
    with store.lock(f"set-{short(new.plan.key)}"):
        if not store.has_set(new.plan.key):
            store.publish_set(new.plan, new.record, new.contents)
    return new.plan


def _refuse_damaged(store: Store, plan: SetPlan) -> None:
    """Raise DataError where the store has the set, and not as its record says."""
    from ddbench.errors import DataError
    from ddbench.results.contents import read_contents

    contents = read_contents(store)
    if plan.key not in contents.sets:
        folder = store.folder(plan.key)
        why = [fault.sentence for fault in contents.faults if fault.path == folder or folder in fault.path.parents]
        raise DataError(" ".join(why) or f"set {folder} is damaged. {REMEDY_FOLDER}")


def _planned(args: argparse.Namespace, asked: _Asked, plan: SetPlan, identity: Identity) -> Planned:
    """How the set is judged."""
    from ddbench.grid.planning import with_needs
    from ddbench.plan import Cell, Judging

    about: dict[str, Any] = {"numbers": asked.protocol.judging, "dataset": asked.dataset, "test_hash": identity.test_hash}
    more: dict[str, Any] = {"draw": args.seed, "teacher": asked.teacher, "threads": args.threads, "protocol": asked.protocol.id}
    more |= {"held_out": asked.protocol.set.held_out} if asked.teacher else {}
    judgings = tuple(Judging(network=network, **about, **more) for network in asked.networks)
    return with_needs([Cell(plan, judgings, asked.repeats, asked.protocol.id)], sets=False)


def _run(planned: Planned, store: Store, args: argparse.Namespace, root: Path | None) -> Outcome:
    """Compute the repeats that the store lacks, and the protocol's teacher; repeats go side by side where there are more workers
    than networks."""
    from ddbench import registry
    from ddbench.grid import runner
    from ddbench.results.contents import read_contents

    devices = runner.devices_of(args.device, args.workers, args.threads)
    site = runner.site_of(store, devices, args.threads, root)
    parts = -(-len(devices) // max(1, len(planned.cells[0].judgings)))
    options = runner.Options("", site, registry.executors.make("local"), parts=parts)
    with _bar() as progress:
        return runner.run(planned, store, read_contents(store), options, progress)


@contextmanager
def _bar() -> Iterator[Progress]:
    """The progress bar of `ddbench run`."""
    from ddbench.cli.bar import Bar

    bar = Bar()
    try:
        yield bar
    finally:
        bar.close()


def _print(about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from tabulate import tabulate

    print(", ".join(f"{key} {value}" for key, value in about.items()))
    shown = [
        [
            row["network"],
            f"{100 * row['accuracy']:.1f} ± " + ("–" if row["std"] is None else f"{100 * row['std']:.1f}"),
            f"{row['seconds_train']:.1f}",
            f"{row['seconds_test']:.1f}",
            f"{row['images_per_second']:,.0f}",
            f"{100 * row['peak_share']:.0f}",
            f"{row['peak_memory_bytes'] / 2**20:,.0f}",
            row["way"] + (f", {row['processes']} processes" if row["processes"] > 1 else ""),
        ]
        for row in rows
    ]
    headers = [
        "network",
        "accuracy (%), std over networks",
        "s to train",
        "s to test",
        "images/s",
        "% of peak",
        "peak MiB",
        "way",
    ]
    align = ("left", *["right"] * 6, "left")
    print(tabulate(shown, headers=headers, tablefmt="github", colalign=align, disable_numparse=True))
