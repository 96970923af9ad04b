"""Latents of decoders that know no classes: what their encoders make of the real training images of a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from ddbench.api import Generator, Run, Spec
from ddbench.errors import ConfigError

AT_ONCE = 32  # images that an encoder is given
KEPT_BYTES = 256 << 20  # of encodings of whole classes


class RealEncodings:
    """Encodings of real training images, drawn by class.

    Those of a class all of whose images were asked for are kept, up to a limit of memory: averages of a class ask for them again
    for every set, and get the same bits.
    """

    def __init__(self, run: Run, encode: Callable[[Tensor], Tensor]) -> None:
        """`encode`: pixels [B,C,H,W] -> latents [B,...]."""
        self.run, self.encode = run, encode
        self._whole: dict[int, Tensor] = {}

    @torch.no_grad()
    def draw(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        """One for each class label: [B] -> w [B, 1, D], one code that is the flattened latent.

        Images of a class are drawn without replacement; they come again, in the same order, only where more are asked for than
        there are.
        """
        labels = classes.tolist()
        codes: list[Tensor] = []
        for label in sorted(set(labels)):
            wanted = labels.count(label)
            latents = self._of_class(label, wanted, rng)
            codes.append(latents[torch.arange(wanted, device=latents.device) % len(latents)])
        return torch.cat(codes)[_places(labels).to(classes.device), None]

    def _of_class(self, label: int, wanted: int, rng: torch.Generator) -> Tensor:
        """[wanted, D], or of all images of a class, where it has fewer."""
        is_whole = wanted >= self.run.class_counts[label]
        if is_whole and label in self._whole:
            return self._whole[label]
        pixels = self.run.spec.denormalise(self.run.real(label, wanted, rng))
        latents = torch.cat([self.encode(part) for part in pixels.split(AT_ONCE)]).flatten(1)
        if is_whole and sum(kept.nbytes for kept in self._whole.values()) + latents.nbytes <= KEPT_BYTES:
            self._whole[label] = latents
        return latents


class EncodingGenerator(Generator):
    """A decoder whose one code is F_0 itself, flattened, and whose latents are encodings of real training images."""

    num_codes: ClassVar[int] = 1
    run: Run  # gives real images
    encodings: RealEncodings

    def reads_codes(self, start: int) -> bool:
        """Never: the latent is all."""
        return False

    def num_latents(self, label: int) -> int:
        """As many as the class has training images."""
        return self.run.class_counts[label]

    def latents(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        """[B] -> w [B,1,D]: encodings of real training images of these classes."""
        return self.encodings.draw(classes, rng)

    def unflattened(self, w: Tensor, channels: int, factor: int) -> Tensor:
        """F_0 of codes: [B,1,D] -> [B,C,H/factor,W/factor]."""
        _, height, width = self.run.spec.shape
        return w.reshape(len(w), channels, height // factor, width // factor)


def _places(labels: list[int]) -> Tensor:
    """For each label, where its code stands once all are sorted by label."""
    return torch.tensor(labels).argsort(stable=True).argsort()


def check_shape(spec: Spec, name: str, multiple: int) -> None:
    """Raise ConfigError unless a decoder of colour images can make those of a data set: sides that are multiples of a number."""
    channels, height, width = spec.shape
    if channels != 3:
        raise ConfigError(f"generator '{name}' makes colour images, and those of '{spec.name}' have {channels} channel(s).")
    if height % multiple or width % multiple:
        told = f"makes images whose sides are multiples of {multiple}, and those of '{spec.name}' have {height} x {width} px"
        raise ConfigError(f"generator '{name}' {told}: take another size.")
