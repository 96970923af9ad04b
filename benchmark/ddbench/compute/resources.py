"""Things trained once and shared by every cell and process that needs them: built under a lock, keyed by content."""

from __future__ import annotations

import hashlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

import ddbench
from ddbench.api import Resource
from ddbench.compute.run import DistillRun
from ddbench.data.subsets import TrainingData
from ddbench.errors import DataError, PluginError
from ddbench.files import (
    REMEDY_FOLDER,
    publish,
    read_json,
    read_tensors,
    sha256_file,
    tensors_to_bytes,
    write_bytes,
    write_json,
)
from ddbench.plan import Plan, PluginRef, digest

RESOURCE_SCHEMA = 1
_META_KEYS = {"key", "describe", "sha256", "seconds"}


@dataclass(frozen=True)
class Need:
    """A resource that a plan needs, and all that its content depends on."""

    resource: Resource
    identity: dict[str, Any]
    backbone: PluginRef | None

    @property
    def key(self) -> str:
        """64 hex digits."""
        return digest(self.identity)

    @property
    def stream(self) -> str:
        """What its random streams are named by: what it is and from which images. A new release, another number of threads or
        another device make another resource, but draw the same numbers for it."""
        return digest({name: self.identity[name] for name in ("type", "fields", "data_hash", "validation_fraction")})


def need_of(resource: Resource, owner: PluginRef | None, plan: Plan, device: torch.device) -> Need:
    """Identity of a resource: type, fields, owner's version, the data and their split, threads, kind of device, torch."""
    if not is_dataclass(resource):
        raise PluginError(f"resource {type(resource).__qualname__} must be a frozen dataclass deriving from Resource.")
    backbone = plan.backbone if resource.uses_backbone else None
    identity = {
        "schema": RESOURCE_SCHEMA,
        "type": f"{type(resource).__module__}:{type(resource).__qualname__}",
        "fields": asdict(resource),
        "owner": [owner.distribution, owner.version] if owner else ["ddbench", ddbench.__version__],
        "data_hash": plan.data_hash,
        "validation_fraction": plan.protocol.validation_fraction,
        "backbone": asdict(backbone) if backbone else None,
        "threads": plan.threads,
        "device": device.type,
        "torch": str(torch.__version__),
    }
    return Need(resource, identity, backbone)


class ResourceStore:
    """A folder of resources, one sub-folder each: `tensors.safetensors`, and `resource.json` with its identity and cost."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: str) -> Path:
        """Where a resource of that key lies, once built."""
        return self.root / key[:16]

    def is_built(self, key: str) -> bool:
        """Whether it is there."""
        return self.folder(key).is_dir()

    def flaw(self, key: str) -> str | None:
        """What is wrong with a resource that is there, in a sentence, as far as can be seen without reading its tensors."""
        try:
            self._meta(key)
        except DataError as error:
            return str(error)
        return None

    def _meta(self, key: str) -> dict[str, Any]:
        """Its `resource.json`. Raises DataError where that is damaged, of another resource, or without tensors beside it."""
        folder = self.folder(key)
        meta = read_json(folder / "resource.json", "resource", REMEDY_FOLDER)
        missing = sorted(_META_KEYS - meta.keys())
        if missing:
            raise DataError(f"resource {folder} lacks {', '.join(missing)}. {REMEDY_FOLDER}")
        if not str(meta["key"]).startswith(key):
            raise DataError(f"resource {folder} is another one ({meta['describe']}), put into its place. {REMEDY_FOLDER}")
        if not (folder / "tensors.safetensors").is_file():
            raise DataError(f"resource {folder}/tensors.safetensors is missing. {REMEDY_FOLDER}")
        return meta

    def load(self, key: str, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its tensors on a device, and its `resource.json`. Raises DataError where it is damaged."""
        tensors, meta = self.read(key)
        return {name: tensor.to(device) for name, tensor in tensors.items()}, meta

    def read(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The same on the CPU."""
        folder = self.folder(key)
        meta = self._meta(key)
        tensors, _ = read_tensors(folder / "tensors.safetensors", "resource", REMEDY_FOLDER)
        if sha256_file(folder / "tensors.safetensors") != meta["sha256"]:
            raise DataError(f"resource {folder} is damaged: its tensors are not those that were built. {REMEDY_FOLDER}")
        return tensors, meta

    def build(self, need: Need, data: TrainingData, device: torch.device, folder: Path | None = None) -> None:
        """Build it if it is missing; whoever else builds it meanwhile is waited for. Streams are named by `Need.stream`;
        `folder` is the user's data folder."""
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{need.key[:16]}.lock"):
            if self.is_built(need.key):
                return
            for leftover in self.root.glob(f".{need.key[:16]}.*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            started = time.perf_counter()
            run = DistillRun(("resource", need.stream), data, need.backbone, 0, device, {}, folder=folder)
            content = tensors_to_bytes(need.resource.build(run))
            work = self.root / f".{need.key[:16]}.{uuid.uuid4().hex}"
            try:
                write_bytes(work / "tensors.safetensors", content)
                meta = {
                    "key": need.key,
                    "describe": need.resource.describe(),
                    "identity": need.identity,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "bytes": len(content),
                    "seconds": time.perf_counter() - started,
                }
                write_json(work / "resource.json", meta)
                publish(work, self.folder(need.key))
            finally:
                shutil.rmtree(work, ignore_errors=True)


    def keys(self) -> list[str]:
        """The names of the folders of what is built, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))

    def leftovers(self) -> list[Path]:
        """What builds that were killed have left behind; a build that is running now is not among them."""
        found = []
        for path in sorted(self.root.glob(".*.*")) if self.root.is_dir() else []:
            lock = FileLock(self.root / f"{path.name.split('.')[1]}.lock")
            with suppress(Timeout), lock.acquire(timeout=0):
                found.append(path)
        return found

    def remove(self, key: str) -> None:
        """Take a resource away; whoever builds it meanwhile is waited for."""
        with FileLock(self.root / f"{key[:16]}.lock"):
            shutil.rmtree(self.folder(key))


def needs_of(plan: Plan, run: DistillRun, core: Iterable[Resource], device: torch.device) -> list[Need]:
    """All that a plan needs, without repetition; `core` are the rankers' own needs."""
    wanted: list[tuple[Resource, PluginRef | None]] = [(resource, None) for resource in core]
    for ref in (plan.generator, plan.space, plan.loss):
        if ref and not plan.baseline:
            asked: Callable[[DistillRun], tuple[Resource, ...]] = ref.make().needs
            wanted.extend((resource, ref) for resource in asked(run))
    return list({need.key: need for need in (need_of(resource, owner, plan, device) for resource, owner in wanted)}.values())
