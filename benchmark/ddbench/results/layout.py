"""Where everything of a store lies: its folders, and the names of jobs and files.

    STORE/store.json                                           that it is a store, and of which schema
    STORE/sets/<key16>/                                        plan.json record.json set.safetensors images.png
                                                               losses.safetensors stages.png
    STORE/sets/<key16>/iterates/<step>.safetensors <step>.json iterates of the distillation that led to the set
    STORE/judgements/<set16>/<key16>.<first>-<last>.json       one network on one set, a block of repeats
    STORE/trials/<key16>.json                                  a set that was distilled to try rates, scored
    STORE/tuning/<key16>.json                                  the rates that were chosen for a method by its trials
    STORE/resources/<key16>/                                   tensors.safetensors resource.json
    STORE/suites/<name>-<hash8>.toml                           every suite that was run here
    STORE/failed/<job>/<n>.json                                the n-th failed attempt
    STORE/work/<job>/                                          what a running job keeps
    STORE/work/jobs/<job>.json                                 all that doing a job needs
    STORE/locks/<job>.lock                                     held by the process that does a job
    STORE/log.txt log.older.txt                                what was done here, and when, for people

A job is named `set-<key16>`, `resource-<key16>`, `trial-<key16>` or `judgement-<set16>-<key16>.<first>-<last>`. What begins
with a dot is about to be written, or was when its process was killed.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddbench.plan import short
from ddbench.schema import JobFile
from ddbench.trials import trial_key

PLAN, RECORD, TENSORS, PICTURE, ITERATES = "plan.json", "record.json", "set.safetensors", "images.png", "iterates"
LOSSES, WALK = "losses.safetensors", "stages.png"  # of distillations; the second where they have several stages
ASKED = "asked.json"  # in the work on a set: the steps, and the seconds, whose iterates are to be kept
FOLDERS = ("sets", "judgements", "trials", "tuning", "resources", "suites", "failed", "work", "locks")
MAX_REPEATS = 1_000_000  # of a block
_KEY16 = re.compile("[0-9a-f]{16}")
_BLOCK = re.compile("([0-9a-f]{16})[.]([0-9]+)-([0-9]+)")
_JOB = re.compile("(?:set|resource|trial)-([0-9a-f]{16})|judgement-([0-9a-f]{16})-([0-9a-f]{16}[.][0-9]+-[0-9]+)")


@dataclass(frozen=True)
class BlockName:
    """What a judgement's file is named by."""

    key16: str
    first: int
    last: int

    def __str__(self) -> str:
        """The file's name without `.json`."""
        return f"{self.key16}.{self.first}-{self.last}"


def block_name(text: str) -> BlockName | None:
    """The inverse of `str`; None for any other text."""
    match = _BLOCK.fullmatch(text)
    block = BlockName(match[1], int(match[2]), int(match[3])) if match else None
    return block if block and str(block) == text and 0 <= block.last - block.first < MAX_REPEATS else None


def set_job(key: str) -> str:
    """The name of the job that makes a set."""
    return f"set-{short(key)}"


def resource_job(key: str) -> str:
    """The name of the job that builds a resource."""
    return f"resource-{short(key)}"


def trial_job(key: str) -> str:
    """The name of the job that makes and scores a trial."""
    return f"trial-{short(key)}"


def judgement_job(set_key: str, judging_key: str, first: int, last: int) -> str:
    """The name of the job that judges a set by a network, repeats `first` to `last`."""
    return f"judgement-{short(set_key)}-{BlockName(short(judging_key), first, last)}"


def job_of(file: JobFile) -> str:
    """The name that a job's content gives it."""
    if file.kind == "resource":
        return resource_job(file.resource)
    if file.kind == "judgement" and file.judging:
        return judgement_job(file.plan.key, file.judging.key, file.first, file.last)
    if file.kind == "trial" and file.scoring:
        return trial_job(trial_key(file.plan.key, file.scoring))
    return set_job(file.plan.key)


@dataclass(frozen=True)
class Layout:
    """The paths under a store's root."""

    root: Path

    def folder(self, key: str) -> Path:
        """Of a set."""
        return self.root / "sets" / short(key)

    def judgements(self, set_key: str) -> Path:
        """The folder of a set's judgements."""
        return self.root / "judgements" / short(set_key)

    def judgement(self, set_key: str, judging_key: str, first: int, last: int) -> Path:
        """The file of a judgement."""
        return self.judgements(set_key) / f"{BlockName(short(judging_key), first, last)}.json"

    def trial(self, key: str) -> Path:
        """The file of a trial."""
        return self.root / "trials" / f"{short(key)}.json"

    def tuning(self, key: str) -> Path:
        """The file of what was chosen for a method."""
        return self.root / "tuning" / f"{short(key)}.json"

    def work(self, job: str) -> Path:
        """What a running job keeps."""
        return self.root / "work" / job

    def job(self, job: str) -> Path:
        """All that doing a job needs."""
        return self.root / "work" / "jobs" / f"{job}.json"

    def attempts(self, job: str) -> Path:
        """The folder of a job's failed attempts."""
        return self.root / "failed" / job

    def aside(self, job: str) -> Path:
        """A new folder's path, to be filled and then renamed to its place."""
        return self.root / "work" / f".{job}.{uuid.uuid4().hex}"


def job_of_aside(path: Path) -> str:
    """The job whose aside it is: a folder made by `Layout.aside`."""
    return path.name[1:].rpartition(".")[0]


def parts_of_job(job: str) -> tuple[str, str, BlockName | None]:
    """(kind, the key16 of the set, resource or trial, the block of a judgement). Raises ValueError for what names no job."""
    match = _JOB.fullmatch(job)
    block = block_name(match[3]) if match and match[3] else None
    if match is None or (match[3] and block is None):
        raise ValueError(f"'{job}' names no job")
    return job.partition("-")[0], match[1] or match[2], block


def is_job(name: str) -> bool:
    """Whether a name is a job's."""
    try:
        parts_of_job(name)
    except ValueError:
        return False
    return True


def is_key16(name: str) -> bool:
    """Whether a name is the short form of a key."""
    return _KEY16.fullmatch(name) is not None


def entries(folder: Path) -> Iterator[Path]:
    """What a folder holds, sorted, without what is about to be written; nothing where there is no such folder."""
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def leftovers(folder: Path) -> Iterator[Path]:
    """What begins with a dot: about to be written, or was when its process was killed."""
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.name.startswith("."))
