"""Where results live: one folder a cell, written whole, never rewritten.

    STORE/store.json                     {"schema": 1}
    STORE/suites/<name>-<hash8>.toml     every suite that was run here
    STORE/resources/<key16>/             shared things (ddbench.compute.resources)
    STORE/cells/<key16>/                 a finished cell: plan.json record.json distilled.safetensors images.png
    STORE/failed/<key16>/<n>.json        the n-th failed attempt: plan, error, traceback
    STORE/work/<key16>/                  a running cell's checkpoint, finished evaluations, and the place it runs at
    STORE/leaderboard/                   the page that `ddbench run` renders at its end
    STORE/locks/<key16>.lock             held while a cell runs

A record (`record.json`, schema 1) is

    schema      1
    key         64 hex digits: the SHA-256 of the plan's canonical JSON and ddbench's version
    suite       the name of the suite that asked first
    data        label (a copy's name differs from the original's), hash, original, train_counts, test_counts
    plan        ddbench.plan.Plan as JSON: dataset, protocol, networks, backbone, ipc, seed, baseline, loss, space, ...;
                a plugin is {kind, name, settings, distribution, version, label}
    distilled   num_images, bytes_stored, bytes_images, steps, stages [{tensors, chosen_step, step_score, stage_score}],
                chosen_stage, learned, sha256 (of distilled.safetensors; null for full-data, which stores no copy)
    evaluations one entry a network and repeat: network (label), repeat, accuracy (fraction), num_test,
                correct (base64 of a bitmap, one bit a test image in its order, most significant bit first), train_loss
    resources   one entry each: key, describe, sha256
    versions    python, torch, numpy, ddbench
    snapshots   only under protocols that ask for it and are not ranked: [{step, evaluations}], one entry an iterate
    measured    what is not the same when run again: seconds {resources, distill, rank, evaluate}, peak_memory_bytes,
                networks (by label: seconds_train, seconds_test, images_per_second, flops_per_image, peak_share,
                peak_memory_bytes, way, processes), hardware {device, kind, cores, threads, memory_bytes}, commit,
                finished (UTC)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ddbench.compute.resources import ResourceStore
from ddbench.errors import BenchError, DataError
from ddbench.files import REMEDY_FOLDER, publish, read_json, write_bytes, write_json
from ddbench.plan import Plan
from ddbench.suite.reader import Suite

STORE_SCHEMA = 1
RECORD_SCHEMA = 1
_RECORD_KEYS = {"schema", "key", "suite", "data", "plan", "distilled", "evaluations", "resources", "versions", "measured"}


def short(key: str) -> str:
    """The part of a key that names folders."""
    return key[:16]


class Store:
    """A folder of results. Opening it makes it, unless `create` is False. Raises DataError for a newer schema or no folder."""

    def __init__(self, root: Path, create: bool = True) -> None:
        self.root = root
        self.resources = ResourceStore(root / "resources")
        marker = root / "store.json"
        if marker.is_file():
            schema = read_json(marker, "store marker", 'Write {"schema": 1} into it.').get("schema")
            if not isinstance(schema, int) or schema > STORE_SCHEMA:
                told = f"store {root} has schema {schema}, this ddbench knows {STORE_SCHEMA}"
                raise DataError(f"{told}. Update ddbench, or name another store.")
        elif not create:
            raise DataError(f"there is no store at {root}. Make one with: ddbench run SUITE --store {root}")
        elif root.exists() and (not root.is_dir() or any(not _is_begun(path) for path in root.iterdir())):
            raise DataError(f"{root} holds other things and no store.json: name an empty or new folder with --store.")
        else:
            write_json(marker, {"schema": STORE_SCHEMA})

    def cell(self, key: str) -> Path:
        """The folder of a finished cell."""
        return self.root / "cells" / short(key)

    def work(self, key: str) -> Path:
        """The folder of a running cell."""
        return self.root / "work" / short(key)

    def lock(self, key: str) -> FileLock:
        """Held by the one process that computes a cell; the system frees it when that process dies."""
        path = self.root / "locks" / f"{short(key)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def is_done(self, key: str) -> bool:
        """Whether a cell's folder is there; it appears whole."""
        return self.cell(key).is_dir()

    def failures(self, key: str) -> list[Path]:
        """The records of a cell's failed attempts, oldest first."""
        paths = (self.root / "failed" / short(key)).glob("*.json")
        return sorted((path for path in paths if path.stem.isdecimal()), key=lambda path: int(path.stem))

    def failed(self) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
        """(folder name, last failure) of each cell that failed and was not finished since; a sentence for each unreadable one."""
        good, bad = [], []
        folder = self.root / "failed"
        for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
            attempts = [path for path in entry.glob("*.json") if path.stem.isdecimal()]
            if attempts and not (self.root / "cells" / entry.name).is_dir():
                try:
                    good.append((entry.name, read_json(max(attempts, key=lambda path: int(path.stem)), "failure record")))
                except BenchError as error:
                    bad.append(str(error))
        return good, bad

    def fail(self, plan: Plan, error: str, details: str) -> None:
        """Record a failed attempt; the next run tries the cell again."""
        number = max((int(path.stem) + 1 for path in self.failures(plan.key)), default=0)
        path = self.root / "failed" / short(plan.key) / f"{number}.json"
        write_json(path, {"schema": RECORD_SCHEMA, "key": plan.key, "plan": plan.to_json(), "error": error, "details": details})

    def publish(self, plan: Plan, record: Mapping[str, Any], contents: Mapping[str, bytes]) -> None:
        """Write a finished cell aside, then put it in its place in one step; its working folder goes.

        The caller holds the cell's lock.
        """
        self._remove_asides(plan.key)
        aside = self.root / "work" / f".{short(plan.key)}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        try:
            for name, content in contents.items():
                write_bytes(aside / name, content)
            write_json(aside / "plan.json", plan.to_json())
            write_json(aside / "record.json", record)
            publish(aside, self.cell(plan.key))
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(self.work(plan.key), ignore_errors=True)

    def tidy(self, key: str) -> None:
        """Remove what a process that was killed just after it had published a cell left behind."""
        if self.is_done(key) and (self.work(key).exists() or self._asides(key)):
            with suppress(Timeout), self.lock(key).acquire(timeout=0):
                self._remove_asides(key)
                shutil.rmtree(self.work(key), ignore_errors=True)

    def _asides(self, key: str) -> list[Path]:
        return list((self.root / "work").glob(f".{short(key)}.*"))

    def _remove_asides(self, key: str) -> None:
        """Whoever holds the lock knows that these are a dead process's."""
        for path in self._asides(key):
            shutil.rmtree(path, ignore_errors=True)

    def add_suite(self, suite: Suite) -> None:
        """Keep the suite's text beside its results."""
        content = suite.text.encode()
        path = self.root / "suites" / f"{suite.name}-{hashlib.sha256(content).hexdigest()[:8]}.toml"
        if not path.is_file():
            write_bytes(path, content)

    def record(self, key: str) -> dict[str, Any]:
        """A finished cell's record, checked. Raises DataError where it is damaged or newer."""
        return read_record(self.cell(key) / "record.json")

    def records(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Every readable record, in the order of their keys, and a sentence for each that is not."""
        good, bad = [], []
        for path in self._record_paths():
            try:
                good.append(read_record(path))
            except BenchError as error:
                bad.append(str(error))
        return good, bad

    def _record_paths(self) -> Iterator[Path]:
        folder = self.root / "cells"
        for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
            if entry.is_dir() and not entry.name.startswith("."):
                yield entry / "record.json"


def _is_begun(path: Path) -> bool:
    """Whether a file is a store's marker that another process is about to write, or was when it was killed."""
    return path.name.startswith(".store.json.")


def read_record(path: Path) -> dict[str, Any]:
    """A record from a file. Raises DataError where it is cut short, of a newer schema, or lacks something."""
    record = read_json(path, "record", REMEDY_FOLDER)
    schema = record.get("schema")
    if not isinstance(schema, int) or schema > RECORD_SCHEMA:
        raise DataError(f"record {path} has schema {schema}, this ddbench knows {RECORD_SCHEMA}. Update ddbench.")
    missing = sorted(_RECORD_KEYS - record.keys())
    if missing:
        raise DataError(f"record {path} lacks {', '.join(missing)}. {REMEDY_FOLDER}")
    return record


def stable(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what differs when the same plan is run again on the same machine."""
    return {name: value for name, value in record.items() if name != "measured"}


def group_key(plan: Mapping[str, Any], without: Sequence[str] = ("seed",)) -> dict[str, Any]:
    """A plan's JSON without its seed: what the cells of one row of a table share."""
    return {name: value for name, value in plan.items() if name not in without}
