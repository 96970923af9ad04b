"""Evaluation protocols as versioned data: one TOML file each, whose id stands in every record.

A protocol never changes once records carry its id: another number makes another file with another id. A file may build on
another with `base = "ID"` and then holds only what differs.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from typing import Any, Literal

from ddbench.api import Recipe, Spec
from ddbench.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Teacher:
    """The network whose outputs replace a set's labels, and how it is trained on the real training images."""

    network: str  # the name of an architecture
    epochs: int
    warmup_epochs: int
    lr: float
    batch: int
    momentum: float
    weight_decay: float
    temperature: float  # of both sides of the divergence, which is multiplied by its square

    def recipe(self) -> Recipe:
        """SGD, linear warm-up, cosine to 0."""
        return Recipe(self.epochs, self.lr, self.batch, self.momentum, self.weight_decay, self.warmup_epochs, schedule="cosine")


@dataclass(frozen=True)
class Protocol:
    """How a distilled set is judged. The TOML files beside this module say what each number means."""

    id: str
    description: str
    networks: tuple[str, ...]  # that `ddbench evaluate` trains unless told otherwise
    epochs: int
    optimizer: Literal["sgd", "adamw"]
    schedule: Literal["constant", "glad", "step", "cosine"]
    warmup_epochs: int
    lr: float  # 0: the rate that the architecture declares
    lr_factor: float  # times that rate
    learned_rate: bool  # a rate that the distilled set has learned goes before
    batch: int
    momentum: float
    weight_decay: float
    ema: float
    augment: Literal["siamese", "crop-flip", "none"]
    teacher: Teacher | None  # soft labels, asked for every augmented batch; None: the set's own labels
    repeats: int
    test_batch: int
    validation_fraction: float
    full_data_epochs: int
    full_data_warmup_epochs: int
    full_data_ema: float
    channels_last: bool  # how networks and images lie in memory
    tf32: bool  # whether CUDA may round the factors of float32 products to 10 bits
    ranked: bool  # False: a habit of published code whose effect can be measured, and whose results stand apart
    snapshots: int  # how many iterates of the distillation are judged too, evenly spaced; only where not ranked
    synthetic_mean: tuple[float, ...]  # what generated images are normalised by, real ones never; empty: the data set's own
    synthetic_std: tuple[float, ...]

    def recipe(self, lr: float, full_data: bool = False, learned: float | None = None) -> Recipe:
        """The training recipe for a network that declares the rate `lr`, on a set that has learned the rate `learned`.

        The row full-data has another number of epochs and another average; optimiser and schedule have the same shape.
        Raises ConfigError for a learned rate that is used and is not above 0.
        """
        epochs, warmup, ema = self.epochs, self.warmup_epochs, self.ema
        if full_data:
            epochs, warmup, ema = self.full_data_epochs, self.full_data_warmup_epochs, self.full_data_ema
        rate = (self.lr or lr) * self.lr_factor
        if self.learned_rate and learned is not None and not full_data:
            if not learned > 0:
                told = f"the set has learned the rate {learned:g}, at which no network can be trained"
                raise ConfigError(f"{told}: lower the rate of 'student_rate', or judge it by a protocol that does not use it.")
            rate = learned
        augment = self.augment != "none"
        return Recipe(
            epochs, rate, self.batch, self.momentum, self.weight_decay, warmup, ema, augment, self.optimizer, self.schedule
        )

    def shortened(self, epochs: int) -> Protocol:
        """The same shape over other epochs, the warm-up in proportion: for rankers."""
        warmup = -(-epochs * self.warmup_epochs // self.epochs)  # rounded up: "glad" needs one
        return replace(self, epochs=epochs, warmup_epochs=warmup)

    def to_json(self) -> dict[str, Any]:
        """All values, for plans and records."""
        return asdict(self)


def synthetic_spec(protocol: Protocol, spec: Spec) -> Spec:
    """The data set's own, or, where a protocol has other constants for generated images, the same with these."""
    if not (protocol.synthetic_mean or protocol.synthetic_std):
        return spec
    channels = spec.shape[0]
    mean, std = protocol.synthetic_mean or spec.mean, protocol.synthetic_std or spec.std
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(f"protocol '{protocol.id}' is for images of 3 channels, and '{spec.name}' has {channels}.")
    return replace(spec, mean=mean, std=std)


def names() -> list[str]:
    """The ids of all protocols that ship with ddbench."""
    return sorted(entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml"))


def load(id: str) -> Protocol:
    """The protocol of that id. Raises ConfigError, naming the nearest, if there is none."""
    if id not in names():
        raise ConfigError(f"unknown protocol '{id}'.{did_you_mean(id, names())} Known: {', '.join(names())}.")
    values = _values(id)
    wanted = {entry.name for entry in fields(Protocol)}
    if values.keys() != wanted or values["id"] != id:
        raise ConfigError(f"protocol file '{id}.toml' is damaged: reinstall ddbench.")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Protocol(**values | {"teacher": Teacher(**values["teacher"]) if values["teacher"] else None})


def _values(id: str) -> dict[str, Any]:
    """The file's values on top of those of its base."""
    values = tomllib.loads((files(__name__) / f"{id}.toml").read_text())
    base = values.pop("base", None)
    return (_values(base) if base else {}) | values
