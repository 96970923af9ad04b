"""A row of a table: the seeds of one plan, and what may be said of them together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ddbench.leaderboard.join import CORE, Result, machine
from ddbench.leaderboard.knowledge import Kind, kind_of
from ddbench.leaderboard.statistics import Accuracy, accuracy, cross_accuracy
from ddbench.plan import SetPlan
from ddbench.refs import PluginRef
from ddbench.schema import TuningRecord

PHASES = ("resources", "distill", "rank", "evaluate")  # of a result's seconds


@dataclass(frozen=True)
class Row:
    """The results of one plan, whatever its seed, that were made and judged by the same versions."""

    name: str
    results: tuple[Result, ...]  # sorted by seed
    backbone: str | None  # the network that distilled; of a baseline and an imported set the one of the rows beside it

    @property
    def plan(self) -> SetPlan:
        """Of the first seed."""
        return self.results[0].plan

    @property
    def is_full_data(self) -> bool:
        """Whether this is all real training images, which belong to every ipc."""
        return self.plan.everything

    @property
    def is_distilled(self) -> bool:
        """Whether a loss made it."""
        return self.plan.is_distilled

    @cached_property
    def networks(self) -> tuple[str, ...]:
        """The labels of the networks that judged one seed at least, sorted."""
        return tuple(sorted({name for result in self.results for name in result.accuracies}))

    @cached_property
    def saw(self) -> Kind:
        """What its sets saw, and the teacher that judges them."""
        return kind_of([result.record.saw for result in self.results] + [one.saw for each in self.results for one in each.judged])

    def label(self, role: str) -> str | None:
        """The label of a plugin by role, or None where the plan has none."""
        ref: PluginRef | None = getattr(self.plan, role)
        return ref.label if ref else None

    def judged_by(self, network: str) -> list[Result]:
        """The seeds that a network has judged."""
        return [result for result in self.results if network in result.accuracies]

    @cached_property
    def accuracies(self) -> dict[str, Accuracy]:
        """By network, over the seeds that it has judged."""
        num_test = self.results[0].num_test
        return {name: accuracy([r.accuracies[name] for r in self.judged_by(name)], num_test) for name in self.networks}

    @property
    def same(self) -> Accuracy | None:
        """On the backbone, where that is among the networks."""
        return self.accuracies.get(self.backbone) if self.backbone else None

    @cached_property
    def others(self) -> tuple[str, ...]:
        """The networks that the cross-architecture mean is taken over: those that have judged every seed."""
        names = (name for name in self.networks if name != self.backbone)
        return tuple(name for name in names if len(self.judged_by(name)) == len(self.results))

    @cached_property
    def cross(self) -> Accuracy | None:
        """The unweighted mean over the networks that are not the backbone."""
        by_network = [[result.accuracies[name] for result in self.results] for name in self.others]
        return cross_accuracy(by_network, self.results[0].num_test) if by_network else None

    def seconds(self, *phases: str) -> float:
        """The mean over the seeds of these phases together."""
        return sum(result.seconds.get(phase, 0.0) for result in self.results for phase in phases) / len(self.results)

    @cached_property
    def makers(self) -> tuple[str, ...]:
        """The hardware that its sets were made on."""
        return tuple(sorted({machine(result.record.place) for result in self.results}))

    @cached_property
    def judges(self) -> tuple[str, ...]:
        """The hardware that they were judged on."""
        return tuple(sorted({machine(record.place) for result in self.results for record in result.judged}))

    @cached_property
    def mixed(self) -> tuple[str, ...]:
        """What is not the same in all of it, in words, so that a reader is told."""
        places = [place for result in self.results for place in result.places]
        found = [f"{verb} {' and '.join(on)}" for verb, on in (("made on", self.makers), ("judged on", self.judges)) if on[1:]]
        versions: dict[str, set[str]] = defaultdict(set)
        sources: dict[str, set[str]] = defaultdict(set)
        for place in places:
            for name, version in place.versions.items():
                versions[name].add(version)
            for name, source in place.sources.items():
                sources[name].add(source[:8])
        known = [name for name in versions if name not in CORE]  # those part rows, or are the making's against the judging's
        found += [f"{name} {' and '.join(sorted(versions[name]))}" for name in sorted(known) if len(versions[name]) > 1]
        several = sorted(name for name, hashes in sources.items() if len(hashes) > 1)
        told = ", ".join(f"{name} ({' and '.join(sorted(sources[name]))})" for name in several)
        return (*found, f"other sources of {told}") if told else tuple(found)

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """What records say a reader must know."""
        ends = ["Its rates lie at the end of the grid that they were chosen from."] * bool(self.tuning and self.tuning.is_at_end)
        return tuple(dict.fromkeys([*(mark for result in self.results for mark in result.marks), *ends, *self._equal_sets()]))

    def _equal_sets(self) -> Iterator[str]:
        """A sentence for each group of seeds whose sets are the same: their ± is no spread over sets."""
        groups: dict[str, list[int]] = defaultdict(list)
        for result in self.results:
            if result.images:
                groups[result.images].append(result.seed)
        for seeds in (seeds for seeds in groups.values() if len(seeds) > 1):
            num = len(self.results) - len(seeds) + 1
            worth = "± says nothing of the method" if num == 1 else f"with its other seeds, ± is of {num} different sets at most"
            yield f"Seeds {_spoken(seeds)} are the same images: {worth}."

    @property
    def tuning(self) -> TuningRecord | None:
        """That chose its rates."""
        return self.results[0].tuning


def _spoken(seeds: Sequence[int]) -> str:
    """`0 to 4`, or `0, 2 and 5`."""
    seeds = sorted(seeds)
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return f"{', '.join(map(str, seeds[:-1]))} and {seeds[-1]}"
