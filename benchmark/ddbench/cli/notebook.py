"""The verbs as functions, for notebooks and scripts: `ddbench.run`, `evaluate`, `load_set` and `records`.

Options are those of the command line under the same names, read by the same parser and done by the same functions. Mistakes are
raised as `ddbench.errors.BenchError`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from msgspec.structs import asdict

from ddbench.cli.words import Parser
from ddbench.errors import ConfigError, command

if TYPE_CHECKING:
    import pandas as pd

    from ddbench.evaluate.sets import ImportedSet
    from ddbench.plan import SetPlan
    from ddbench.schema import JudgementRecord, Place, SetRecord


class _Raising(Parser):
    """A parser that does not end the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog.replace(' ', '.')}: {message}")


def arguments(verb: str, *given: object, **options: object) -> argparse.Namespace:
    """What the command line would make of it. An option that is None or False is left out, True is a flag; lists and mappings are
    written with commas. Raises ConfigError."""
    from ddbench.cli import parser

    words = [verb]
    for name, value in options.items():
        if value is not None and value is not False:
            option = f"--{name.replace('_', '-')}"
            each = _options(value) if name == "executor_option" else [value]
            words += [option if one is True else f"{option}={_text(one)}" for one in each]
    words += ["--", *map(str, given)]
    args = parser(_Raising).parse_args(words)
    args.command = command(*words)
    return args


def _options(value: object) -> list[object]:
    """Settings of an executor, one an option: values of a mapping as TOML has them."""
    if isinstance(value, Mapping):
        return [f"{key}={json.dumps(part)}" for key, part in value.items()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={part}" for key, part in value.items())
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True)
class Ran:
    """What became of `ddbench.run`."""

    store: Path
    leaderboard: Path  # the page, markdown
    rows: pd.DataFrame  # of the board, a line each, with the columns of `ddbench leaderboard --csv`; accuracies are fractions
    computed: int  # sets and judgements that this run made
    failed: dict[str, str]  # a sentence for each job that failed
    is_whole: bool  # whether everything that was asked for is there and sound


def run(suite: str | Path | None = None, **options: object) -> Ran:
    """Compute what a store lacks of a suite, and render its leaderboard. `options` are those of `ddbench run`: store, only,
    device, workers, prepare, redo, quiet, ... Raises BenchError for a mistake; jobs that fail are told in `failed`."""
    import pandas as pd

    from ddbench.cli.run import perform
    from ddbench.leaderboard.export import lines

    ran = perform(arguments("run", *([] if suite is None else [suite]), **options))
    rows = pd.DataFrame(lines(ran.written.ranked, ran.written.not_ranked))
    computed, failed = len(ran.outcome.computed), ran.outcome.failed
    return Ran(ran.store.root, ran.written.path, rows, computed, failed, ran.is_whole)


@dataclass(frozen=True)
class Evaluated:
    """What became of `ddbench.evaluate`."""

    about: dict[str, Any]  # what was judged, and how
    networks: pd.DataFrame  # a line a network: accuracy, std over initialisations, and what it cost
    repeats: pd.DataFrame  # a line for each trained network
    failed: dict[str, str]  # a sentence for each job that failed


def evaluate_set(set: str | Path | Sequence[str | Path], **options: object) -> Evaluated:
    """Judge a distilled set from a file, ours or anybody's, by training networks on it; `ddbench.evaluate` is the same. `options`
    are those of `ddbench evaluate`: data, protocol, archs, repeats, images, store, ... Raises BenchError for a mistake, or a file
    that is none."""
    import pandas as pd

    from ddbench.cli.evaluate import judge

    paths = [set] if isinstance(set, str | Path) else set
    found = judge(arguments("evaluate", *paths, **options))
    about = found.about | {name: value for name, value in found.more.items() if name != "failed"}
    return Evaluated(about, pd.DataFrame(found.rows), pd.DataFrame(found.entries), found.more["failed"])


def load_set(
    set: str | Path | Sequence[str | Path], data: str | None = None, images: str | None = None, labels: str | None = None,
    experiment: int | None = None,
) -> ImportedSet:  # fmt: skip
    """The tensors of a distilled set, in a file or in several: `images` [N,C,H,W], normalised as the real ones, and `labels`
    [N,K]; of others' files, `data`, `images`, `labels` and `experiment` say what is in them, as for `ddbench evaluate`. Raises
    BenchError."""
    from ddbench.evaluate.set_layouts import open_set
    from ddbench.evaluate.sets import fitted
    from ddbench.refs import PluginRef

    found = open_set([Path(path) for path in ([set] if isinstance(set, str | Path) else set)], experiment)
    name = data or found.meta.get("dataset")
    if name is None:
        raise ConfigError(f"{found.name} does not name its data set: give data=NAME, one of `ddbench plugins --kind datasets`.")
    return fitted(found, PluginRef.resolve("datasets", name, {}).make().spec(), values=images, kind=labels)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Records:
    """What a store holds."""

    sets: pd.DataFrame  # a line a set
    judgements: pd.DataFrame  # a line for each trained network: a repeat of one network on one set
    faults: list[str]  # a sentence for each file that is damaged and left out


def records(store: str | Path) -> Records:
    """The records of a store, as pandas frames. Raises DataError where there is no store."""
    import pandas as pd

    from ddbench.results.contents import read_contents
    from ddbench.results.store import Store

    contents = read_contents(Store(Path(store), create=False))
    sets = pd.DataFrame([_of_set(one.plan, one.record) for one in contents.sets.values()])
    plans = {key: one.plan for key, one in contents.sets.items()}
    judged = [line for record in contents.judgements for line in _of_judgement(plans[record.set_key], record)]
    return Records(sets, pd.DataFrame(judged), [fault.sentence for fault in contents.faults])


def _of_plan(plan: SetPlan) -> dict[str, Any]:
    refs = {role: getattr(plan, role) for role in ("baseline", "loss", "space", "generator", "backbone")}
    named = {role: ref.label if ref else None for role, ref in refs.items()}
    return {"method": plan.method, **named, "data": plan.dataset.label, "ipc": plan.ipc, "budget": plan.budget, "seed": plan.seed}


def _of_place(place: Place) -> dict[str, Any]:
    return {"device": place.hardware.device, "torch": place.versions.get("torch")}


def _of_set(plan: SetPlan, record: SetRecord) -> dict[str, Any]:
    took = {f"seconds_{phase}": value for phase, value in record.measured.seconds.items()}
    more = {"steps": record.steps, "num_images": record.num_images, "bytes_stored": record.bytes_stored, "suite": record.suite}
    size = asdict(record.size) if record.size else {}
    return {"set": record.key, **_of_plan(plan), **more, **size, **took, **_of_place(record.place)}


def _of_judgement(plan: SetPlan, record: JudgementRecord) -> Iterator[dict[str, Any]]:
    judging = record.judging
    about = {"set": record.set_key, **_of_plan(plan), "protocol": judging.protocol, "network": judging.network.label}
    about |= {"draw": judging.draw, "iterate": judging.iterate, "iterate_seconds": judging.iterate_seconds}
    for repeat in record.repeats:
        found = {"repeat": repeat.repeat, "accuracy": repeat.accuracy, "num_test": repeat.num_test}
        yield about | found | {"train_loss": repeat.train_loss, "suite": record.suite} | _of_place(record.place)
