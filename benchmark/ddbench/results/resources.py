"""Things trained once and shared by every set and judgement that needs them, as they are kept: checked whenever they are read."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, Timeout
from torch import Tensor

from ddbench import schema
from ddbench.errors import DataError
from ddbench.files import digest, publish, read_tensors, sha256_file, tensors_to_bytes, write_bytes
from ddbench.plan import short
from ddbench.results.layout import entries, is_key16, leftovers, resource_job
from ddbench.results.locks import Locks
from ddbench.schema import REMEDY_FOLDER, Place, ResourceMeasured, ResourceRecord, UsedResource

TENSORS, RECORD = "tensors.safetensors", "resource.json"


class ResourceStore:
    """A folder of resources, one sub-folder each: `tensors.safetensors` and `resource.json`, a `ResourceRecord`.

    Keys may be given in their short form. Locks lie in the folder `locks` beside it, as those of all jobs of a store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.locks = Locks(self.root.parent / "locks")

    def folder(self, key: str) -> Path:
        """Where a resource of that key lies, once built."""
        return self.root / short(key)

    def is_built(self, key: str) -> bool:
        """Whether it is there."""
        return self.folder(key).is_dir()

    def lock(self, key: str) -> BaseFileLock:
        """Held by the one process that builds it."""
        return self.locks.lock(resource_job(key))

    def flaw(self, key: str) -> str | None:
        """What is wrong with a resource that is there, in a sentence, as far as can be seen without reading its tensors."""
        try:
            self.record(key)
        except DataError as error:
            return str(error)
        return None

    def record(self, key: str) -> ResourceRecord:
        """Its record. Raises DataError where that is damaged, of another resource, or without tensors beside it."""
        folder = self.folder(key)
        record = schema.read(folder / RECORD, ResourceRecord, "resource", REMEDY_FOLDER)
        if not record.key.startswith(key) or record.key != digest(record.identity):
            what = f"resource {folder} is another one ({record.describe}), put into its place, or was edited"
            raise DataError(f"{what}. {REMEDY_FOLDER}")
        if not (folder / TENSORS).is_file():
            raise DataError(f"resource {folder}/{TENSORS} is missing. {REMEDY_FOLDER}")
        return record

    def read(self, key: str) -> tuple[dict[str, Tensor], ResourceRecord]:
        """Its tensors on the CPU, and its record. Raises DataError where either is damaged."""
        path, record = self.folder(key) / TENSORS, self.record(key)
        if sha256_file(path) != record.sha256:
            raise DataError(f"resource {path} is damaged: its bytes are not those that were built. {REMEDY_FOLDER}")
        tensors, _ = read_tensors(path, "resource", REMEDY_FOLDER)
        return tensors, record

    def load(self, key: str, device: torch.device) -> tuple[dict[str, Tensor], ResourceRecord]:
        """The same on a device."""
        tensors, record = self.read(key)
        return {name: tensor.to(device) for name, tensor in tensors.items()}, record

    def publish(
        self, identity: Mapping[str, Any], tensors: Mapping[str, Tensor], describe: str, place: Place, seconds: float,
        marks: Sequence[str] = (),
    ) -> ResourceRecord:  # fmt: skip
        """Write it whole; its key is the digest of its identity. The caller holds its lock."""
        content = tensors_to_bytes(tensors)
        record = ResourceRecord(
            key=digest(identity), describe=describe, identity=dict(identity), sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content), place=place, marks=tuple(marks), measured=ResourceMeasured(seconds=seconds),
        )  # fmt: skip
        self.put(record, content)
        return record

    def put(self, record: ResourceRecord, content: bytes) -> None:
        """Write a record and the file of its tensors whole. The caller holds its lock."""
        for path in self._asides(record.key):
            shutil.rmtree(path, ignore_errors=True)
        aside = self.root / f".{short(record.key)}.{uuid.uuid4().hex}"
        try:
            write_bytes(aside / TENSORS, content)
            schema.write(aside / RECORD, record)
            publish(aside, self.folder(record.key))
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _asides(self, key: str) -> list[Path]:
        """Whoever holds the lock knows that these are a dead process's."""
        return [path for path in leftovers(self.root) if path.name.startswith(f".{short(key)}.")]

    def keys(self) -> list[str]:
        """The short keys of what is built, sorted."""
        return [path.name for path in entries(self.root) if is_key16(path.name) and path.is_dir()]

    def leftovers(self) -> list[Path]:
        """What builds that were killed have left behind; a build that is running now is not among them."""
        found = []
        for path in leftovers(self.root):
            key = path.name.split(".")[1]
            if is_key16(key):
                with suppress(Timeout), self.lock(key).acquire(timeout=0):
                    found.append(path)
        return found

    def remove(self, key: str) -> None:
        """Take a resource away, in one step; whoever builds it meanwhile is waited for."""
        with self.lock(key):
            aside = self.root / f".{short(key)}.{uuid.uuid4().hex}"
            self.folder(key).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def used(record: ResourceRecord) -> UsedResource:
    """How records of sets and judgements name it."""
    return UsedResource(key=record.key, describe=record.describe, sha256=record.sha256)
