"""What the verbs that take a suite share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddbench.grid.runner import Identities
    from ddbench.suite.reader import Suite


def add_suite_arguments(parser: argparse.ArgumentParser) -> None:
    """SUITE --store --only --device --json."""
    parser.add_argument("suite", help="a suite that ddbench ships (such as quickstart), or a TOML file")
    parser.add_argument("--store", type=Path, help="the folder of results (default: runs/<name of the suite>)")
    parser.add_argument("--only", metavar="KEY=VALUE,...", help="only these cells, by loss, space, subset, ipc, seed, baseline")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:0, ... (default: every CUDA device, else the CPU)")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")


def load_suite(name: str) -> tuple[Suite, Identities]:
    """Resolve a suite with the data under DDBENCH_DATA."""
    from ddbench.data.subsets import default_root
    from ddbench.grid.planning import check_plans
    from ddbench.grid.runner import Identities
    from ddbench.suite import load as grid

    identities = Identities()
    suite = grid.load(name, identities, default_root())
    identities.check_ipc(suite.plans)
    check_plans(suite.plans, suite.data_root)
    return suite, identities


def store_path(args: argparse.Namespace, suite: Suite) -> Path:
    """--store, or its default."""
    return args.store or Path("runs") / suite.name
