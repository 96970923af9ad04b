"""ddbench: the benchmark suite for dataset distillation. The command line is `ddbench`; plugins build on `ddbench.api`; notebooks
call `ddbench.run`, `ddbench.evaluate`, `ddbench.load_set` and `ddbench.records` (docs/python.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ddbench.cli.notebook import Evaluated, Ran, Records
    from ddbench.evaluate.sets import ImportedSet

__version__ = "0.2.0"


def run(suite: str | Path | None = None, **options: object) -> Ran:
    """Compute what a store lacks of a suite, and render its leaderboard. `options` are those of `ddbench run`: store, only,
    device, workers, prepare, redo, quiet, ... Raises ddbench.errors.BenchError for a mistake."""
    from ddbench.cli import notebook

    return notebook.run(suite, **options)


def evaluate_set(set: str | Path | Sequence[str | Path], **options: object) -> Evaluated:
    """Judge a distilled set from a file, ours or anybody's; `ddbench.evaluate` is the same. `options` are those of
    `ddbench evaluate`: data, protocol, archs, repeats, images, store, ... Raises ddbench.errors.BenchError for a mistake."""
    from ddbench.cli import notebook

    return notebook.evaluate(set, **options)


def load_set(
    set: str | Path | Sequence[str | Path], data: str | None = None, images: str | None = None, labels: str | None = None,
    experiment: int | None = None,
) -> ImportedSet:  # fmt: skip
    """The tensors of a distilled set: `images` [N,C,H,W], normalised as the real ones, and `labels` [N,K]; of others' files,
    `data`, `images`, `labels` and `experiment` say what is in them, as for `ddbench evaluate`. Raises BenchError."""
    from ddbench.cli import notebook

    return notebook.load_set(set, data, images, labels, experiment)


def records(store: str | Path) -> Records:
    """The records of a store, as pandas frames: `sets`, and `judgements`, a line for each trained network. Raises
    ddbench.errors.BenchError where there is no store."""
    from ddbench.cli import notebook

    return notebook.records(store)


def __getattr__(name: str) -> Any:
    """`ddbench.evaluate` is the package of that name, which can be called."""
    if name == "evaluate":
        import ddbench.evaluate

        return ddbench.evaluate
    raise AttributeError(f"module 'ddbench' has no attribute '{name}'")
