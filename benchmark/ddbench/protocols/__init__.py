"""Evaluation protocols as versioned data: one TOML text each, a plugin of the kind `protocols`, whose id is its name.

A protocol never changes once records carry its id: another number makes another text with another id. A text may build on
another with `base = "ID"` and then holds only what differs. It has four parts:

    id, description, networks, repeats, ranked     what is asked for; no number of a judgement hangs on these
    [judging]                                      how a network is trained on a set and read: `Numbers`
    [full_data]                                    what differs in that where the set is all real training images
    [set]                                          what a suite under this protocol asks of the making of its sets

Networks and repeats are outside of a judgement's key, so that one more of either costs itself. What is in [set] belongs to the
plan of a set; it stands here because a habit of published code is named once, for both sides.
"""

from __future__ import annotations

from dataclasses import replace as replace_spec
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from ddbench import registry
from ddbench.api import Recipe, Spec
from ddbench.errors import ConfigError, PluginError, UntrainableError
from ddbench.files import parse_toml

MAX_CHARS = 1 << 16
MAX_BASES = 8


class Teacher(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network whose outputs replace a set's labels, and how it is trained on the real training images."""

    network: str  # the name of an architecture
    epochs: int
    warmup_epochs: int
    lr: float
    batch: int
    momentum: float
    weight_decay: float
    temperature: float  # of both sides of the divergence, which is multiplied by its square; 1 where there is no divergence

    def recipe(self) -> Recipe:
        """SGD, linear warm-up, cosine to 0."""
        return Recipe(self.epochs, self.lr, self.batch, self.momentum, self.weight_decay, self.warmup_epochs, schedule="cosine")


class Numbers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a network is trained on a set and read. The TOML files beside this module say what each number means."""

    epochs: int
    optimizer: Literal["sgd", "adamw"]
    schedule: Literal["constant", "glad", "step", "cosine"]
    warmup_epochs: int
    lr: float  # 0: the rate that the architecture declares
    lr_factor: float  # times that rate
    learned_rate: bool  # a rate that the set has learned goes before
    batch: int
    momentum: float
    weight_decay: float
    ema: float
    augment: Literal["siamese", "crop-flip", "none"]
    test_batch: int
    channels_last: bool  # how networks and images lie in memory
    tf32: bool  # whether CUDA may round the factors of float32 products to 10 bits
    teacher: Teacher | None = None  # soft labels, asked for every augmented batch; None: the set's own labels
    criterion: Literal["entropy", "gift"] = "entropy"  # cross-entropy, or the divergence from a teacher; or GIFT's cosine

    def recipe(self, lr: float, learned: float | None = None) -> Recipe:
        """The training recipe for a network that declares the rate `lr`, on a set that has learned the rate `learned`.

        Raises UntrainableError for a learned rate that is used and is not above 0.
        """
        rate = (self.lr or lr) * self.lr_factor
        if self.learned_rate and learned is not None:
            if not learned > 0:
                what = f"the set has learned the rate {learned:g}, at which no network can be trained"
                remedy = "lower the rate of 'student_rate', or judge it by a protocol that does not use it"
                raise UntrainableError(f"{what}: {remedy}.")
            rate = learned
        return Recipe(
            self.epochs, rate, self.batch, self.momentum, self.weight_decay, self.warmup_epochs, self.ema,
            self.augment != "none", self.optimizer, self.schedule,
        )  # fmt: skip

    @property
    def identity(self) -> dict[str, Any]:
        """What hashes of it are made of: fields that a later ddbench added stand in it only where they change something."""
        told: dict[str, Any] = msgspec.to_builtins(self)
        return {name: value for name, value in told.items() if name not in _ADDED or value != _ADDED[name]}

    def own_labels(self) -> Numbers:
        """The same on the set's own labels by cross-entropy: for rankers and trials, which ask no teacher."""
        return replace(self, teacher=None, criterion="entropy")

    def shortened(self, epochs: int) -> Numbers:
        """The same shape over other epochs, the warm-up in proportion: for rankers."""
        warmup = -(-epochs * self.warmup_epochs // self.epochs)  # rounded up: "glad" needs one
        return replace(self, epochs=epochs, warmup_epochs=warmup)


_ADDED = {"criterion": "entropy"}  # fields of Numbers that came after hashes of it were stored, and what stands for those


class FullData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What differs for all real training images: another number of epochs and another average; the rest has the same shape."""

    epochs: int
    warmup_epochs: int
    ema: float


class Making(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a suite under the protocol asks of the making of its sets."""

    held_out: float  # the share of the real training images that no method trains on, for selection
    iterates: int  # how many iterates of the distillation are kept and judged too, evenly spaced over its steps
    synthetic_mean: tuple[float, ...]  # what generated images are normalised by, real ones never; empty: the data set's own
    synthetic_std: tuple[float, ...]
    imagenet_only: bool = False  # whether these constants repeat what published code does to ImageNet's classes and to no others


class Protocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How distilled sets are judged, and with what they are asked for."""

    id: str
    description: str
    networks: tuple[str, ...]  # that `ddbench evaluate` trains unless told otherwise
    repeats: int  # random initialisations of every network
    ranked: bool  # False: a habit of published code whose effect can be measured, and whose results stand apart
    judging: Numbers
    full_data: FullData
    set: Making

    def numbers(self, everything: bool = False) -> Numbers:
        """Those of a judgement; `everything`: where the set is all real training images, whose rate is never learned."""
        if not everything:
            return self.judging
        other = self.full_data
        changes = {"epochs": other.epochs, "warmup_epochs": other.warmup_epochs, "ema": other.ema, "learned_rate": False}
        return replace(self.judging, **changes)

    def check_constants(self, spec: Spec) -> None:
        """Raise ConfigError, naming the protocol, where its constants for generated images do not fit a data set, or repeat what
        nobody does to it."""
        try:
            synthetic_spec(spec, self.set.synthetic_mean, self.set.synthetic_std)
        except ConfigError as error:
            raise ConfigError(f"protocol '{self.id}' on '{spec.name}': {error}") from error
        if self.set.imagenet_only and not spec.class_ids:
            what = f"protocol '{self.id}' repeats what published code does to classes of ImageNet, which '{spec.name}' has not"
            raise ConfigError(f"{what}: that code normalises other images rightly. Name the protocol that it builds on.")

    def to_json(self) -> dict[str, Any]:
        """All values."""
        return msgspec.to_builtins(self)


def synthetic_spec(spec: Spec, mean: tuple[float, ...], std: tuple[float, ...]) -> Spec:
    """The data set's own, or the same with other constants, one or one a channel, for generated images. Raises ConfigError
    where their number fits neither."""
    if not (mean or std):
        return spec
    channels = spec.shape[0]
    mean, std = (values * channels if len(values) == 1 else values for values in (mean or spec.mean, std or spec.std))
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(f"constants of {len(mean)} channels cannot normalise '{spec.name}', whose images have {channels}.")
    return replace_spec(spec, mean=mean, std=std)


def names() -> list[str]:
    """The ids of all installed protocols."""
    return registry.protocols.names()


def load(id: str) -> Protocol:
    """The protocol of that id. Raises ConfigError, naming the nearest, if there is none, and PluginError for a damaged one."""
    label = str(registry.protocols.origin(id))
    protocol = read(registry.protocols.make(id).text, label, (id,))
    if protocol.id != id:
        raise _damaged(label, f"it calls itself '{protocol.id}'")
    return protocol


def read(text: Any, label: str, above: tuple[str, ...] = ()) -> Protocol:
    """A protocol from its text; `label` begins the message, `above` are the ids that build on it. Raises PluginError for a
    damaged one, and ConfigError for a base that is not installed."""
    try:
        protocol = msgspec.convert(_values(text, label, above), Protocol)
    except msgspec.ValidationError as error:
        raise _damaged(label, str(error)) from error
    for part in (protocol.judging, protocol.numbers(everything=True)):
        try:
            part.recipe(0.1)
        except ConfigError as error:
            raise _damaged(label, str(error)) from error
    told = protocol.judging.teacher
    if told and protocol.judging.criterion == "gift" and told.temperature != 1:
        raise _damaged(label, f"criterion 'gift' has no temperature: the teacher's must be 1, got {told.temperature}")
    if protocol.repeats < 1 or not protocol.networks or not 0 <= protocol.set.held_out < 1 or protocol.set.iterates < 0:
        raise _damaged(label, "repeats and networks must be at least 1, held_out lie in [0, 1) and iterates be at least 0")
    return protocol


def _damaged(label: str, why: str) -> PluginError:
    return PluginError(f"{label} is damaged: {why.rstrip('.')}. Reinstall or mend it.")


def _values(text: Any, label: str, above: tuple[str, ...]) -> dict[str, Any]:
    """The text's values on top of those of its base, table by table."""
    if not isinstance(text, str) or len(text) > MAX_CHARS:
        raise _damaged(label, f"it must be a text of at most {MAX_CHARS} characters")
    try:
        values = parse_toml(text)
    except ValueError as error:
        raise _damaged(label, f"it is not valid TOML ({' '.join(str(error).split())})") from error
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or base in above or len(above) > MAX_BASES:
        raise _damaged(label, f"its base {base!r} is no other protocol")
    below = _values(registry.protocols.make(base).text, str(registry.protocols.origin(base)), (*above, base))
    return below | {key: _merged(below.get(key), value) for key, value in values.items()}


def _merged(below: Any, value: Any) -> Any:
    """A table of a text on top of its base's; a teacher is replaced whole."""
    return below | value if isinstance(below, dict) and isinstance(value, dict) else value
