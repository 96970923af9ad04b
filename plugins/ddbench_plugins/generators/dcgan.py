"""Convolutional decoders from noise, with or without classes, from a file of tensors and a JSON description of their layers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddbench.api import NOTHING, UNKNOWN, Generator, GeneratorConfig, Resource, Run, Saw, UserFile
from ddbench.errors import ConfigError, DataError, did_you_mean
from ddbench.ops.described import Decoder, Description, read

SHIPPED = files("ddbench_plugins.generators") / "descriptions"
DIGITS = "22ffe3f74a9827340b6b56f8875e3533452beab34aa108fe176c673dfe798be4"  # the SHA-256 of the published digits' weights


class DescribedGenerator(nn.Module, Generator):
    """F_0 is made of the one code, noise and class, by the description's `start`; its layers read no codes."""

    num_codes: ClassVar[int] = 1

    def __init__(self, description: Description) -> None:
        """Without weights that mean anything."""
        super().__init__()
        self.decoder = Decoder(description)
        self.depth = len(description.layers)

    def reads_codes(self, start: int) -> bool:
        """Never: F_0 is made of the code, and nothing else is."""
        return False

    def latents(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        """[B] -> w [B,1,D]."""
        return self.decoder.codes(classes, rng)[:, None]

    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        """F_start -> F_stop."""
        return self.decoder(self.decoder.start(w[:, 0]) if hidden is None else hidden, start, stop)


def describe(description: str, sha256: str, run: Run) -> Description:
    """A description that comes with ddbench, or, where its name ends in .json, one that the user has brought. Raises ConfigError
    or DataError."""
    if description.endswith(".json"):
        return read(run.document(description, sha256), description)
    known = sorted(entry.name.removesuffix(".json") for entry in SHIPPED.iterdir() if entry.name.endswith(".json"))
    if description not in known:
        told = f"there is no description '{description}'.{did_you_mean(description, known)} Shipped: {', '.join(known)}"
        raise ConfigError(f"{told}; or name a .json file of yours in the folder weights of the data folder.")
    content = (SHIPPED / f"{description}.json").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256.lower():
        told = f"the shipped description '{description}' has the SHA-256 {found}, not {sha256 or 'an empty one'}"
        raise DataError(f"{told}: write that hash into the plan.")
    return read(content, description)


@dataclass(frozen=True)
class DescribedWeights(Resource):
    """Tensors from a file that the user has brought, as a description names them."""

    weights: str
    sha256: str
    description: str
    description_sha256: str

    @property
    def saw(self) -> Saw:
        """Of the published digits: MNIST with its labels, of which mnist-5k is a part. Of other files: who knows."""
        return frozenset({"external-images", "external-labels", "test-images"}) if self.sha256 == DIGITS else UNKNOWN

    def describe(self) -> str:
        """One line."""
        return f"generator dcgan, weights {self.weights} ({self.sha256[:8]}), description {self.description}"

    def build(self, run: Run) -> dict[str, Tensor]:
        """By the names of `Decoder`."""
        description = describe(self.description, self.description_sha256, run)
        with torch.device("meta"):
            decoder = Decoder(description)
        return decoder.fit(run.weights(self.weights, self.sha256), f"the weights '{self.weights}'")


@dataclass(frozen=True)
class Dcgan(GeneratorConfig):
    """dcgan: a decoder of linear layers, convolutions, stored batch norms and activations, as a JSON description lists them.

    code = noise, then the class's embedding or one-hot; F_0 = start(code); F_n = layer n - 1 of F_{n-1}; F_L = pixels. Batch
    norms use what they have stored. `weights` is a safetensors file in the folder `weights` of the data folder; `description` is
    a .json file there, or the name of one that comes with ddbench; both are pinned by hash. A description without classes gives
    every class the same distribution.
    The defaults are a class-conditional generator of 28 px digits (Wasserstein GAN with a gradient penalty), whose weights the
    user brings. Source: Radford, Metz and Chintala, Unsupervised Representation Learning with DCGANs, ICLR 2016, for the kind;
    HayatoHongo/MNIST-Conditional-WGAN-gp on GitHub, generator.pth, MIT, for the default. Departures: none.
    Raises: ConfigError for images or classes that it does not make; DataError for files that are missing, others, or that do not
    fit each other.
    """

    weights: str = "mnist-cond-wgan-gp.safetensors"
    sha256: str = DIGITS
    description: str = "mnist-cond-wgan-gp"
    description_sha256: str = "7b3468e5d24460ab4c59c56c62a60821c5621afffb81ada33a487a93d8f2c29a"
    saw: ClassVar[Saw] = NOTHING  # but its weights

    def _description(self, run: Run) -> Description:
        return describe(self.description, self.description_sha256, run)

    def _weights(self) -> DescribedWeights:
        return DescribedWeights(self.weights, self.sha256, self.description, self.description_sha256)

    def depth(self, run: Run) -> int:
        """The number of layers that the description lists."""
        description, spec = self._description(run), run.spec
        made = description.image_shape()
        if made != spec.shape:
            told = f"generator 'dcgan' with '{self.description}' makes images {list(made)}"
            raise ConfigError(f"{told}, and those of '{spec.name}' are {list(spec.shape)}: name another description or data set.")
        if description.classes and description.classes.num != spec.num_classes:
            told = f"generator 'dcgan' with '{self.description}' knows {description.classes.num} classes"
            raise ConfigError(f"{told}, and '{spec.name}' has {spec.num_classes}: name another description or data set.")
        return len(description.layers)

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """Its weights."""
        return (self._weights(),)

    def brings(self) -> tuple[UserFile, ...]:
        """The weights, and a description that does not come with ddbench."""
        digits = "MNIST-Conditional-WGAN-gp by HayatoHongo on GitHub, as safetensors; MIT"
        weights = UserFile(self.weights, digits if self.sha256 == DIGITS else "a decoder's weights", self.sha256)
        if not self.description.endswith(".json"):
            return (weights,)
        return weights, UserFile(self.description, "a decoder's layers", self.description_sha256)

    def check(self, run: Run) -> None:
        """Whether the files are there and fit each other."""
        self._weights().build(run)

    def load(self, run: Run) -> Generator:
        """Frozen, in evaluation mode."""
        with torch.device("meta"):
            generator = DescribedGenerator(self._description(run))
        generator.decoder.load_state_dict(run.resource(self._weights()), assign=True)
        return generator.eval().requires_grad_(False)
