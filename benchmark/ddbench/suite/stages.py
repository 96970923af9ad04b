"""What a space is asked before anything is loaded: a run that knows the images' shape, the budget and a generator's depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddbench.api import Budget, Spec
from ddbench.data.weights import read_document
from ddbench.errors import ConfigError


class Unanswered(ConfigError):
    """A plugin asks for what is there only later."""


@dataclass(frozen=True)
class PlanningGenerator:
    """Stands for a generator that is not loaded: it knows its depth."""

    depth: int

    def __getattr__(self, name: str) -> Any:
        """Raises ConfigError for all else."""
        raise _unanswered(f"run.generator.{name}")


@dataclass(frozen=True)
class PlanningRun:
    """Stands for a run without images, networks and resources."""

    spec: Spec
    ipc: int
    depth: int | None  # of the generator; None: the plan names none, or it is being asked
    folder: Path | None = None  # the user's data folder
    step: int = 0
    budget: Budget = "images"

    @property
    def device(self) -> torch.device:
        """The CPU, whatever the set will be made on."""
        return torch.device("cpu")

    @property
    def generator(self) -> PlanningGenerator:
        """Raises ConfigError where the plan names none."""
        if self.depth is None:
            raise ConfigError("the plan names no generator.")
        return PlanningGenerator(self.depth)

    def document(self, file: str, sha256: str) -> bytes:
        """The bytes of the JSON file `weights/FILE` in the data folder."""
        return read_document(self.folder, file, sha256)

    def __getattr__(self, name: str) -> Any:
        """Raises ConfigError for all else."""
        raise _unanswered(f"run.{name}")


def _unanswered(what: str) -> Exception:
    return AttributeError(what) if "__" in what else Unanswered(f"it asks for {what}, which is not there yet.")


def iterate_steps(num: int, total_steps: int) -> tuple[int, ...]:
    """The steps before which `num` iterates are kept, evenly spaced from step 0; fewer where there are not so many steps."""
    return tuple(sorted({total_steps * number // num for number in range(num)})) if total_steps else ()
