"""`ddbench figures`: figures of a store, beside its page."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddbench.leaderboard.figures.attention import Classifiers

BACKBONE = "backbone"  # --cam without a network
MAX_EPOCHS = 10_000


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    text = "draw accuracy on the way, scores against accuracy, losses of steps and synthetic images, as PNG and SVG"
    parser = sub.add_parser("figures", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of results")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: STORE/leaderboard/figures)")
    text = "also class-activation maps of the sets, by a network trained on the training images (default: each set's backbone)"
    parser.add_argument("--cam", nargs="?", const=BACKBONE, metavar="NETWORK", help=text)
    parser.add_argument("--cam-epochs", type=int, default=10, metavar="N", help="for which that is trained (default: 10)")
    parser.add_argument("--device", default="auto", help="for --cam: cpu, cuda, cuda:0, ... (default: cuda where there is one)")
    parser.add_argument("--json", action="store_true", help="print what is drawn as JSON; the figures are written too")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Write the figures and print the path of their page. 0, or 1 if a file of the store is damaged; the rest is drawn all the
    same."""
    from ddbench.leaderboard.figures.drawing import require_matplotlib
    from ddbench.leaderboard.figures.write import write_figures
    from ddbench.results.contents import read_contents
    from ddbench.results.store import Store

    require_matplotlib()
    store = Store(args.store, create=False)
    out = args.out or args.store / "leaderboard" / "figures"
    made = write_figures(store, read_contents(store), out, _classifiers(args))
    for sentence in made.faults:
        print(f"warning: {sentence}", file=sys.stderr)
    if args.json:
        told = [{"name": each.name, "title": each.title, "files": sorted(each.files), **each.values} for each in made.drawn]
        print(json.dumps({"page": str(made.page), "figures": told}, indent=1, allow_nan=False))
    else:
        print(made.page)
    return 1 if made.faults else 0


def _classifiers(args: argparse.Namespace) -> Classifiers | None:
    """What --cam asks for. Raises ConfigError."""
    from ddbench.compute.run import select_device
    from ddbench.data.subsets import default_root
    from ddbench.errors import ConfigError
    from ddbench.evaluate.asked import networks_of
    from ddbench.leaderboard.figures.attention import Classifiers

    if args.cam is None:
        return None
    if not 1 <= args.cam_epochs <= MAX_EPOCHS:
        raise ConfigError(f"--cam-epochs must lie in 1..{MAX_EPOCHS}, got {args.cam_epochs}.")
    networks = () if args.cam == BACKBONE else networks_of(args.cam)
    if len(networks) > 1:
        raise ConfigError(f"--cam takes one network, got {args.cam}.")

    def say(told: str) -> None:
        print(f"ddbench: {told}", file=sys.stderr)

    return Classifiers(networks[0] if networks else None, args.cam_epochs, select_device(args.device), default_root(), say)
