"""Reading a set's folder, checked: each file against what it says of itself, of the folder it lies in, and of the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddbench import schema
from ddbench.errors import DataError
from ddbench.files import sha256_file
from ddbench.plan import SetPlan, short
from ddbench.results.layout import ITERATES, PLAN, RECORD, TENSORS, entries
from ddbench.schema import REMEDY_FOLDER, IterateRecord, SetPlanFile, SetRecord

REMEDY_ITERATE = "Remove it and the file beside it, then run again to add them anew."


@dataclass(frozen=True)
class Fault:
    """Something of a store that is wrong, and is left out."""

    path: Path
    sentence: str  # what, where, and what to do


def read_plan(folder: Path) -> SetPlan:
    """The plan of a set. Raises DataError where it is damaged, edited, or another set's."""
    path = folder / PLAN
    plan = schema.read(path, SetPlanFile, "plan", REMEDY_FOLDER).plan
    if short(plan.key) != folder.name:
        raise DataError(f"plan {path} is of another set ({plan.name}): put into this one's place, or edited. {REMEDY_FOLDER}")
    return plan


def read_record(folder: Path) -> SetRecord:
    """The record of a set. Raises DataError where it is damaged, edited, or another set's."""
    path = folder / RECORD
    record = schema.read(path, SetRecord, "record", REMEDY_FOLDER)
    if short(record.key) != folder.name:
        raise DataError(f"record {path} is of another set ({short(record.key)}), put into this one's place. {REMEDY_FOLDER}")
    return record


def contradiction(plan: SetPlan, record: SetRecord) -> str | None:
    """What does not fit between a plan and a record, or within the record; None where all fits."""
    if record.key != plan.key:
        return "its key is not the one of its plan"
    if record.data.hash != plan.train_hash:
        return "its data are not those of its plan"
    if any(Path(name).name != name or name in (PLAN, RECORD, ITERATES) for name in record.files):
        return "it names files that are not beside it"
    expected = schema.sha256_of_everything(plan.train_hash) if plan.everything else record.files.get(TENSORS)
    if record.set_sha256 != expected or (plan.everything and TENSORS in record.files):
        return f"its set_sha256 is not the one of {'its data' if plan.everything else TENSORS}"
    if record.stages and record.chosen_stage >= len(record.stages):
        return f"it chose stage {record.chosen_stage} of {len(record.stages)}, counted from 0"
    if record.size and record.size.budget != plan.budget:
        return f"its budget is {record.size.budget}, and that of its plan {plan.budget}"
    return None


def check_files(folder: Path, record: SetRecord, hash_bytes: bool) -> None:
    """Raise DataError where a file of the set is missing or, with `hash_bytes`, has not the bytes it was written with."""
    for name, sha256 in record.files.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing. {REMEDY_FOLDER}")
        if hash_bytes and sha256_file(path) != sha256:
            raise DataError(f"{path} is damaged: its bytes are not those that were written. {REMEDY_FOLDER}")


def read_iterates(folder: Path, record: SetRecord, hash_bytes: bool = True) -> tuple[dict[int, IterateRecord], list[Fault]]:
    """The sound iterates of a set by step, and what is wrong with the others. Tensors that no record names are those of a process
    that was killed, or is still writing: they are no iterate yet."""
    sound, faults = {}, []
    for path in entries(folder / ITERATES):
        if path.suffix == ".json":
            try:
                iterate = read_iterate(path, record, hash_bytes)
                sound[iterate.step] = iterate
            except (DataError, OSError) as error:
                faults.append(fault_of(path, error))
        elif path.suffix != ".safetensors":
            faults.append(stranger(path))
    return dict(sorted(sound.items())), faults


def read_iterate(path: Path, record: SetRecord, hash_bytes: bool = True) -> IterateRecord:
    """An iterate from its JSON file. Raises DataError where it, or the file of tensors beside it, is damaged or another's."""
    iterate = schema.read(path, IterateRecord, "iterate", REMEDY_ITERATE)
    if (iterate.key, iterate.set_sha256, f"{iterate.step}.json") != (record.key, record.set_sha256, path.name):
        raise DataError(f"iterate {path} is of another set or step, put into this one's place. {REMEDY_ITERATE}")
    tensors = path.with_suffix(".safetensors")
    if not tensors.is_file():
        raise DataError(f"{tensors} is missing. {REMEDY_ITERATE}")
    if hash_bytes and sha256_file(tensors) != iterate.sha256:
        raise DataError(f"{tensors} is damaged: its bytes are not those that were written. {REMEDY_ITERATE}")
    return iterate


def fault_of(path: Path, error: DataError | OSError) -> Fault:
    """An error as a fault; that of a system without a traceback's words."""
    if isinstance(error, OSError):
        return Fault(path, f"{path} cannot be read ({error.strerror or error}): check its rights and the disc.")
    return Fault(path, str(error))


def stranger(path: Path) -> Fault:
    """Something that nothing of ours has written."""
    return Fault(path, f"{path} is nothing of a store's. Move it away.")
