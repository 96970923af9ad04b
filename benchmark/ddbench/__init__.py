"""ddbench: the benchmark suite for dataset distillation. The command line is `ddbench`; plugins build on `ddbench.api`; notebooks
call `ddbench.run`, `ddbench.evaluate`, `ddbench.load_set` and `ddbench.records` (docs/python.md)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddbench.cli.notebook import evaluate_set, load_set, records, run

__version__ = "0.2.0"
__all__ = ["evaluate_set", "load_set", "records", "run"]


def __getattr__(name: str) -> Any:
    """The functions for notebooks are loaded when they are asked for, so that importing this package costs nothing. `evaluate` is
    the package of that name, which can be called."""
    if name in __all__:
        return getattr(import_module("ddbench.cli.notebook"), name)
    if name == "evaluate":
        return import_module("ddbench.evaluate")
    raise AttributeError(f"module 'ddbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    """What completes after a dot."""
    return sorted([*globals(), *__all__, "evaluate"])
