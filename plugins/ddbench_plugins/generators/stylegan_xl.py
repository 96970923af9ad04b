"""A trained StyleGAN-XL or StyleGAN3 generator, from files that `ddbench data prepare` has made of an official pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddbench.api import UNKNOWN, Generator, GeneratorConfig, Run, Saw, Spec
from ddbench.errors import ConfigError, DataError, command
from ddbench_plugins.stylegan import prepared
from ddbench_plugins.stylegan.catalogue import checked_name, description_of, known
from ddbench_plugins.stylegan.network import Precision, asked_classes, build


@dataclass(frozen=True)
class Made:
    """What must be known of its images to choose classes."""

    img_resolution: int
    img_channels: int
    c_dim: int


@dataclass(frozen=True)
class StyleganXL(GeneratorConfig):
    """stylegan-xl/NAME: the generator that `ddbench data prepare stylegan-xl/NAME` has put into the data folder.

    w [B,L+1,D], equal codes at first, without truncation (psi 1); F_L = (image + 1) / 2, not clamped. The settings `sha256` to
    `c_dim` are what the files say: they are filled in when a suite is read, and decide the key; a suite that writes `sha256`
    itself is refused where the files are others. It reads its files where they lie, mapped, and checks them by hash: a copy in
    every store, for every data set, would take more room than all results, and data sets have to lie on each machine as well.
    `precision` is that of the layers that the official code runs in half precision; latents and mapping are float32 always.
    Source: Sauer, Schwarz and Geiger, StyleGAN-XL: Scaling StyleGAN to Large Diverse Datasets, SIGGRAPH 2022.
    Departures: float32 by default, where the official code runs layers in float16 on a GPU.
    Raises: ConfigError where it cannot make a data set's images; DataError where files are missing or others.
    """

    weights: str
    precision: Precision = "float32"
    sha256: str = ""
    num_layers: int | None = None
    img_resolution: int | None = None
    img_channels: int | None = None
    c_dim: int | None = None  # classes; 0: unconditional, and classes that it is asked for do not count

    def __post_init__(self) -> None:
        """Refuse a path."""
        checked_name(self.weights)

    @property
    def saw(self) -> Saw:
        """As the catalogue says of published ones; of others, who knows."""
        checkpoint = known().get(self.weights)
        return checkpoint.saw if checkpoint else UNKNOWN

    def pins(self, root: Path | None) -> Mapping[str, Any]:
        """The hash of the description, in which that of the tensors stands, and what must be known without loading them."""
        name = f"stylegan-xl/{self.weights}"
        if root is None:
            raise DataError(f"generator '{name}' reads files of your data folder: set DDBENCH_DATA to that.")
        path = root / "weights" / description_of(self.weights)
        if not path.is_file():
            raise DataError(f"generator '{name}' is not prepared ({path} is missing): run: {command('data', 'prepare', name)}")
        found = prepared.check(path)
        pin = prepared.pin(found)
        if self.sha256 not in ("", pin):
            told = f"{path} has the pin {pin}, and 'sha256' says {self.sha256}"
            raise DataError(f"generator '{name}': {told}: prepare that file, or mend the setting.")
        facts = {name: getattr(found, name) for name in ("img_resolution", "img_channels", "c_dim")}
        return {"sha256": pin, "num_layers": found.depth, **facts}

    def depth(self, run: Run) -> int:
        """L, once it is pinned."""
        return self._pinned(run.spec)[0]

    def _pinned(self, spec: Spec) -> tuple[int, tuple[int, ...] | None]:
        """L, and the class of the generator for each label."""
        num, side, channels, classes = self.num_layers, self.img_resolution, self.img_channels, self.c_dim
        if not self.sha256 or num is None or side is None or channels is None or classes is None:
            raise ConfigError(f"generator 'stylegan-xl/{self.weights}' is not pinned: reading a suite does that.")
        return num, asked_classes(Made(side, channels, classes), spec, f"stylegan-xl/{self.weights}")

    def load(self, run: Run) -> Generator:
        """Frozen, in evaluation mode."""
        _, classes = self._pinned(run.spec)
        found, tensors = prepared.load(run.prepared(description_of(self.weights)), self.sha256)
        name = f"of stylegan-xl/{self.weights}"
        return build(found, tensors, run.device, self.precision, classes=classes, name=name)
