"""Where a run takes place: the devices of this machine, and the folders that its jobs share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ddbench.api import Site
from ddbench.compute import hardware
from ddbench.compute.run import pick_device
from ddbench.errors import ConfigError
from ddbench.results.store import Store

MAX_WORKERS = 1024


def devices_of(device: str, workers: int | None, threads: int) -> list[str]:
    """One entry for each job at the same time: every CUDA device once, or as many as cores allow. Raises ConfigError."""
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(f"--workers must lie in 1..{MAX_WORKERS}, got {workers}.")
    if device == "auto" and torch.cuda.is_available():
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        return [names[number % len(names)] for number in range(workers or len(names))]
    picked = pick_device(device)
    default = max(1, hardware.num_cores() // threads) if picked.type == "cpu" else 1
    return [str(picked)] * (workers or default)


def site_of(store: Store, devices: Sequence[str], threads: int, data_root: Path | None, checkpoint_seconds: float = 20.0) -> Site:
    """Where a run on this machine takes place; paths are made absolute, whatever folder a plugin changes to."""
    root = Path(os.path.abspath(data_root)) if data_root else None  # noqa: PTH100 - resolve() would follow links
    return Site(store.root, tuple(devices), threads, root, checkpoint_seconds)
