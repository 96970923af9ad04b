"""`ddbench evaluate`: judge a distilled set from a file, ours or anybody's."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.cli.common import add_quiet, progress_of

REMEDY_FOLDER = "Make it anew, or name another file."

if TYPE_CHECKING:
    import torch

    from ddbench.data.subsets import Identity
    from ddbench.evaluate.asked import Asked
    from ddbench.grid.planning import Planned
    from ddbench.grid.progress import Outcome
    from ddbench.plan import SetPlan
    from ddbench.results.store import Store


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    text = "train networks on a distilled set from files and read their accuracy"
    parser = sub.add_parser("evaluate", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument(
        "set", type=Path, nargs="+", metavar="SET",
        help="a file of images and labels (.safetensors, .pt, .npz), a folder of images by class, or a file of images, one of "
        "labels and, where there is one, one of the learned rate",
    )  # fmt: skip
    parser.add_argument("--experiment", type=int, metavar="N", help="which set of a file that has several, counted from 0")
    parser.add_argument("--data", metavar="NAME", help="the data set it stands for (default: the one the file names)")
    parser.add_argument("--protocol", default="glad-1", metavar="ID", help="see `ddbench protocols` (default: glad-1)")
    parser.add_argument("--archs", metavar="NAME,...", help="networks, as in convnet(width=32) (default: the protocol's)")
    parser.add_argument("--repeats", type=int, metavar="N", help="networks of each architecture (default: the protocol's)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="names the networks' random streams (default: 0)")
    parser.add_argument(
        "--images", choices=("normalised", "pixels", "whitened"),
        help="what a file that is not ours holds (default: pixels where they are bytes)",
    )  # fmt: skip
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
    add_quiet(parser)
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
class Verdict:
    """What was found out about a set."""

    about: dict[str, Any]  # what was judged, and how
    rows: list[dict[str, Any]]  # one for each network that all repeats of are there
    entries: list[dict[str, Any]]  # one for each repeat of these
    more: dict[str, Any]  # for machines
    is_whole: bool  # whether all networks could be judged


def main(args: argparse.Namespace) -> int:
    """Print a line for each network: mean, spread over initialisations, and what it cost. 1: some could not be judged."""
    found = judge(args)
    if args.json:
        print(json.dumps(found.about | found.more | {"networks": found.rows, "evaluations": found.entries}, indent=1))
    elif found.rows:
        _print(found.about, found.rows)
    return 0 if found.is_whole else 1


def judge(args: argparse.Namespace) -> Verdict:
    """Train what is missing; sentences on what is wrong go to the standard error."""
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
    asked = _ask(args)
    store, identity = Store(args.store), identify(asked.dataset, root)
    lies_there = _set_in(store, args, asked)
    plan = lies_there or _imported(store, args, asked, identity, device, root)
    _refuse_damaged(store, plan)
    record = store.read_record(plan.key)
    for sentence in dict.fromkeys((*asked.given.warnings, *(() if lies_there else record.marks))):
        print(f"warning: {asked.found.name}: {sentence}", file=sys.stderr)
    check_saw(record, args.saw)
    planned = _planned(args, asked, plan, identity)
    outcome = _run(planned, store, args, root)
    (cell,) = planned.cells
    for sentence in dict.fromkeys(outcome.failed.values()):
        print(f"ddbench: {sentence}", file=sys.stderr)
    records = [record for record in read_contents(store, hash_bytes=False).judgements if record.set_key == cell.set.key]
    judged = {judging.network.label: Judged(judging, records, asked.repeats) for judging in cell.judgings}
    whole = {label: found for label, found in judged.items() if found.is_whole}
    about: dict[str, Any] = {"set": asked.found.name, "holds": asked.counts, "data": identity.label(asked.dataset.label)}
    about |= {"protocol": asked.protocol.id}
    about |= {"whitened": True} if asked.given.whitening else {}
    about |= {"labels": "teacher" if asked.teacher else asked.given.kind, "seed": args.seed, "repeats": asked.repeats}
    rows = [{"network": label, **found.row()} for label, found in whole.items()]
    entries = [{"network": label, **entry} for label, found in whole.items() for entry in found.entries()]
    more = {"store": str(store.root), "key": cell.set.key, "test_hash": identity.test_hash, "failed": outcome.failed}
    return Verdict(about, rows, entries, more, len(whole) == len(judged))


def _ask(args: argparse.Namespace) -> Asked:
    """Check the arguments and read the files, before a step."""
    from ddbench.evaluate.asked import ask

    _check_numbers(args)
    words = {"data": args.data, "protocol": args.protocol, "archs": args.archs, "repeats": args.repeats, "values": args.images}
    more = {"mean": args.mean, "std": args.std, "kind": args.labels, "saw": args.saw, "rate": args.rate}
    return ask(args.set, **words, **more, experiment=args.experiment)


def _check_numbers(args: argparse.Namespace) -> None:
    """Raise ConfigError for a number that nobody can mean."""
    from ddbench.errors import ConfigError
    from ddbench.files import MAX_INTEGER
    from ddbench.grid.sites import MAX_WORKERS
    from ddbench.suite.reader import MAX_THREADS

    workers = 1 if args.workers is None else args.workers
    for name, value, least, most in (
        ("threads", args.threads, 1, MAX_THREADS), ("workers", workers, 1, MAX_WORKERS), ("seed", args.seed, 0, MAX_INTEGER - 1),
    ):  # fmt: skip
        if not least <= value <= most:
            raise ConfigError(f"--{name} must lie in {least}..{most}, got {value}.")


def _set_in(store: Store, args: argparse.Namespace, asked: Asked) -> SetPlan | None:
    """The plan of a set that lies in the very store, and is asked for as it lies there: for its own data set, at the rate it
    has learned, and with its own constants for generated images."""
    path = asked.found.paths[0]
    if not isinstance(asked.key, str) or path.name != "set.safetensors" or not store.has_set(asked.key):
        return None
    if path.resolve().parent != store.folder(asked.key).resolve() or args.rate is not None:
        return None
    plan, making = store.read_plan(asked.key), asked.protocol.set
    as_made = (plan.synthetic_mean, plan.synthetic_std) == (making.synthetic_mean, making.synthetic_std)
    return plan if as_made and plan.dataset.what == asked.dataset.what else None


def _imported(
    store: Store, args: argparse.Namespace, asked: Asked, identity: Identity, device: torch.device, root: Path | None
) -> SetPlan:  # fmt: skip
    """The plan of the files' set, which is put into the store if it is not there."""
    from ddbench.compute import hardware
    from ddbench.evaluate.asked import compared_with_real
    from ddbench.evaluate.imports import import_set, plan_of
    from ddbench.plan import short

    making = asked.protocol.set
    plan = plan_of(asked.given, asked.dataset, identity, making)
    with store.lock(f"set-{short(plan.key)}"):
        if not store.has_set(plan.key):
            given, place = compared_with_real(asked, root).given, hardware.place(device, args.threads, (asked.dataset,))
            new = import_set(given, asked.dataset, identity, making, place, asked.saw)
            store.publish_set(new.plan, new.record, new.contents)
    return plan


def _refuse_damaged(store: Store, plan: SetPlan) -> None:
    """Raise DataError where the store has the set, and not as its record says."""
    from ddbench.errors import DataError
    from ddbench.results.contents import read_contents

    contents = read_contents(store)
    if plan.key not in contents.sets:
        folder = store.folder(plan.key)
        why = [fault.sentence for fault in contents.faults if fault.path == folder or folder in fault.path.parents]
        raise DataError(" ".join(why) or f"set {folder} is damaged. {REMEDY_FOLDER}")


def _planned(args: argparse.Namespace, asked: Asked, plan: SetPlan, identity: Identity) -> Planned:
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
    from ddbench.grid import runner, sites
    from ddbench.results.contents import read_contents

    devices = sites.devices_of(args.device, args.workers, args.threads)
    site = sites.site_of(store, devices, args.threads, root)
    parts = -(-len(devices) // max(1, len(planned.cells[0].judgings)))
    options = runner.Options("", site, registry.executors.make("local"), parts=parts, again=True)
    with progress_of(args, store, devices) as progress:
        return runner.run(planned, store, read_contents(store), options, progress)


def _print(about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from tabulate import tabulate

    print(", ".join(f"{key} {value}" for key, value in about.items()))
    shown = [
        [
            row["network"],
            f"{100 * row['accuracy']:.1f}" + ("" if row["std"] is None else f" ± {100 * row['std']:.1f}"),
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
