"""Latents of decoders that know no classes: what their encoders make of the real training images of a class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddbench.api import Run, Spec
from ddbench.errors import ConfigError

AT_ONCE = 32  # images that an encoder is given


@torch.no_grad()
def encode_real(run: Run, encode: Callable[[Tensor], Tensor], classes: Tensor, rng: torch.Generator) -> Tensor:
    """An encoding of a real training image for each class label: [B] -> w [B, 1, D], one code that is the flattened latent.

    Images of a class are drawn without replacement; they come again, in the same order, only where more are asked for than
    there are. `encode`: pixels [B,C,H,W] -> latents [B,...].
    """
    labels = classes.tolist()
    codes: list[Tensor] = []
    for label in sorted(set(labels)):
        wanted = labels.count(label)
        images = run.spec.denormalise(run.real(label, wanted, rng))
        latents = torch.cat([encode(part) for part in images.split(AT_ONCE)]).flatten(1)
        codes.append(latents[torch.arange(wanted, device=latents.device) % len(latents)])
    return torch.cat(codes)[_places(labels).to(classes.device), None]


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
