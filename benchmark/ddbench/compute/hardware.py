"""What machine, libraries and commit a result comes from."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import ddbench


def num_cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(device: torch.device, threads: int) -> dict[str, Any]:
    """device (its model), kind (cpu or cuda), cores, threads, memory_bytes (of the device)."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    else:
        name, memory = _processor(), psutil.virtual_memory().total
    return {"device": name, "kind": device.type, "cores": num_cores(), "threads": threads, "memory_bytes": memory}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(np.__version__),
        "ddbench": ddbench.__version__,
    }


def commit() -> str | None:
    """The git commit of ddbench's own source, with `+` where it has changes; None for an installed copy."""
    here = Path(__file__).resolve()
    root = next((folder for folder in here.parents if (folder / ".git").exists()), None)
    if root is None or (root / "benchmark" / "ddbench") != here.parents[1]:
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        status = ["git", "status", "--porcelain", "--", "benchmark", "plugins"]
        changes = subprocess.run(status, cwd=root, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "") if head.returncode == 0 else None
