"""Importing this hides the plugins of other installed distributions, so that no test's verdict hangs on what else is installed.

Distributions that a test puts on the path afterwards are seen as ever. Imported by conftest.py, and by the code that tests run
in a process of its own with `tests` on its path.
"""

from __future__ import annotations

import configparser
import sys
from collections.abc import Iterator
from typing import Any

from ddbench import entry_points

INSTALLED = frozenset(entry for entry in sys.path if isinstance(entry, str))

_read = entry_points._read


def _read_ours(folder: str, group: str) -> Iterator[tuple[Any, configparser.ConfigParser | Exception | None]]:
    """What `entry_points._read` finds; in a folder that was on the path from the start, of ddbench alone."""
    for distribution, found in _read(folder, group):
        if folder not in INSTALLED or distribution.name == "ddbench":
            yield distribution, found


entry_points._read = _read_ours
