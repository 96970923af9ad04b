"""The judging of finished sets. Only it, and the job that asks for it, see the sealed test split.

The package can be called: `ddbench.evaluate(...)` is `ddbench.evaluate_set(...)`, for notebooks.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This package."""

    def __call__(self, set: Any, **options: Any) -> Any:
        """`ddbench.evaluate_set`."""
        import ddbench

        return ddbench.evaluate_set(set, **options)


sys.modules[__name__].__class__ = _Callable
