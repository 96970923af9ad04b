"""The released checkpoints that ddbench knows of, and where generators lie in a data folder; the facts are in catalogue.toml."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from ddbench.api import Saw
from ddbench.errors import ConfigError, DataError
from ddbench_plugins.stylegan.description import Description

FAMILY = "stylegan-xl"
FOLDER = f"weights/{FAMILY}"  # of the data folder
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
FACTS = ("img_resolution", "c_dim", "num_ws")  # of a description, that the catalogue may expect


@dataclass(frozen=True)
class Checkpoint:
    """A published file; what is expected of it is asserted, not believed."""

    name: str
    what: str
    licence: str
    address: str
    expected: dict[str, tuple[int, ...]]  # by fact, the values that it may have
    saw: Saw

    def check(self, found: Description) -> None:
        """Raise DataError where a fact is another one."""
        for fact, allowed in self.expected.items():
            if getattr(found, fact) not in allowed:
                wanted = " or ".join(map(str, allowed))
                told = f"its {fact} is {getattr(found, fact)}, and {wanted} is expected"
                remedy = "Get that file, or prepare this one under a name of its own."
                raise DataError(f"the file is not the published '{self.name}': {told}. {remedy}")


def known() -> dict[str, Checkpoint]:
    """By name, in the order of the file."""
    text = (files("ddbench_plugins.stylegan") / "catalogue.toml").read_text(encoding="utf-8")
    raw = tomllib.loads(text)
    return {entry["name"]: _checkpoint(entry, raw["groups"][entry["group"]], raw["address"]) for entry in raw["checkpoint"]}


def _checkpoint(entry: dict[str, Any], group: dict[str, Any], address: str) -> Checkpoint:
    expected = {fact: entry.get(fact, group.get(fact)) for fact in FACTS}
    lists = {fact: value if isinstance(value, list) else [value] for fact, value in expected.items() if value is not None}
    allowed = {fact: tuple(values) for fact, values in lists.items()}
    what = f"StyleGAN-XL, {group['what']}, {entry['img_resolution']} px"
    address, saw = address.replace("NAME", entry["name"]), frozenset(group["saw"])
    return Checkpoint(entry["name"], what, group["licence"], address, allowed, saw)


def checked_name(name: str) -> str:
    """The name, which becomes that of files. Raises ConfigError for what cannot be one."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"a generator's name is made of letters, digits, '.', '-' and '_', got '{name[:100]}'.")
    return name


def description_of(name: str) -> str:
    """Where the description of a prepared generator lies, under the folder of weights: `stylegan-xl/imagenet128.json`."""
    return f"{FAMILY}/{checked_name(name)}.json"
