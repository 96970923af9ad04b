"""Where ddbench keeps what it can make again: folders of the user's."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/ddbench`, or `~/.cache/ddbench`; None where this user has no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if Path(given).is_absolute():
        return Path(given, "ddbench")
    with suppress(RuntimeError):
        return Path.home() / ".cache" / "ddbench"
    return None


def image_folders(root: Path | None) -> tuple[Path, ...]:
    """Where decoded images may lie, the best place first: the folder that DDBENCH_CACHE names and no other; else `cache` in the
    data folder, which everybody who uses that shares, and then the user's own cache."""
    given = os.environ.get("DDBENCH_CACHE")
    if given:
        return (Path(given).absolute(),)
    own = cache_folder()
    return tuple(folder for folder in (root / "cache" if root else None, own / "images" if own else None) if folder)
