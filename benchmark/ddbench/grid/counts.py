"""Counting jobs by kind, and saying so: `2 of 4 sets, 5 of 12 judgements`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

NOUNS = {
    "resource": ("shared thing", "shared things"),
    "set": ("set", "sets"),
    "trial": ("trial", "trials"),
    "judgement": ("judgement", "judgements"),
}
"""By the kind of a job: one, and several."""

Counts = Counter[str]
"""By the kind of a job."""


def kinds_of(names: Iterable[str]) -> Counts:
    """Of jobs by their names, which begin with the kind."""
    return Counter(name.partition("-")[0] for name in names)


def counted(num: Counts) -> str:
    """`4 sets, 12 judgements`."""
    return ", ".join(f"{num[kind]} {NOUNS[kind][num[kind] != 1]}" for kind in NOUNS if num[kind]) or "nothing"


def done_of(done: Counts, total: Counts) -> str:
    """`2 of 4 sets, 5 of 12 judgements`."""
    parts = (f"{done[kind]} of {total[kind]} {NOUNS[kind][total[kind] != 1]}" for kind in NOUNS if total[kind])
    return ", ".join(parts) or "nothing"
