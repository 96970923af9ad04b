"""`ddbench evaluate`: judge a distilled set from a file, ours or anybody's."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddbench.evaluate.sets import ImportedSet
    from ddbench.plan import Plan, PluginRef


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    text = "train networks on a distilled set from a file and read their accuracy"
    parser = sub.add_parser("evaluate", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("set", type=Path, metavar="SET", help="a .safetensors or .pt file of images and labels")
    parser.add_argument("--data", metavar="NAME", help="the data set it stands for (default: the one the file names)")
    parser.add_argument("--protocol", default="glad-1", metavar="ID", help="see `ddbench protocols` (default: glad-1)")
    parser.add_argument("--archs", metavar="NAME,...", help="networks, as in convnet(width=32) (default: the protocol's)")
    parser.add_argument("--repeats", type=int, metavar="N", help="networks of each architecture (default: the protocol's)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the evaluation's random streams (default: 0)")
    parser.add_argument("--images", choices=("normalised", "pixels", "whitened"), help="what a file that is not ours holds")
    parser.add_argument("--mean", type=_numbers, metavar="M,...", help="that normalised images were normalised by, per channel")
    parser.add_argument("--std", type=_numbers, metavar="S,...", help="likewise")
    parser.add_argument(
        "--labels", choices=("indices", "probabilities", "logits"), help="what its labels are (default: as they look)"
    )
    parser.add_argument("--rate", type=float, metavar="R", help="that the set has learned, for protocols that train at it")
    parser.add_argument(
        "--store", type=Path, default=Path("runs/evaluate"), help="where a protocol's teacher is kept, once trained"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:0, ... (default: cuda where there is one)")
    parser.add_argument(
        "--threads", type=int, metavar="N",
        help="on a CPU, of a process; they decide the last bits, and records are mostly made with 1 (default: one a core)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, metavar="N", help="on a CPU, processes side by side (default: cores / threads)")
    parser.add_argument("--way", choices=("auto", "serial", "stacked"), default="auto", help="repeats one by one or all at once")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(main=main)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' must be numbers separated by commas, one a channel") from None


def networks_of(text: str) -> list[PluginRef]:
    """`convnet,alexnet(width=32)`, as tables write networks, to architectures. Raises ConfigError."""
    from ddbench.errors import ConfigError
    from ddbench.plan import PluginRef

    refs = []
    for entry in re.split(r",(?![^(]*\))", text):
        match = re.fullmatch(r"\s*([^(),\s]+)(?:\((.*)\))?\s*", entry)
        if not match:
            raise ConfigError(f"--archs takes names such as convnet or convnet(width=32), separated by commas; got '{entry}'.")
        settings: dict[str, Any] = {}
        for part in filter(None, (match[2] or "").split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                raise ConfigError(f"--archs: '{part}' in '{entry}' must be name=value.")
            settings[key.strip()] = _value(value.strip())
        refs.append(PluginRef.resolve("architectures", match[1], settings))
    if len({ref.label for ref in refs}) < len(refs):
        raise ConfigError(f"--archs names a network twice: {text}.")
    return refs


def _value(text: str) -> Any:
    """A TOML value; a bare word is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def main(args: argparse.Namespace) -> int:
    """Print a line for each network: mean, spread over initialisations, and what it cost."""
    from ddbench.compute import hardware
    from ddbench.compute.run import pick_device
    from ddbench.data.subsets import default_root
    from ddbench.evaluate.desk import judge

    device, root = pick_device(args.device), default_root()
    if args.threads is None:
        args.threads = hardware.num_cores() if device.type == "cpu" else 1
    plan, given = _prepare(args, root)
    for sentence in given.warnings:
        print(f"warning: {sentence}", file=sys.stderr)
    with _bar() as tick:
        judged = judge(plan, given, root, device, args.store, args.workers, args.way, tick)
    rows = [_row(ref.label, judged.entries, judged.costs) for ref in plan.networks]
    about: dict[str, Any] = {"set": str(args.set), "data": judged.data_label, "protocol": plan.protocol.id}
    about |= {"whitened": True} if given.whitening else {}
    about |= {"labels": "teacher" if plan.teacher else given.kind, "seed": plan.seed, "repeats": plan.protocol.repeats}
    if args.json:
        extra = {"data_hash": plan.data_hash, "hardware": judged.hardware, "networks": rows, "evaluations": judged.entries}
        print(json.dumps(about | extra, indent=1))
    else:
        _print(about, rows)
    return 0


def _prepare(args: argparse.Namespace, root: Path | None) -> tuple[Plan, ImportedSet]:
    """What is to be done, with every mistake in the arguments and the file found before a step."""
    from dataclasses import replace

    from ddbench import protocols
    from ddbench.errors import ConfigError
    from ddbench.evaluate.sets import named_dataset, read_set
    from ddbench.plan import Plan, PluginRef

    protocol = protocols.load(args.protocol)
    if args.repeats is not None:
        protocol = replace(protocol, repeats=args.repeats)
    if protocol.repeats < 1 or args.threads < 1 or args.seed < 0 or (args.workers or 1) < 1:
        raise ConfigError("--repeats, --threads and --workers must be at least 1 and --seed at least 0.")
    if args.rate is not None and not (protocol.learned_rate and 0 < args.rate < float("inf")):
        known = ", ".join(id for id in protocols.names() if protocols.load(id).learned_rate)
        raise ConfigError(f"--rate must be above 0 and is for the protocols that use it ({known}); this is '{protocol.id}'.")
    networks = tuple(networks_of(args.archs or ",".join(protocol.networks)))
    name = args.data or named_dataset(args.set)
    if name is None:
        raise ConfigError(f"{args.set} does not name its data set: add --data NAME, one of `ddbench plugins --kind datasets`.")
    dataset = PluginRef.resolve("datasets", name, {})
    teacher = PluginRef.resolve("architectures", protocol.teacher.network, {}) if protocol.teacher else None
    spec = dataset.make().spec()
    for network in (*networks, *([teacher] if teacher else [])):
        network.make().build(spec)  # refuses what does not fit
    given = read_set(args.set, spec, args.images, args.mean, args.std, args.labels)
    if given.whitening and (teacher or protocol.synthetic_mean or protocol.synthetic_std):
        raise ConfigError(f"whitened images cannot be judged by '{protocol.id}', which works on normalised ones.")
    if args.rate is not None:
        given = replace(given, learned_rate=args.rate)
    ipc = len(given.images) // spec.num_classes
    plan = Plan(dataset, "", protocol, networks, networks[0], ipc, args.seed, threads=args.threads, teacher=teacher)
    return plan, given


@contextmanager
def _bar() -> Iterator[Callable[[float], None]]:
    """A progress bar with an ETA on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluate", total=1.0)
        yield lambda fraction: progress.update(task, completed=fraction)


def _print(about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from tabulate import tabulate

    print(", ".join(f"{key} {value}" for key, value in about.items()))
    shown = [
        [
            row["network"],
            f"{100 * row['accuracy']:.1f} ± {100 * row['std']:.1f}",
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


def _row(label: str, entries: list[dict[str, Any]], costs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean and population standard deviation over initialisations, as the papers give them, and the cost."""
    accuracies = [entry["accuracy"] for entry in entries if entry["network"] == label]
    return {"network": label, "accuracy": statistics.fmean(accuracies), "std": statistics.pstdev(accuracies)} | costs[label]
