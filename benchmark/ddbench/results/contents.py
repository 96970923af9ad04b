"""All that a store holds, read once, checked and joined: sets, judgements and trials of these very sets, and what was chosen by
trials. What is wrong is named and left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ddbench import schema
from ddbench.errors import DataError
from ddbench.files import sha256_of_tensors
from ddbench.plan import Cell, Judging, SetPlan, short
from ddbench.results import folders, iterates, trials
from ddbench.results.folders import Fault, fault_of, stranger
from ddbench.results.layout import ITERATES, PICTURE, PLAN, RECORD, TENSORS, BlockName, block_name, entries, is_key16
from ddbench.results.store import Store
from ddbench.schema import REMEDY, REMEDY_FOLDER, IterateRecord, JudgementRecord, SetRecord, TrialRecord, TuningRecord


@dataclass(frozen=True)
class StoredSet:
    """A sound set."""

    plan: SetPlan
    record: SetRecord
    iterates: dict[int, IterateRecord]  # by step
    images_sha256: str = ""  # of images and labels, whatever the seed, where another set has the same picture

    def sha256(self, step: int | None) -> str | None:
        """Of the iterate of that step, or of the finished set; None where that iterate is not there."""
        if step is None:
            return self.record.set_sha256
        return self.iterates[step].sha256 if step in self.iterates else None

    def step_of(self, judging: Judging) -> int | None:
        """The step of the iterate that a judging is of; None for the finished set. Raises DataError where that is unknown."""
        return iterates.step_of(self.plan, self.record, judging)

    def is_of(self, record: JudgementRecord) -> bool:
        """Whether a judgement is of the very bytes that are here."""
        try:
            return self.sha256(self.step_of(record.judging)) == record.set_sha256
        except DataError:
            return False

    def lacking(self, cell: Cell) -> list[int]:
        """The steps of iterates that a cell wants and that are not there. Raises DataError where these are unknown."""
        return iterates.lacking(self.plan, self.record, self.iterates, cell.iterates, cell.iterate_seconds)


@dataclass(frozen=True)
class Contents:
    """What is sound in a store, and what is not."""

    sets: dict[str, StoredSet]  # by key
    judgements: tuple[JudgementRecord, ...]  # by set, judging and repeat; no repeat twice
    faults: tuple[Fault, ...]  # by path
    trials: dict[str, TrialRecord] = field(default_factory=dict)  # by key
    tunings: dict[str, TuningRecord] = field(default_factory=dict)  # by key

    def has_set(self, key: str) -> bool:
        """Whether a set is there."""
        return key in self.sets

    def repeats(self, set_key: str, judging_key: str) -> set[int]:
        """The repeats of a judgement that are there."""
        return self._repeats.get((set_key, judging_key), set())

    @cached_property
    def _repeats(self) -> dict[tuple[str, str], set[int]]:
        found = defaultdict[tuple[str, str], set[int]](set)
        for record in self.judgements:
            found[record.set_key, record.key].update(range(record.first, record.last + 1))
        return dict(found)


NOTHING = Contents({}, (), ())
"""What there is where there is no store."""


def read_contents(store: Store, hash_bytes: bool = True) -> Contents:
    """Read, check and join everything. Without `hash_bytes`, the bytes of sets and iterates are not compared with their records;
    all else is checked."""
    return _Reading(store, hash_bytes).contents()


@dataclass
class _Reading:
    store: Store
    hash_bytes: bool
    sets: dict[str, StoredSet] = field(default_factory=dict)  # by short key
    faults: list[Fault] = field(default_factory=list)
    broken: dict[str, Fault] = field(default_factory=dict)  # faulty sets by short key

    def contents(self) -> Contents:
        """Names of judgements are listed first: each of them had its set then, whatever another process adds meanwhile."""
        listed = list(self._listed())
        for folder in entries(self.store.root / "sets"):
            self._read_set(folder)
        self._compare_images()
        judgements = list[JudgementRecord]()
        for folder, paths in listed:
            judgements += self._judgements_of(folder, paths)
        sets = {one.plan.key: one for one in self.sets.values()}
        tried = trials.read_trials(self.store, sets, self.faults)
        chosen = trials.read_tunings(self.store, tried, self.faults)
        faults = sorted([*self.faults, *self.broken.values()], key=lambda fault: (str(fault.path), fault.sentence))
        judgements.sort(key=lambda record: (record.set_key, record.key, record.first))
        return Contents(dict(sorted(sets.items())), tuple(judgements), tuple(faults), tried, chosen)

    def _compare_images(self) -> None:
        """Hash the images of sets that look the same: the hashes in their records are of files, which name their seeds."""
        alike = defaultdict[str, list[str]](list)
        for name, one in self.sets.items():
            if TENSORS in one.record.files:
                alike[one.record.files.get(PICTURE, "")].append(name)
        for name in (name for names in alike.values() if len(names) > 1 for name in names):
            sha256 = sha256_of_tensors(self.store.root / "sets" / name / TENSORS)
            self.sets[name] = replace(self.sets[name], images_sha256=sha256)

    def _listed(self) -> Iterable[tuple[Path, list[Path]]]:
        """The folders of judgements with their files."""
        for folder in entries(self.store.root / "judgements"):
            if is_key16(folder.name) and folder.is_dir():
                yield folder, list(entries(folder))
            else:
                self.faults.append(stranger(folder))

    def _read_set(self, folder: Path) -> None:
        if not is_key16(folder.name) or not folder.is_dir():
            self.faults.append(stranger(folder))
            return
        try:
            plan, record = folders.read_plan(folder), folders.read_record(folder)
            if wrong := folders.contradiction(plan, record):
                raise DataError(f"set {folder} contradicts itself: {wrong}. {REMEDY_FOLDER}")
            folders.check_files(folder, record, self.hash_bytes)
            kept, faults = folders.read_iterates(folder, record, self.hash_bytes)
        except (DataError, OSError) as error:
            self.broken[folder.name] = fault_of(folder, error)
            return
        self.sets[folder.name] = StoredSet(plan, record, kept)
        known = {PLAN, RECORD, ITERATES, *record.files}
        self.faults += [*faults, *(stranger(path) for path in entries(folder) if path.name not in known)]

    def _judgements_of(self, folder: Path, paths: list[Path]) -> list[JudgementRecord]:
        """The sound judgements of a set."""
        blocks = [(path, name) for path in paths if path.suffix == ".json" and (name := block_name(path.stem))]
        self.faults += [stranger(path) for path in paths if path not in {known for known, _ in blocks}]
        found = self.sets.get(folder.name)
        if found is None:
            self._without_set(folder, len(blocks))
            return []
        sound, seen = list[JudgementRecord](), defaultdict[str, dict[int, Path]](dict)
        for path, name in sorted(blocks, key=lambda each: (each[1].key16, each[1].first, each[1].last)):
            try:
                record = _read_judgement(path, name, found)
                _refuse_overlap(path, name, seen[name.key16])
                sound.append(record)
            except (DataError, OSError) as error:
                self.faults.append(fault_of(path, error))
        return sound

    def _without_set(self, folder: Path, num: int) -> None:
        """Name judgements whose set is faulty, with it, or is not there."""
        words = f"its {num} judgement{'s' if num != 1 else ''}"
        if num and (fault := self.broken.get(folder.name)):
            self.broken[folder.name] = Fault(fault.path, f"{fault.sentence} Left out with {words}.")
        elif num:
            missing = self.store.folder(folder.name)
            told = f"{folder}: {words} left out, for the set {missing} is not there"
            self.faults.append(Fault(folder, f"{told}. Run again to make it anew, or remove the folder."))


def _read_judgement(path: Path, name: BlockName, found: StoredSet) -> JudgementRecord:
    """A judgement of a set. Raises DataError where it is damaged, edited, another's, or of other bytes than the set's."""
    record = schema.read(path, JudgementRecord, "judgement", REMEDY)
    if record.set_key != found.plan.key or name != BlockName(short(record.key), record.first, record.last):
        where = f"{short(record.set_key)}/{BlockName(short(record.key), record.first, record.last)}"
        raise DataError(f"judgement {path} is another one ({where}), put into its place. {REMEDY}")
    try:
        schema.check_judgement(record)
    except ValueError as error:
        raise DataError(f"judgement {path} contradicts itself: {error}. {REMEDY}") from error
    step = found.step_of(record.judging)
    sha256 = found.sha256(step)
    if sha256 is None:
        raise DataError(f"judgement {path} is of the iterate at step {step}, which is not there. {REMEDY}")
    if record.set_sha256 != sha256:
        what = "set" if step is None else f"iterate at step {step}"
        raise DataError(f"judgement {path} is of other bytes than the {what} has. {REMEDY}")
    return record


def _refuse_overlap(path: Path, name: BlockName, seen: dict[int, Path]) -> None:
    """Raise DataError where one of the repeats was read from another file; else note them all."""
    twice = [repeat for repeat in range(name.first, name.last + 1) if repeat in seen]
    if twice:
        other = seen[twice[0]].name
        raise DataError(f"judgement {path} holds repeat {twice[0]}, which {other} beside it holds too. Remove one of them.")
    seen.update(dict.fromkeys(range(name.first, name.last + 1), path))
