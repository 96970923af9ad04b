"""What somebody asks of a set from files: read and checked, every mistake found before a step is computed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddbench import protocols
from ddbench.api import Seen, Spec
from ddbench.data.subsets import load_training
from ddbench.errors import ConfigError
from ddbench.evaluate.imports import saw_of_words
from ddbench.evaluate.rehearsal import rehearse
from ddbench.evaluate.set_doubts import counts_of, doubts_of_classes
from ddbench.evaluate.set_layouts import Found, open_set
from ddbench.evaluate.sets import ImportedSet, Labels, Values, fitted
from ddbench.files import parse_toml
from ddbench.protocols import Protocol
from ddbench.refs import PluginRef
from ddbench.suite.building import try_building
from ddbench.suite.reader import MAX_REPEATS


@dataclass(frozen=True)
class Asked:
    """What is to be done."""

    found: Found  # in the files
    protocol: Protocol
    networks: tuple[PluginRef, ...]
    repeats: int
    dataset: PluginRef
    teacher: PluginRef | None
    given: ImportedSet
    saw: tuple[Seen, ...]

    @property
    def key(self) -> Any:
        """Of the set's plan, where ddbench wrote the file, or somebody who said that it did; else None."""
        return self.found.meta.get("key")

    @property
    def counts(self) -> str:
        """How many images the set has, and of a class."""
        return counts_of(self.given.labels, self.dataset.make().spec())


def ask(
    paths: Path | Sequence[Path], *, data: str | None = None, protocol: str = "glad-1", archs: str | None = None,
    repeats: int | None = None, values: Values | None = None, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, kind: Labels | None = None, saw: str | None = None, rate: float | None = None,
    experiment: int | None = None,
) -> Asked:  # fmt: skip
    """Check what is asked, and read the set; arguments mean what those of `read_set` and the words of `ddbench evaluate` do.
    Raises ConfigError for what the caller must say or correct, DataError for what is wrong with the files, PluginError for a
    network that cannot take a step."""
    chosen = protocols.load(protocol)
    numbers = chosen.judging
    repeats = chosen.repeats if repeats is None else repeats
    if not 1 <= repeats <= MAX_REPEATS:
        raise ConfigError(f"--repeats must lie in 1..{MAX_REPEATS}, got {repeats}.")
    if rate is not None and not (numbers.learned_rate and 0 < rate < float("inf")):
        known = ", ".join(id for id in protocols.names() if protocols.load(id).judging.learned_rate)
        raise ConfigError(f"--rate must be above 0 and is for the protocols that use it ({known}); this is '{chosen.id}'.")
    networks = networks_of(archs or ",".join(chosen.networks))
    found = open_set(paths, experiment)
    if found.meta.get("trial"):
        raise ConfigError(f"{found.name} is of a trial by which rates were chosen: no test image judges it. Name another set.")
    name = data or found.meta.get("dataset")
    if name is None:
        raise ConfigError(f"{found.name} does not name its data set: add --data NAME, one of `ddbench plugins --kind datasets`.")
    dataset = PluginRef.resolve("datasets", name, {})
    teacher = PluginRef.resolve("architectures", numbers.teacher.network, {}) if numbers.teacher else None
    spec: Spec = dataset.make().spec()
    chosen.check_constants(spec)  # a file's images count as generated
    for network in (*networks, *([teacher] if teacher else [])):
        network.ask(partial(try_building, spec=spec, label=network.label))  # refuses what does not fit, within bounds
    given = fitted(found, spec, values, mean, std, kind)
    if given.whitening and (teacher or chosen.set.synthetic_mean or chosen.set.synthetic_std):
        raise ConfigError(f"whitened images cannot be judged by '{chosen.id}', which works on normalised ones.")
    for network in (*networks, *([teacher] if teacher else [])):
        network.ask(partial(try_building, spec=spec, label=network.label))  # refuses what is too large, or does not fit
    for network in networks:
        rehearse(network, spec, len(given.images), numbers.batch)
    if teacher:
        rehearse(teacher, spec)  # which is trained on real images
    if rate is not None:
        given = replace(given, learned_rate=rate)
    return Asked(found, chosen, networks, repeats, dataset, teacher, given, saw_of_words(saw))


def compared_with_real(asked: Asked, root: Path | None) -> Asked:
    """The same with a warning more where the set's labels say nothing of real classes. No test image is looked at, and nothing
    is done where ddbench wrote the file. Raises DataError where the training images are missing."""
    if asked.key is not None:
        return asked
    given, spec = asked.given, asked.dataset.make().spec()
    seen = given.whitening or spec.normalise
    real = load_training(asked.dataset, root, 0.0, torch.device("cpu"))
    told = doubts_of_classes(given.images, given.labels, seen, real)
    return replace(asked, given=replace(given, warnings=(*given.warnings, *told)))


def networks_of(text: str) -> tuple[PluginRef, ...]:
    """`convnet,alexnet(width=32)`, as tables write networks, to architectures. Raises ConfigError."""
    entries = re.split(r",(?![^(]*\))", text)
    refs = [PluginRef.resolve("architectures", *name_and_settings(entry, "--archs")) for entry in entries]
    if len({ref.label for ref in refs}) < len(refs):
        raise ConfigError(f"--archs names a network twice: {text}.")
    return tuple(refs)


def name_and_settings(entry: str, where: str) -> tuple[str, dict[str, Any]]:
    """`convnet(width=32)` in its parts; `where` begins the message. Raises ConfigError."""
    match = re.fullmatch(r"\s*([^(),\s]+)(?:\((.*)\))?\s*", entry)
    if not match:
        names = "names such as convnet or convnet(width=32), separated by commas"
        raise ConfigError(f"{where} takes {names}; got '{entry}'.")
    settings: dict[str, Any] = {}
    for part in filter(None, (match[2] or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{where}: '{part}' in '{entry}' must be name=value.")
        settings[key.strip()] = _value(value.strip(), where)
    return match[1], settings


def _value(text: str, where: str) -> Any:
    """A TOML value; a bare word is text. Raises ConfigError."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise ConfigError(f"{where}: {error}, in '{text[:60]}'.") from error
