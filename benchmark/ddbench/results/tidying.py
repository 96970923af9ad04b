"""Removing what killed processes left behind in a store: half-written files and folders, and the work of jobs that are done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from ddbench.results.layout import (
    ASKED,
    ITERATES,
    block_name,
    entries,
    is_job,
    is_key16,
    job_of_aside,
    judgement_job,
    leftovers,
    set_job,
    trial_job,
)

if TYPE_CHECKING:
    from ddbench.results.store import Store


def tidy(store: Store) -> None:
    """Remove all of that; what another process holds the lock of stays."""
    for job, path in [*_half_written(store), *_outlived(store)]:
        with suppress(Timeout), store.lock(job).acquire(timeout=0):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix != ".safetensors" or not path.with_suffix(".json").is_file():  # a record has come meanwhile
                path.unlink(missing_ok=True)
    for path in store.resources.leftovers():
        shutil.rmtree(path, ignore_errors=True)


def _half_written(store: Store) -> Iterator[tuple[str, Path]]:
    """(the lock that guards it, the path) of everything that was about to be written."""
    shared = "store"
    others = (store.root / name for name in ("suites", "tuning"))
    for folder in (*others, store.root / "work" / "jobs", *entries(store.root / "failed")):
        yield from ((shared, path) for path in leftovers(folder) if path.suffix == ".tmp")
    for path in leftovers(store.root / "work"):
        if is_job(job_of_aside(path)):
            yield job_of_aside(path), path
    for folder in entries(store.root / "judgements"):
        for path in leftovers(folder):
            block = block_name(path.name[1:].partition(".json.")[0])
            if block:
                yield judgement_job(folder.name, block.key16, block.first, block.last), path
    for path in leftovers(store.root / "trials"):
        if is_key16(path.name[1:].partition(".")[0]):
            yield trial_job(path.name[1:].partition(".")[0]), path
    for folder in entries(store.root / "sets"):
        yield from ((set_job(folder.name), path) for path in leftovers(folder / ITERATES))
        for path in entries(folder / ITERATES):
            if path.suffix == ".safetensors" and not path.with_suffix(".json").is_file():
                yield set_job(folder.name), path


def _outlived(store: Store) -> Iterator[tuple[str, Path]]:
    """(job, path) of what jobs that are done no longer need: their folders of work and their files."""
    for path in [*entries(store.root / "work"), *entries(store.root / "work" / "jobs")]:
        job = path.stem if path.suffix == ".json" else path.name
        if is_job(job) and store.is_done(job) and not _lacks_iterates(store, path):
            yield job, path


def _lacks_iterates(store: Store, path: Path) -> bool:
    """Whether it is the work on a set that is there, for iterates that were asked for later and are not."""
    asked = path / ASKED
    if not asked.is_file():
        return False
    try:
        steps = json.loads(asked.read_bytes())["steps"]
        folder = store.folder(path.name.partition("-")[2]) / ITERATES
        there = {int(kept.stem) for kept in entries(folder) if kept.suffix == ".json"}
        return not set(steps) <= there
    except (ValueError, TypeError, KeyError):
        return False
