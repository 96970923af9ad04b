"""The store: a folder of sets and judgements, each written whole and never rewritten. `layout` says where everything lies,
`ddbench.schema` what stands in it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, Timeout
from torch import Tensor

from ddbench import schema
from ddbench.errors import BenchError, DataError
from ddbench.files import publish, read_tensors, write_bytes
from ddbench.plan import SetPlan, short
from ddbench.results import folders, iterates, tidying
from ddbench.results.iterates import UNSCORED, Scored, Scores
from ddbench.results.layout import (
    ITERATES,
    PLAN,
    RECORD,
    TENSORS,
    Layout,
    block_name,
    entries,
    is_job,
    job_of,
    judgement_job,
    leftovers,
    parts_of_job,
    set_job,
)
from ddbench.results.locks import Locks
from ddbench.results.marker import open_root
from ddbench.results.resources import ResourceStore
from ddbench.schema import FailureRecord, IterateRecord, JobFile, JudgementRecord, Place, SetPlanFile, SetRecord

SHARED = "store"  # the lock of what belongs to no job
REMEDY_JOB = "Give the command again that it was made for."


class Store(Layout):
    """A folder of results. Opening it makes it, unless `create` is False. Keys may be given in their short form.

    Raises DataError for another schema, for a folder of other things, and for none where `create` is False.
    """

    def __init__(self, root: Path, create: bool = True) -> None:
        super().__init__(root.absolute())
        open_root(self.root, create)
        self.resources = ResourceStore(self.root / "resources")
        self.locks = Locks(self.root / "locks")

    def lock(self, job: str) -> BaseFileLock:
        """Held by the one process that does a job; the system frees it when that process dies. Raises DataError where the file
        system gives no locks."""
        return self.locks.lock(job)

    def is_done(self, job: str) -> bool:
        """Whether the store has what a job makes, as far as names tell. Raises ValueError for what names no job."""
        kind, key16, block = parts_of_job(job)
        if kind == "resource":
            return self.resources.is_built(key16)
        if kind == "trial":
            return self.trial(key16).is_file()
        if block is None:
            return self.has_set(key16)
        return set(range(block.first, block.last + 1)) <= self.repeats(key16, block.key16)

    # ------------------------------------------------------------ sets

    def has_set(self, key: str) -> bool:
        """Whether a set's folder is there; it appears whole."""
        return self.folder(key).is_dir()

    def read_plan(self, key: str) -> SetPlan:
        """A set's plan. Raises DataError where it is damaged or another's."""
        return folders.read_plan(self.folder(key))

    def read_record(self, key: str) -> SetRecord:
        """A set's record. Raises DataError where it is damaged or another's."""
        return folders.read_record(self.folder(key))

    def read_set(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its tensors, and what is said of them, after their bytes are compared with the record. Raises DataError where they
        are damaged, and for all real training images, of which there is no copy."""
        folder, record = self.folder(key), self.read_record(key)
        if TENSORS not in record.files:
            raise DataError(f"set {folder} is all real training images: no copy of them is stored.")
        folders.check_files(folder, record, hash_bytes=True)
        return read_tensors(folder / TENSORS, "set", schema.REMEDY_FOLDER)

    def publish_set(self, plan: SetPlan, record: SetRecord, contents: Mapping[str, bytes]) -> None:
        """Write a finished set aside, then put it in its place in one step; its working folder goes. The caller holds its lock.

        `contents`: the files that the record names; and, for each iterate that is kept, `iterates/<step>.safetensors` and
        `iterates/<step>.json`. Raises ValueError where plan, record and contents do not fit, or do not survive writing.
        """
        plain = {name: content for name, content in contents.items() if not name.startswith(f"{ITERATES}/")}
        wrong = folders.contradiction(plan, record)
        if wrong or record.files != {name: hashlib.sha256(content).hexdigest() for name, content in plain.items()}:
            raise ValueError(f"set {plan.name}: {wrong or 'its record does not name the files as they are'}")
        made = {PLAN: schema.to_bytes(SetPlanFile(plan=plan)), RECORD: schema.to_bytes(record)}
        if schema.parse(made[PLAN], SetPlanFile, PLAN).plan.key != plan.key:
            raise ValueError(f"set {plan.name}: its plan has another key when it is read back")
        job = set_job(plan.key)
        remove(self._asides(job))
        aside = self.aside(job)
        try:
            for name, content in {**contents, **made}.items():
                write_bytes(aside / name, content)
            publish(aside, self.folder(plan.key))
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        remove([self.work(job)])

    def drop_set(self, key: str) -> list[str]:
        """Take a set away with its judgements and what is under way for both, for `--redo`; gives a line for each thing.

        The judgements go first, so that none is ever there without its set. Raises DataError while another process makes it.
        """
        job = set_job(key)
        with self.taken(job):
            dropped = self._drop_judgements(key, "")
            if self.has_set(key):
                dropped.append(f"set {short(key)}")
                aside = self.aside(job)
                aside.parent.mkdir(parents=True, exist_ok=True)
                self.folder(key).rename(aside)
            remove([*self._asides(job), self.work(job)])
        return dropped

    def drop_judgement(self, set_key: str, judging_key: str) -> list[str]:
        """Take away all repeats of a judgement and what is under way for it; gives a line for each file."""
        return self._drop_judgements(set_key, short(judging_key))

    def _drop_judgements(self, set_key: str, begins: str) -> list[str]:
        dropped = []
        for path in entries(self.judgements(set_key)):
            if path.name.startswith(begins) and block_name(path.stem):
                path.unlink()
                dropped.append(f"judgement {path.stem} of set {short(set_key)}")
        with suppress(OSError):
            self.judgements(set_key).rmdir()
        remove((self.root / "work").glob(f"judgement-{short(set_key)}-{begins}*"))
        return dropped

    # ------------------------------------------------------------ iterates

    def iterates(self, key: str) -> dict[int, IterateRecord]:
        """The iterates of a set by step. Raises DataError where one is damaged or another's; tensors are checked when read."""
        sound, faults = folders.read_iterates(self.folder(key), self.read_record(key), hash_bytes=False)
        if faults:
            raise DataError(faults[0].sentence)
        return sound

    def lacking(self, plan: SetPlan, steps: Collection[int], seconds: Collection[float]) -> list[int]:
        """The steps of the iterates of a set that were asked for and are not there. Raises DataError where one is damaged."""
        there = self.iterates(plan.key) if steps or seconds else {}
        return iterates.lacking(plan, self.read_record(plan.key), there, steps, seconds) if steps or seconds else []

    def read_iterate(self, key: str, step: int) -> tuple[Tensor, Tensor, str]:
        """Images, labels, and the SHA-256 of their file, compared with its record. Raises DataError where it is damaged."""
        path = self.folder(key) / ITERATES / f"{step}.json"
        iterate = folders.read_iterate(path, self.read_record(key))
        tensors, _ = read_tensors(path.with_suffix(".safetensors"), "iterate", folders.REMEDY_ITERATE)
        return tensors["images"], tensors["labels"], iterate.sha256

    def add_iterates(self, key: str, set_sha256: str, contents: Mapping[int, bytes], scored: Scores = UNSCORED) -> None:
        """Keep iterates of a distillation that ran again and ended in a set of that SHA-256; its working folder goes. The caller
        holds the set's lock. Raises DataError where the set that is kept has other bytes, or an iterate of that step has."""
        folder, record = self.folder(key), self.read_record(key)
        if record.set_sha256 != set_sha256:
            what = f"set {folder} has other bytes than the same distillation gives here"
            raise DataError(f"{what}: another machine made it. Add its iterates there, or make it anew with --redo.")
        for step, content in contents.items():
            path = folder / ITERATES / f"{step}.json"
            iterate = iterates.iterate_record(record.key, set_sha256, step, content, scored.get(step, Scored()))
            if path.is_file():
                if folders.read_iterate(path, record).sha256 != iterate.sha256:
                    raise DataError(f"iterate {path} has other bytes than the same distillation gives here: the first is kept.")
                continue
            write_bytes(path.with_suffix(".safetensors"), content)
            schema.write(path, iterate)  # last: with it the iterate is there
        remove([self.work(set_job(key))])

    # ------------------------------------------------------------ judgements

    def repeats(self, set_key: str, judging_key: str) -> set[int]:
        """The repeats of a judgement that are there, as far as names tell."""
        names = (block_name(path.stem) for path in self.judgements(set_key).glob(f"{short(judging_key)}.*.json"))
        return {repeat for name in names if name for repeat in range(name.first, name.last + 1)}

    def publish_judgement(self, record: JudgementRecord) -> None:
        """Write a judgement, unless it is there; its working folder goes. The caller holds its lock. Raises ValueError where its
        parts contradict one another or do not survive writing."""
        schema.check_judgement(record)
        path = self.judgement(record.set_key, record.key, record.first, record.last)
        if not path.exists():
            schema.write(path, record)
        remove([self.work(judgement_job(record.set_key, record.key, record.first, record.last))])

    # ------------------------------------------------------------ jobs

    def write_job(self, job: JobFile) -> None:
        """Put down all that doing a job needs. Raises ValueError where its name is not the one that its content gives it."""
        content, path = schema.to_bytes(job), self.job(job.name)
        if job_of(schema.parse(content, JobFile, job.name)) != job.name:
            raise ValueError(f"the job '{job.name}' has another name when it is read back")
        if not path.is_file() or path.read_bytes() != content:
            with self.lock(SHARED):
                write_bytes(path, content)

    def read_job(self, name: str) -> JobFile:
        """What doing a job needs. Raises DataError where its file is missing, damaged or another's: that of a job that is done
        may have gone, so take its lock and ask `is_done` first."""
        job = schema.read(self.job(name), JobFile, "job", REMEDY_JOB)
        if job.name != name or job_of(job) != name:
            raise DataError(f"job {self.job(name)} is another one ({job.name}), put into its place. {REMEDY_JOB}")
        return job

    def forget_job(self, name: str) -> None:
        """Remove the file of a job that has ended."""
        self.job(name).unlink(missing_ok=True)

    def begun(self) -> list[str]:
        """The names of jobs that are under way, or were when a run was stopped: not done, and with a file or a folder of work."""
        names = {path.stem for path in entries(self.root / "work" / "jobs")}
        names |= {path.name for path in entries(self.root / "work")} - {"jobs"}
        return sorted(name for name in names if is_job(name) and not self.is_done(name))

    @contextmanager
    def taken(self, job: str) -> Iterator[None]:
        """Hold a job's lock. Raises DataError where another process does."""
        try:
            with self.lock(job).acquire(timeout=0):
                yield
        except Timeout as error:
            what = f"{job} in {self.root} is being computed by another process"
            raise DataError(f"{what}: give the command again when that has ended.") from error

    def failures(self, job: str) -> list[Path]:
        """The records of a job's failed attempts, oldest first."""
        paths = [path for path in entries(self.attempts(job)) if path.suffix == ".json" and path.stem.isdecimal()]
        return sorted(paths, key=lambda path: int(path.stem))

    def failed(self) -> tuple[list[tuple[str, FailureRecord]], list[str]]:
        """(job, last failure) of each that failed and was not done since; a sentence for each unreadable one."""
        good, bad = [], []
        for folder in entries(self.root / "failed"):
            attempts = self.failures(folder.name) if is_job(folder.name) else []
            if attempts and not self.is_done(folder.name):
                try:
                    good.append((folder.name, self.read_failure(attempts[-1])))
                except BenchError as error:
                    bad.append(str(error))
        return good, bad

    def read_failure(self, path: Path) -> FailureRecord:
        """One of `failures`. Raises DataError where it is damaged."""
        return schema.read(path, FailureRecord, "failure record", "Remove it.")

    def fail(self, job: str, title: str, error: str, details: str, place: Place | None = None) -> None:
        """Record a failed attempt. The next run tries again; where `place` is given, the job's numbers were the reason, and it is
        tried again from other sources alone, or where that is asked for."""
        record = FailureRecord(job=job, title=title, error=error, details=details, place=place)
        with self.lock(SHARED):
            number = max((int(path.stem) + 1 for path in self.failures(job)), default=0)
            schema.write(self.attempts(job) / f"{number}.json", record)

    # ------------------------------------------------------------ the rest

    def add_suite(self, name: str, text: str) -> None:
        """Keep a suite's text beside its results."""
        content = text.encode()
        path = self.root / "suites" / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.toml"
        if not path.is_file():
            with self.lock(SHARED):
                write_bytes(path, content)

    def tidy(self) -> None:
        """Remove what killed processes left behind, and what jobs that are done no longer need. What another process computes now
        stays."""
        tidying.tidy(self)

    def _asides(self, job: str) -> list[Path]:
        """Whoever holds the job's lock knows that these are a dead process's."""
        return [path for path in leftovers(self.root / "work") if path.name.startswith(f".{job}.")]


def remove(paths: Iterable[Path]) -> None:
    """Take away folders, whatever is in them."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
