"""Sets and judgements to results: one set, judged under one protocol, and what that says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, takewhile
from math import prod

from ddbench.entry_points import NOUNS
from ddbench.files import digest
from ddbench.plan import Judging, SetPlan, short
from ddbench.refs import PluginRef, foreign
from ddbench.results.contents import Contents
from ddbench.schema import Data, JudgementRecord, Place, SetRecord, TuningRecord
from ddbench.trials import UNTUNED

HARDWARE = ("device", "kind", "instructions", "cores", "threads")  # seconds compare only where all of these are equal
CORE = ("torch", "numpy", "ddbench")  # libraries whose versions part results by how they were judged
Accuracies = Mapping[str, tuple[float, ...]]
"""By network label, one a repeat."""
Versions = tuple[tuple[str, str], ...]
"""(name, version)."""


METHOD = tuple(f"{NOUNS[kind]} '" for kind in ("losses", "spaces", "generators", "baselines"))  # how names of sources begin


@dataclass(frozen=True)
class Result:
    """A set, judged by some networks under one protocol with one draw of random streams, by one version of the libraries."""

    plan: SetPlan
    record: SetRecord
    backbone: str | None  # the label of the network that distilled
    judging: Judging  # by the first network
    accuracies: Accuracies
    iterates: Mapping[int, Accuracies]  # by step
    by_seconds: Mapping[float, Accuracies]  # of the iterates after so many seconds
    judgements: Mapping[str, tuple[JudgementRecord, ...]]  # of the finished set, by network label
    looks: tuple[JudgementRecord, ...]  # the judgements of iterates
    tuning: TuningRecord | None = None  # that chose its rates
    images: str = ""  # equal for sets of the same images and labels; empty where no other set looks the same

    @property
    def key(self) -> str:
        """Of the set."""
        return self.record.key

    @property
    def seed(self) -> int:
        """Of distillation."""
        return self.plan.seed

    @property
    def sources(self) -> dict[str, str]:
        """Of the plugins that are the method, the SHA-256 of the source that made the set, where one of them is a stranger's:
        edited, it is another method. Of ours, `numerics` says when that is so, and tests see to it."""
        plan = self.plan
        if not foreign(*(ref for ref in (plan.loss, plan.space, plan.generator, plan.baseline) if ref)):
            return {}
        return {name: source for name, source in self.record.place.sources.items() if name.startswith(METHOD)}

    @property
    def is_ranked(self) -> bool:
        """Whether its set was made without a habit of published code."""
        return not self.plan.is_habit

    @property
    def other_draw(self) -> int | None:
        """The draw of its random streams, where that is not the seed."""
        return None if self.judging.draw == self.seed else self.judging.draw

    @property
    def awaits_tuning(self) -> bool:
        """Whether its suite is tuned, and it was made before rates were chosen."""
        return self.record.rates_from == UNTUNED

    @cached_property
    def judged(self) -> tuple[JudgementRecord, ...]:
        """The judgements of the finished set, by all networks."""
        return tuple(record for records in self.judgements.values() for record in records)

    @property
    def test(self) -> Data:
        """The split that it was judged on."""
        return self.judged[0].data

    @property
    def num_test(self) -> int:
        """Of test images."""
        return sum(self.test.counts)

    @property
    def images_per_class(self) -> float:
        """That the set decodes to; the mean where classes differ."""
        return self.record.num_images / max(len(self.record.data.counts), 1)

    @property
    def floats(self) -> int | None:
        """That were optimised; of a record of before, those of the tensors that it names. None: nobody knows."""
        record = self.record
        if record.size or not record.stages:
            return record.size.floats if record.size else 0 if self.plan.baseline else None
        shapes = record.stages[record.chosen_stage].tensors
        return sum(prod(shape) for name, shape in shapes.items() if name != "labels")

    @property
    def bytes_without_decoder(self) -> int | None:
        """Of the stored tensors that are no networks which all images share. None: a record of before, which did not say."""
        if self.record.size:
            return self.record.size.bytes_without_decoder
        return self.record.bytes_stored if self.plan.baseline else None

    @property
    def bytes_with_decoder(self) -> int | None:
        """Of the stored tensors and what decodes them. None: nobody knows, as of a generator in a record of before."""
        if self.record.size:
            return self.record.size.bytes_with_decoder
        return None if self.plan.generator else self.record.bytes_stored

    @property
    def num_bytes(self) -> int | None:
        """That are delivered: the smaller of what is stored, with its decoder, and the rendered images. None: nobody knows."""
        stored, rendered = self.bytes_with_decoder, self.record.bytes_images
        if stored is None:
            return rendered if self.record.bytes_stored >= rendered else None
        return min(stored, rendered)

    @cached_property
    def seconds(self) -> Mapping[str, float]:
        """By phase."""
        used = dict(self.record.measured.resources)
        for record in self.judged:
            used |= record.measured.resources
        judged = [record.measured for record in self.judged]
        evaluate = sum(measured.seconds_train + measured.seconds_test for measured in judged)
        return {"resources": sum(used.values()), **self.record.measured.seconds, "evaluate": evaluate}

    @cached_property
    def software(self) -> dict[str, str]:
        """The versions that part rows. Python's own does not: it has no part in the numbers."""
        made = {name: value for name, value in self.record.place.versions.items() if name != "python"}
        return made | {f"judging.{name}": value for name, value in _core(self.judged[0])}

    @property
    def places(self) -> tuple[Place, ...]:
        """Where its set was made, then where that was judged."""
        return self.record.place, *(record.place for record in self.judged)

    @property
    def marks(self) -> tuple[str, ...]:
        """What a reader must know of how its numbers came about."""
        return tuple(dict.fromkeys([*self.record.marks, *(mark for record in self.judged for mark in record.marks)]))

    @property
    def protocols(self) -> tuple[str, ...]:
        """The ids it was judged under; equal numbers under another id are the same judgement."""
        return tuple(sorted({record.judging.protocol for record in self.judged}))

    @property
    def suites(self) -> tuple[str, ...]:
        """Those that asked first, for one of the judgements each; empty where `ddbench evaluate` did."""
        return tuple(sorted({record.suite for record in self.judged}))

    def candidates(self) -> Result | None:
        """The same with those networks alone that have judged the set and every iterate, and the repeats that all of these have:
        the best of fewer would look like less. None without any."""
        everything = (self.accuracies, *self.iterates.values())
        num = {name: min(len(each.get(name, ())) for each in everything) for name in self.accuracies}

        def common(each: Accuracies) -> Accuracies:
            return {name: each[name][:repeats] for name, repeats in num.items() if repeats}

        if not self.iterates or not any(num.values()):
            return None
        iterates = {step: common(each) for step, each in self.iterates.items()}
        return replace(self, accuracies=common(self.accuracies), iterates=iterates, by_seconds={})


def machine(place: Place) -> str:
    """The hardware in a few words: `Some CPU (cpu, AVX512), 2 cores, 1 threads`."""
    hardware = place.hardware
    kind = ", ".join(filter(None, (hardware.kind, hardware.instructions)))
    return f"{hardware.device} ({kind}), {hardware.cores} cores, {hardware.threads} threads"


def results_of(contents: Contents) -> tuple[list[Result], list[str]]:
    """The results in the order of their sets' keys; a sentence for everything that was judged and counts nowhere."""
    labels = _labels(contents)
    parts: dict[tuple[str, str, tuple[str, ...], int, Versions], list[JudgementRecord]] = defaultdict(list)
    for record in contents.judgements:
        judging = record.judging
        if contents.sets[record.set_key].plan.is_trial:
            continue
        parts[record.set_key, digest(judging.stem), judging.resources, judging.draw, _core(record)].append(record)
    results, notes, tunings = [], list[str](), _tunings(contents)
    for _, records in sorted(parts.items()):
        result = _result(contents, sorted(records, key=_order), labels, notes, tunings)
        results += [result] if result else []
        if result and result.iterates and not result.candidates():
            notes.append(f"{_title(result.plan)}: no network has judged all of its iterates. Run the suite to its end.")
    return results, notes


def _tunings(contents: Contents) -> dict[str, TuningRecord]:
    """What chose the rates of a plan, by its stem; of several, that of most trials."""
    records = sorted(contents.tunings.values(), key=lambda record: (record.tuning.budget, record.key))
    return {digest(record.plan.stem): record for record in records}


def _core(record: JudgementRecord) -> Versions:
    return tuple((name, record.place.versions.get(name, "unknown")) for name in CORE)


def _order(record: JudgementRecord) -> tuple[object, ...]:
    return record.key, record.first, record.last, record.checksum


def _what(ref: PluginRef) -> str:
    return digest(ref.what)


def _labels(contents: Contents) -> dict[str, str]:
    """The label of every network by what it is. Different ones of one label, of two releases, get a hash behind it."""
    networks = [record.judging.network for record in contents.judgements]
    networks += [stored.plan.backbone for stored in contents.sets.values() if stored.plan.backbone]
    labels = {_what(ref): ref.label for ref in sorted(networks, key=lambda ref: ref.label, reverse=True)}
    num = Counter(labels.values())
    return {what: f"{label} [{what[:8]}]" if num[label] > 1 else label for what, label in labels.items()}


def _title(plan: SetPlan) -> str:
    return f"set {short(plan.key)} ({plan.name})"


def _result(
    contents: Contents, records: Sequence[JudgementRecord], labels: Mapping[str, str], notes: list[str],
    tunings: Mapping[str, TuningRecord],
) -> Result | None:  # fmt: skip
    """What records of one set, under one protocol, say together; what they cannot say is added to `notes`."""
    stored = contents.sets[records[0].set_key]
    groups: dict[tuple[int | None, float | None], dict[str, list[JudgementRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        which = record.judging.iterate, record.judging.iterate_seconds
        groups[which][labels[_what(record.judging.network)]].append(record)
    title = _title(stored.plan)
    finished = _accuracies(groups[None, None], title, notes)
    steps, moments = (sorted({each for each in side if each is not None}) for side in zip(*groups, strict=True))
    iterates = {step: _accuracies(groups[step, None], title, notes) for step in steps}
    by_seconds = {seconds: _accuracies(groups[None, seconds], title, notes) for seconds in moments}
    if not finished:
        if iterates or by_seconds:
            notes.append(f"{title} has judged iterates, and is not judged itself. Run the suite to its end.")
        return None
    ref = stored.plan.backbone
    judgements = {label: tuple(groups[None, None][label]) for label in finished}
    return Result(
        plan=stored.plan,
        record=stored.record,
        backbone=labels[_what(ref)] if ref else None,
        judging=next(iter(judgements.values()))[0].judging,
        accuracies=finished,
        iterates=iterates,
        by_seconds=by_seconds,
        judgements=judgements,
        looks=tuple(record for record in records if record.judging.is_of_iterate),
        tuning=tunings.get(digest(stored.plan.stem)) if tunings else None,
        images=stored.images_sha256,
    )


def _accuracies(networks: Mapping[str, Iterable[JudgementRecord]], title: str, notes: list[str]) -> dict[str, tuple[float, ...]]:
    """By network, the repeats of all blocks in their order, from 0 up to the first that is missing."""
    made = {}
    for label, records in sorted(networks.items()):
        repeats = {repeat.repeat: repeat.accuracy for record in records for repeat in record.repeats}
        leading = tuple(takewhile(repeats.__contains__, count()))
        if left := sorted(repeats.keys() - set(leading)):
            which = f"repeat {left[0]} of {label} counts" if len(left) == 1 else f"repeats from {left[0]} on of {label} count"
            notes.append(f"{title}: {which} nowhere: repeat {len(leading)} was not judged, or under other versions.")
        if leading:
            made[label] = tuple(repeats[number] for number in leading)
    return made
