"""Latents of decoders that know no classes: what their encoders make of the real training images of a class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddbench.api import Run, Spec
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
