"""Why a row has no number on a network for some of its seeds, as far as the store's records of failures tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from ddbench.leaderboard.join import Result
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import Section
from ddbench.refs import PluginRef
from ddbench.results.layout import judgement_job
from ddbench.schema import FailureRecord

Failures = Sequence[tuple[str, FailureRecord]]
"""(job, last failure) of each that was not done since."""
UNKNOWN = "no judgement, and no record of a failure: not run here, or its failure was not kept."


@dataclass(frozen=True)
class Missing:
    """Seeds of a row that a network has not judged, for one reason."""

    row: str
    network: str
    seeds: tuple[int, ...]
    why: str  # a sentence's end

    @property
    def sentence(self) -> str:
        """For the lines below a table."""
        seeds = ", ".join(map(str, self.seeds))
        return f"{self.row}: {self.network} has no number for seed{'s' if self.seeds[1:] else ''} {seeds}: {self.why}"

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"network": self.network, "seeds": list(self.seeds), "why": self.why}


def missing(section: Section, row: Row, failures: Failures) -> Iterator[Missing]:
    """Of a row. A network that has judged none of its seeds is told where it failed; all others were not asked, or not yet."""
    known = {job.rpartition(".")[0]: failure for job, failure in failures}  # whatever the block of repeats
    for label, network in _networks(section).items():
        lacking = [result for result in row.results if label not in result.accuracies]
        reasons: dict[str, list[int]] = {}
        for result in lacking:
            failure = known.get(_job(result, network))
            if failure or len(lacking) < len(row.results):
                reasons.setdefault(reason(failure) if failure else UNKNOWN, []).append(result.seed)
        for why, seeds in reasons.items():
            yield Missing(row.name, label, tuple(seeds), why)


def _networks(section: Section) -> Mapping[str, PluginRef]:
    """Those of all rows, by label."""
    results = [result for row in section.rows for result in row.results]
    found = {label: records[0].judging.network for result in results for label, records in result.judgements.items()}
    return dict(sorted(found.items()))


def _job(result: Result, network: PluginRef) -> str:
    """The name, without the repeats, of the job by which a network would have judged a set as the others have."""
    judging = replace(result.judging, network=network)
    return judgement_job(result.key, judging.key, 0, 0).rpartition(".")[0]


def reason(failure: FailureRecord) -> str:
    """Its sentence without what that may begin with, the title of the job: so those of several seeds are one."""
    return failure.error.removeprefix(f"{failure.title}: ")
