# PYTHON_ARGCOMPLETE_OK
"""The command line: a parser, thin verbs, and one place that turns errors into sentences."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import ddbench
from ddbench.cli import (
    cancel,
    check,
    data,
    download,
    evaluate,
    figures,
    leaderboard,
    plan,
    plugins,
    prepare,
    presets,
    protocols,
    resources,
    run,
    status,
    store,
    tune,
    work,
)
from ddbench.cli.terminal import plainly
from ddbench.cli.words import Parser, complete
from ddbench.errors import BenchError, command

VERBS = (
    run,
    plan,
    prepare,
    tune,
    data,
    resources,
    store,
    evaluate,
    leaderboard,
    figures,
    check,
    plugins,
    protocols,
    presets,
    download,
    status,
    cancel,
    work,
)
GREETING = """\
ddbench {version} makes tiny synthetic training sets out of large ones (dataset distillation), judges them by training networks on
them, and compares the methods in tables.

  ddbench run quickstart     begin here: real digits, some minutes on two cores; ends with the path of a leaderboard
  ddbench plan quickstart    what that makes, what of it is there, and how long the rest takes; computes nothing
  ddbench evaluate SET       judge a distilled set of your own, from a file
  ddbench plugins            the losses, spaces, generators, networks and data sets that are installed
  ddbench --help             all verbs; ddbench VERB --help: what one takes"""


def parser(kind: type[Parser] = Parser) -> argparse.ArgumentParser:
    """The parser of `ddbench`; building it imports nothing heavy."""
    top = kind(
        prog="ddbench",
        description="The benchmark suite for dataset distillation.",
        epilog="Begin with: ddbench run quickstart",
    )
    top.add_argument("--version", action="version", version=f"ddbench {ddbench.__version__}")
    top.set_defaults(main=_greet)
    sub = top.add_subparsers(title="verbs", metavar="VERB")
    for verb in VERBS:
        verb.add_parser(sub)
    return top


def _greet(args: argparse.Namespace) -> int:
    """What a newcomer reads who gives no verb."""
    print(GREETING.format(version=ddbench.__version__))
    return 0


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C: workers are stopped, what is finished is kept. Only the main thread may handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. 0: done; 1: some cells failed or an accuracy fell; 2: a mistake, told in a sentence; 130: stopped."""
    words = sys.argv[1:] if argv is None else list(argv)
    top = parser()
    complete(top)
    with plainly():
        return _told(top, words)


def _told(top: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """The verb's answer, or that to an error, which is told."""
    try:
        args = top.parse_args(words)
        args.command = command(*words)
        with _terminated_like_interrupted():
            return args.main(args)
    except BenchError as error:
        print(f"ddbench: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `ddbench plan SUITE | head`: whoever read has gone
        _write_to_nobody()
        return 141  # what shells say of a program that a closed pipe has ended
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
        except BrokenPipeError:
            _write_to_nobody()


def _write_to_nobody() -> None:
    """What was not written yet would fail again when Python ends."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a stream that is no file
            os.dup2(nobody, stream.fileno())
