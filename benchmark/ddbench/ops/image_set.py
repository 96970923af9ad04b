"""Images on disc that a data set keeps decoded: which they are, and all that their pixels hang on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddbench.api import Split
from ddbench.ops.image_files import Found
from ddbench.ops.pictures import decoder

SPLITS: tuple[Split, Split] = ("train", "test")


@dataclass(frozen=True)
class ImageSet:
    """Images on disc, and how they are decoded: all that a cache of them needs to know."""

    name: str  # of the data set
    side: int
    classes: tuple[str, ...]
    where: Path  # names in the cache are relative to it
    find: Callable[[Split], Found]  # raises DataError where files are missing
    skip_unreadable: bool = False

    @property
    def file(self) -> str:
        """The name of its cache."""
        what = [self.name, self.side, list(self.classes), str(self.where.absolute()), self.skip_unreadable]
        return f"{self.name}-{self.side}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]}.images"

    def state(self, found: Mapping[Split, Found]) -> str:
        """The hash of all that the pixels hang on: names, sizes and times of the source files, and how they are decoded."""
        sha = hashlib.sha256(json.dumps([self.side, list(self.classes), self.skip_unreadable, decoder()]).encode())
        base = str(self.where.absolute())
        for split in SPLITS:
            for path in found[split].files:
                stat = os.stat(path)  # noqa: PTH116 - thousands of them
                name = str(path).removeprefix(base)
                sha.update(f"{split}\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return sha.hexdigest()
