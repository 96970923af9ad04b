"""Evaluation protocols as versioned data: one TOML file each, whose id stands in every record.

A protocol never changes once records carry its id: another number makes another file with another id.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from typing import Any

from ddbench.api import Recipe
from ddbench.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Protocol:
    """How a distilled set is judged. The TOML files beside this module say what each number means."""

    id: str
    description: str
    epochs: int
    warmup_epochs: int
    batch: int
    momentum: float
    weight_decay: float
    ema: float
    augment: bool
    repeats: int
    test_batch: int
    validation_fraction: float
    full_data_epochs: int
    full_data_ema: float
    lr_factor: float  # times the rate that the architecture declares

    def recipe(self, lr: float, full_data: bool = False) -> Recipe:
        """The training recipe for a network that declares the rate `lr`.

        The row full-data has another number of epochs and no average; optimiser and schedule have the same shape.
        """
        epochs, warmup, ema = self.epochs, self.warmup_epochs, self.ema
        if full_data:
            epochs, warmup, ema = self.full_data_epochs, self.full_data_epochs // 2, self.full_data_ema
        return Recipe(epochs, lr * self.lr_factor, self.batch, self.momentum, self.weight_decay, warmup, ema, self.augment)

    def to_json(self) -> dict[str, Any]:
        """All values, for plans and records."""
        return asdict(self)


def names() -> list[str]:
    """The ids of all protocols that ship with ddbench."""
    return sorted(entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml"))


def load(id: str) -> Protocol:
    """The protocol of that id. Raises ConfigError, naming the nearest, if there is none."""
    if id not in names():
        raise ConfigError(f"unknown protocol '{id}'.{did_you_mean(id, names())} Known: {', '.join(names())}.")
    values = tomllib.loads((files(__name__) / f"{id}.toml").read_text())
    wanted = {entry.name for entry in fields(Protocol)}
    if values.keys() != wanted or values["id"] != id:
        raise ConfigError(f"protocol file '{id}.toml' is damaged: reinstall ddbench.")
    return Protocol(**values)
