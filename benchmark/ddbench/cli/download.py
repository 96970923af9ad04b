"""ddbench download DATASET: fetch a published data set, because you ask for it; nothing else ever downloads."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("download", help="fetch a data set into DDBENCH_DATA", description=__doc__)
    parser.add_argument("dataset", help="the data set's name, as `ddbench plugins --kind datasets` lists it")
    parser.add_argument("--to", type=Path, help="the folder (default: the one DDBENCH_DATA names)")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the folder the data are in."""
    from ddbench.data.subsets import default_root
    from ddbench.errors import ConfigError
    from ddbench.registry import datasets

    dataset = datasets.make(args.dataset)
    root = args.to or default_root()
    if root is None:
        raise ConfigError("where to? Name a folder with --to, or set DDBENCH_DATA.")
    dataset.download(root)
    print(root)
    return 0
