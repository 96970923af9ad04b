"""Which of several texts of one suite asked for a set: they are read again, as far as the plugins that they name are installed.

A suite that was edited between two runs leaves two texts in a store under one name; records hold the name alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddbench.errors import BenchError, DataError
from ddbench.files import digest
from ddbench.leaderboard.join import Result
from ddbench.plan import Judging, SetPlan
from ddbench.refs import PluginRef
from ddbench.suite import load

NOT_OF_THE_TEXT = ("rates",)  # of a plan: tuning chooses them


@dataclass(frozen=True)
class _Known:
    """A data set as the store's records know it."""

    train_hash: str
    test_hash: str


def chosen_texts(
    texts: Mapping[str, Sequence[str]], out: Path, reduced: Mapping[str, str], results: Iterable[Result]
) -> dict[tuple[str, str], str]:  # fmt: skip
    """By suite and key of a set: the text, of those that lie in `out`, that holds most of its judgements, and of these the last.
    Only of suites that have several."""
    made, results = dict[tuple[str, str], str](), list(results)
    for suite, paths in texts.items():
        if len(paths) < 2:
            continue
        own = [result for result in results if suite in result.suites or any(record.suite == suite for record in result.looks)]
        asked = {path: _asked(out / path, suite in reduced, own) for path in paths}
        for result in own:
            records = [record for record in (*result.judged, *result.looks) if record.suite == suite]
            wanted = {_place(result.plan, record.judging) for record in records}
            made[suite, result.key] = max(paths, key=lambda path: (len(wanted & asked[path]), path))
    return made


def _asked(path: Path, is_reduced: bool, results: Sequence[Result]) -> set[str]:
    """The judgements that a text asks for; none where it cannot be read any more."""
    known = {
        record.plan.dataset.label: _Known(record.plan.train_hash, judging.judging.test_hash)
        for record in results for judging in (*record.judged, *record.looks)
    }  # fmt: skip

    def identify(ref: PluginRef, root: Path | None) -> _Known:
        if ref.label not in known:
            raise DataError(f"no record of the store is about '{ref.label}'.")
        return known[ref.label]

    try:
        suite = load.load(f"{path}:{load.REDUCED}" if is_reduced else str(path), identify, None, lenient=True)
    except BenchError:
        return set()
    return {_place(cell.set, judging) for cell in suite.cells for judging in cell.all_judgings()}


def _place(plan: SetPlan, judging: Judging) -> str:
    """Equal for the judgements of a text and of records that mean the same."""
    made = {name: value for name, value in plan.stem.items() if name not in NOT_OF_THE_TEXT}
    look = judging.iterate, judging.iterate_seconds
    return digest([made, plan.seed, judging.stem, judging.network.what, judging.draw, look])
