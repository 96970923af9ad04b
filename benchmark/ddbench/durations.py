"""Seconds as people read them: the one place where a duration becomes text."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """In the unit that suits it: `1 s` at least, `40 s`, `12 min`, `3.4 h`, `1,200 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.{1 if seconds < 360_000 else 0}f} h"
