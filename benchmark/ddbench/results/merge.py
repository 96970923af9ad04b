"""Joining the stores of two machines: equal keys with equal bits once; with other bits both are named, and the first is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from filelock import Timeout
from msgspec.structs import replace

from ddbench.errors import ConfigError
from ddbench.plan import differences, short
from ddbench.results.contents import StoredSet
from ddbench.results.folders import Fault
from ddbench.results.iterates import Scored
from ddbench.results.layout import ITERATES, judgement_job, resource_job, set_job, trial_job
from ddbench.results.resources import TENSORS as RESOURCE_TENSORS
from ddbench.results.store import Store
from ddbench.results.trials import publish_trial, publish_tuning, sha256_of
from ddbench.results.verify import verify
from ddbench.schema import JudgementRecord, Repeat, TrialRecord, TuningRecord

KINDS = ("sets", "iterates", "judgements", "trials", "tunings", "resources", "suites")


@dataclass
class MergeReport:
    """What became of a merge. Sentences name a thing by its short key and its name."""

    added: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))  # by kind, how many came in
    present: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))  # and were there with equal bits
    differing: list[str] = field(default_factory=list)  # there with other bits: the first was kept
    dropped: list[str] = field(default_factory=list)  # judgements and trials of sets that were not kept
    busy: list[str] = field(default_factory=list)  # what another process was computing: merge again
    faults: list[Fault] = field(default_factory=list)  # of either store; what is faulty stays where it is

    @property
    def is_clean(self) -> bool:
        """Whether all of the other store is in this one now, and both are sound."""
        return not (self.differing or self.dropped or self.busy or self.faults)


def merge(into: Store, other: Store) -> MergeReport:
    """Copy what is sound in `other` and missing in `into`, each thing whole, so that a merge that was stopped can be given again.

    Failures and what is under way are not merged. Raises ConfigError where both are one store.
    """
    if into.root.resolve() == other.root.resolve():
        raise ConfigError(f"{into.root} cannot be merged into itself: name two stores.")
    into.tidy()
    here, there = verify(into), verify(other)
    merging = _Merging(into, other, dict(here.contents.sets))
    for key in there.resources:
        merging.resource(key, key in here.resources)
    for one in there.contents.sets.values():
        merging.set(one)
    if merging.report.added["sets"] or merging.report.added["iterates"]:
        here = verify(into)  # judgements that lay there without a set may have theirs now
    merging.know(here.contents.judgements)
    for record in there.contents.judgements:
        merging.judgement(record, there.contents.sets[record.set_key])
    for trial in there.contents.trials.values():
        merging.trial(trial, here.contents.trials.get(trial.key))
    for tuning in there.contents.tunings.values():
        merging.tuning(tuning, here.contents.tunings.get(tuning.key))
    for name in there.suites:
        merging.suite(name)
    merging.report.faults += [*here.faults, *there.faults]
    return merging.report


@dataclass
class _Merging:
    into: Store
    other: Store
    kept: dict[str, StoredSet]  # the sound sets of `into` by key, those that came in among them
    known: dict[tuple[str, str], dict[int, tuple[Repeat, JudgementRecord]]] = field(default_factory=lambda: defaultdict(dict))
    report: MergeReport = field(default_factory=MergeReport)

    def know(self, judgements: Iterable[JudgementRecord]) -> None:
        """Note the repeats that are in `into`."""
        for record in judgements:
            self.known[record.set_key, record.key] |= {repeat.repeat: (repeat, record) for repeat in record.repeats}

    @contextmanager
    def held(self, job: str) -> Iterator[bool]:
        """Whether the job's lock could be taken; where not, the report says so."""
        lock = self.into.lock(job)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            told = f"{job} is being computed in {self.into.root} by another process"
            self.report.busy.append(f"{told}: merge again when it has ended.")
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def differs(self, what: str, here: str, there: str, hint: str = "") -> None:
        """Name both."""
        sides = f"{here[:8]} in {self.into.root}, {there[:8]} in {self.other.root}"
        self.report.differing.append(f"{what} has other bits: {sides}. The first is kept.{hint}")

    def resource(self, key: str, is_sound: bool) -> None:
        """Copy a resource that is missing."""
        if self.into.resources.is_built(key):
            here, there = self.into.resources, self.other.resources
            if is_sound and here.record(key).sha256 != there.record(key).sha256:
                self.differs(f"resource {key} ({here.record(key).describe})", here.record(key).sha256, there.record(key).sha256)
            elif is_sound:
                self.report.present["resources"] += 1
            return
        with self.held(resource_job(key)) as held:
            if held:
                content = (self.other.resources.folder(key) / RESOURCE_TENSORS).read_bytes()
                self.into.resources.put(self.other.resources.record(key), content)
                self.report.added["resources"] += 1

    def set(self, one: StoredSet) -> None:
        """Copy a set that is missing, with its iterates; or those of its iterates that are."""
        key = one.plan.key
        name = f"set {short(key)} ({one.plan.name})"
        here = self.kept.get(key)
        if here is None and self.into.has_set(key):
            return  # faulty, and named among the faults
        with self.held(set_job(key)) as held:
            if not held:
                return
            if here is None:
                self.into.publish_set(one.plan, one.record, self._contents(one))
                self.kept[key] = one
                self.report.added["sets"] += 1
                self.report.added["iterates"] += len(one.iterates)
            elif here.record.set_sha256 != one.record.set_sha256:
                odd = differences(here.plan, one.plan, new_too=True)
                hint = f" Their plans differ in {', '.join(odd)}." if odd else ""
                self.differs(name, here.record.set_sha256, one.record.set_sha256, hint)
            else:
                self.report.present["sets"] += 1
                self._iterates(name, here, one)

    def _contents(self, one: StoredSet) -> dict[str, bytes]:
        folder = self.other.folder(one.plan.key)
        names = [*one.record.files, *(f"{ITERATES}/{step}.{end}" for step in one.iterates for end in ("safetensors", "json"))]
        return {name: (folder / name).read_bytes() for name in names}

    def _iterates(self, name: str, here: StoredSet, one: StoredSet) -> None:
        """Add iterates to a set of equal bits. The caller holds its lock."""
        missing, folder = {}, self.other.folder(one.plan.key) / ITERATES
        for step, iterate in one.iterates.items():
            if step not in here.iterates and not (self.into.folder(one.plan.key) / ITERATES / f"{step}.json").exists():
                missing[step] = (folder / f"{step}.safetensors").read_bytes()
            elif step in here.iterates and here.iterates[step].sha256 != iterate.sha256:
                self.differs(f"iterate {step} of {name}", here.iterates[step].sha256, iterate.sha256)
            elif step in here.iterates:
                self.report.present["iterates"] += 1
        scored = {step: Scored(one.iterates[step].step_score, one.iterates[step].loss) for step in missing}
        self.into.add_iterates(one.plan.key, one.record.set_sha256, missing, scored)
        self.report.added["iterates"] += len(missing)
        added = {step: one.iterates[step] for step in missing}
        self.kept[one.plan.key] = StoredSet(here.plan, here.record, here.iterates | added)

    def judgement(self, record: JudgementRecord, of: StoredSet) -> None:
        """Copy those repeats of a judgement that are missing, where the set that it judged was kept."""
        name = f"{record.judging.network.label} on {of.plan.name}"
        kept = self.kept.get(record.set_key)
        subject = f"{'iterate of ' if record.judging.is_of_iterate else ''}set {short(record.set_key)}{record.judging.where}"
        if kept is None or not kept.is_of(record):
            file = f"judgement {short(record.set_key)}/{short(record.key)}.{record.first}-{record.last} ({name})"
            self.report.dropped.append(f"{file} of {self.other.root} was dropped: its {subject} was not kept.")
            return
        known = self.known[record.set_key, record.key]
        odd = [repeat for repeat in record.repeats if repeat.repeat in known and known[repeat.repeat][0] != repeat]
        for repeat in odd:
            self._repeat_differs(name, known[repeat.repeat], (repeat, record))
        missing = [repeat for repeat in record.repeats if repeat.repeat not in known]
        if not (missing or odd):
            self.report.present["judgements"] += 1
        for part in parts(record, missing):
            self._add(part)

    def _repeat_differs(
        self, name: str, here: tuple[Repeat, JudgementRecord], there: tuple[Repeat, JudgementRecord]
    ) -> None:  # fmt: skip
        odd = differences(here[1].judging, there[1].judging, new_too=True)
        hint = f" Their plans differ in {', '.join(odd)}." if odd else ""
        sides = f"accuracy {here[0].accuracy:.4f} in {self.into.root}, {there[0].accuracy:.4f} in {self.other.root}"
        what = f"judgement {short(there[1].set_key)}/{short(there[1].key)} ({name}), repeat {there[0].repeat}"
        self.report.differing.append(f"{what}, has other bits: {sides}. The first is kept.{hint}")

    def _add(self, record: JudgementRecord) -> None:
        with self.held(judgement_job(record.set_key, record.key, record.first, record.last)) as held:
            target = self.into.judgement(record.set_key, record.key, record.first, record.last)
            if held and not target.exists():  # a faulty one in its place is named among the faults
                self.into.publish_judgement(record)
                self.report.added["judgements"] += 1
                self.know([record])

    def trial(self, record: TrialRecord, here: TrialRecord | None) -> None:
        """Copy a trial that is missing, where its set was kept, or it has none."""
        kept, name = self.kept.get(record.plan.key), f"trial {short(record.key)} ({record.plan.name})"
        if record.set_sha256 and (kept is None or kept.record.set_sha256 != record.set_sha256):
            self.report.dropped.append(f"{name} of {self.other.root} was dropped: its set was not kept.")
        elif here:
            self._same(name, here, record, "trials")
        elif not self.into.trial(record.key).exists():  # a faulty one in its place is named among the faults
            with self.held(trial_job(record.key)) as held:
                if held:
                    publish_trial(self.into, record)
                    self.report.added["trials"] += 1

    def tuning(self, record: TuningRecord, here: TuningRecord | None) -> None:
        """Copy a choice that is missing, where all of its trials were kept."""
        name = f"tuning {short(record.key)} ({record.method.method})"
        if here:
            self._same(name, here, record, "tunings")
        elif not all(self.into.trial(key).exists() for point in record.tried for key in point.trials):
            self.report.dropped.append(f"{name} of {self.other.root} was dropped: not all of its trials were kept.")
        elif not self.into.tuning(record.key).exists():
            publish_tuning(self.into, record)
            self.report.added["tunings"] += 1

    def _same(self, name: str, here: TrialRecord | TuningRecord, there: TrialRecord | TuningRecord, kind: str) -> None:
        sides = sha256_of(here), sha256_of(there)
        if sides[0] != sides[1]:
            self.differs(name, *sides)
        else:
            self.report.present[kind] += 1

    def suite(self, name: str) -> None:
        """Copy a suite's text that is missing; a name holds the hash of what it names."""
        if (self.into.root / "suites" / name).exists():
            self.report.present["suites"] += 1
            return
        text = (self.other.root / "suites" / name).read_text(encoding="utf-8")
        self.into.add_suite(name.rpartition("-")[0], text)
        self.report.added["suites"] += 1


def parts(record: JudgementRecord, missing: list[Repeat]) -> Iterator[JudgementRecord]:
    """The record itself where all of it is missing; else a record for each run of consecutive repeats, with its share of the
    seconds."""
    if len(missing) == len(record.repeats):
        yield record
        return
    runs = list[list[Repeat]]()
    for repeat in missing:
        if runs and repeat.repeat == runs[-1][-1].repeat + 1:
            runs[-1].append(repeat)
        else:
            runs.append([repeat])
    for run in runs:
        share = len(run) / len(record.repeats)
        cost = record.measured
        measured = replace(cost, seconds_train=cost.seconds_train * share, seconds_test=cost.seconds_test * share)
        yield replace(record, first=run[0].repeat, last=run[-1].repeat, repeats=tuple(run), measured=measured)
