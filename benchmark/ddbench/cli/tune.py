"""ddbench tune SUITE: try learning rates for every method of a suite, as many trials for each, and choose the best of them.

A trial distils a set from random streams of its own and is scored on held-out training images. `ddbench run` takes what was
chosen.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import TYPE_CHECKING, Any

from ddbench.cli.common import (
    add_executor,
    add_quiet,
    add_suite_arguments,
    asking_plugins,
    executor_of,
    faults_of,
    progress_of,
    refuse_other_settings,
    store_path,
    threads_of,
    warn,
)

if TYPE_CHECKING:
    from ddbench.grid.planning import Planned
    from ddbench.grid.progress import Outcome
    from ddbench.grid.stale import Stale
    from ddbench.grid.tuning import Method
    from ddbench.results.contents import Contents
    from ddbench.results.store import Store
    from ddbench.schema import TuningRecord
    from ddbench.suite.reader import Suite


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the verb."""
    parser = sub.add_parser("tune", help="choose the learning rates of a suite's methods by trials", description=__doc__)
    add_suite_arguments(parser)
    text = "of each method, from 0.01 to below 100 times its own rates (default: as the table [tune] of the suite has it)"
    parser.add_argument("--trials", type=int, metavar="N", help=text)
    parser.add_argument("--workers", type=int, help="processes (default: one a CUDA device; on a CPU, cores / threads of a job)")
    parser.add_argument("--prepare", action="store_true", help="train missing experts and teachers too, which takes long")
    parser.add_argument("--redo", action="store_true", help="make trials again that are damaged, or of other plugin source")
    add_executor(parser)
    add_quiet(parser)
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """0: rates are chosen for every method; 1: some trials failed, or none of a method's could be used; the rest is there."""
    from dataclasses import replace

    from ddbench.grid.sites import devices_of
    from ddbench.grid.tuning import chosen
    from ddbench.results.contents import read_contents
    from ddbench.results.store import Store
    from ddbench.results.trials import publish_tuning

    suite, methods, planned = _planned(args)
    devices = devices_of(args.device, args.workers, threads_of(planned))
    store = Store(store_path(args, suite))
    outcome = _run(args, suite, methods, planned, store, devices)
    contents = read_contents(store)
    found = [(method, chosen(method, contents.trials, suite.name)) for method in methods]
    written = [publish_tuning(store, record) for _, record in found if record]
    faults = tuple(fault for fault in contents.faults if fault.path not in written)  # one that was damaged is mended
    contents = replace(contents, faults=faults)
    told = [_told(method, record) for method, record in found]
    broken = [*suite.broken, *outcome.failed.values()]
    warn([*broken, *faults_of(contents, store), *(one["warning"] for one in told if one["warning"])])
    if args.json:
        about = {"suite": suite.name, "store": str(store.root), "methods": told, "computed": outcome.computed}
        print(json.dumps(about | {"present": outcome.present, "failed": outcome.failed, "broken": list(suite.broken)}, indent=1))
    else:
        _print(told, outcome, store)
    return 1 if broken or contents.faults or any(record is None for _, record in found) else 0


def _planned(args: argparse.Namespace) -> tuple[Suite, list[Method], Planned]:
    """The suite's methods with their trials. Raises Faults with all that is wrong with the suite, or with its trials."""
    from ddbench.data.subsets import default_root
    from ddbench.errors import ConfigError
    from ddbench.grid.planning import Identities, check_plans, with_subsets
    from ddbench.grid.tuning import methods_of, plan_trials, trial_cells
    from ddbench.suite import load
    from ddbench.suite.selection import select

    identities = Identities()
    with asking_plugins():
        suite = load.load(args.suite, identities, default_root(), trials=args.trials)
        methods = methods_of(select(suite.cells, args.only))
        if not methods and not suite.broken:
            wanted = "that takes a table [tune] in it, or --trials 8, and a cell that distils"
            raise ConfigError(f"suite '{args.suite}' has no rates to tune here: {wanted}.")
        check_plans([*suite.cells, *trial_cells(methods)], identities, suite.data_root)
        planned_methods, planned = plan_trials(methods)
        return suite, planned_methods, with_subsets(planned, identities, suite.data_root)


def _run(
    args: argparse.Namespace, suite: Suite, methods: list[Method], planned: Planned, store: Store, devices: list[str]
) -> Outcome:  # fmt: skip
    """Do the trials that are missing."""
    from ddbench.grid import stale
    from ddbench.grid.jobs import resources_of
    from ddbench.grid.planning import check_prepared
    from ddbench.grid.runner import Options, run_jobs
    from ddbench.grid.sites import site_of
    from ddbench.grid.tuning import missing
    from ddbench.results.contents import read_contents

    store.tidy()
    contents = read_contents(store)
    old = stale.find_stale(planned, contents, store)
    if args.redo:
        gone = stale.drop(old, contents, planned, store) + _drop(store, contents, old)
        warn([f"{path} is removed, to be made again where it is needed." for path in gone])
        contents = read_contents(store)
        old = stale.find_stale(planned, contents, store)
    warn(stale.told(old))
    store.add_suite(suite.name, suite.text)
    refuse_other_settings(planned, contents)
    todo = missing(methods, planned, store, contents.trials, suite.name)
    if not args.prepare:
        remedy = "They are trained without the images that score trials: add --prepare to this command."
        check_prepared(planned, [key for work in todo.work for key in resources_of(work)], store, remedy)
    site = site_of(store, devices, threads_of(planned), suite.data_root)
    options = Options(suite.name, site, **executor_of(args, suite), again=args.redo)
    with progress_of(args, store, devices) as progress:
        return run_jobs(todo, planned, store, contents, options, progress)


def _drop(store: Store, contents: Contents, old: list[Stale]) -> list[str]:
    """Take away trials that are damaged, or whose sets were stale."""
    from ddbench.results.trials import drop_trials

    return drop_trials(store, contents.trials, {each.key for each in old if each.kind == "set"})


def _told(method: Method, record: TuningRecord | None) -> dict[str, Any]:
    """A method and what was chosen for it, as plain values."""
    from ddbench.grid.tuning import spread

    plan = method.plan
    about: dict[str, Any] = {"method": plan.method, "subset": plan.dataset.label, "ipc": plan.ipc, "key": method.key}
    about |= {"own_rates": plan.rates, "rates": None, "trials": [], "seconds": None, "warning": ""}
    if record is None:
        return about | {"warning": f"{method.name}: nothing is chosen: trials are missing, or all have diverged."}
    for number, point in enumerate(record.tried):
        error = None if point.diverged else statistics.fmean(point.errors)
        trial = {"rates": point.rates, "error": error, "std": spread(point), "seconds": point.seconds}
        about["trials"].append(trial | {"diverged": point.diverged, "chosen": number == record.choice})
    if record.is_at_end:
        about["warning"] = f"{method.name}: the best rates lie at the end of the grid: give 'factors' beyond it in [tune]."
    return about | {"rates": record.plan.rates, "seconds": record.seconds}


def _print(told: list[dict[str, Any]], outcome: Outcome, store: Store) -> None:
    from tabulate import tabulate

    rows = []
    for one in told:
        row = {"method": one["method"], "subset": one["subset"], "ipc": one["ipc"]}
        best = next((trial for trial in one["trials"] if trial["chosen"]), None)
        row["chosen rates"] = "none" if best is None else ", ".join(f"{name} {rate:.3g}" for name, rate in best["rates"].items())
        spread = "" if best is None or best["std"] is None else f" ± {100 * best['std']:.1f}"
        row["held-out error (%)"] = "" if best is None else f"{100 * best['error']:.1f}{spread}"
        row["trials"] = f"{len(one['trials'])}, {sum(trial['diverged'] for trial in one['trials'])} diverged" if best else ""
        row["s"] = "" if best is None else f"{one['seconds']:,.1f}"
        rows.append(row)
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    print(f"{len(outcome.computed)} trials made, {outcome.present} were there, {len(outcome.failed)} failed, in {store.root}.")
