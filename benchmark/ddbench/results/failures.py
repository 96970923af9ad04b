"""Failures that are kept: those by a job's own numbers, as of a distillation that diverges, which would come again.

All others may have gone when the next run tries the job: a full disc, little memory, a file that was missing, a mended plugin.
"""

from __future__ import annotations

from contextlib import suppress

from ddbench.errors import BenchError
from ddbench.results.store import Store
from ddbench.schema import FailureRecord


def kept_failure(store: Store, job: str) -> FailureRecord | None:
    """The last failed attempt of a job where it would come again; None where the next run tries it."""
    attempts = store.failures(job)
    with suppress(BenchError, OSError):
        last = store.read_failure(attempts[-1]) if attempts else None
        return last if last and last.comes_again else None
    return None
