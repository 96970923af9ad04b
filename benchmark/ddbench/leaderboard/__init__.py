"""The leaderboard: records to rows, honest statistics, the page that shows them, and the gate that compares two stores.

`cells` checks records, `rows` groups and names them, `statistics` turns accuracies into numbers, `tables` turns
rows into tables, `page` writes leaderboard.md and what lies beside it; `baseline` and `gate` compare a store with
an earlier one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddbench.store import Store


def render(store: Store, out: Path) -> Path:
    """Write a store's leaderboard into a folder; gives the page's path. The page tells of unreadable records."""
    from ddbench.leaderboard.page import write

    return write(store, out).path
