"""What the verbs that take a suite share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench.cli.words import completed_by
from ddbench.suites import shipped

if TYPE_CHECKING:
    from ddbench.cli.bar import Bar
    from ddbench.grid.planning import Identities, Planned
    from ddbench.results.contents import Contents
    from ddbench.results.store import Store
    from ddbench.suite.reader import Suite


ONLY = (
    "only these cells, by loss, space, subset, ipc, budget, seed, baseline; of a plugin's variants, 'loss=dc(batch_real=8)' takes"
    " that one, 'loss=dc()' the plain one"
)


EXECUTOR = "what runs the jobs (default: local); `ddbench plugins --kind executors` lists what there is"


def add_suite_arguments(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """SUITE --store --only --device --json."""
    help = "a suite that ddbench ships (such as quickstart), or a TOML file"
    completed_by(parser.add_argument("suite", help=help, nargs="?" if optional else None), shipped, "toml")
    parser.add_argument("--store", type=Path, help="the folder of results (default: runs/<name of the suite>)")
    parser.add_argument("--only", metavar="KEY=VALUE,...", help=ONLY)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:0, ... (default: every CUDA device, else the CPU)")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """--quiet."""
    help = "say nothing on the way, only what is wrong and what came out; the store's log.txt has the rest"
    parser.add_argument("--quiet", action="store_true", help=help)


def add_executor(parser: argparse.ArgumentParser) -> None:
    """--executor --executor-option."""
    parser.add_argument("--executor", default="local", metavar="NAME", help=EXECUTOR)
    parser.add_argument(
        "--executor-option", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the executor; may be given several times",
    )  # fmt: skip


def executor_of(args: argparse.Namespace, suite: Suite) -> dict[str, Any]:
    """As `grid.runner.Options` takes it: the executor, its name, and the settings that it was given."""
    from ddbench import registry
    from ddbench.suite import executors

    settings = executors.settings_of(args.executor, args.executor_option, suite.executors)
    made = registry.executors.make(args.executor, settings)
    return {"executor": made, "executor_name": args.executor, "executor_settings": settings}


@contextmanager
def progress_of(args: argparse.Namespace, store: Store, devices: Sequence[str]) -> Iterator[Bar]:
    """Shows what a run does, and puts it into the store's log, after the command that began it."""
    import torch

    import ddbench
    from ddbench.cli.bar import Bar
    from ddbench.results.log import Log

    log = Log(store.root)
    versions = f"ddbench {ddbench.__version__}, torch {torch.__version__}"
    log.add(f"{args.command}: {versions}, on {', '.join(devices)}, in {Path.cwd()}")
    bar = Bar(log, args.quiet)
    try:
        yield bar
    except KeyboardInterrupt:
        log.add("stopped; what is finished is kept")
        raise
    except Exception as error:
        log.add(f"ended by a fault: {type(error).__name__}: {error}")
        raise
    finally:
        bar.close()


@dataclass(frozen=True)
class Loaded:
    """A suite, resolved, and what its chosen cells need."""

    suite: Suite
    planned: Planned
    identities: Identities


@contextmanager
def asking_plugins() -> Iterator[None]:
    """What plugins print while they are asked goes to the standard error, and a folder that they change to is left again."""
    with redirect_stdout(sys.stderr), chdir("."):
        yield


def load_suite(name: str, only: str | None, store: Path | None = None, lenient: bool = False) -> Loaded:
    """Resolve a suite with the data under DDBENCH_DATA; the cells to be made have the rates that tuning has chosen in the store.
    Raises Faults with all that is wrong with it; `lenient`: data and weights that are missing are left to `Suite.missing`, and
    what their cells ask of them is not checked."""
    from ddbench.data.subsets import default_root
    from ddbench.grid.planning import Identities, check_plans, with_needs, with_subsets
    from ddbench.grid.tuning import at_chosen_rates
    from ddbench.results.trials import choices_in
    from ddbench.suite import load
    from ddbench.suite.selection import select

    identities = Identities(looks_only=lenient)
    with asking_plugins():
        suite = load.load(name, identities, default_root(), lenient)
        missing = dict(suite.missing)
        check_plans(suite.cells, identities, suite.data_root, missing if lenient else None)
        suite = replace(suite, missing=missing)
        cells = select(suite.cells, only)
        if any(cell.tuning for cell in cells):
            cells = at_chosen_rates(cells, choices_in(root_of(store, suite)))
        planned = with_subsets(with_needs(cells), identities, suite.data_root, suite.missing)
        return Loaded(suite, planned, identities)


def root_of(given: Path | None, suite: Suite) -> Path:
    """The folder of results: --store, or its default."""
    return given or Path("runs") / suite.name


def store_path(args: argparse.Namespace, suite: Suite) -> Path:
    """The same of a verb's arguments."""
    return root_of(args.store, suite)


def threads_of(planned: Planned) -> int:
    """Of a job's process; a suite has one number for all."""
    return max((cell.set.threads for cell in planned.cells), default=1)


def refuse_other_settings(planned: Planned, contents: Contents) -> None:
    """Raise Faults where a key is found with other resolved settings: a default has changed and `numerics` has not."""
    from ddbench.errors import Faults
    from ddbench.plan import differences

    faults = []
    for cell in planned.cells:
        stored = contents.sets.get(cell.set.key)
        if stored and (names := differences(stored.plan, cell.set)):
            what = f"the store holds the set '{cell.name}' ({cell.set.key[:16]}) with other settings: {', '.join(names)}"
            faults.append(f"{what}. Name another store, or raise `numerics` of the plugin whose default has changed.")
    if faults:
        raise Faults(faults)


def keyed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of a table for JSON: without spaces in their keys."""
    return [{name.replace(" ", "_"): value for name, value in row.items()} for row in rows]


def warn(sentences: list[str] | tuple[str, ...]) -> None:
    """To the standard error, each once."""
    for sentence in dict.fromkeys(sentences):
        print(f"ddbench: {sentence}", file=sys.stderr)


def faults_of(contents: Contents, store: Store) -> list[str]:
    """A sentence for each damaged thing of a store, and what to do about them."""
    found = [fault.sentence for fault in contents.faults]
    what = "1 damaged thing; it is" if len(found) == 1 else f"{len(found)} damaged things; they are"
    return found + ([f"{store.root} holds {what} left out."] if found else [])
