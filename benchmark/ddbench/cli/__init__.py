"""The command line: a parser, thin verbs, and one place that turns errors into sentences."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import ddbench
from ddbench.cli import check, download, evaluate, leaderboard, plan, plugins, prepare, presets, protocols, resources, run
from ddbench.errors import BenchError

VERBS = (run, plan, prepare, resources, evaluate, leaderboard, check, plugins, protocols, presets, download)


def parser() -> argparse.ArgumentParser:
    """The parser of `ddbench`; building it imports nothing heavy."""
    top = argparse.ArgumentParser(
        prog="ddbench",
        description="The benchmark suite for dataset distillation.",
        epilog="Begin with: ddbench run quickstart",
    )
    top.add_argument("--version", action="version", version=f"ddbench {ddbench.__version__}")
    sub = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(sub)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. 0: done; 1: some cells failed or an accuracy fell; 2: a mistake, told in a sentence; 130: stopped."""
    args = parser().parse_args(argv)
    try:
        return args.main(args)
    except BenchError as error:
        print(f"ddbench: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.strerror or error}: {error.filename or ''}"
        print(f"ddbench: {what}. Check the path, its rights and the free space.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ddbench: stopped. Finished cells are kept; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # `ddbench plugins | head`: whoever read has gone, and that is no fault
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
