"""What machine, libraries and commit a result comes from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import psutil
import torch

import ddbench
from ddbench.files import sha256_file
from ddbench.identity import sources_of
from ddbench.refs import PluginRef
from ddbench.schema import Hardware, Place


def num_cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(device: torch.device, threads: int) -> Hardware:
    """The device that computes."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory, instructions = properties.name, properties.total_memory, ""
    else:
        name, memory, instructions = processor(), psutil.virtual_memory().total, torch.backends.cpu.get_cpu_capability()
    return Hardware(
        device=name, kind=device.type, cores=num_cores(), threads=threads, memory_bytes=memory, instructions=instructions
    )


CPU_FACTS = {"model name": "", "cpu family": "family", "model": "model", "stepping": "stepping"}


def processor() -> str:
    """The processor's name with the numbers of its model: machines of one name may compute other bits."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in CPU_FACTS:
            facts.setdefault(name.strip(), value.strip())
    told = [f"{word} {facts[name]}".strip() for name, word in CPU_FACTS.items() if facts.get(name)]
    return ", ".join(told) or platform.processor() or platform.machine()


def versions(refs: Iterable[PluginRef] = ()) -> dict[str, str]:
    """Of what computes the numbers; of a library that defines one of the plugins, its own too."""
    found = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(np.__version__),
        "ddbench": ddbench.__version__,
    }
    for ref in refs:
        for text in ref.what.get("software", ()):
            name, _, version = text.partition(" ")
            found[name] = version
    return found


def sources(refs: Iterable[PluginRef]) -> dict[str, str]:
    """By plugin, the SHA-256 of its source as it is installed now."""
    found: dict[str, str] = {}
    for ref in refs:
        found |= sources_of(ref.kind, ref.name, ref.settings, _file_hash)
    return dict(sorted(found.items()))


def _file_hash(path: Path) -> str:
    about = path.stat()
    return _hash_once(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=4096)
def _hash_once(path: Path, changed: int, size: int) -> str:
    return sha256_file(path)


def place(device: torch.device, threads: int, refs: Iterable[PluginRef]) -> Place:
    """Where and with what a job is done now."""
    refs = tuple(refs)
    return Place(hardware=hardware(device, threads), versions=versions(refs), sources=sources(refs))


@cache
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
