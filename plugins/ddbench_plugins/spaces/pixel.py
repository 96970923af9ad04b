"""The pixels themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ddbench.api import AtMost, Run, Space, State
from ddbench.errors import ConfigError
from ddbench.ops.codes import Samples, pushed, starting_codes
from ddbench.ops.reals import starting_images

Stages = Annotated[int, AtMost(1_000)]  # stages


@dataclass(frozen=True)
class Pixel(Space):
    """Pixel space: IPC images a class, optimised directly in normalised units.

    Starts from real training images (as DSA, DM and MTT), from N(0, 1) noise (the default of GLaD's public code, of DC, and
    of SRe2L), or from a generator's images: of one random code each ("generator"), or of averaged codes ("generator-average"),
    where H-PD starts too, with the same codes at the same seed; so it shows what of a result the start has brought.
    `clamp`: after every step, or every `clamp_every` of them, each channel is brought back to the range of real pixels, as SRe2L
    does after each and IDC after 100; the others never clamp.
    `repeat`: as many stages, each from the best of the one before, for rankers to choose among.
    Source: Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021. Departures: none.
    """

    init_from: Literal["real", "noise", "generator", "generator-average"] = "real"
    clamp: bool = False
    clamp_every: int = 1
    samples: Samples = 1000  # of the codes that "generator-average" averages for a class
    repeat: Stages = 1
    tensors: ClassVar[tuple[str, ...]] = ("pixels",)
    any_chunk: ClassVar[bool] = True
    is_rendered: ClassVar[bool] = False  # a generator makes the start alone

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if min(self.samples, self.repeat, self.clamp_every) < 1:
            got = f"{self.samples}, {self.repeat}, {self.clamp_every}"
            raise ConfigError(f"'samples', 'repeat' and 'clamp_every' must be at least 1, got {got}.")

    @property
    def needs_generator(self) -> bool:
        """Where it starts from a generator's images."""
        return self.init_from.startswith("generator")

    def num_stages(self, run: Run) -> int:
        """All alike."""
        return self.repeat

    def advance(self, state: State, run: Run) -> State:
        """The same pixels."""
        return state.clone()

    def init(self, run: Run) -> State:
        """pixels: [K * IPC, C, H, W]."""
        if self.init_from == "noise":
            pixels = torch.randn(run.spec.num_classes * run.ipc, *run.spec.shape, generator=run.rng("init"))
        elif self.needs_generator:
            pixels = self._generated(run)
        else:
            pixels = starting_images(run, run.ipc)
        return State({"pixels": pixels.to(run.device).clone()})

    def _generated(self, run: Run) -> Tensor:
        """A generator's images [K * IPC, C, H, W], normalised."""
        with torch.no_grad():
            codes = starting_codes(run, "average" if self.init_from == "generator-average" else "sample", self.samples)
        return run.spec.normalise(pushed(run, codes, None, 0, run.generator.depth))

    def project_(self, state: State, run: Run) -> None:
        """Clamp to black and white in normalised units, where asked for."""
        if self.clamp and (run.step + 1) % self.clamp_every == 0:
            pixels = state.params["pixels"]
            black = pixels.new_zeros(1, len(pixels[0]), 1, 1)
            pixels.clamp_(run.spec.normalise(black), run.spec.normalise(black + 1))

    def classes(self, state: State, run: Run) -> Tensor:
        """Sorted by class."""
        return torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(run.ipc)

    def decode(self, state: State, index: Tensor, run: Run) -> Tensor:
        """The images as they are stored."""
        return state.params["pixels"][index]
