"""ddbench run SUITE: compute the sets and judgements that the store lacks, then render its leaderboard."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.cli.common import (
    Loaded,
    add_executor,
    add_quiet,
    add_suite_arguments,
    asking_plugins,
    executor_of,
    faults_of,
    load_suite,
    progress_of,
    refuse_other_settings,
    store_path,
    threads_of,
    warn,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ddbench.grid.jobs import Todo, Work
    from ddbench.grid.progress import Outcome
    from ddbench.grid.runner import Options
    from ddbench.leaderboard.page import Written
    from ddbench.results.contents import Contents
    from ddbench.results.store import Store
    from ddbench.suite.reader import Suite


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("run", help="compute what is missing of a suite, then render its leaderboard", description=__doc__)
    add_suite_arguments(parser, optional=True)
    parser.add_argument("--workers", type=int, help="processes (default: one a CUDA device; on a CPU, cores / threads of a job)")
    parser.add_argument(
        "--checkpoint-seconds", type=_seconds, default=20.0, metavar="S",
        help="seconds between two checkpoints of a set, from which a stopped run goes on (default: 20; 0: after every step)",
    )  # fmt: skip
    parser.add_argument("--prepare", action="store_true", help="train missing experts and teachers too, which takes long")
    parser.add_argument("--redo", action="store_true", help="compute again what other source made, is damaged, or diverged")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="instead of a suite: a stored plan.json, whose set is made")
    parser.add_argument("--job", metavar="NAME", help="only this job, and what it needs; `ddbench plan --jobs` lists the names")
    parser.add_argument("--shard", type=_shard, metavar="I/N", help="only every N-th set with its judgements, from the I-th on")
    add_quiet(parser)
    add_executor(parser)
    what = "submit everything and end: jobs go on without this command; `ddbench status STORE` says how far they are"
    parser.add_argument("--detach", action="store_true", help=what)
    parser.set_defaults(main=main)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, at least 0, got '{text}'")
    return value


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, as in 2/8, got '{text}'")
    return number, count


@dataclass(frozen=True)
class Ran:
    """What became of a run."""

    suite: Suite
    store: Store
    outcome: Outcome
    damaged: tuple[str, ...]  # a sentence for each damaged thing of the store
    written: Written  # the leaderboard

    @property
    def is_whole(self) -> bool:
        """Whether every set and judgement is there."""
        return not (self.outcome.failed or self.suite.broken or self.damaged or self.written.unreadable)


def main(args: argparse.Namespace) -> int:
    """0: every set and judgement is there; 1: some failed or are damaged, the rest is there."""
    if args.detach:
        return _detach(args)
    ran = perform(args)
    suite, outcome, root = ran.suite, ran.outcome, str(ran.store.root)
    if args.json:
        summary: dict[str, Any] = {"suite": suite.name, "store": root, "total": outcome.total}
        summary |= {"present": outcome.present, "computed": outcome.computed, "built": outcome.built}
        summary |= {"failed": outcome.failed, "broken": suite.broken, "damaged": ran.damaged}
        print(json.dumps(summary | {"leaderboard": str(ran.written.path)}, indent=1))
    else:
        print(summary_line(outcome, root, len(suite.broken)))
        print(ran.written.path)
    return 0 if ran.is_whole else 1


@dataclass(frozen=True)
class Begun:
    """All that a run needs."""

    loaded: Loaded
    store: Store
    contents: Contents
    options: Options
    todo: Todo


def perform(args: argparse.Namespace) -> Ran:
    """Compute what is missing and render the leaderboard; sentences on what is wrong go to the standard error."""
    from ddbench.errors import ConfigError
    from ddbench.grid.runner import run
    from ddbench.leaderboard.page import write

    if args.detach:
        raise ConfigError("a run that is left to itself has no result to give: use `ddbench run --detach` in a shell.")
    begun = _begun(args)
    suite, store, contents, todo = begun.loaded.suite, begun.store, begun.contents, begun.todo
    with progress_of(args, store, begun.options.site.devices) as progress:
        outcome = run(begun.loaded.planned, store, contents, begun.options, progress)
    warn(list(outcome.failed.values()))
    written = write(store, store.root / "leaderboard", contents=None if todo.work else contents)
    unread = [f"warning: {sentence}" for sentence in written.unreadable if sentence not in faults_of(contents, store)]
    warn([*unread, *written.notes])
    return Ran(suite, store, outcome, tuple(fault.sentence for fault in contents.faults), written)


def _detach(args: argparse.Namespace) -> int:
    """Submit what is missing and leave it to itself."""
    from ddbench.errors import command
    from ddbench.grid.detach import detach

    begun = _begun(args)
    detached = detach(begun.todo, begun.loaded.planned, begun.store, begun.contents, begun.options)
    root = str(begun.store.root)
    if args.json:
        print(json.dumps({"suite": begun.loaded.suite.name, "store": root, "submitted": detached}, indent=1))
    elif not detached:
        print(f"Nothing to submit: what was asked for is in {root}.")
    else:
        again = "the same command without --detach then does what is left, and writes the leaderboard"
        print(f"Submitted: {len(detached)} jobs. How far they are: {command('status', root)}; {again}.")
    return 0


def _begun(args: argparse.Namespace) -> Begun:
    """Read suite and store, and list the jobs; sentences on what is wrong go to the standard error."""
    from ddbench.grid import stale
    from ddbench.grid.runner import Options
    from ddbench.grid.sites import devices_of, site_of
    from ddbench.grid.tuning import untuned
    from ddbench.results.contents import read_contents
    from ddbench.results.store import Store

    loaded = _loaded(args)
    suite, planned = loaded.suite, loaded.planned
    warn(suite.broken)
    threads = threads_of(planned)
    devices, executor = devices_of(args.device, args.workers, threads), executor_of(args, suite)
    store = Store(store_path(args, suite))
    store.tidy()
    contents = read_contents(store)
    old = stale.find_stale(planned, contents, store)
    if args.redo:
        warn([f"{path} is removed, to be made again where it is needed." for path in stale.drop(old, contents, planned, store)])
        contents = read_contents(store)
        old = stale.find_stale(planned, contents, store)
    warn([*stale.told(old), *faults_of(contents, store), *untuned(planned.cells)])
    refuse_other_settings(planned, contents)
    site = site_of(store, devices, threads, suite.data_root, args.checkpoint_seconds)
    options = Options(suite.name, site, **executor, choose=_chooser(args, loaded), again=args.redo)
    todo = _prepared_jobs(args, loaded, store, contents, options)
    if args.plan is None:
        store.add_suite(suite.name, suite.text)
    return Begun(loaded, store, contents, options, todo)


def _loaded(args: argparse.Namespace) -> Loaded:
    """The suite, or the one set of a stored plan."""
    from ddbench.errors import ConfigError

    if (args.suite is None) == (args.plan is None):
        raise ConfigError("name a suite (such as quickstart), or a stored plan with --plan plan.json, and not both.")
    if args.plan is None:
        return load_suite(args.suite, args.only, args.store)
    from ddbench.grid.again import load_plan

    with asking_plugins():
        return Loaded(*load_plan(args.plan))


def _chooser(args: argparse.Namespace, loaded: Loaded) -> Callable[[Work], bool] | None:
    """Which jobs --job and --shard leave."""
    from ddbench.errors import ConfigError
    from ddbench.results.layout import set_job

    if args.job and args.shard:
        raise ConfigError("--job and --shard exclude one another: name one of them.")
    if args.job:
        return lambda work: work.job.name == args.job
    if args.shard:
        number, count = args.shard
        keys = [cell.set.key for cell in loaded.planned.cells]
        mine = {set_job(key) for key in list(dict.fromkeys(keys))[number - 1 :: count]}
        return lambda work: work.job.kind != "resource" and set_job(work.file.plan.key) in mine
    return None


def _prepared_jobs(args: argparse.Namespace, loaded: Loaded, store: Any, contents: Any, options: Any) -> Todo:
    """The jobs of this run. Raises Faults for experts and teachers that are missing, unless they are to be trained, and
    ConfigError for a job that there is not."""
    from ddbench.errors import ConfigError, command
    from ddbench.grid.jobs import resources_of
    from ddbench.grid.planning import check_prepared
    from ddbench.grid.runner import list_jobs
    from ddbench.results.layout import is_job

    todo = list_jobs(loaded.planned, store, contents, options)
    if args.job and not todo.work and not (is_job(args.job) and store.is_done(args.job)):
        raise ConfigError(f"there is no job '{args.job}' to do. List them with: ddbench plan SUITE --jobs")
    if not args.prepare:
        keys = [key for work in todo.work for key in resources_of(work)]
        more = ["--store", args.store] * bool(args.store)
        make = command("prepare", args.suite or loaded.suite.name, *more)
        remedy = f"Make them with: {make}, or add --prepare to this command."
        check_prepared(loaded.planned, keys, store, remedy)
    return todo


def summary_line(outcome: Outcome, root: str, broken: int = 0) -> str:
    """What was done, in a sentence; `broken`: sentences on parts of the suite that cannot be planned, told before."""
    from ddbench.grid.counts import counted, done_of, kinds_of

    if broken and not outcome.computed and not outcome.failed:
        return f"Nothing was computed: {broken} parts of the suite are broken (see above); what is there lies in {root}."
    if not outcome.total and not outcome.failed:
        return f"Nothing to compute: what was asked for is in {root}."
    if outcome.present == outcome.total and not outcome.failed:
        return f"Nothing to compute: all of {counted(outcome.wanted)} is in {root}."
    told = f"Computed: {done_of(kinds_of(outcome.computed), outcome.wanted)}; there before: {counted(outcome.there)}"
    failed = sum(not name.startswith("resource-") for name in outcome.failed)
    left = outcome.total - len(outcome.computed) - outcome.present - failed
    more = f"; {left} left out because of damage (--redo makes them anew)" if left > 0 else ""
    return f"{told}; failed: {counted(kinds_of(outcome.failed))}{more}. All in {root}."
