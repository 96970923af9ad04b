"""What an earlier command learned from a data set's files, taken again while their sizes and times are the same.

Hashing both splits means decoding both. The answer is kept under `$XDG_CACHE_HOME/ddbench`, or `~/.cache/ddbench`, in a file for
each data set and data folder; where nothing can be read or written there, it is worked out each time.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ddbench
from ddbench import ops
from ddbench.api import Dataset
from ddbench.errors import BenchError
from ddbench.files import canonical, digest, read_json, write_json
from ddbench.ops.caches import cache_folder
from ddbench.refs import PluginRef

SCHEMA = 2
SETTLED_SECONDS = 2.0  # a file that was written later may yet change without another time: clocks of file systems are coarse


def state_of_files(ref: PluginRef, root: Path | None) -> dict[str, Any] | None:
    """All that the answer depends on, as JSON: the plugin and its code, its spec, and path, size and times of each file; None for
    a data set that names no files, or whose code has none. Raises what the plugin raises."""
    # os.path, for there may be thousands of them
    files = ref.ask(lambda dataset: [os.path.abspath(path) for path in dataset.files(root)])  # noqa: PTH100
    source = source_hash(ref.ask(lambda dataset: dataset)) if files else None
    if source is None:
        return None
    try:
        stats = [os.stat(path) for path in files]  # noqa: PTH116
    except OSError:
        return None
    facts = [[path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for path, stat in zip(files, stats, strict=True)]
    return {
        "schema": SCHEMA,
        "ddbench": ddbench.__version__,
        "dataset": ref.label,
        "root": str(root.absolute()) if root else None,
        "source": source,
        "spec": ref.ask(lambda dataset: canonical(asdict(dataset.spec()))),
        "files": digest(facts),
        "newest": max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats),
    }


def source_hash(dataset: Dataset) -> str | None:
    """The SHA-256 of the code that reads a data set, which is the package that its class is in and `ddbench.ops`, and of the code
    that hashes it, beside this module; None where that cannot be read."""
    name, sha = type(dataset).__module__, hashlib.sha256()
    try:
        files = [Path(inspect.getsourcefile(sys.modules[name]) or "")]
        for package in (sys.modules[name.partition(".")[0]], ops, sys.modules[__package__ or ""]):
            files += [path for folder in getattr(package, "__path__", ()) for path in sorted(Path(folder).rglob("*.py"))]
        for path in files:
            sha.update(path.read_bytes())
    except (KeyError, TypeError, OSError):  # made up in memory, or gone
        return None
    return sha.hexdigest()


def recall(state: dict[str, Any]) -> dict[str, Any] | None:
    """What was kept for exactly this state."""
    path = _path(state)
    if path is None or not path.is_file():
        return None
    try:
        kept = read_json(path, "kept identity")
    except (BenchError, OSError):
        return None
    answer = kept.get("answer")
    return answer if kept.get("state") == state and isinstance(answer, dict) else None


def remember(state: dict[str, Any], answer: dict[str, Any]) -> None:
    """Keep it, unless a file is so new that another change could go unnoticed."""
    path = _path(state)
    if path is not None and state["newest"] < (time.time() - SETTLED_SECONDS) * 1e9:
        with suppress(BenchError, OSError):
            write_json(path, {"state": state, "answer": answer})


def _path(state: dict[str, Any]) -> Path | None:
    folder = cache_folder()
    key = digest({name: state[name] for name in ("dataset", "root", "source")})
    return folder / "identities" / f"{key[:32]}.json" if folder else None
