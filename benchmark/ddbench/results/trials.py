"""Trials of rates and what was chosen by them, as they are kept: checked whenever they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddbench import schema
from ddbench.errors import DataError
from ddbench.files import write_bytes
from ddbench.plan import short
from ddbench.results.folders import Fault, fault_of, stranger
from ddbench.results.layout import entries, is_key16, trial_job
from ddbench.schema import REMEDY, TrialRecord, TuningRecord
from ddbench.trials import choose, trial_key, tuning_key

if TYPE_CHECKING:
    from ddbench.results.contents import StoredSet
    from ddbench.results.store import Store

REMEDY_TUNING = "Remove it, then make it anew with: ddbench tune SUITE"


def check_trial(record: TrialRecord) -> None:
    """Raise ValueError, with what is wrong, where its parts contradict one another."""
    if record.key != trial_key(record.plan.key, record.scoring):
        raise ValueError("its key is not the one of its plan")
    if not record.plan.is_trial or record.data.hash != record.plan.train_hash:
        raise ValueError("its plan is no trial's, or its data are not those of its plan")
    if len(record.errors) != record.scoring.repeats:
        raise ValueError(f"it has {len(record.errors)} errors of {record.scoring.repeats} networks")
    if not record.set_sha256 and not (record.diverged and set(record.errors) == {1.0}):
        raise ValueError("it has no set, and did not diverge")


def check_tuning(record: TuningRecord) -> None:
    """Raise ValueError, with what is wrong, where its parts contradict one another, the choice among them."""
    if record.key != tuning_key(record.method.stem, record.tuning):
        raise ValueError("its key is not the one of its method and grid")
    if tuple(point.rates for point in record.tried) != record.tuning.grid:
        raise ValueError("it has not tried its grid")
    if any(len(point.trials) != record.tuning.seeds or not point.errors for point in record.tried):
        raise ValueError("it has not every trial")
    errors, diverged = [point.errors for point in record.tried], [point.diverged for point in record.tried]
    if choose(record.tuning.grid, errors, diverged) != record.choice:
        raise ValueError("its choice is not the best of its trials")


def read_trial(path: Path) -> TrialRecord:
    """A trial. Raises DataError where it is damaged, edited, or another's."""
    record = schema.read(path, TrialRecord, "trial", REMEDY)
    return _checked(path, record, check_trial, "trial", REMEDY)


def read_tuning(path: Path) -> TuningRecord:
    """A choice of rates. Raises DataError where it is damaged, edited, or another's."""
    record = schema.read(path, TuningRecord, "tuning", REMEDY_TUNING)
    return _checked(path, record, check_tuning, "tuning", REMEDY_TUNING)


def _checked(path: Path, record: Any, check: Any, what: str, remedy: str) -> Any:
    try:
        check(record)
    except ValueError as error:
        raise DataError(f"{what} {path} contradicts itself: {error}. {remedy}") from error
    if path.name != f"{short(record.key)}.json":
        raise DataError(f"{what} {path} is another one ({short(record.key)}), put into its place. {remedy}")
    return record


def publish_trial(store: Store, record: TrialRecord) -> None:
    """Write a trial, unless it is there. The caller holds its lock. Raises ValueError where its parts contradict one another."""
    check_trial(record)
    path = store.trial(record.key)
    if not path.exists():
        schema.write(path, record)


def publish_tuning(store: Store, record: TuningRecord) -> Path:
    """Write what was chosen, over what was chosen from the same trials before. Raises ValueError where it contradicts itself."""
    check_tuning(record)
    content, path = schema.to_bytes(record), store.tuning(record.key)
    if not path.is_file() or path.read_bytes() != content:
        with store.lock("store"):
            write_bytes(path, content)
    return path


def read_trials(store: Store, sets: Mapping[str, StoredSet], faults: list[Fault]) -> dict[str, TrialRecord]:
    """The sound trials by key: those whose sets are there with these very bytes, or that diverged."""
    found = {}
    for path in _files(store.root / "trials", faults):
        try:
            record = read_trial(path)
            there = sets.get(record.plan.key)
            if record.set_sha256 and (there is None or there.record.set_sha256 != record.set_sha256):
                missing = "is not there" if there is None else "has other bytes"
                raise DataError(f"trial {path} is of a set that {missing} ({short(record.plan.key)}). {REMEDY}")
            found[record.key] = record
        except (DataError, OSError) as error:
            faults.append(fault_of(path, error))
    return found


def read_tunings(store: Store, trials: Mapping[str, TrialRecord], faults: list[Fault]) -> dict[str, TuningRecord]:
    """The sound choices by key: those whose trials are there and say what they say."""
    found = {}
    for path in _files(store.root / "tuning", faults):
        try:
            record = read_tuning(path)
            for point in record.tried:
                if any(key not in trials for key in point.trials):
                    raise DataError(f"tuning {path} names trials that are not there, or are damaged. {REMEDY_TUNING}")
                if point.errors != tuple(error for key in point.trials for error in trials[key].errors):
                    raise DataError(f"tuning {path} has other errors than its trials. {REMEDY_TUNING}")
            found[record.key] = record
        except (DataError, OSError) as error:
            faults.append(fault_of(path, error))
    return found


def choices_in(root: Path) -> dict[str, TuningRecord]:
    """The choices of a store's folder by key, without a look at their trials; what is damaged is left out, and named by whoever
    reads the store."""
    found = {}
    for path in _files(root / "tuning", []):
        with suppress(DataError, OSError):
            record = read_tuning(path)
            found[record.key] = record
    return found


def _files(folder: Path, faults: list[Fault]) -> list[Path]:
    paths = [path for path in entries(folder) if path.suffix == ".json" and is_key16(path.stem)]
    faults += [stranger(path) for path in entries(folder) if path not in paths]
    return paths


def drop_trials(store: Store, sound: Mapping[str, TrialRecord], set_keys: set[str]) -> list[str]:
    """Take away the trials of these sets, and all that are not sound, for `--redo`; gives a line for each."""
    kept = {short(key) for key, record in sound.items() if record.plan.key not in set_keys}
    dropped = []
    for path in _files(store.root / "trials", []):
        if path.stem not in kept:
            with store.taken(trial_job(path.stem)):
                path.unlink()
            dropped.append(f"trial {path.stem}")
    return dropped


def sha256_of(record: TrialRecord | TuningRecord) -> str:
    """Of what must be equal when it is made again, to tell two apart."""
    parts = record.errors if isinstance(record, TrialRecord) else [point.errors for point in record.tried]
    return hashlib.sha256(repr([parts, getattr(record, "set_sha256", record.key)]).encode()).hexdigest()
